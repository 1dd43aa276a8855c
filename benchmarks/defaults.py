"""What a recipe that names neither criterion nor allocation reaches, beside recipes that do.

Three tasks, each from one trained network a seed, with the same batches for all recipes. Handwritten digits (residual,
batch norm) and capital letters (plain, no norm) are those on which the defaults were chosen; 94 characters (residual,
batch norm) only report. Fonts for testing are none of those for training.

    python -m benchmarks.defaults channels             # a tenth of the multiply-accumulates, then trained
    python -m benchmarks.defaults weights              # 95 and 98 % of the weights gone, then trained
    python -m benchmarks.defaults trained              # half of the multiply-accumulates, no training after
    python -m benchmarks.defaults channels --seeds 1 --tasks digits --epochs 0.2
"""

import argparse
import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import mean, stdev

import lightning as L
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.trained import Block, accuracy
from examples import characters_data
from lightning_prune import (
    Channel,
    Fisher,
    Global,
    Magnitude,
    OneShot,
    Polynomial,
    PruningCallback,
    Recipe,
    Taylor,
    Uniform,
    prune,
    summarize,
)
from lightning_prune.tables import aligned

RECIPES = {
    "as it comes": {},
    "Fisher(), Uniform()": {"criterion": Fisher(), "allocation": Uniform()},
    "Fisher(), Global()": {"criterion": Fisher(), "allocation": Global()},
    'Fisher(), Global(cost="macs")': {"criterion": Fisher(), "allocation": Global(cost="macs")},
    'Taylor(), Global(cost="macs")': {"criterion": Taylor(), "allocation": Global(cost="macs")},
    "Magnitude(), Uniform()": {"criterion": Magnitude(), "allocation": Uniform()},
    "Magnitude(), Global()": {"criterion": Magnitude(), "allocation": Global()},
    'Magnitude(), Global(cost="macs")': {"criterion": Magnitude(), "allocation": Global(cost="macs")},
}
FLOORLESS = "Magnitude(), Global(), min_share=0"
WEIGHTS = {
    "as it comes": {},
    "Fisher(), Global()": {"criterion": Fisher(), "allocation": Global()},
    "Taylor(), Global()": {"criterion": Taylor(), "allocation": Global()},
    "Magnitude(), Global()": {"criterion": Magnitude(), "allocation": Global()},
}


@dataclass(frozen=True)
class Task:
    """Data, a network and how it is trained.

    Args:
        make: the network.
        train: images and classes.
        test: images and classes.
        optimizer: of parameters.
        rate: highest learning rate.
        epochs: of the dense network, and of a pruned one.
        batch: images in a step.
        change: what is done to the images of each step.
        smoothing: of the labels.
    """

    make: Callable[[], nn.Module]
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    optimizer: Callable[..., torch.optim.Optimizer]
    rate: float
    epochs: tuple[int, int]
    batch: int
    change: Callable[[Tensor, torch.Generator], Tensor]
    smoothing: float = 0.0


def residual(blocks: tuple[tuple[int, int, int], ...], first: nn.Module, classes: int) -> nn.Module:
    """Return a residual network."""
    width = blocks[0][0]
    body = [first, nn.BatchNorm2d(width), nn.ReLU(), *(Block(*sizes) for sizes in blocks)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(blocks[-1][1], classes))


def plain() -> nn.Module:
    """Return a network for 32x32 images without any norm."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(1024, 96), nn.ReLU(), nn.Linear(96, 26),
    )  # fmt: skip


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by one pixel at most."""
    count, side = len(images), images.shape[-1]
    padded = nn.functional.pad(images, (1,) * 4)
    rows, columns = torch.randint(0, 3, (2, count, 1), generator=generator) + torch.arange(side)
    return padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def digits() -> Task:
    """Return 600 images of 8x8 pixels to train on, 1,197 to test."""
    images, targets = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(targets)
    train, test = train_test_split(range(len(y)), train_size=600, stratify=targets, random_state=0)
    return Task(
        lambda: residual(((16, 16, 1), (16, 32, 2), (32, 32, 1)), nn.Conv2d(1, 16, 3, padding=1, bias=False), 10),
        (x[train], y[train]), (x[test], y[test]),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4), 0.1, (30, 16), 50, shifted,
        smoothing=0.1,
    )  # fmt: skip


def letters() -> Task:
    """Return the 26 capital letters."""
    sides = [characters_data.glyphs(4), characters_data.characters(60, characters_data.TEST_FONTS, seed=7)]
    first = characters_data.LABELS.index("A")
    picked = []
    for side in sides:
        images, classes = side.tensors
        inside = (classes >= first) & (classes < first + 26)
        picked.append((images[inside], classes[inside] - first))
    adamw = lambda p: torch.optim.AdamW(p, 2e-3, weight_decay=1e-3)  # noqa: E731
    return Task(plain, *picked, adamw, 2e-3, (20, 8), 52, characters_data.distorted)


def characters() -> Task:
    """Return the 94 printable characters."""
    train, test = characters_data.glyphs(1), characters_data.characters(30, characters_data.TEST_FONTS, seed=7)
    adamw = lambda p: torch.optim.AdamW(p, 4e-3, weight_decay=1e-3)  # noqa: E731
    return Task(
        lambda: residual(((16, 32, 2), (32, 64, 2)), nn.Conv2d(1, 16, 3, 2, 1, bias=False), 94),
        train.tensors, test.tensors, adamw, 4e-3, (30, 12), 94, characters_data.distorted,
    )  # fmt: skip


TASKS = {"digits": digits, "letters": letters, "characters": characters}


class Fit(L.LightningModule):
    """A network of a task in training, on the same images in the same order for a seed."""

    def __init__(self, net: nn.Module, task: Task, steps: int, seed: int) -> None:
        super().__init__()
        self.net, self.steps = net, steps
        self.task, self.generator = task, torch.Generator().manual_seed(31 * seed + 5)
        self.example_input_array = task.train[0][:1]

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        return self.net(images)

    def training_step(self, index: Tensor, batch_idx: int) -> Tensor:
        """Return the loss of these images."""
        images, classes = (side[index] for side in self.task.train)
        logits = self(self.task.change(images, self.generator))
        return cross_entropy(logits, classes, label_smoothing=self.task.smoothing)

    def train_dataloader(self) -> Iterator[Tensor]:
        """Return indices of images, an epoch after another."""
        batches: list[Tensor] = []
        while len(batches) < self.steps:
            order = torch.randperm(len(self.task.train[0]), generator=self.generator)
            batches += [part for part in order.split(self.task.batch) if len(part) == self.task.batch]
        return torch.utils.data.DataLoader(torch.stack(batches[: self.steps]), batch_size=None)  # pyright: ignore[reportReturnType, reportArgumentType]

    def configure_optimizers(self) -> dict[str, object]:
        """Return the optimizer with one cycle of the learning rate."""
        optimizer = self.task.optimizer(self.parameters())
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.task.rate, total_steps=self.steps + 1, cycle_momentum=False
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


def fitted(net: nn.Module, task: Task, epochs: float, seed: int, *callbacks: L.Callback) -> nn.Module:
    """Return the network, trained."""
    torch.manual_seed(seed)
    steps = max(20, round(epochs * (len(task.train[0]) // task.batch)))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_steps=steps, callbacks=list(callbacks), enable_progress_bar=False, **quiet)
    trainer.fit(Fit(net.train(), task, steps, seed))
    return net


def after_training(net: nn.Module, task: Task, epochs: float, seed: int, recipe: Recipe) -> nn.Module:
    """Return the network pruned in the first half of so many epochs."""
    return fitted(net, task, epochs, seed, PruningCallback(recipe))


def without_training(net: nn.Module, task: Task, epochs: float, seed: int, recipe: Recipe) -> nn.Module:
    """Return the network pruned in one call, on 400 images that are changed as in training."""
    images, classes = task.train
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(images), generator=generator)[:400].split(50)
    data = [(task.change(images[index], generator), classes[index]) for index in chosen]
    loss = None if isinstance(recipe.criterion, Magnitude) else lambda m, b: cross_entropy(m(b[0]), b[1])
    prune(net.eval(), recipe, data, loss=loss, example_inputs=images[:1], progress=False)
    return net


def rows_of(what: str) -> dict[str, tuple[Recipe, Callable[..., nn.Module]]]:
    """Return the recipes that are compared, and what is done with each."""
    gradual = {"begin_step": 0.01, "end_step": 0.5}
    if what == "weights":
        return {
            f"{share:.0%} {name}": (
                Recipe(schedule=Polynomial(share, frequency=9, **gradual), **parts),
                after_training,
            )
            for share in (0.95, 0.98)
            for name, parts in WEIGHTS.items()
        }
    if what == "trained":
        half = {"granularity": Channel(), "count": "macs", "schedule": OneShot(0.5)}
        seen = {"as it comes, without a loss": {"criterion": Magnitude()}} | {
            ("as it comes, with a loss" if not parts else name): parts for name, parts in RECIPES.items()
        }
        return {name: (Recipe(**half, **parts), without_training) for name, parts in seen.items()}
    tenth = {"count": "macs", "schedule": Polynomial(0.9, frequency=9, **gradual)}
    rows = {name: (Recipe(granularity=Channel(), **tenth, **parts), after_training) for name, parts in RECIPES.items()}
    open_recipe = Recipe(granularity=Channel(min_share=0), **tenth, **RECIPES["Magnitude(), Global()"])
    return rows | {FLOORLESS: (open_recipe, after_training)}


def main() -> None:
    """Print a table for each task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("channels", "weights", "trained"))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", help="names of the recipes; all where it is left out")
    parser.add_argument("--epochs", type=float, default=1.0, help="how many times the usual number")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning_prune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    recipes = {name: row for name, row in rows_of(chosen.what).items() if not chosen.rows or name in chosen.rows}
    for name in chosen.tasks:
        task, reached = TASKS[name](), dict[str, list[float]]()
        for seed in range(chosen.seeds):
            torch.manual_seed(1000 + seed)
            dense = fitted(task.make(), task, chosen.epochs * task.epochs[0], seed)
            reached.setdefault("dense", []).append(accuracy(dense, *task.test))
            for label, (recipe, run) in recipes.items():
                net = run(copy.deepcopy(dense), task, chosen.epochs * task.epochs[1], seed, recipe)
                reached.setdefault(label, []).append(accuracy(net, *task.test))
                left = summarize(net, task.train[0][:1]).effective_macs
                print(f"{name} {seed} {label}: {reached[label][-1]:.1f} %, {left:,} MACs", flush=True)
        cells = [
            (label, f"{mean(found):.1f}", f"{stdev(found):.1f}" if len(found) > 1 else "", f"{min(found):.1f}")
            for label, found in reached.items()
        ]
        print(aligned([(name, "accuracy", "spread", "worst"), *cells]), flush=True)


if __name__ == "__main__":
    main()
