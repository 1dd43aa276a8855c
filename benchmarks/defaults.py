"""What a recipe that names neither criterion nor allocation reaches, beside recipes that do.

The tasks of `benchmarks.tasks`. Digits and letters are those on which the defaults were chosen; characters only report.

    python -m benchmarks.defaults channels             # a tenth of the multiply-accumulates, then trained
    python -m benchmarks.defaults channels --no-repair # the same by training alone
    python -m benchmarks.defaults weights              # 95 and 98 % of the weights gone, then trained
    python -m benchmarks.defaults trained              # half of the multiply-accumulates, no training after
    python -m benchmarks.defaults channels --seeds 1 --tasks digits
"""

import argparse
from collections.abc import Callable
from statistics import mean, stdev

from torch import nn

from benchmarks.tasks import TASKS, Task, accuracy, dense, fit, loss, macs, quiet, seen, task
from lightning_prune import (
    Channel,
    Fisher,
    Global,
    GradientCriterion,
    Magnitude,
    NoRepair,
    OneShot,
    Polynomial,
    PruningCallback,
    Recipe,
    Reconstruction,
    Taylor,
    Uniform,
    prune,
)
from lightning_prune.tables import aligned

RECIPES = {
    "as it comes": {},
    "Reconstruction(), Global()": {"criterion": Reconstruction(), "allocation": Global()},
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


def after_training(net: nn.Module, task: Task, seed: int, recipe: Recipe) -> nn.Module:
    """Return the network pruned in the first half of its further epochs."""
    return fit(net, task, task.more, seed, [PruningCallback(recipe)])


def without_training(net: nn.Module, task: Task, seed: int, recipe: Recipe) -> nn.Module:
    """Return the network pruned in one call, on 400 images that are augmented as in training."""
    tells = loss if isinstance(recipe.criterion, GradientCriterion) else None
    prune(net, recipe, seen(task, 8, seed), loss=tells, samples=400, example_inputs=task.example, progress=False)
    return net


def rows_of(what: str, repairs: bool) -> dict[str, tuple[Recipe, Callable[..., nn.Module]]]:
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
        return {name: (Recipe(**half, **parts), without_training) for name, parts in RECIPES.items()}
    tenth = {"count": "macs", "schedule": Polynomial(0.9, frequency=9, **gradual)}
    tenth |= {} if repairs else {"repair": NoRepair()}
    rows = {name: (Recipe(granularity=Channel(), **tenth, **parts), after_training) for name, parts in RECIPES.items()}
    open_recipe = Recipe(granularity=Channel(min_share=0), **tenth, **RECIPES["Magnitude(), Global()"])
    return rows | {FLOORLESS: (open_recipe, after_training)}


def main() -> None:
    """Print a table for each task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("channels", "weights", "trained"))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--no-repair", action="store_true", help="channels: by training alone")
    parser.add_argument("--rows", nargs="+", help="names of the recipes; all where it is left out")
    chosen = parser.parse_args()
    quiet()
    recipes = {
        name: row
        for name, row in rows_of(chosen.what, not chosen.no_repair).items()
        if not chosen.rows or name in chosen.rows
    }
    for one in map(task, chosen.tasks):
        reached = dict[str, list[float]]()
        for seed in range(chosen.seeds):
            reached.setdefault("dense", []).append(accuracy(dense(one.name, seed), one))
            for label, (recipe, run) in recipes.items():
                net = run(dense(one.name, seed), one, seed, recipe)
                reached.setdefault(label, []).append(accuracy(net, one))
                print(
                    f"{one.name} {seed} {label}: {reached[label][-1]:.1f} %, {macs(net, one.example):,} MACs",
                    flush=True,
                )
        cells = [
            (label, f"{mean(found):.1f}", f"{stdev(found):.1f}" if len(found) > 1 else "", f"{min(found):.1f}")
            for label, found in reached.items()
        ]
        print(aligned([(one.name, "accuracy", "spread", "worst"), *cells]), flush=True)


if __name__ == "__main__":
    main()
