"""Peers beside ours, from the same dense networks, on the same batches, with one counter of multiply-accumulates.

Structured: whole channels go down to a share of the multiply-accumulates. Unstructured: a share of the single weights
of Linear layers and convolutions becomes zero. After training: everybody prunes along the same ten events in the first
half of the same epochs. No training: everybody cuts the dense network at once.

    make bench                                   # digits and characters, one seed, in an environment with the peers
    python -m benchmarks.peers --seeds 3         # what docs/peers.md shows; rows that are there already are kept
    python -m benchmarks.peers --page            # write the tables of docs/peers.md from the results
    python -m benchmarks.peers --check           # run again, and compare with the results that were kept

A peer that is not installed is left out; one that fails is shown with its message.
"""

import argparse
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from benchmarks.controls import GroupPenalty, RigL
from benchmarks.others import Nncf, TorchPrune, TorchPruning, model_pruning, timing
from benchmarks.tasks import TASKS, Task, accuracy, dense, fit, layers, loss, macs, quiet, seen, small, task
from lightning_prune import (
    Channel,
    Element,
    Fisher,
    Global,
    LeastSquares,
    NoRepair,
    OneShot,
    Polynomial,
    PruningCallback,
    Recipe,
    Reconstruction,
    Taylor,
    Uniform,
    finalize,
    prune,
    recalibrate,
)

RESULTS = Path(__file__).parent / "results" / "peers.json"
PAGE = Path(__file__).parents[1] / "docs" / "peers.md"
PACKAGES = ("torch", "lightning", "torch-pruning", "nncf")

Callbacks = Callable[[Task, float, int], Sequence[L.Callback]]


def ours(count: str | None = None, **parts: Any) -> Callbacks:
    """Return our callback; ``count="macs"`` for channels."""

    def callbacks(task: Task, final: float, _: int) -> list[L.Callback]:
        begin, end, frequency = timing(task)
        schedule = Polynomial(final, begin_step=begin, end_step=end, frequency=frequency)
        granularity = Element() if count is None else Channel()
        return [PruningCallback(Recipe(schedule=schedule, granularity=granularity, count=count, **parts))]  # type: ignore[arg-type]

    return callbacks


def peer(score: str, is_global: bool) -> Callbacks:
    """Return torch-pruning's callback."""
    return lambda task, final, seed: [TorchPruning(task, final, score, is_global, seed)]


STRUCTURED: dict[str, Callbacks] = {
    "ours, as it comes": ours("macs"),
    "ours, Fisher Uniform": ours("macs", criterion=Fisher(), allocation=Uniform()),
    "ours, Fisher per cost": ours("macs", criterion=Fisher(), allocation=Global(cost="macs")),
    "ours, no repair": ours("macs", repair=NoRepair()),
    "ours, Fisher Uniform, no repair": ours("macs", criterion=Fisher(), allocation=Uniform(), repair=NoRepair()),
    "ours, Taylor Uniform, no repair": ours("macs", criterion=Taylor(), allocation=Uniform(), repair=NoRepair()),
    "ours, no repair, growing group penalty": lambda task, final, seed: [
        *ours("macs", repair=NoRepair())(task, final, seed),
        GroupPenalty(timing(task)[1]),
    ],
    "torch-pruning Magnitude local": peer("Magnitude", False),
    "torch-pruning Magnitude global": peer("Magnitude", True),
    "torch-pruning Taylor local": peer("Taylor", False),
    "torch-pruning Taylor global": peer("Taylor", True),
    "torch-pruning GroupNorm local": peer("GroupNorm", False),
}
UNSTRUCTURED: dict[str, Callbacks] = {
    "ours, as it comes": ours(),
    "ours, Taylor Global": ours(criterion=Taylor()),
    "ours, Fisher Global": ours(criterion=Fisher()),
    "torch.nn.utils.prune": lambda task, final, _: [TorchPrune(task, final)],
    "ModelPruning": model_pruning,
    "RigL": lambda task, final, _: [RigL(task, final)],
    "NNCF magnitude": lambda task, final, _: [Nncf(task, final)],
}
BUDGETS = {
    "structured": (0.5, 0.3, 0.2, 0.1),
    "unstructured": (0.2, 0.1, 0.05, 0.02),
    "untrained": (0.7, 0.5),
    "short": (0.5, 0.2),
}


def our_cut(repair: LeastSquares | NoRepair = LeastSquares(), **parts: Any) -> Callable[..., nn.Module]:  # noqa: B008
    """Return our cut of a dense network without training."""

    def cut(net: nn.Module, task: Task, budget: float, seed: int) -> nn.Module:
        recipe = Recipe(granularity=Channel(), count="macs", schedule=OneShot(1 - budget), repair=repair, **parts)
        batches = seen(task, 8, seed)
        prune(net, recipe, batches, loss=loss, samples=400, progress=False)
        return recalibrated(net, batches) if isinstance(repair, NoRepair) else net

    return cut


def their_cut(score: str, is_global: bool) -> Callable[..., nn.Module]:
    """Return torch-pruning's cut of a dense network, with batch norms measured anew."""

    def cut(net: nn.Module, task: Task, budget: float, seed: int) -> nn.Module:
        pruner = TorchPruning(task, 1 - budget, score, is_global, seed)
        pruner.start(net)
        pruner.cut(net, 1 - budget, seed)
        return recalibrated(net, seen(task, 8, seed))

    return cut


def recalibrated(net: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> nn.Module:
    """Return the network with batch norms measured anew, if it has any."""
    has_norms = any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    return recalibrate(net, batches) if has_norms else net


UNTRAINED: dict[str, Callable[..., nn.Module]] = {
    "ours, as it comes": our_cut(),
    "ours, Uniform": our_cut(allocation=Uniform()),
    "ours, Fisher Uniform": our_cut(criterion=Fisher(), allocation=Uniform()),
    "ours, Reconstruction": our_cut(criterion=Reconstruction()),
    "ours, Reconstruction Uniform": our_cut(criterion=Reconstruction(), allocation=Uniform()),
    "ours, Uniform, recalibrate instead of repair": our_cut(NoRepair(), allocation=Uniform()),
    "torch-pruning Magnitude local + recalibrate": their_cut("Magnitude", False),
    "torch-pruning Magnitude global + recalibrate": their_cut("Magnitude", True),
    "torch-pruning Taylor local + recalibrate": their_cut("Taylor", False),
}


def run(kind: str, method: str, name: str, budget: float, seed: int) -> dict[str, Any]:
    """Return the row of one method: accuracy in percent, what is left, seconds; or its error."""
    chosen, net = task(name), dense(name, seed)
    total, begin = macs(net, chosen.example), time.perf_counter()
    try:
        if method == "small dense":
            torch.manual_seed(500 + seed)
            net = fit(chosen.make(*small(chosen, budget)), chosen, chosen.first + chosen.more, seed)
        elif kind in ("untrained", "short"):
            net = UNTRAINED[method](net, chosen, budget, seed)
            net = fit(net, chosen, 1, seed, slower=10) if kind == "short" else net
        else:
            methods = STRUCTURED if kind == "structured" else UNSTRUCTURED
            net = fit(net, chosen, chosen.more, seed, methods[method](chosen, 1 - budget, seed))
            finalize(net) if method.startswith("ours") else None
    except ImportError:
        raise
    except Exception as error:  # a peer may fail in any way, and is shown with it
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    weights = [layer.get_parameter("weight") for layer in layers(net)] if "NNCF" not in method else []
    left = macs(net, chosen.example) / total if kind != "unstructured" else None
    if kind == "unstructured" and weights:
        left = sum(int(weight.count_nonzero()) for weight in weights) / sum(weight.numel() for weight in weights)
    return {"accuracy": accuracy(net, chosen), "left": left, "seconds": round(time.perf_counter() - begin, 1)}


def rows(kinds: Sequence[str], names: Sequence[str], seeds: int) -> list[dict[str, Any]]:
    """Return what is to be run, one method after the other for each seed: interleaved."""
    methods = {"structured": [*STRUCTURED, "small dense"], "unstructured": [*UNSTRUCTURED], "untrained": [*UNTRAINED]}
    methods["short"] = methods["untrained"]
    return [
        {"kind": kind, "task": name, "budget": budget, "method": method, "seed": seed}
        for seed in range(seeds)
        for name in names
        for kind in kinds
        for budget in BUDGETS[kind]
        for method in methods[kind]
    ]


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells a row from others."""
    return row["kind"], row["task"], row["budget"], row["method"], row["seed"]


def read() -> dict[str, Any]:
    """Return the results that were kept."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {"rows": []}


def measure(todo: list[dict[str, Any]], kept: list[dict[str, Any]], *, is_kept: bool) -> list[dict[str, Any]]:
    """Return the rows, measured; written down one by one where they are to be kept."""
    for index, row in enumerate(todo):
        try:
            found = row | run(row["kind"], row["method"], row["task"], row["budget"], row["seed"])
        except ImportError as error:
            print(f"left out: {row['method']} ({error})")
            continue
        kept = [*kept, found]
        told = found.get("error") or f"{found['accuracy']:.2f} %"
        print(f"{index + 1}/{len(todo)} {' '.join(map(str, key(row)))}: {told}", flush=True)
        if is_kept:
            RESULTS.parent.mkdir(exist_ok=True)
            lines = ",\n".join(json.dumps(row) for row in kept)
            about = json.dumps(
                {"command": "python -m benchmarks.peers " + " ".join(sys.argv[1:]), "versions": versions()}
            )
            RESULTS.write_text(f'{about[:-1]}, "rows": [\n{lines}\n]}}\n', encoding="utf-8")
    return kept


def versions() -> dict[str, str]:
    """Return package -> version of what took part."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def table(results: list[dict[str, Any]], kind: str, name: str) -> str:
    """Return a table in Markdown: a method a line, a budget a column, mean and spread over the seeds."""
    own = [row for row in results if row["kind"] == kind and row["task"] == name]
    budgets = [budget for budget in BUDGETS[kind] if any(row["budget"] == budget for row in own)]
    lines = ["| | " + " | ".join(f"{budget:.0%}" for budget in budgets) + " |", "| --- |" + " ---: |" * len(budgets)]
    values = {}
    for row in own:
        values.setdefault((row["method"], row["budget"]), []).append(row)
    means = {
        at: mean(row["accuracy"] for row in found)
        for at, found in values.items()
        if all("accuracy" in row for row in found)
    }
    for method in dict.fromkeys(row["method"] for row in own):
        cells = []
        for budget in budgets:
            found = values.get((method, budget), [])
            if (method, budget) not in means:
                cells.append(next((row["error"][:60] for row in found if "error" in row), "–"))
                continue
            several = [row["accuracy"] for row in found]
            cell = f"{means[method, budget]:.1f}" + (f" ± {stdev(several):.1f}" if several[1:] else "")
            best = max(value for (_, at), value in means.items() if at == budget)
            cells.append(f"**{cell}**" if means[method, budget] == best else cell)
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


TITLES = {
    "structured": "channels; share of the multiply-accumulates left, after training",
    "unstructured": "single weights; share left, after training",
    "untrained": "channels; share of the multiply-accumulates left, no training",
    "short": "channels; share of the multiply-accumulates left, cut at once and trained for one epoch",
}


def write_page() -> None:
    """Write the tables into docs/peers.md, between its marks."""
    results, text = read(), PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition("<!-- results -->")
    parts = []
    for name in TASKS:
        for kind, title in TITLES.items():
            if any(row["kind"] == kind and row["task"] == name for row in results["rows"]):
                parts.append(f"### {name}: {title}\n\n{table(results['rows'], kind, name)}\n")
    about = ", ".join(f"{package} {version}" for package, version in results["versions"].items())
    body = f"\n\nMeasured with {about}, on the CPU, one thread.\n\n" + "\n".join(parts) + "\n"
    PAGE.write_text(head + "<!-- results -->" + body + "<!-- end -->" + rest.partition("<!-- end -->")[2], "utf-8")


def compare(before: list[dict[str, Any]], after: list[dict[str, Any]], margin: float) -> list[str]:
    """Return what became worse: ours against the best peer of the same cell, beside the results that were kept."""

    def leads(results: list[dict[str, Any]]) -> dict[tuple[Any, ...], float]:
        cells: dict[tuple[Any, ...], dict[str, float]] = {}
        for row in results:
            if "accuracy" in row:
                cells.setdefault((row["kind"], row["task"], row["budget"], row["seed"]), {})[row["method"]] = row[
                    "accuracy"
                ]
        return {
            at: max(v for m, v in cell.items() if m.startswith("ours"))
            - max(v for m, v in cell.items() if "ours" not in m)
            for at, cell in cells.items()
            if len({m.startswith("ours") for m in cell}) == 2
        }

    old, new = leads(before), leads(after)
    return [f"{at}: {old[at]:+.2f} -> {new[at]:+.2f} points" for at in new if at in old and new[at] < old[at] - margin]


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tasks", nargs="+", default=["digits", "characters"])
    parser.add_argument("--kinds", nargs="+", default=list(BUDGETS))
    parser.add_argument("--budgets", nargs="+", type=float, help="of these alone, such as 0.1")
    parser.add_argument("--methods", nargs="+", help="these alone, by their names in the tables")
    parser.add_argument("--page", action="store_true", help="write docs/peers.md from the results and end")
    parser.add_argument("--check", action="store_true", help="compare with the results that were kept")
    parser.add_argument("--margin", type=float, default=1.5, help="points that --check lets pass")
    arguments = parser.parse_args()
    if arguments.page:
        write_page()
        return
    quiet()
    kept = read()["rows"]
    todo = rows(arguments.kinds, arguments.tasks, arguments.seeds)
    todo = [row for row in todo if arguments.budgets is None or row["budget"] in arguments.budgets]
    todo = [row for row in todo if arguments.methods is None or row["method"] in arguments.methods]
    if arguments.check:
        worse = compare(kept, measure(todo, [], is_kept=False), arguments.margin)
        sys.exit("worse than before:\n" + "\n".join(worse) if worse else 0)
    there = {key(row) for row in kept}
    measure([row for row in todo if key(row) not in there], kept, is_kept=True)


if __name__ == "__main__":
    main()
