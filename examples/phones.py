"""Write what the two apps run: a digits network, trained, half its channels removed, exported for each phone.

examples/android/model becomes a Gradle module and examples/ios/model a Swift package; docs/apps.md says how to build
the apps with them.

    python examples/phones.py               # UCI digits, ships with scikit-learn, about two minutes
"""

import argparse
import warnings
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_prune import Channel, Polynomial, PruningCallback, PruningMixin, Recipe, Taylor
from lightning_prune.deploy import Backend, CoreML, export_android, export_ios

HERE = Path(__file__).parent


class Digits(PruningMixin, L.LightningModule):
    """Three convolutions and a Linear: (N, 1, 8, 8) in [0, 1] -> (N, 10)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(1, 1, 8, 8)
        sizes = ((1, width), (width, 2 * width), (2 * width, 2 * width))
        layers = [nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU()) for i, o in sizes]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(8 * width, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        return self.head(self.layers(image))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def trained(epochs: int, width: int) -> tuple[Digits, DataLoader]:
    """Return a network with half of its channels, and images that it has not seen."""
    images, classes = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(classes))
    train, test = torch.utils.data.random_split(data, [1400, 397], torch.Generator().manual_seed(0))
    schedule = Polynomial(final_sparsity=0.5, begin_step=0.2, end_step=0.6, frequency=2)
    recipe = Recipe(granularity=Channel(), criterion=Taylor(), schedule=schedule)
    L.seed_everything(0, verbose=False)
    model = Digits(width)
    trainer = L.Trainer(
        max_epochs=epochs, callbacks=[PruningCallback(recipe)], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader(train, 64, shuffle=True))
    return model, DataLoader(test, 64)


def main(epochs: int = 10, width: int = 32, folder: Path = HERE, ios: Backend | None = None) -> None:
    """Write both bundles and print them."""
    model, test = trained(epochs, width)
    metric, labels = MulticlassAccuracy(10, average="micro"), [str(digit) for digit in range(10)]
    print(export_android(model, folder / "android" / "model", verify_on=test, metric=metric, labels=labels))
    backend = ios or CoreML(deployment_target="iOS17")
    print(export_ios(model, folder / "ios" / "model", backend=backend, verify_on=test, metric=metric, labels=labels))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    warnings.filterwarnings("ignore", message=".*(does not have many workers|number of training batches).*")
    torch.set_num_threads(1)  # 8x8 images are too small to be worth sharing between threads
    main(parser.parse_args().epochs)
