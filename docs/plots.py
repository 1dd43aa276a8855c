"""Draw docs/schedules.svg: the six schedules with the same begin, end and final sparsity.

python docs/plots.py
"""

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

from lightning_prune import (
    Exponential,
    Iterative,
    Linear,
    OneCycle,
    OneShot,
    Polynomial,
)

BEGIN, END, FREQUENCY, FINAL = 100, 1000, 100, 0.8


def main() -> None:
    """Write the picture beside this file."""
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "lightning_prune"
    gradual = [
        kind(FINAL, BEGIN, END, FREQUENCY)
        for kind in (Linear, Polynomial, Exponential, OneCycle, Iterative)
    ]
    figure, axes = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
    steps = range(0, 1200)
    axes.step(
        steps,
        [OneShot(FINAL, BEGIN)(t) for t in steps],
        where="post",
        color="0.6",
        label="OneShot",
    )
    for number, schedule in enumerate(gradual):
        events = range(BEGIN, END + 1, FREQUENCY)
        axes.plot(
            steps,
            [schedule(t) for t in steps],
            color=f"C{number}",
            label=type(schedule).__name__,
        )
        axes.plot(events, [schedule(t) for t in events], ".", color=f"C{number}")
    axes.set(
        xlabel="completed optimizer steps",
        ylabel="sparsity",
        ylim=(0, 0.85),
        xlim=(0, 1190),
    )
    axes.axvline(BEGIN, color="0.85", zorder=0)
    axes.axvline(END, color="0.85", zorder=0)
    axes.legend(frameon=False, loc="lower right", ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(__file__).with_name("schedules.svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
