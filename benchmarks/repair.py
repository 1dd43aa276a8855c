"""Training at 10 % of the multiply-accumulates with repair at the events and without it, from the same dense networks.

Two tasks, from data that packages ship: handwritten digits, and the 94 printable characters in fonts for testing that
were never trained on. For each seed one dense network is trained; from that start it is pruned and trained on for about
half as long, the same images in the same order on both sides. Once the events are ten until half of the training, once
there is one at its start.

    python -m benchmarks.repair                 # one thread, some five minutes a seed
    python -m benchmarks.repair --seeds 3
"""

import argparse
import copy
import itertools
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import lightning as L
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad, relu

from examples.characters_data import LABELS, TEST_FONTS, characters, distorted, glyphs
from lightning_prune import (
    Channel,
    Fisher,
    LeastSquares,
    Magnitude,
    OneShot,
    Polynomial,
    PruningCallback,
    Recipe,
    Reconstruction,
    Uniform,
    summarize,
)

LEFT = 0.1
"""Share of the multiply-accumulates."""


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Identity() if same else short

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both ways."""
        return relu(self.norm2(self.conv2(relu(self.norm1(self.conv1(x))))) + self.shortcut(x))


def network(stride: int, classes: int, *widths: int) -> nn.Sequential:
    """Return a residual network for images of one channel."""
    first = [nn.Conv2d(1, widths[0], 3, stride, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    blocks = [Block(a, b, 1 if a == b else 2) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to a pixel."""
    count, _, height, width = images.shape
    top, left = torch.randint(0, 3, (2, count, 1), generator=generator)
    rows, columns = (top + torch.arange(height))[:, :, None], (left + torch.arange(width))[:, None, :]
    return pad(images, (1,) * 4)[torch.arange(count)[:, None, None], :, rows, columns].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Task:
    """Images, a network for them, and how it is trained.

    Args:
        name: of the task.
        train: images and their classes.
        test: the same, never trained on.
        make: makes the network.
        augment: changes a batch of images at random.
        batch: images of a step.
        optimizer: makes the optimizer.
        epochs: of the dense training, and of the training from the first event on.
        smoothing: of the labels.
    """

    name: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    make: Callable[[], nn.Module]
    augment: Callable[[Tensor, torch.Generator], Tensor]
    batch: int
    optimizer: Callable[[Any], torch.optim.Optimizer]
    epochs: tuple[int, int]
    smoothing: float = 0.0

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return len(self.train[0]) // self.batch

    def batches(self, epochs: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of a whole training."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(epochs):
            for index in torch.randperm(len(self.train[0]), generator=generator).split(self.batch)[: self.steps]:
                yield self.augment(self.train[0][index], generator), self.train[1][index]


def tasks() -> tuple[Task, ...]:
    """Return both tasks."""
    images, targets = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(targets)
    train, test = train_test_split(range(len(y)), train_size=600, stratify=targets, random_state=0)
    digits = Task(
        *("digits", (x[train], y[train]), (x[test], y[test])),
        *(lambda: network(1, 10, 16, 16, 32, 32), shifted, 50),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
        *((30, 16), 0.1),
    )
    clean, unseen = glyphs(1).tensors, characters(30, TEST_FONTS, seed=7).tensors
    letters = Task(
        *("characters", (clean[0], clean[1]), (unseen[0], unseen[1])),
        *(lambda: network(2, len(LABELS), 16, 32, 64), distorted, 94),
        lambda p: torch.optim.AdamW(p, lr=4e-3, weight_decay=1e-3),
        (30, 12),
    )
    return digits, letters


class Module(L.LightningModule):
    """A network in training on a task."""

    def __init__(self, net: nn.Module, task: Task, steps: int) -> None:
        super().__init__()
        self.net, self.task, self.steps = net, task, steps
        self.example_input_array = task.train[0][:1]

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss."""
        return cross_entropy(self(batch[0]), batch[1], label_smoothing=self.task.smoothing)

    def configure_optimizers(self) -> Any:  # noqa: ANN401
        """Return the task's optimizer under a one-cycle rate."""
        optimizer = self.task.optimizer(self.parameters())
        rate = optimizer.param_groups[0]["lr"]
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rate, total_steps=self.steps + 1, cycle_momentum=False
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def fit(net: nn.Module, task: Task, epochs: int, seed: int, *callbacks: L.Callback) -> float:
    """Train a network in place and return the seconds."""
    steps = epochs * task.steps
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", enable_progress_bar=False, callbacks=list(callbacks), **options
    )
    data = list(task.batches(epochs, seed))
    begin = time.perf_counter()
    trainer.fit(Module(net.train(), task, steps), torch.utils.data.DataLoader(data, batch_size=None))
    return time.perf_counter() - begin


def accuracy(net: nn.Module, task: Task) -> float:
    """Return the share of right answers in percent."""
    with torch.no_grad():
        right = [net.eval()(x).argmax(1) == y for x, y in zip(*(t.split(500) for t in task.test), strict=True)]
    return 100 * float(torch.cat(right).float().mean())


def main() -> None:
    """Print a row per seed, task, criterion and schedule, and the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", help="name of a task")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning_prune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    table: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for task in (task for task in tasks() if given.only in (None, task.name)):
        steps = task.epochs[1] * task.steps
        schedules = {
            "ten events": Polynomial(1 - LEFT, begin_step=1, end_step=steps // 2, frequency=max(1, steps // 20)),
            "at once": OneShot(1 - LEFT, begin_step=6),
        }
        for seed in range(given.seeds):
            torch.manual_seed(1000 + seed)
            dense = task.make()
            fit(dense, task, task.epochs[0], seed)
            whole = summarize(dense, task.train[0][:1]).macs or 1
            print(f"{task.name}, seed {seed}: dense {accuracy(dense, task):.1f} %", flush=True)
            for criterion in (Magnitude(), Fisher(), Reconstruction()):
                for name, schedule in schedules.items():
                    reached, took = [], []
                    for repair in (None, LeastSquares()):
                        recipe = Recipe(
                            granularity=Channel(), count="macs", schedule=schedule, criterion=criterion,
                            allocation=Uniform(), repair=repair,
                        )  # fmt: skip
                        net = copy.deepcopy(dense)
                        took.append(fit(net, task, task.epochs[1], seed + 100, PruningCallback(recipe)))
                        reached.append(accuracy(net, task))
                        assert (summarize(net, task.train[0][:1]).macs or 0) <= LEFT * whole
                    key = task.name, type(criterion).__name__, name
                    table.setdefault(key, []).append((reached[0], reached[1]))
                    print(
                        f"  {key[1]:<14} {name:<10}  without {reached[0]:5.1f}  repaired {reached[1]:5.1f}"
                        f"  ({took[0]:.1f} and {took[1]:.1f} s)",
                        flush=True,
                    )
    print(f"{'':<37}  without       repaired      gained")
    for key, pairs in table.items():
        sides = [[pair[side] for pair in pairs] for side in (0, 1)]
        spread = [stdev(side) if len(side) > 1 else 0.0 for side in sides]
        told = "  ".join(f"{mean(side):5.1f} ± {s:4.1f}" for side, s in zip(sides, spread, strict=True))
        print(f"{key[0]:<11} {key[1]:<14} {key[2]:<10}  {told}  {mean(sides[1]) - mean(sides[0]):+.1f}")


if __name__ == "__main__":
    main()
