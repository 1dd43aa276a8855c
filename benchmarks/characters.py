"""Classes and distillation on rendered characters: 94 classes, fonts for testing that were never trained on.

For each seed one dense network is trained on glyphs that are distorted anew in every step. From that same start
(a) its head is cut to the ten digits, and the rest pruned to 10 % of the dense multiply-accumulates;
(b) all 94 classes are kept, and 90 % of the multiply-accumulates pruned, with distillation and without: the same number
    of steps on the same images in the same order, a third of those of the dense training. Once there are 20 images of
    each character to prune and fine-tune with, once 80, and once as many as there are steps.
Pruning is one short fit and fine-tuning a second one, in which the callback goes on teaching.

    python -m benchmarks.characters             # one thread; some eight minutes a seed
    python -m benchmarks.characters --tune 12 --temperature 1
    python -m benchmarks.characters --seeds 1 --times 1 --epochs 2 --tune 2
"""

import argparse
import copy
import logging
import time
import warnings
from dataclasses import dataclass
from statistics import mean, stdev

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from examples.characters_data import DIGITS, LABELS, TEST_FONTS, Reader, characters, glyphs
from lightning_prune import (
    Channel,
    Distillation,
    Global,
    Polynomial,
    PruningCallback,
    Recipe,
    Taylor,
    keep_classes,
    summarize,
)

RECIPE = Recipe(
    granularity=Channel(),
    criterion=Taylor(),
    allocation=Global(cost="macs"),
    count="macs",
    schedule=Polynomial(final_sparsity=0.9, begin_step=0.05, end_step=0.9, frequency=20),
)


@dataclass(frozen=True)
class Row:
    """One network on the test glyphs.

    Args:
        name: what was done.
        accuracy: share of right answers.
        macs: share of the dense multiply-accumulates.
        seconds: of its training.
        seen: share of right answers on the 20 images of each character, which some of them are trained on.
    """

    name: str
    accuracy: float
    macs: float
    seconds: float = 0.0
    seen: float = float("nan")


def fit(model: L.LightningModule, data: TensorDataset, epochs: int, seed: int, *callbacks: L.Callback) -> float:
    """Train on the data, in an order that the seed tells, and return the seconds it took."""
    L.seed_everything(seed, verbose=False)
    options = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = L.Trainer(
        max_epochs=epochs, callbacks=list(callbacks), accelerator="cpu", enable_progress_bar=False, **options
    )
    begin = time.perf_counter()
    trainer.fit(model, DataLoader(data, 64, shuffle=True, drop_last=len(data) >= 64))
    return time.perf_counter() - begin


def pruned(model: Reader, data: TensorDataset, epochs: int, seed: int, taught: Distillation | None) -> float:
    """Prune the model in a quarter of the epochs, fine-tune it in the others, and return the seconds."""
    callback = PruningCallback(RECIPE, distillation=taught, compact_every_event=True)
    first = max(epochs // 4, 1)
    model.rate /= 2
    seconds = fit(model, data, first, seed, callback)
    model.rate *= 2
    return seconds + fit(model, data, epochs - first, seed + 100, callback)


def accuracy(model: nn.Module, data: TensorDataset) -> float:
    """Return the share of right answers."""
    model.eval()
    with torch.no_grad():
        right = [(model(images).argmax(1) == targets).float() for images, targets in DataLoader(data, 1000)]
    return float(torch.cat(right).mean())


def of_digits(dense: Reader, sets: list[TensorDataset], epochs: int, seed: int, taught: Distillation) -> list[Row]:
    """Cut the dense network to the digits and prune it; return the rows of (a)."""
    train, test = sets
    subset = keep_classes(dense, classes=DIGITS, labels=LABELS, loader=DataLoader(test, 1000))
    digits = []
    for data in (train, test):
        targets = subset.targets(data.tensors[1])
        digits.append(TensorDataset(data.tensors[0][targets >= 0], targets[targets >= 0]))
    whole = summarize(dense).macs or 1
    rows = [
        Row("a: dense, digits among 94 classes", subset.accuracy_before, 1.0),
        Row("a: dense, head cut to 10 classes", subset.accuracy_after, (summarize(subset.model).macs or 0) / whole),
    ]
    seconds = pruned(subset.model, digits[0], epochs, seed, taught)
    left = (summarize(subset.model).macs or 0) / whole
    return [*rows, Row("a: 10 classes, pruned", accuracy(subset.model, digits[1]), left, seconds)]


def of_all(dense: Reader, sets: list[TensorDataset], epochs: int, seed: int, taught: Distillation) -> list[Row]:
    """Prune the dense network with a teacher and without; return the rows of (b)."""
    rows, whole = [Row("b: dense", accuracy(dense, sets[1]), 1.0)], summarize(dense).macs or 1
    fixed = {f"{each} images": characters(each, seed=100 + seed) for each in (20, 80)}
    for many, data in (fixed | {"endless": sets[0]}).items():
        equal = max(round(epochs * len(sets[0]) / len(data)), 2)
        for name, distillation in ((f"b: {many}, pruned", None), (f"b: {many}, distilled", taught)):
            model = copy.deepcopy(dense).train()
            model.is_distorting = data is sets[0]
            seconds = pruned(model, data, equal, seed, distillation)
            left, seen = (summarize(model).macs or 0) / whole, accuracy(model, fixed["20 images"])
            rows.append(Row(name, accuracy(model, sets[1]), left, seconds, seen))
    return rows


def main() -> None:
    """Run every seed and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("seeds", 3), ("times", 8), ("epochs", 12), ("tune", 4), ("width", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--temperature", type=float, default=4.0)
    parser.add_argument("--weight", type=float, default=0.5)
    given = parser.parse_args()
    taught = Distillation(temperature=given.temperature, weight=given.weight)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning_prune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    sets = [glyphs(given.times), characters(200, TEST_FONTS, seed=1)]
    table: dict[str, list[Row]] = {}
    for seed in range(given.seeds):
        torch.manual_seed(seed)
        dense = Reader(given.width)
        seconds = fit(dense, sets[0], given.epochs, seed)
        print(f"seed {seed}: dense in {seconds:.0f} s", flush=True)
        rows = of_all(dense, sets, given.tune, seed, taught)
        rows += of_digits(dense, sets, 4 * given.epochs, seed, taught)
        for row in rows:
            table.setdefault(row.name, []).append(row)
            print(
                f"  {row.name:<36} {row.accuracy:7.2%} {row.macs:7.2%} MACs {row.seconds:5.0f} s {row.seen:7.2%}",
                flush=True,
            )
    for name, rows in table.items():
        spread = stdev(row.accuracy for row in rows) if len(rows) > 1 else 0.0
        most = max(row.macs for row in rows)
        seen = mean(row.seen for row in rows)
        print(
            f"{name:<38} {mean(row.accuracy for row in rows):7.2%} ± {spread:.2%}  at most {most:.2%} of the MACs"
            f"  {seen:7.2%} on the 20 images"
        )
    for many in ("20 images", "80 images", "endless"):
        pairs = zip(table[f"b: {many}, distilled"], table[f"b: {many}, pruned"], strict=True)
        gains = [100 * (taught.accuracy - plain.accuracy) for taught, plain in pairs]
        told = ", ".join(f"{gain:+.2f}" for gain in gains)
        print(f"gained by distillation, {many}: {mean(gains):+.2f} points on average ({told})")


if __name__ == "__main__":
    main()
