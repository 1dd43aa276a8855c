"""Training at 10 % of the multiply-accumulates with repair at the events and without it, from the same dense networks.

Of `benchmarks.tasks`: once the events are ten until half of the training, once there is one at its start.

    python -m benchmarks.repair                 # one thread, some five minutes a seed
    python -m benchmarks.repair --seeds 3
"""

import argparse
from statistics import mean, stdev

from benchmarks.tasks import accuracy, dense, fit, macs, quiet, task
from lightning_prune import (
    Channel,
    Fisher,
    LeastSquares,
    Magnitude,
    NoRepair,
    OneShot,
    Polynomial,
    PruningCallback,
    Recipe,
    Reconstruction,
    Uniform,
)

LEFT = 0.1
"""Share of the multiply-accumulates."""


def main() -> None:
    """Print a row per seed, task, criterion and schedule, and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tasks", nargs="+", default=["digits", "characters"])
    chosen = parser.parse_args()
    quiet()
    table: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for one in map(task, chosen.tasks):
        steps = one.more * one.steps
        schedules = {
            "ten events": Polynomial(1 - LEFT, begin_step=1, end_step=steps // 2, frequency=max(1, steps // 20)),
            "at once": OneShot(1 - LEFT, begin_step=6),
        }
        for seed in range(chosen.seeds):
            start = dense(one.name, seed)
            whole = macs(start, one.example)
            print(f"{one.name}, seed {seed}: dense {accuracy(start, one):.1f} %", flush=True)
            for criterion in (Magnitude(), Fisher(), Reconstruction()):
                for name, schedule in schedules.items():
                    reached = []
                    for repair in (NoRepair(), LeastSquares()):
                        recipe = Recipe(
                            granularity=Channel(), count="macs", schedule=schedule, criterion=criterion,
                            allocation=Uniform(), repair=repair,
                        )  # fmt: skip
                        net = fit(dense(one.name, seed), one, one.more, seed, [PruningCallback(recipe)])
                        reached.append(accuracy(net, one))
                        assert macs(net, one.example) <= LEFT * whole
                    key = one.name, type(criterion).__name__, name
                    table.setdefault(key, []).append((reached[0], reached[1]))
                    told = f"without {reached[0]:5.1f}  repaired {reached[1]:5.1f}"
                    print(f"  {key[1]:<14} {name:<10}  {told}", flush=True)
    print(f"{'':<37}  without       repaired      gained")
    for key, pairs in table.items():
        sides = [[pair[side] for pair in pairs] for side in (0, 1)]
        spread = [stdev(side) if len(side) > 1 else 0.0 for side in sides]
        told = "  ".join(f"{mean(side):5.1f} ± {s:4.1f}" for side, s in zip(sides, spread, strict=True))
        print(f"{key[0]:<11} {key[1]:<14} {key[2]:<10}  {told}  {mean(sides[1]) - mean(sides[0]):+.1f}")


if __name__ == "__main__":
    main()
