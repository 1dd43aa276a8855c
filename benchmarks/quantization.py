"""8-bit programs of dense and pruned networks on the UCI digits, and the latency of a ResNet-18-like network.

Accuracy: a residual CNN and one of depthwise convolutions, each trained three ways: dense, then from that same start
with 80 % of its MACs removed as whole channels, the last epochs as they are and quantization-aware. Every one is
exported in float, in 8 bits and in 8 bits with dynamic activations; the .pte runs on all 359 test images.

Latency: dense and half-width ResNet-18-like networks, in float and 8 bits, in turns on one thread.

    python -m benchmarks.quantization                # about a quarter of an hour on one core
    python -m benchmarks.quantization --epochs 3 2 --only accuracy
"""

import argparse
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from examples.digits import ResidualCNN, digits, loaders, train
from lightning_prune import Channel, Global, Polynomial, PruningCallback, QuantizationAware, Recipe, Taylor, summarize
from lightning_prune.deploy import XNNPACK, Artifact, Int8, Int8Dynamic, Quantization, benchmark, export

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


def accuracy(name: str, make: Callable[[], ResidualCNN], epochs: tuple[int, int], folder: Path) -> None:
    """Print a row for each way to train and to store one network."""
    first, more = epochs
    data = loaders(*digits())
    L.seed_everything(0, verbose=False)
    dense = make()
    train(dense, data, first)
    models = {"dense": dense}
    for kind, callbacks in {"pruned": [], "pruned, aware": [QuantizationAware(begin_epoch=-max(more // 3, 1))]}.items():
        models[kind] = copy.deepcopy(dense)
        train(models[kind], data, more, PruningCallback(PRUNED), *callbacks)
    calibration = DataLoader(data[0].dataset, batch_size=64)
    ways: dict[str, Quantization | None] = {"float": None, "int8": Int8(calibration), "dynamic": Int8Dynamic()}
    size = 0
    for kind, model in models.items():
        for way, quantization in ways.items():
            artifact = written(model, quantization, data[2], folder / f"{name}-{kind}-{way}.pte")
            size = size or artifact.size_bytes
            print(row(f"{name}, {kind}", way, model, artifact, size), flush=True)


def written(model: ResidualCNN, quantization: Quantization | None, test: DataLoader, path: Path) -> Artifact:
    """Export a model and run the file on the test images."""
    metric = MulticlassAccuracy(10, average="micro")
    backend = XNNPACK(quantization=quantization)
    return export(model, path, example_inputs=torch.zeros(1, 1, 8, 8), backend=backend, verify_on=test, metric=metric)


def row(name: str, way: str, model: nn.Module, artifact: Artifact, dense: int) -> str:
    """Return a line of the table."""
    metrics = artifact.metrics
    return (
        f"{name:<26}{way:<10}{summarize(model).macs or 0:>10,} MACs{artifact.size_bytes:>10,} bytes"
        f"{dense / artifact.size_bytes:>7.1f}x smaller  eager {metrics['eager']:.2%}  file {metrics['executorch']:.2%}"
        f"  changed {artifact.changed_predictions}  max error {artifact.max_abs_error:.2g}"
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
    parser.add_argument("--rounds", type=int, default=20, help="of the latency")
    parser.add_argument("--only", choices=("accuracy", "latency"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if args.only != "latency":
            accuracy("residual", ResidualCNN, tuple(args.epochs), Path(folder))
            accuracy("separable", SeparableCNN, tuple(args.epochs), Path(folder))
        if args.only != "accuracy":
            latency(Path(folder), args.rounds)


if __name__ == "__main__":
    main()
