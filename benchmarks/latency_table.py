"""Does it pay to choose channels by measured milliseconds? One dense network, pruned to the same MACs in several ways.

A MobileNetV2-like network is trained on the UCI digits at 64×64. Its latency table is measured. Then copies of it are
pruned to the same share of MACs, each with another allocation or width rule, trained on for as long, and exported.
The files of all of them are timed in turns with the dense one. *Kept* is how much of the possible speed arrives:
(MACs left / dense) / (time / dense).

    python -m benchmarks.latency_table                    # some twenty minutes on one core
    python -m benchmarks.latency_table --epochs 3 1
"""

import argparse
import copy
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import (
    Channel,
    Global,
    OneShot,
    PruningCallback,
    PruningMixin,
    Recipe,
    Taylor,
    summarize,
)
from lightning_prune.deploy import LatencyTable, benchmark, export, latency_table
from lightning_prune.selection.allocation import Allocation

SIZE = 64
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 3, 2), (6, 96, 2, 1), (6, 160, 2, 2))


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


class MobileNet(PruningMixin, L.LightningModule):
    """MobileNetV2 with 13 blocks for grey images (1, 64, 64) of ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(1, 1, SIZE, SIZE)
        width, layers = 32, [*conv(1, 32, 3, 2), nn.ReLU6()]
        for grow, makes, count, stride in STAGES:
            for number in range(count):
                layers.append(Inverted(width, makes, 1 if number else stride, grow))
                width = makes
        head = [*conv(width, 640, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(640, 10)]
        self.layers = nn.Sequential(*layers, *head)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 10)."""
        return self.layers(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


@dataclass(frozen=True)
class Way:
    """One way to choose the channels."""

    name: str
    allocation: Allocation
    granularity: Channel

    def recipe(self, sparsity: float) -> Recipe:
        """Return it as a recipe over MACs."""
        return Recipe(
            schedule=OneShot(sparsity, begin_step=15),
            granularity=self.granularity,
            criterion=Taylor(),
            allocation=self.allocation,
            count="macs",
        )


def ways(table: LatencyTable) -> Iterator[Way]:
    """Yield what is compared."""
    for granularity in (Channel(), Channel(round_to=16)):
        rounding = f"round_to={granularity.round_to}"
        yield Way(f"Global(), {rounding}", Global(), granularity)
        yield Way(f'Global("macs"), {rounding}', Global(cost="macs"), granularity)
        yield Way(f"Global(table), {rounding}", Global(cost=table.channels), granularity)


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Return training and test images (N, 1, 64, 64), four to one."""
    images, targets = load_digits(return_X_y=True)
    enlarged = F.interpolate(torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, (SIZE, SIZE))
    order = torch.randperm(len(enlarged), generator=torch.Generator().manual_seed(0))
    parts = order[: len(order) * 4 // 5], order[len(order) * 4 // 5 :]
    training, test = (TensorDataset(enlarged[part], torch.tensor(targets)[part]) for part in parts)
    return training, test


def trained(model: MobileNet, data: TensorDataset, epochs: int, *callbacks: L.Callback) -> MobileNet:
    """Train a model in place, with the same order of batches each time, and return it."""
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        max_epochs=epochs, callbacks=list(callbacks), accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader(data, 64, shuffle=True))
    return model.eval()


def accuracy(model: MobileNet, data: TensorDataset) -> float:
    """Return the share of right answers."""
    images, targets = data.tensors
    with torch.no_grad():
        return float((model(images).argmax(1) == targets).double().mean())


def compared(models: dict[str, MobileNet], test: TensorDataset, rounds: int) -> Iterator[str]:
    """Yield one line for each model, the first of which is the dense one."""
    example = models["dense"].example_input_array
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for number, (name, model) in enumerate(models.items()):
            paths[name] = export(model, Path(folder) / f"{number}.pte").path
        times = benchmark(paths, example, rounds=rounds)
    dense = summarize(models["dense"])
    yield f"{'':>24}{'accuracy':>10}{'parameters':>12}{'MACs':>8}{'ms':>8}{'time':>8}{'kept':>7}"
    for name, model in models.items():
        now, row = summarize(model), times[name]
        macs = (now.macs or 0) / (dense.macs or 1)
        figures = f"{accuracy(model, test):>10.1%}{now.parameters / dense.parameters:>12.3f}{macs:>8.3f}"
        yield f"{name:>24}{figures}{row.median_ms:>8.3f}{row.ratio:>8.3f}{macs / row.ratio:>7.2f}"


def main() -> None:
    """Train, measure the table, prune in every way, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=float, default=0.7, help="share of the MACs that goes")
    parser.add_argument("--epochs", type=int, nargs=2, default=(6, 3), help="of the dense start and after pruning")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--table", type=Path, help="keep the table here, and read it from here when it exists")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    training, test = digits()
    L.seed_everything(0, verbose=False)
    dense = trained(MobileNet(), training, args.epochs[0])
    start = time.perf_counter()
    if args.table and args.table.exists():
        table = LatencyTable.from_json(args.table.read_text())
    else:
        table = latency_table(dense)
    if args.table:
        args.table.write_text(table.to_json())
    print(f"{table}\nmeasured in {time.perf_counter() - start:.0f} s\n", flush=True)
    models = {"dense": dense}
    for way in ways(table):
        pruning = PruningCallback(way.recipe(args.sparsity))
        models[way.name] = trained(copy.deepcopy(dense), training, args.epochs[1], pruning)
        print(f"trained {way.name}", flush=True)
    print(f"\nat most {1 - args.sparsity:.0%} of the MACs, {args.rounds} rounds, one thread")
    print("\n".join(compared(models, test, args.rounds)), flush=True)


if __name__ == "__main__":
    main()
