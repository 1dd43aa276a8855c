"""What a sensitivity curve costs beside the bare forward passes that it is made of.

A residual network of 50 layers with bottlenecks, in seconds of the processor, which other work on the machine disturbs
less than those of the clock. Two figures: the seconds of a curve over those that its own forward passes take, which the
metric measures as it runs them; and the curve beside as many bare passes that follow it, which shows whether its passes
are slower than bare ones, as far as the machine is steady for some minutes. What is done once is in both: the check of
the model, the trace, and one pass with nothing pruned.

    python -m benchmarks.sensitivity            # about twenty minutes on one core
"""

import argparse
import statistics
import time

import torch
from torch import Tensor, nn
from torch.nn.functional import relu
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import Channel, Element, sensitivity


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with batch norm beside a shortcut."""

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        outer = 4 * inner
        shapes = ((inputs, inner, 1, 1), (inner, inner, 3, stride), (inner, outer, 1, 1))
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k, s, padding=k // 2, bias=False) for i, o, k, s in shapes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o, _, _ in shapes)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outer:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, height, width) to (batch, 4 inner, height / stride, width / stride)."""
        y = x
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(y))
            y = relu(y) if index < 2 else y
        return relu(y + self.shortcut(x))


class ResNet50(nn.Module):
    """The layers of ResNet-50 at a quarter of its widths."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        blocks, inputs = [], width
        for stage, count in enumerate((3, 4, 6, 3)):
            for index in range(count):
                blocks.append(Bottleneck(inputs, width << stage, 2 if index == 0 and stage else 1))
                inputs = 4 * (width << stage)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (batch, 10) of images (batch, 3, height, width)."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Timed:
    """A metric that adds up the seconds of its forward passes."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, model: nn.Module, batch: list[Tensor]) -> float:
        """Return the share of the batch that is classified rightly."""
        started = time.process_time()
        found = float((model(batch[0]).argmax(1) == batch[1]).float().mean())
        self.seconds += time.process_time() - started
        return found


def bare(model: nn.Module, loader: DataLoader, passes: int) -> float:
    """Return the seconds of so many passes with nothing pruned."""
    metric, started = Timed(), time.process_time()
    with torch.no_grad():
        for _ in range(passes):
            for batch in loader:
                metric(model, batch)
    return time.process_time() - started


def main() -> None:
    """Let curve and bare passes take turns and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--levels", type=float, nargs="+", default=[0.3, 0.6, 0.9])
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = ResNet50().eval()
    data = TensorDataset(torch.randn(args.images, 3, 32, 32), torch.randint(10, (args.images,)))
    loader, levels = DataLoader(data, 32), tuple(args.levels)
    for granularity in (Channel(), Element()):
        inside, beside = [], []
        for index in range(args.rounds):
            metric, started = Timed(), time.process_time()
            curve = sensitivity(
                model, loader, metric=metric, levels=levels, granularity=granularity,
                example_inputs=torch.zeros(1, 3, 32, 32),
            )  # fmt: skip
            seconds = time.process_time() - started
            points = len(curve.metrics) * len(levels)
            plain = bare(model, loader, points)
            inside.append(seconds / metric.seconds)
            beside.append(seconds / plain)
            print(
                f"{granularity}, round {index}: {len(curve.metrics)} layers, {points} points in {seconds:.1f} s, in its"
                f" forward passes {metric.seconds:.1f} s: {inside[-1]:.3f}; {points} bare passes {plain:.1f} s:"
                f" {beside[-1]:.3f}",
                flush=True,
            )
        print(
            f"{granularity}: {statistics.median(inside):.3f} of its own forward passes, {statistics.median(beside):.3f}"
            " of bare ones"
        )


if __name__ == "__main__":
    main()
