"""BYOL with a small ResNet on random images, as in lightly's example for PyTorch Lightning."""

import copy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torchvision
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn

from projects.common import Case, run


class BYOL(pl.LightningModule):
    """The module of the example; its images are smaller."""

    def __init__(self) -> None:
        super().__init__()
        resnet = torchvision.models.resnet18()
        self.backbone = nn.Sequential(*list(resnet.children())[:-1])
        self.projection_head = BYOLProjectionHead(512, 256, 64)
        self.prediction_head = BYOLPredictionHead(64, 256, 64)

        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)

        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)

        self.criterion = NegativeCosineSimilarity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the prediction."""
        y = self.backbone(x).flatten(start_dim=1)
        z = self.projection_head(y)
        return self.prediction_head(z)

    def forward_momentum(self, x: Tensor) -> Tensor:
        """Return the projection of the momentum encoder."""
        y = self.backbone_momentum(x).flatten(start_dim=1)
        z = self.projection_head_momentum(y)
        return z.detach()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Let each view predict the other."""
        momentum = cosine_schedule(self.current_epoch, 10, 0.996, 1)
        update_momentum(self.backbone, self.backbone_momentum, m=momentum)
        update_momentum(self.projection_head, self.projection_head_momentum, m=momentum)
        x0, x1 = batch
        p0 = self.forward(x0)
        z0 = self.forward_momentum(x0)
        p1 = self.forward(x1)
        z1 = self.forward_momentum(x1)
        return 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return what the example uses."""
        return torch.optim.SGD(self.parameters(), lr=0.06)


class BYOLCase(Case):
    """The whole example."""

    name = "BYOL, ResNet-18"

    def fit(self, callbacks: list[Any], folder: Path) -> Any:
        """Train for two epochs."""
        images = torch.rand(96, 3, 32, 32)
        views = torch.utils.data.TensorDataset(images, (images + 0.1 * torch.randn_like(images)).clamp(0, 1))
        loader = torch.utils.data.DataLoader(views, batch_size=16, shuffle=True, drop_last=True)
        model = BYOL()
        self.trainer = pl.Trainer(
            max_epochs=2, accelerator="cpu", callbacks=callbacks, logger=False, enable_progress_bar=False
        )
        self.trainer.fit(model=model, train_dataloaders=loader)
        return model

    def example(self, fitted: Any, seen: Any) -> Any:
        """Return two images."""
        return (torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)),), {}

    def reload(self, fitted: Any, folder: Path) -> Any:
        """Through a checkpoint."""
        self.trainer.save_checkpoint(folder / "small.ckpt")
        return BYOL.load_from_checkpoint(folder / "small.ckpt", weights_only=False)

    def predict(self, fitted: Any) -> Any:
        """Return the predictions and what the momentum encoder makes of the same images."""
        fitted.eval()
        images = self.example(fitted, None)[0][0]
        with torch.no_grad():
            return [fitted(images), fitted.forward_momentum(images)]


if __name__ == "__main__":
    run("lightly", version("lightly"), [BYOLCase()])
