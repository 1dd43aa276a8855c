"""A trained model pruned without training: the cut alone, and with repair. `python -m benchmarks.trained [SEEDS]`."""

import sys
from dataclasses import replace

from benchmarks.tasks import accuracy, dense, loss, quiet, task
from lightning_prune import (
    Channel,
    Fisher,
    Global,
    LeastSquares,
    Magnitude,
    NoRepair,
    OneShot,
    Recipe,
    Reconstruction,
    Uniform,
    prune,
)


def main(seeds: int) -> None:
    """Print a row per seed, criterion, allocation and share of the multiply-accumulates left."""
    quiet()
    digits = task("digits")
    data = list(zip(*(side.split(50) for side in digits.train), strict=True))
    print("seed  left  criterion       allocation  dense  cut alone  repaired")
    for seed in range(seeds):
        whole = accuracy(dense("digits", seed), digits)
        for left in (0.7, 0.5, 0.3):
            for criterion in (Magnitude(), Fisher(), Reconstruction()):
                for allocation in (Uniform(), Global()):
                    recipe = Recipe(
                        granularity=Channel(), schedule=OneShot(1 - left), criterion=criterion, allocation=allocation,
                        count="macs",
                    )  # fmt: skip
                    reached = []
                    for repair in (NoRepair(), LeastSquares()):
                        net = dense("digits", seed)
                        prune(net, replace(recipe, repair=repair), data, loss=loss, progress=False)
                        reached.append(accuracy(net, digits))
                    names = f"{type(criterion).__name__:<14}  {type(allocation).__name__:<10}"
                    print(
                        f"{seed:4}  {left:4}  {names}  {whole:5.1f}  {reached[0]:9.1f}  {reached[1]:8.1f}", flush=True
                    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
