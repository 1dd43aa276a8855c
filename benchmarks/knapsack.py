"""How close the chosen widths come to the bound, and how long choosing takes: made-up networks of several shapes.

    python -m benchmarks.knapsack

Values rise ever less with the width (sums of sorted lognormal scores); a layer costs the product of its input width and
its output width, rounded up to 16, and a constant. A chain of layers; residual streams of four blocks each; the same
with shortcuts between streams. Three budgets (70, 50 and 30 % of the dense cost), two seeds.
"""

import time

import numpy as np

from lightning_prune.selection.budget import Terms
from lightning_prune.selection.knapsack import Problem

SHAPES = ("chain", "residual", "shortcuts")


def network(groups: int, widths: int, shape: str, seed: int) -> Problem:
    """Return a made-up network."""
    random = np.random.default_rng(seed)
    names = [f"g{number}" for number in range(groups)]
    sizes = {name: int(random.choice([64, 96, 128, 256])) for name in names}
    allowed = {
        n: np.maximum(1, np.round(size * np.arange(1, widths + 1) / widths)).astype(int) for n, size in sizes.items()
    }
    values = {}
    for name, size in sizes.items():
        scores = np.sort(random.lognormal(0, 1.5, size))[::-1] * random.lognormal(0, 0.7) / size
        values[name] = np.concatenate([[0.0], np.cumsum(scores)])[allowed[name]]
    terms: Terms = []

    def layer(reads: str, makes: str) -> None:
        rate = random.uniform(0.5, 4) / 6400
        outputs = 16 * np.ceil(allowed[makes] / 16)
        terms.append(((reads, makes), rate * np.multiply.outer(allowed[reads] + 8, outputs) + 3))

    for number in range(groups - 1):
        stream, place = names[number - number % 5], number % 5
        if shape == "chain":
            layer(names[number], names[number + 1])
        elif place:
            layer(stream, names[number])
            layer(names[number], stream if place < 4 else names[min(groups - 1, number + 1)])
        elif shape == "shortcuts" and number >= 5:
            layer(names[number - 5], names[number])
    return Problem(values, terms)


def main() -> None:
    """Print a row for each size and shape."""
    for groups, widths in ((50, 16), (300, 16)):
        for shape in SHAPES:
            gaps, seconds = [], []
            for seed in range(2):
                for share in (0.7, 0.5, 0.3):
                    problem = network(groups, widths, shape, seed)
                    least = problem.cost(dict.fromkeys(problem.values, 0))
                    limit = max(share * problem.cost(dict.fromkeys(problem.values, widths - 1)), 1.05 * least)
                    start = time.process_time()
                    found = problem.solve(limit)
                    seconds.append(time.process_time() - start)
                    gaps.append(found.gap)
            print(f"| {shape} | {groups} × {widths} | {max(gaps):.3%} | {max(seconds):.2f} s |", flush=True)


if __name__ == "__main__":
    main()
