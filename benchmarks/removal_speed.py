"""How much of the speed that removed channels promise arrives on XNNPACK?

A ResNet-18-like and a MobileNetV2-like network lose about half of the channels of every group, by several rules for the
width that is left. Dense and compact files are timed in turns, on one thread. *Kept* is how much of the possible speed
arrives: (MACs left / dense) / (time / dense). The weights are random: only the widths matter here.

    python -m benchmarks.removal_speed
    python -m benchmarks.removal_speed --networks mobilenet --size 160 --rounds 40
"""

import argparse
import copy
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_prune import Channel, Compaction, channel_groups, compact, summarize
from lightning_prune.deploy import XNNPACK, Int8, benchmark, export

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
Width = Callable[[int], int]
"""Channels of a group -> channels that are left of it."""


def conv(made_of: int, makes: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return a convolution and its batch norm."""
    return [nn.Conv2d(made_of, makes, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(makes)]


class Inverted(nn.Module):
    """An inverted residual block."""

    def __init__(self, made_of: int, makes: int, stride: int, grow: int) -> None:
        super().__init__()
        wide, act = made_of * grow, nn.ReLU6
        self.is_residual = stride == 1 and made_of == makes
        expand = [*conv(made_of, wide, 1), act()] if grow > 1 else []
        depthwise = [*conv(wide, wide, 3, stride, groups=wide), act()]
        self.body = nn.Sequential(*expand, *depthwise, *conv(wide, makes, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the same image size, or half of it."""
        return x + self.body(x) if self.is_residual else self.body(x)


class Basic(nn.Module):
    """A basic block of ResNet-18."""

    def __init__(self, made_of: int, makes: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv(made_of, makes, 3, stride), nn.ReLU(), *conv(makes, makes, 3))
        self.shortcut = nn.Sequential(*conv(made_of, makes, 1, stride)) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the same image size, or half of it."""
        return F.relu(self.body(x) + self.shortcut(x))


def resnet(width: int = 64) -> nn.Module:
    """Return ResNet-18 for a thousand classes."""
    blocks, made_of = [], width
    for makes, stride in ((width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)):
        blocks += [Basic(made_of, makes, stride), Basic(makes, makes, 1)]
        made_of = makes
    stem = [*conv(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 1000))


def mobilenet(depth: float = 1) -> nn.Module:
    """Return MobileNetV2 for a thousand classes, its stages some times as long."""
    width, layers = 32, [*conv(3, 32, 3, 2), nn.ReLU6()]
    for grow, makes, count, stride in STAGES:
        for number in range(round(depth * count)):
            layers.append(Inverted(width, makes, 1 if number else stride, grow))
            width = makes
    head = [*conv(width, 1280, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000)]
    return nn.Sequential(*layers, *head)


def half(size: int) -> int:
    """Half of the channels, whatever that is."""
    return size // 2


def half_down_to(multiple: int) -> Width:
    """Half of the channels, rounded down to a multiple; the first one where there is none below."""

    def width(size: int) -> int:
        allowed = Channel(min_channels=min(multiple, size), round_to=multiple).widths(size)
        return max((w for w in allowed if w <= size // 2), default=min(allowed))

    return width


RULES: dict[str, Width] = {"half": half, "half, to 8": half_down_to(8), "half, to 16": half_down_to(16)}


def narrowed(model: nn.Module, width: Width, x: Tensor) -> nn.Module:
    """Return a copy with fewer channels in every group that can lose some."""
    narrow = copy.deepcopy(model)
    groups = channel_groups(narrow, x)
    keep = {g.name: range(width(g.size)) for g in groups if g.prunable}
    compact(narrow, Compaction.from_keep(groups, keep))
    return narrow


def compared(dense: nn.Module, x: Tensor, rounds: int, with_int8: bool) -> Iterator[str]:
    """Yield one line for each rule, and for half the channels in 8-bit integers."""
    models = {"dense": dense} | {name: narrowed(dense, rule, x) for name, rule in RULES.items()}
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for number, (name, model) in enumerate(models.items()):
            paths[name] = export(model, Path(folder) / f"{number}.pte", example_inputs=x).path
        if with_int8:
            backend = XNNPACK(quantization=Int8(calibration=[torch.randn(8, *x.shape[1:])]))
            paths["half, int8"] = export(
                models["half"], Path(folder) / "int8.pte", example_inputs=x, backend=backend
            ).path
        times = benchmark(paths, x, rounds=rounds)
    total = summarize(dense, x)
    for name in paths:
        now = summarize(models.get(name, models["half"]), x)
        macs, row = (now.macs or 0) / (total.macs or 1), times[name]
        kept = f"{macs / row.ratio:>7.2f}" if name in models else ""
        size = now.parameters / total.parameters
        yield f"{name:>14}{size:>12.3f}{macs:>8.3f}{row.median_ms:>9.2f}{row.ratio:>8.3f}{kept}"


NETWORKS: dict[str, Callable[[], nn.Module]] = {"resnet": resnet, "mobilenet": mobilenet}


def main() -> None:
    """Narrow each network by each rule, export, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--size", type=int, default=224, help="of the image")
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.networks:
        torch.manual_seed(0)
        x = torch.randn(1, 3, args.size, args.size)
        print(f"{name}, {args.size}×{args.size}, {args.rounds} rounds, one thread")
        print(f"{'':>14}{'parameters':>12}{'MACs':>8}{'ms':>9}{'time':>8}{'kept':>7}")
        print("\n".join(compared(NETWORKS[name]().eval(), x, args.rounds, with_int8=name == "resnet")), flush=True)


if __name__ == "__main__":
    main()
