"""The pictures at the top of the README: accuracy against milliseconds of the .pte, and widths before and after.

On the UCI digits, by cross-validation: a dense network; from that same start one pruned to a tenth of its MACs as whole
channels; a small dense network of the same MACs, trained as long in all. Each is exported in floats and in 8 bits and
its .pte run on the test images of its fold, so that every one of the 1,797 images is a test image once. The files of
the first fold take turns in the benchmark.

    python -m benchmarks.picture          # a quarter of an hour; writes results/picture.json and docs/digits_*.svg
    python -m benchmarks.picture --draw   # the pictures alone, from the results that were kept
    python -m benchmarks.picture --folds 1 --epochs 2 --out /tmp
"""

import argparse
import copy
import json
import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from benchmarks.digits_cv import CHANNELS, folds, small_width
from examples.digits import ResidualCNN, train
from lightning_prune import PruningCallback, summarize
from lightning_prune.deploy import XNNPACK, Artifact, Int8, Timing, Timings, benchmark
from lightning_prune.study.report import History, Report
from lightning_prune.tables import aligned

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "picture.json"
METRIC = "accuracy of the .pte"


def networks(index: int, data: DataLoader, epochs: int) -> dict[str, ResidualCNN]:
    """Train the three networks of a fold."""
    L.seed_everything(index, verbose=False)
    models = {"dense": ResidualCNN()}
    train(models["dense"], [data, data, data], epochs)
    models["pruned"] = copy.deepcopy(models["dense"])
    train(models["pruned"], [data, data, data], epochs * 3 // 2, PruningCallback(CHANNELS))
    L.seed_everything(index, verbose=False)
    models["small dense"] = ResidualCNN(width=small_width(summarize(models["pruned"]).macs or 0))
    train(models["small dense"], [data, data, data], epochs + epochs * 3 // 2)
    return models


def files(models: dict[str, ResidualCNN], data: DataLoader, test: DataLoader, folder: Path) -> dict[str, Artifact]:
    """Export each in floats and in 8 bits; each file is run on the test images."""
    found = {}
    for name, model in models.items():
        for way, backend in (("", XNNPACK()), (", int8", XNNPACK(quantization=Int8(calibration=data)))):
            metric = MulticlassAccuracy(10, average="micro")
            path = folder / f"{name}{way}.pte".replace(", ", "-").replace(" ", "-")
            found[name + way] = model.to_executorch(path, backend=backend, verify_on=test, metric=metric)
    return found


def measure(count: int, epochs: int) -> Iterator[dict[str, Any]]:
    """Yield after each fold what the pictures show, as plain values."""
    right: Counter[str] = Counter()
    images, latencies, history = 0, Timings((), 1), History()
    for index, (data, test) in enumerate(folds(count)):
        with tempfile.TemporaryDirectory() as folder:
            models = networks(index, data, epochs)
            exported = files(models, data, test, Path(folder))
            here = len(test.dataset)  # type: ignore[arg-type]
            images += here
            right.update({name: round(file.metrics["executorch"] * here) for name, file in exported.items()})
            if not latencies:
                image = torch.rand(1, 1, 8, 8)
                latencies = benchmark({name: file.path for name, file in exported.items()}, image, rounds=60)
                history = History(before=summarize(models["dense"]), after=summarize(models["pruned"]))
        yield {
            "folds": index + 1,
            "epochs": epochs,
            "images": images,
            "right": dict(right),
            "latencies": {name: asdict(latency) for name, latency in latencies.items()},
            "history": history.document(),
        }


def table(found: dict[str, Any]) -> str:
    """Return a row for each file."""
    head = ("", "accuracy", "std. error", "ms", f"({found['images']:,} images, {found['folds']} of 5 folds)")
    rows = [head]
    for name, right in found["right"].items():
        error = standard_error(right, found["images"])
        rows.append(
            (name, f"{right / found['images']:.2%}", f"{error:.2%}", f"{found['latencies'][name]['median_ms']:.4f}", "")
        )
    return aligned(rows, remarks=1)


def standard_error(right: int, images: int) -> float:
    """Return that of a share of so many images."""
    share = right / images
    return (share * (1 - share) / images) ** 0.5


def draw(found: dict[str, Any], folder: Path) -> list[Path]:
    """Write the pictures; they are those of the report."""
    report = Report(
        history=History.from_document(found["history"]),
        latencies={name: Timing(**row) for name, row in found["latencies"].items()},
        quality={name: right / found["images"] for name, right in found["right"].items()},
        quality_spread={name: standard_error(right, found["images"]) for name, right in found["right"].items()},
        metric=METRIC,
    )
    charts = report.charts()
    return [
        charts[f"{METRIC} against latency (ms)"].save(folder / "digits_cost.svg"),
        charts["Output channels per layer"].save(folder / "digits_widths.svg"),
    ]


def main() -> None:
    """Measure, unless told not to, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=int, default=5, help="how many of the five to run")
    parser.add_argument("--epochs", type=int, default=20, help="of the dense start; pruning takes 1.5 times as many")
    parser.add_argument("--draw", action="store_true", help="measure nothing, draw the results that were kept")
    parser.add_argument("--out", type=Path, help="folder for all that is written; without it results/ and docs/")
    args = parser.parse_args()
    kept, folder = (RESULTS, ROOT / "docs") if args.out is None else (args.out / RESULTS.name, args.out)
    if not args.draw:
        torch.set_num_threads(1)
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", message=".*(does not have many workers|number of training batches).*")
        for known in measure(args.folds, args.epochs):
            kept.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
            print(table(known), flush=True)
    print(*draw(json.loads(kept.read_text(encoding="utf-8")), folder), sep="\n")


if __name__ == "__main__":
    main()
