"""Inception-ResNet and MTCNN's networks in a LightningModule, on random faces."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from facenet_pytorch import InceptionResnetV1, ONet, PNet, RNet
from torch import Tensor

from projects.common import Case, run


class Recognizer(L.LightningModule):
    """Fine-tuning of the embedding network as a classifier, as in the package's example."""

    side, count, classes = 80, 16, 4

    def __init__(self) -> None:
        super().__init__()
        self.resnet = InceptionResnetV1(classify=True, num_classes=self.classes)

    def forward(self, faces: Tensor) -> Tensor:
        """Return logits."""
        return self.resnet(faces)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the cross entropy."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=0.001)


class Detector(L.LightningModule):
    """A network of MTCNN with its real weights: is there a face?"""

    count, classes = 96, 2

    def __init__(self, kind: str, side: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net, self.side = {"P": PNet, "R": RNet, "O": ONet}[kind](), side

    def forward(self, faces: Tensor) -> Any:
        """Return boxes, landmarks where there are any, and the probability."""
        return self.net(faces)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of the probability."""
        return F.nll_loss(self(batch[0])[-1].flatten(1)[:, :2].clamp(min=1e-6).log(), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=0.001)


class Faces(Case):
    """One network."""

    def __init__(self, name: str, make: Any, every: int = 3) -> None:
        self.name, self.make, self.every = name, make, every

    def fit(self, callbacks: list[Any], folder: Path) -> Any:
        """Train for two epochs."""
        model = self.make()
        images = torch.rand(model.count, 3, model.side, model.side) * 2 - 1
        data = torch.utils.data.TensorDataset(images, torch.randint(0, model.classes, (model.count,)))
        self.trainer = L.Trainer(
            max_epochs=2, accelerator="cpu", callbacks=callbacks, logger=False, enable_progress_bar=False
        )
        self.trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=4))
        return model

    def example(self, fitted: Any, seen: Any) -> Any:
        """Return two faces."""
        draw = torch.Generator().manual_seed(0)
        return (torch.rand(2, 3, fitted.side, fitted.side, generator=draw) * 2 - 1,), {}

    def reload(self, fitted: Any, folder: Path) -> Any:
        """Through a checkpoint."""
        self.trainer.save_checkpoint(folder / "small.ckpt")
        return type(fitted).load_from_checkpoint(folder / "small.ckpt", weights_only=False)

    def predict(self, fitted: Any) -> Any:
        """Return what it says of two faces."""
        with torch.no_grad():
            return fitted.eval()(*self.example(fitted, None)[0])


if __name__ == "__main__":
    cases = [
        Faces("MTCNN P-Net", lambda: Detector("P", 12)),
        Faces("MTCNN R-Net", lambda: Detector("R", 24)),
        Faces("MTCNN O-Net", lambda: Detector("O", 48)),
        Faces("InceptionResnetV1", Recognizer, every=2),
    ]
    run("facenet-pytorch", version("facenet-pytorch"), cases)
