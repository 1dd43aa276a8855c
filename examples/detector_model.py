"""A detector of ultralytics in a LightningModule, and how its boxes are read and judged.

The network is built from ultralytics' modules, which are published under AGPL-3.0. lightning_prune is Apache-2.0 and
does not depend on them.
"""

from types import SimpleNamespace
from typing import Any

import lightning as L
import torch
from detector_data import LABELS, SIDE
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.nms import TorchNMS

from lightning_prune import PruningMixin
from lightning_prune.deploy import RuntimeModel


def detections(output: Tensor, confidence: float = 0.05) -> list[dict[str, Tensor]]:
    """Return boxes in pixels, scores and labels for each image, without those that overlap a better one of their class.

    Args:
        output: centre, size and a score per class of every anchor: (batch, 4 + classes, anchors).
        confidence: of the least certain box.
    """
    images = []
    for anchors in output:
        scores, labels = anchors[4:].max(0)
        sure = scores > confidence
        centres, halves = anchors[:2, sure].T, anchors[2:4, sure].T / 2
        boxes, scores, labels = torch.cat([centres - halves, centres + halves], 1), scores[sure], labels[sure]
        kept = TorchNMS.nms(boxes + 1e4 * labels[:, None], scores, 0.5)  # no box overlaps one of another class
        images.append({"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]})
    return images


def precision(program: RuntimeModel, batches: torch.utils.data.DataLoader) -> float:
    """Return the mean average precision of what a file detects in the runtime, an image at a time."""
    metric = MeanAveragePrecision(box_format="xyxy")
    for images, targets in batches:
        metric.update([detections(program(image[None])[0])[0] for image in images], targets)
    return float(metric.compute()["map"])


class Detector(PruningMixin, L.LightningModule):
    """A YOLO of ultralytics with its own loss, judged by torchmetrics' mean average precision."""

    def __init__(self, cfg: str = "yolo11n.yaml", rate: float = 2e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.rate = rate
        self.network = DetectionModel(cfg, nc=len(LABELS), verbose=False)
        self.network.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5, epochs=1)  # what its loss weighs terms by
        self.network.model[-1].export = True  # eval gives (batch, 4 + classes, anchors) alone, not the raw maps beside
        self.metric = MeanAveragePrecision(box_format="xyxy")
        self.example_input_array = torch.zeros(1, 3, SIDE, SIDE)

    def forward(self, image: Tensor) -> Any:  # noqa: ANN401
        """Return raw maps in training; in eval mode centre, size and a score per class of every anchor."""
        return self.network(image)

    def training_step(self, batch: tuple[Tensor, list[dict[str, Tensor]]], batch_idx: int) -> Tensor:
        """Return the loss of ultralytics."""
        images, targets = batch
        corners = torch.cat([t["boxes"] for t in targets]) / images.shape[-1]
        boxes = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
        index = torch.cat([torch.full((len(t["labels"]),), i) for i, t in enumerate(targets)])
        classes = torch.cat([t["labels"] for t in targets])
        loss, _ = self.network.loss({"batch_idx": index, "cls": classes, "bboxes": boxes}, self(images))
        return loss.sum()

    def validation_step(self, batch: tuple[Tensor, list[dict[str, Tensor]]], batch_idx: int) -> None:
        """Count what was detected."""
        self.metric.update(detections(self(batch[0])), batch[1])

    def on_validation_epoch_end(self) -> None:
        """Log the mean average precision."""
        self.log("val_map", self.metric.compute()["map"], prog_bar=True)
        self.metric.reset()

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW with one cycle of the learning rate."""
        optimizer = torch.optim.AdamW(self.parameters(), self.rate)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.rate, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
