"""What channel groups cost on top of torch.export, what compact costs on top of its check, and how both grow.

    python -m benchmarks.graph_cost [rounds]

Each round times all sides of a network one after the other, in processor seconds of one thread, so that other work on
the machine counts little; printed are the median and the extremes over the rounds.
"""

import copy
import statistics
import sys
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_prune import Compaction, channel_groups, compact
from lightning_prune.compaction._equivalence import Comparison
from lightning_prune.graph.flow import Flow
from lightning_prune.graph.rules.table import rule_of
from lightning_prune.graph.trace import trace

LIMITS = {"ResNet-50": 1.0, "DenseNet-121": 2.0}
COMPACT_LIMIT = 0.5


def conv(made_of: int, makes: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Return a convolution with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(made_of, makes, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(makes), nn.ReLU()
    )


class Bottleneck(nn.Module):
    """Three convolutions and a residual."""

    def __init__(self, made_of: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(made_of, width, 1), conv(width, width, 3, stride), conv(width, 4 * width, 1)[:2])
        changes = stride > 1 or made_of != 4 * width
        self.short = conv(made_of, 4 * width, 1, stride)[:2] if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum, after ReLU."""
        return torch.relu(self.body(x) + self.short(x))


def head(width: int) -> nn.Sequential:
    """Return a classifier of 1,000 classes."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000))


def resnet_50() -> nn.Module:
    """He et al. 2016: 25.6 million parameters."""
    layers: list[nn.Module] = [conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    width = 64
    for stage, depth in enumerate((3, 4, 6, 3)):
        for block in range(depth):
            layers.append(Bottleneck(width, 64 * 2**stage, 2 if stage and not block else 1))
            width = 256 * 2**stage
    return nn.Sequential(*layers, head(width))


def normed(made_of: int, makes: int, kernel: int) -> nn.Sequential:
    """Return batch norm, ReLU and a convolution."""
    return nn.Sequential(
        nn.BatchNorm2d(made_of), nn.ReLU(), nn.Conv2d(made_of, makes, kernel, 1, kernel // 2, bias=False)
    )


class Dense(nn.Module):
    """Adds its channels beside those that it reads."""

    def __init__(self, width: int, growth: int = 32) -> None:
        super().__init__()
        self.squeeze, self.grow = normed(width, 4 * growth, 1), normed(4 * growth, growth, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return both, one after the other."""
        return torch.cat([x, self.grow(self.squeeze(x))], 1)


def densenet_121() -> nn.Module:
    """Huang et al. 2017: 8 million parameters."""
    layers: list[nn.Module] = [conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    width = 64
    for stage, depth in enumerate((6, 12, 24, 16)):
        layers += [Dense(width + 32 * block) for block in range(depth)]
        width += 32 * depth
        if stage < 3:
            layers += [normed(width, width // 2, 1), nn.AvgPool2d(2)]
            width //= 2
    return nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU(), head(width))


def residual(depth: int, width: int = 32) -> nn.Module:
    """Return a residual network of so many blocks."""
    return nn.Sequential(conv(3, 4 * width), *(Bottleneck(4 * width, width, 1) for _ in range(depth)), head(4 * width))


def seconds(action: Callable[[], object]) -> float:
    """Return the processor seconds that an action takes."""
    start = time.process_time()
    action()
    return time.process_time() - start


def told(values: list[float]) -> str:
    """Return median and extremes in words."""
    return f"{statistics.median(values):6.3f} s ({min(values):.3f} to {max(values):.3f})"


def export(model: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    """Do what channel_groups does before it looks at the graph, plainly."""
    with torch.no_grad():
        return torch.export.export(copy.deepcopy(model).eval(), (x,), strict=False)


def graph_cost(model: nn.Module, x: Tensor, rounds: int) -> tuple[list[float], list[float]]:
    """Return for each round the seconds of the export alone, and those of channel_groups beyond them."""
    exports, beyond = [], []
    for _ in range(rounds):
        exports.append(seconds(lambda: export(model, x)))
        beyond.append(seconds(lambda: channel_groups(model, x)) - exports[-1])
    return exports, beyond


def solver_cost(model: nn.Module, x: Tensor, rounds: int) -> list[float]:
    """Return for each round the seconds that the axes take to settle on a graph that is recorded already."""
    recorded = trace(model, x)
    return [seconds(lambda: Flow(recorded, rule_of).solve()) for _ in range(rounds)]


def compact_cost(model: nn.Module, x: Tensor, rounds: int) -> tuple[list[float], list[float]]:
    """Return for each round the seconds of the check alone, and those of compact beyond them."""
    groups = channel_groups(model, x)
    plan = Compaction.from_keep(groups, {group.name: range(group.size // 2) for group in groups if group.prunable})
    checks, beyond = [], []
    for _ in range(rounds):
        fresh = copy.deepcopy(model)
        checks.append(seconds(lambda: Comparison(model, plan, ((x,), {})).errors(plan, 1e-9)))
        beyond.append(seconds(lambda one=fresh: compact(one, plan, x)) - checks[-1])
    return checks, beyond


def main() -> None:
    """Print the costs."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    torch.manual_seed(0)
    export(residual(1), torch.randn(1, 3, 8, 8))  # the first export of a process loads torch's own machinery
    channel_groups(residual(1), torch.randn(1, 3, 8, 8))
    image = torch.randn(1, 3, 224, 224)
    for name, make in {"ResNet-50": resnet_50, "DenseNet-121": densenet_121}.items():
        model = make().eval()
        exports, beyond = graph_cost(model, image, rounds)
        print(f"{name}: torch.export {told(exports)}; channel_groups on top {told(beyond)}, limit {LIMITS[name]} s")
        checks, beyond = compact_cost(model, image, rounds)
        print(f"{name}: check {told(checks)}; compact on top {told(beyond)}, limit {COMPACT_LIMIT} s", flush=True)
    for depth in (4, 16, 64):
        model, x = residual(depth).eval(), torch.randn(1, 3, 8, 8)
        nodes = len(export(model, x).graph.nodes)
        solved = solver_cost(model, x, rounds)
        each = f"{1e3 * statistics.median(solved) / nodes:.3f} ms a node"
        print(f"{depth // 4}x depth, {nodes} nodes: axes settled in {told(solved)}, {each}", flush=True)


if __name__ == "__main__":
    main()
