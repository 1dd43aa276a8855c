"""A recipe in LightningCLI's YAML: every part of it is a class_path with init_args, or a plain value.

python examples/cli.py fit --config examples/cli.yaml
python examples/cli.py fit --config examples/cli.yaml --model.width 32 --trainer.max_epochs 6
"""

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LightningCLI
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import PruningMixin, summarize


class Digits(PruningMixin, L.LightningModule):
    """A small batch-norm CNN for 8x8 digits."""

    example_input_array = torch.zeros(1, 1, 8, 8)

    def __init__(self, width: int = 16, rate: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.rate = rate
        self.features = nn.Sequential(
            *(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()),
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (batch, 10) of images (batch, 1, 8, 8)."""
        return self.head(self.features(x))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the accuracy."""
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self.rate)


class DigitsData(L.LightningDataModule):
    """scikit-learn's handwritten digits, the last 360 for validation."""

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        self.batch_size = batch_size
        images, targets = load_digits(return_X_y=True)
        self.data = TensorDataset(torch.tensor(images).float().view(-1, 1, 8, 8) / 16, torch.tensor(targets))

    def train_dataloader(self) -> DataLoader:
        """Return the first 1,437 images, shuffled."""
        return DataLoader(torch.utils.data.Subset(self.data, range(1437)), self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Return the other 360."""
        return DataLoader(torch.utils.data.Subset(self.data, range(1437, 1797)), 360)


if __name__ == "__main__":
    cli = LightningCLI(Digits, DigitsData, save_config_callback=None)
    print(summarize(cli.model))
