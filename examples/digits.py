"""Train, prune, remove, export and run: handwritten digits from Trainer.fit to a verified .pte.

One dense network, and from that same start one with 90 % of its multiply-accumulates removed as whole channels and
one with 90 % of its weights set to zero. Each is exported and run in the ExecuTorch runtime; the table compares them.

    python examples/digits.py                   # UCI digits, ships with scikit-learn, about two minutes
    python examples/digits.py --data cifar10    # downloads CIFAR-10 through torchvision when that is installed
"""

import argparse
import copy
import logging
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_prune import (
    Channel,
    Element,
    Global,
    Polynomial,
    PruningCallback,
    PruningMixin,
    Recipe,
    Recorder,
    Report,
    Taylor,
    summarize,
)
from lightning_prune.deploy import Artifact, Timings, benchmark
from lightning_prune.study.report import History


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, height, width) to (batch, outputs, height / stride, width / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResidualCNN(PruningMixin, L.LightningModule):
    """A residual network with batch norm: 151,274 parameters at width 32 for 8x8 digits."""

    def __init__(
        self, width: int = 32, channels: int = 1, size: int = 8, classes: int = 10, rate: float = 0.01
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.rate = rate
        self.example_input_array = torch.zeros(1, channels, size, size)
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.blocks = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, classes))
        self.val_acc = MulticlassAccuracy(classes, average="micro")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (batch, classes) of images (batch, channels, height, width)."""
        return self.head(self.blocks(self.stem(x)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss on randomly shifted images."""
        images, targets = batch
        return F.cross_entropy(self(shifted(images)), targets, label_smoothing=0.1)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the accuracy."""
        self.val_acc(self(batch[0]), batch[1])
        self.log("val_acc", self.val_acc, prog_bar=True)

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW with one cycle of the learning rate."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.rate, weight_decay=1e-3)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.rate, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def shifted(images: Tensor) -> Tensor:
    """Shift each image by up to an eighth of its size, differently each time."""
    count, _, height, width = images.shape
    most = height // 8
    padded = F.pad(images, (most,) * 4)
    top, left = torch.randint(0, 2 * most + 1, (2, count, 1), device=images.device)
    rows = (top + torch.arange(height, device=images.device))[:, :, None]
    columns = (left + torch.arange(width, device=images.device))[:, None, :]
    return padded[torch.arange(count, device=images.device)[:, None, None], :, rows, columns].permute(0, 3, 1, 2)


def digits() -> tuple[Tensor, Tensor]:
    """Return the 1,797 images (1797, 1, 8, 8) in [0, 1] and their classes."""
    from sklearn.datasets import load_digits

    images, targets = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(targets)


def cifar10(folder: Path) -> tuple[Tensor, Tensor]:
    """Return the 60,000 images (60000, 3, 32, 32) in [0, 1] and their classes; torchvision fetches them."""
    from torchvision.datasets import CIFAR10  # type: ignore[import-not-found]

    parts = [CIFAR10(folder, train=train, download=True) for train in (True, False)]
    images = torch.cat([torch.from_numpy(part.data) for part in parts]).permute(0, 3, 1, 2).float() / 255
    return images, torch.cat([torch.tensor(part.targets) for part in parts])


def loaders(images: Tensor, targets: Tensor, batch_size: int = 64) -> list[DataLoader]:
    """Return loaders for training (2/3), validation (2/15) and test (1/5), split at random but always alike."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, val = len(images) // 5, len(images) * 2 // 15
    parts = (order[test + val :], order[test : test + val], order[:test])
    sets = [TensorDataset(images[part], targets[part]) for part in parts]
    return [DataLoader(part, batch_size, shuffle=index == 0) for index, part in enumerate(sets)]


def train(model: L.LightningModule, data: Iterable[DataLoader], epochs: int, *callbacks: L.Callback) -> History:
    """Fit the model and return what it was like on the way."""
    recorder = Recorder("val_acc", figures=False)
    train_loader, val_loader, _ = data
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        max_epochs=epochs,
        callbacks=[*callbacks, recorder],
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(model, train_loader, val_loader)
    return recorder.history


def recipes() -> dict[str, Recipe]:
    """Return the two ways to prune."""
    gradually = {"begin_step": 0.02, "end_step": 0.3, "frequency": 15}
    return {
        "channels": Recipe(
            granularity=Channel(), criterion=Taylor(), allocation=Global(cost="macs"), count="macs",
            schedule=Polynomial(final_sparsity=0.9, **gradually),
        ),
        "elements": Recipe(
            granularity=Element(), criterion=Taylor(), schedule=Polynomial(final_sparsity=0.9, **gradually)
        ),
    }  # fmt: skip


@dataclass
class Result:
    """One trained network: the model, its history, and its file."""

    model: ResidualCNN
    history: History
    artifact: Artifact


def run(data: list[DataLoader], make: dict[str, Any], epochs: int, folder: Path) -> dict[str, Result]:
    """Train the dense network, prune copies of it, export all."""
    L.seed_everything(0, verbose=False)
    dense = ResidualCNN(**make)
    models, histories = {"dense": dense}, {"dense": train(dense, data, epochs)}
    for name, recipe in recipes().items():
        models[name] = copy.deepcopy(dense)
        histories[name] = train(models[name], data, epochs * 3 // 2, PruningCallback(recipe))
    labels = [str(label) for label in range(dense.hparams["classes"])]
    return {
        name: Result(model, histories[name], model.to_executorch(
            folder / f"{name}.pte", verify_on=data[2], metric=dense.val_acc, labels=labels,
        ))
        for name, model in models.items()
    }  # fmt: skip


def table(results: dict[str, Result], times: Timings) -> str:
    """Return one row per network; latency in the ExecuTorch runtime, interleaved, dense = 1.00x."""
    head = ("", "eager", "ExecuTorch", "parameters", "non-zero", "MACs", ".pte bytes", "zipped", "latency")
    lines = ["{:>10}{:>9}{:>12}{:>12}{:>10}{:>11}{:>12}{:>9}{:>9}".format(*head)]
    for name, result in results.items():
        file = result.artifact
        accuracy = file.metrics
        lines.append(
            f"{name:>10}{accuracy['eager']:>9.2%}{accuracy['executorch']:>12.2%}{file.parameters:>12,}"
            f"{file.nonzero_parameters:>10,}{file.macs:>11,}{file.size_bytes:>12,}{file.zipped_bytes:>9,}"
            f"{times[name].ratio:>8.2f}x"
        )
    return "\n".join(lines)


def report(results: dict[str, Result], times: Timings) -> Report:
    """Return a page on the network whose channels were pruned, beside the others."""
    return Report(
        history=results["channels"].history,
        models={name: result.model for name, result in results.items()},
        artifacts={name: result.artifact for name, result in results.items()},
        latencies=times,
        metric="accuracy",
        title="Handwritten digits",
    )


def main() -> None:
    """Run the whole way and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("digits", "cifar10"), default="digits")
    parser.add_argument("--epochs", type=int, default=30, help="of the dense network; pruning takes half as many more")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the .pte files and the report")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # small loaders need no workers, and 19 batches need no advice on logging
    warnings.filterwarnings("ignore", message=".*(does not have many workers|number of training batches).*")
    args.out.mkdir(parents=True, exist_ok=True)
    is_digits = args.data == "digits"
    if is_digits:
        torch.set_num_threads(1)  # 8x8 images are too small to be worth sharing between threads
    images, targets = digits() if is_digits else cifar10(args.out)
    make = {} if is_digits else {"channels": 3, "size": 32, "width": 64}
    results = run(loaders(images, targets, 64 if is_digits else 256), make, args.epochs, args.out)
    inputs = torch.rand_like(results["dense"].model.example_input_array)
    times = benchmark({name: result.artifact.path for name, result in results.items()}, inputs)
    report(results, times).save(args.out / "digits_report.html")
    print(f"\n{summarize(results['channels'].model)}\n")
    for result in results.values():
        print(f"{result.artifact}\n")
    print(table(results, times))
    print(f"\nfiles, manifests and digits_report.html are in {args.out.resolve()}")


if __name__ == "__main__":
    main()
