"""8-bit programs of dense and pruned networks on the UCI digits, and the latency of a ResNet-18-like network.

Accuracy: a residual CNN and one of depthwise convolutions, each trained three ways: dense, then from that same start
with 80 % of its MACs removed as whole channels, the last epochs as they are and quantization-aware. Every one is
exported in float, in 8 bits and in 8 bits with dynamic activations, and the .pte runs on the test images: in five folds
on all 1,797 of the digits, each of which is a test image once.

Latency: dense and half-width ResNet-18-like networks, in float and 8 bits, in turns on one thread.

    python -m benchmarks.quantization                # about half an hour on one core
    python -m benchmarks.quantization --folds 1 --epochs 3 2 --only accuracy
"""

import argparse
import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from benchmarks.digits_cv import folds as loaders_of
from examples.digits import ResidualCNN, train
from lightning_prune import Channel, Global, Polynomial, PruningCallback, QuantizationAware, Recipe, Taylor, summarize
from lightning_prune.deploy import XNNPACK, Int8, Int8Dynamic, Quantization, benchmark, export

PRUNED = Recipe(
    granularity=Channel(),
    criterion=Taylor(),
    allocation=Global(cost="macs"),
    count="macs",
    schedule=Polynomial(final_sparsity=0.8, begin_step=0.02, end_step=0.4, frequency=15),
)


class Separable(nn.Module):
    """A depthwise and a pointwise convolution, each with batch norm and ReLU6."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False)
        self.norm1 = nn.BatchNorm2d(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, height, width) to (N, outputs, height / stride, width / stride)."""
        return F.relu6(self.norm2(self.pointwise(F.relu6(self.norm1(self.depthwise(x))))))


class SeparableCNN(ResidualCNN):
    """Six depthwise separable blocks, which lose more to 8 bits than plain convolutions do."""

    def __init__(self, width: int = 32) -> None:
        super().__init__(width)
        sizes = ((width, 1), (width, 1), (2 * width, 2), (2 * width, 1), (2 * width, 1), (2 * width, 1))
        before = (width, *(size for size, _ in sizes))
        self.blocks = nn.Sequential(*(Separable(n, m, stride) for n, (m, stride) in zip(before, sizes, strict=False)))


class Basic(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()),
            *(nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, height, width) to (N, outputs, height / stride, width / stride)."""
        return F.relu(self.body(x) + self.shortcut(x))


def resnet18(width: int = 64) -> nn.Module:
    """Return a network of ResNet-18's layers for images (N, 3, 224, 224)."""
    sizes = [width * grow for grow in (1, 1, 2, 2, 4, 4, 8, 8)]
    blocks = [
        Basic(inputs, outputs, 1 if inputs == outputs else 2)
        for inputs, outputs in zip([width, *sizes], sizes, strict=False)
    ]
    return nn.Sequential(
        *(nn.Conv2d(3, width, 7, 2, padding=3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
        *blocks,
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 1000)),
    ).eval()


@dataclass(frozen=True)
class Row:
    """One program on the test images of one fold."""

    macs: int
    bytes: int
    images: int
    eager: float
    file: float
    changed: int


def accuracy(name: str, make: Callable[[], ResidualCNN], epochs: tuple[int, int], folds: int, folder: Path) -> None:
    """Print a row for each way to train and to store one network, over all folds."""
    rows: dict[tuple[str, str], list[Row]] = {}
    for index, (training, test) in enumerate(loaders_of(folds)):
        L.seed_everything(index, verbose=False)
        for kind, model in trained(make, [training, test, test], epochs).items():
            calibration = DataLoader(training.dataset, batch_size=64)
            ways = {"float": None, "int8": Int8(calibration), "dynamic": Int8Dynamic()}
            for way, quantization in ways.items():
                found = written(model, quantization, test, folder / f"{name}-{kind}-{way}.pte")
                rows.setdefault((kind, way), []).append(found)
        print(f"{name}: fold {index + 1} of {folds} is done", flush=True)
    dense = max(row.bytes for row in rows["dense", "float"])
    for (kind, way), own in rows.items():
        print(line(f"{name}, {kind}", way, own, dense), flush=True)


def trained(make: Callable[[], ResidualCNN], data: list[DataLoader], epochs: tuple[int, int]) -> dict[str, ResidualCNN]:
    """Return the network dense, and pruned from there: with the last epochs as they are and quantization-aware."""
    first, more = epochs
    dense = make()
    train(dense, data, first)
    models = {"dense": dense}
    for kind, callbacks in {"pruned": [], "pruned, aware": [QuantizationAware(begin_epoch=-max(more // 3, 1))]}.items():
        models[kind] = copy.deepcopy(dense)
        train(models[kind], data, more, PruningCallback(PRUNED), *callbacks)
    return models


def written(model: ResidualCNN, quantization: Quantization | None, test: DataLoader, path: Path) -> Row:
    """Export a model and run the file on the test images."""
    metric = MulticlassAccuracy(10, average="micro")
    backend = XNNPACK(quantization=quantization)
    x = torch.zeros(1, 1, 8, 8)
    artifact = export(model, path, example_inputs=x, backend=backend, verify_on=test, metric=metric)
    metrics, images = artifact.metrics, len(test.dataset)  # type: ignore[arg-type]
    macs, changed = summarize(model).macs or 0, artifact.changed_predictions or 0
    return Row(macs, artifact.size_bytes, images, metrics["eager"], metrics["executorch"], changed)


def line(name: str, way: str, rows: list[Row], dense: int) -> str:
    """Return a line of the table: shares of all test images, the most MACs and bytes of any fold."""
    images, macs, size = sum(r.images for r in rows), max(r.macs for r in rows), max(r.bytes for r in rows)
    eager, file = (sum(getattr(r, side) * r.images for r in rows) / images for side in ("eager", "file"))
    return (
        f"{name:<26}{way:<10}{macs:>10,} MACs{size:>10,} bytes{dense / size:>7.1f}x smaller"
        f"  eager {eager:.2%}  file {file:.2%}  changed {sum(r.changed for r in rows)}"
    )


def latency(folder: Path, rounds: int) -> None:
    """Print what half the channels and 8 bits do to a ResNet-18-like network."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, 224, 224)
    batches = [torch.randn(4, 3, 224, 224)]
    paths = {}
    for name, width in (("dense", 64), ("half the channels", 32)):
        model = resnet18(width)
        for way, quantization in (("float", None), ("int8", Int8(batches))):
            path = folder / f"{width}-{way}.pte"
            paths[f"{name}, {way}"] = path
            artifact = export(model, path, example_inputs=x, backend=XNNPACK(quantization=quantization))
            print(f"{name}, {way}: {artifact.size_bytes:,} bytes, outside: {artifact.notes}", flush=True)
    print(benchmark(paths, x, rounds=rounds))


def main() -> None:
    """Run both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, nargs=2, default=(20, 15), help="of the dense network, and after it")
    parser.add_argument("--folds", type=int, default=5, help="how many of the five to run")
    parser.add_argument("--rounds", type=int, default=20, help="of the latency")
    parser.add_argument("--only", choices=("accuracy", "latency"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if args.only != "latency":
            accuracy("residual", ResidualCNN, tuple(args.epochs), args.folds, Path(folder))
            accuracy("separable", SeparableCNN, tuple(args.epochs), args.folds, Path(folder))
        if args.only != "accuracy":
            latency(Path(folder), args.rounds)


if __name__ == "__main__":
    main()
