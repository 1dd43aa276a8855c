"""Quality on the UCI digits by 5-fold cross-validation: every one of the 1,797 images is a test image once.

For each fold: a dense network; from that same start one pruned to 10 % of its MACs as whole channels and one with
95 % of its weights at zero; and, for comparison, a small dense network of the same MACs trained as long in all. The
dense network is also trained on for as long as the pruned ones, so that more training is not mistaken for pruning.
Every pruned network is exported and its .pte run on the test images.

    python -m benchmarks.digits_cv            # about half an hour on two cores
    python -m benchmarks.digits_cv --folds 1 --epochs 4
"""

import argparse
import copy
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import lightning as L
import torch
from sklearn.model_selection import StratifiedKFold
from torch.utils.data import DataLoader, TensorDataset

from examples.digits import ResidualCNN, digits, train
from lightning_prune import Channel, Element, Global, Polynomial, PruningCallback, Recipe, Taylor, summarize

CHANNELS = Recipe(
    granularity=Channel(),
    criterion=Taylor(),
    allocation=Global(cost="macs"),
    count="macs",
    schedule=Polynomial(final_sparsity=0.9, begin_step=0.01, end_step=0.25, frequency=15),
)
ELEMENTS = Recipe(
    granularity=Element(), criterion=Taylor(),
    schedule=Polynomial(final_sparsity=0.95, begin_step=0.01, end_step=0.5, frequency=15),
)  # fmt: skip


@dataclass
class Row:
    """One network on one fold: test images, how many right, parameters that are not zero, MACs, and its file."""

    name: str
    images: int
    right: int
    parameters: int
    macs: int
    max_abs_error: float | None = None
    changed: int | None = None


def evaluate(name: str, model: ResidualCNN, test: DataLoader, folder: Path | None) -> Row:
    """Count right answers of the eager model and, given a folder, compare its .pte on the same images."""
    model.eval()
    images, targets = test.dataset.tensors  # type: ignore[attr-defined]
    with torch.no_grad():
        right = int((model(images).argmax(1) == targets).sum())
    figures = summarize(model)
    row = Row(name, len(images), right, figures.parameters - figures.zeros, figures.macs or 0)
    if folder is not None:
        artifact = model.to_executorch(folder / f"{name}.pte", verify_on=test)
        row.max_abs_error, row.changed = artifact.max_abs_error, artifact.changed_predictions
    return row


def small_width(macs: int) -> int:
    """Return the width of the dense network whose MACs come closest to these."""
    return min(range(1, 33), key=lambda w: abs((summarize(ResidualCNN(width=w)).macs or 0) - macs))


def one_fold(index: int, data: list[DataLoader], test: DataLoader, epochs: tuple[int, int], folder: Path) -> list[Row]:
    """Train and evaluate all networks of one fold."""
    first, more = epochs
    L.seed_everything(index, verbose=False)
    dense = ResidualCNN()
    train(dense, data, first)
    models = {name: copy.deepcopy(dense) for name in ("channels", "elements", "dense, trained on")}
    train(models["channels"], data, more, PruningCallback(CHANNELS))
    train(models["elements"], data, more, PruningCallback(ELEMENTS))
    train(models["dense, trained on"], data, more)
    L.seed_everything(index, verbose=False)
    models["small dense"] = ResidualCNN(width=small_width(summarize(models["channels"]).macs or 0))
    train(models["small dense"], data, first + more)
    exported = {"dense": dense} | models
    return [
        evaluate(n, m, test, folder if n in ("dense", "channels", "elements") else None) for n, m in exported.items()
    ]


def folds(count: int) -> Iterator[tuple[DataLoader, DataLoader]]:
    """Yield loaders for training and test of the first ones of five folds."""
    images, targets = digits()
    splits = StratifiedKFold(5, shuffle=True, random_state=0).split(images, targets)
    for inside, outside in islice(splits, count):
        parts = [TensorDataset(images[part], targets[part]) for part in (inside, outside)]
        yield DataLoader(parts[0], 64, shuffle=True), DataLoader(parts[1], 256)


def report(rows: list[Row]) -> str:
    """Return the table over all folds; the standard error is that of a share of so many images."""
    lines = [
        f"{'':>18}{'test accuracy':>15}{'std. error':>12}{'MACs':>11}{'non-zero':>10}{'.pte error':>12}{'changed':>9}"
    ]
    for name in dict.fromkeys(row.name for row in rows):
        own = [row for row in rows if row.name == name]
        images, right = sum(r.images for r in own), sum(r.right for r in own)
        share = right / images
        error = math.sqrt(share * (1 - share) / images)
        macs, weights = max(r.macs for r in own), max(r.parameters for r in own)
        files = [r for r in own if r.changed is not None]
        parity = (
            f"{max(r.max_abs_error or 0 for r in files):>12.1e}{sum(r.changed or 0 for r in files):>9}" if files else ""
        )
        lines.append(f"{name:>18}{share:>14.2%} {error:>11.2%}{macs:>12,}{weights:>10,}{parity}")
    return "\n".join(lines)


def main() -> None:
    """Run the folds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=int, default=5, help="how many of the five to run")
    parser.add_argument("--epochs", type=int, default=40, help="of the dense start; pruning takes 1.5 times as many")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write every row here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows: list[Row] = []
    for index, (training, test) in enumerate(folds(args.folds)):
        with tempfile.TemporaryDirectory() as folder:
            rows += one_fold(index, [training, test, test], test, (args.epochs, args.epochs * 3 // 2), Path(folder))
        print(f"after fold {index + 1}\n{report(rows)}", flush=True)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
