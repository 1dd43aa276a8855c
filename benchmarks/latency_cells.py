"""How far is the latency that a table of cells predicts from the one that is measured?

For each network the table is measured; copies at uniform and at random widths, which it does not see, are lowered whole
and timed in the same session, on one thread by its processor time. The weights are random: only the widths matter
here. *Furthest* is the largest distance of predicted / measured from 1.

    python -m benchmarks.latency_cells
    python -m benchmarks.latency_cells --networks resnet --size 64 --points 5
    python -m benchmarks.latency_cells --int8
"""

import argparse
import os
import random
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.removal_speed import NETWORKS
from lightning_prune import Channel, Compaction, channel_groups, compact
from lightning_prune.deploy import XNNPACK, Int8, latency_table
from lightning_prune.deploy.clock import least_of
from lightning_prune.deploy.designs import Program
from lightning_prune.deploy.latency_table import Bench
from lightning_prune.deploy.program.eager import folded_copy
from lightning_prune.run.binding import units_of
from lightning_prune.selection.targets import Targets

SHARES = (0.84, 0.7, 0.55, 0.35)
"""Of the width: about 70, 50, 30 and 12 % of the multiply-accumulates."""


class Block(nn.Module):
    """Attention and an MLP, each with its LayerNorm and past it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.first, self.second = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, places, width)."""
        y = self.first(x)
        layers = (self.query, self.key, self.value)
        q, k, v = (layer(y).unflatten(2, (-1, 32)).transpose(1, 2) for layer in layers)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.second(x))))


class ViT(nn.Module):
    """A vision transformer of six blocks, 192 wide."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 192, 12, 12)
        self.blocks = nn.Sequential(*(Block(192, 6) for _ in range(6)))
        self.head = nn.Linear(192, 100)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (N, 100)."""
        return self.head(self.blocks(self.embed(image).flatten(2).transpose(1, 2)).mean(1))


def spent() -> float:
    """Return seconds of processor time: of this process, those that ended and, on Linux, the one that runs programs."""
    seconds = sum(os.times()[:4])
    for task in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # a thread or process that has just ended
            for child in task.read_text().split():
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def compared(name: str, network: nn.Module, image: Tensor, points: int, backend: XNNPACK, keep: Path | None) -> None:
    """Print how far the prediction is from what is measured in the same session, and what the table took."""
    model = folded_copy(network)
    units = units_of(Channel(), Targets(), model, image)
    held, sizes = {key: x.numel() for key, x in model.state_dict().items()}, dict(units.sizes)
    drawn = random.Random(1)
    designs = {"dense": sizes}
    for share in SHARES:
        designs[f"uniform {share}"] = {key: max(1, round(size * share)) for key, size in sizes.items()}
    for share in SHARES:
        designs[f"random {share}"] = {
            key: max(1, round(size * min(1.0, max(0.1, drawn.uniform(share - 0.4, share + 0.35)))))
            for key, size in sizes.items()
        }
    found, turns, told, timed = channel_groups(model, image), list[Any](), list[float](), Bench.timed
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        bench = Bench(backend, 1, 0, Path(folder))
        quantize = None if backend.quantization is None else backend.quantization.quantize_for_time
        for widths in designs.values():
            copied = folded_copy(model)
            compact(copied, Compaction.from_keep(found, {key: range(width) for key, width in widths.items()}))
            turns.append(bench.lowered([Program(copied, [(tuple(image.shape), image.dtype)], False, quantize)]))

        def beside(own: Bench, asked: Any, rounds: int) -> Any:  # noqa: ANN401
            times = timed(own, [*asked, *turns], rounds)
            told[:] = [least_of(each) for (each,) in times[len(asked) :]]
            return times[: len(asked)]

        begin = spent()
        with mock.patch.object(Bench, "timed", beside):
            table = latency_table(network, image, backend=backend, points=points)
        taken = spent() - begin
    if keep is not None:
        table.save(keep / f"{name}.json")
    cost = table.cost(units, held, [tuple(image.shape)])  # type: ignore[arg-type]
    points_of = sum(len(cell.points) for cell in table.cells.values())
    print(f"{name}: {len(sizes)} groups, {points_of} points in {taken:.0f} s of processor time; steps {table.steps}")
    print(f"{'':14}{'ms':>9}{'of dense':>10}{'predicted / measured':>22}")
    ratios = []
    for (design, widths), ms in zip(designs.items(), told, strict=True):
        predicted = cost.left({key: sizes[key] - width for key, width in widths.items()})
        ratios.append(predicted / ms)
        print(f"{design:14}{ms:9.3f}{ms / told[0]:10.3f}{ratios[-1]:22.3f}")
    print(f"{'furthest':14}{max(abs(ratio - 1) for ratio in ratios):41.1%}", flush=True)


def main() -> None:
    """Compare each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet", "mobilenet", "vit"])
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--points", type=int, default=6)
    parser.add_argument("--int8", action="store_true", help="programs of 8-bit integers, calibrated on noise")
    parser.add_argument("--keep", type=Path, help="folder for the tables")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in args.networks:
        torch.manual_seed(0)
        network, image = ViT() if name == "vit" else NETWORKS[name](), torch.randn(1, 3, args.size, args.size)
        backend = XNNPACK(quantization=Int8(calibration=[image]) if args.int8 else None)
        compared(name, network.eval(), image, args.points, backend, args.keep)


if __name__ == "__main__":
    main()
