"""YOLOv8 n, detection and classification, in a LightningModule around ultralytics' own networks and losses."""

import os
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("YOLO_CONFIG_DIR", "/tmp")

import lightning as L
import torch
from torch import Tensor
from ultralytics.nn.tasks import ClassificationModel, DetectionModel

from projects.common import Case, run


class YOLO(L.LightningModule):
    """A network of ultralytics with its own loss."""

    def __init__(self, kind: str, cfg: str, nc: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = {"detect": DetectionModel, "classify": ClassificationModel}[kind](cfg, nc=nc, verbose=False)
        self.model.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)

    def forward(self, image: Tensor) -> Any:
        """Return what the network returns: raw maps in training, boxes in eval mode."""
        return self.model(image)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of ultralytics."""
        loss, _ = self.model.loss(batch, self(batch["img"]))
        return loss.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return what ultralytics takes for short runs."""
        return torch.optim.AdamW(self.parameters(), lr=0.002)


def squares(samples: list[int]) -> dict[str, Tensor]:
    """Return images with one bright square each, its box and its class."""
    images, boxes = [], []
    for sample in samples:
        draw = torch.Generator().manual_seed(sample)
        x, y = (int(v) for v in torch.randint(8, 40, (2,), generator=draw))
        image = 0.2 * torch.rand(3, 64, 64, generator=draw)
        image[sample % 2, y : y + 16, x : x + 16] = 1.0
        images.append(image)
        boxes.append(torch.tensor([(x + 8) / 64, (y + 8) / 64, 0.25, 0.25]))
    classes = torch.tensor([float(sample % 2) for sample in samples])
    return {"img": torch.stack(images), "bboxes": torch.stack(boxes), "cls": classes[:, None]} | {
        "batch_idx": torch.arange(len(samples)).float()
    }


def labelled(samples: list[int]) -> dict[str, Tensor]:
    """Return the same images for a classifier."""
    batch = squares(samples)
    return {"img": batch["img"], "cls": batch["cls"][:, 0].long()}


class Vision(Case):
    """One network."""

    def __init__(self, name: str, kind: str, cfg: str, collate: Any) -> None:
        self.name, self.kind, self.cfg, self.collate = name, kind, cfg, collate

    def fit(self, callbacks: list[Any], folder: Path) -> Any:
        """Train for two epochs."""
        model = YOLO(self.kind, self.cfg, nc=2)
        loader = torch.utils.data.DataLoader(list(range(48)), batch_size=8, shuffle=True, collate_fn=self.collate)
        self.trainer = L.Trainer(
            max_epochs=3, accelerator="cpu", callbacks=callbacks, logger=False, enable_progress_bar=False
        )
        self.trainer.fit(model, loader)
        return model

    def example(self, fitted: Any, seen: Any) -> Any:
        """Return one image."""
        return (squares([0])["img"],), {}

    def reload(self, fitted: Any, folder: Path) -> Any:
        """Through a checkpoint."""
        self.trainer.save_checkpoint(folder / "small.ckpt")
        return YOLO.load_from_checkpoint(folder / "small.ckpt", weights_only=False)

    def predict(self, fitted: Any) -> Any:
        """Return what it says of one image."""
        with torch.no_grad():
            return fitted.eval()(squares([0])["img"])


if __name__ == "__main__":
    cases = [
        Vision("YOLOv8n", "detect", "yolov8n.yaml", squares),
        Vision("YOLOv8n-cls", "classify", "yolov8n-cls.yaml", labelled),
    ]
    run("ultralytics", version("ultralytics"), cases)
