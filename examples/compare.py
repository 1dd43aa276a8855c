"""Three recipes and the small dense network side by side on handwritten digits, in a minute, as out/compare.html."""

from dataclasses import replace
from pathlib import Path

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import Channel, Guard, Magnitude, OneShot, Polynomial, PruningCallback, Recipe, Taylor
from lightning_prune.study import compare, sensitivity
from lightning_prune.study.report import Recorder, Report

TAYLOR = Recipe(schedule=Polynomial(0.8, 0.1, 0.5, 10), granularity=Channel(), criterion=Taylor(), count="macs")
RECIPES = {
    "taylor, gradual": TAYLOR,
    "magnitude, gradual": replace(TAYLOR, criterion=Magnitude(norm=2)),
    "taylor, at once": replace(TAYLOR, schedule=OneShot(0.8, begin_step=0.1)),
}


class Net(L.LightningModule):
    """Three convolutions with batch norm for 8x8 digits."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(1, 1, 8, 8)
        self.net = nn.Sequential(
            *(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, 2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10)),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (batch, 10) of images (batch, 1, 8, 8)."""
        return self.net(images)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss."""
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the accuracy."""
        self.log("val_acc", self.accuracy(batch))

    def accuracy(self, batch: list[Tensor]) -> Tensor:
        """Return the share of right answers."""
        return (self(batch[0]).argmax(1) == batch[1]).float().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


def main(epochs: int = 15, seeds: int = 3, width: int = 32, path: Path = Path("out/compare.html")) -> Path:
    """Compare, train the first recipe once more under a guard, and write the page; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images).float().view(-1, 1, 8, 8) / 16, torch.tensor(labels))
    rest, val = torch.utils.data.random_split(data, (0.8, 0.2), torch.Generator().manual_seed(0))
    loaders = DataLoader(rest, 64, shuffle=True), DataLoader(val, 360)
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    fair = {"budget_epochs": epochs, "seeds": seeds, "metric": Net.accuracy, "trainer": quiet}
    result = compare(lambda: Net(width), loaders, RECIPES, **fair)
    print(result)
    L.seed_everything(0, verbose=False)
    model, callback = Net(width), PruningCallback(TAYLOR, guard=Guard("val_acc", "max", 0.02))
    trainer = L.Trainer(max_epochs=epochs, callbacks=[callback, Recorder()], **quiet)
    trainer.fit(model, *loaders)
    given = {"comparison": result, "sensitivity": sensitivity(model, loaders[1], metric=Net.accuracy)}
    return Report.of(trainer, title="Three recipes on handwritten digits", **given).save(path)


if __name__ == "__main__":
    print(f"{main()} shows it all: open it in a browser")
