"""What are the scores worth that channels of one group lose together?

The widths that a need chooses keep most score, and what a group loses counts the more, the more of its score it is, by
a factor: with 0 as many lost scores count as much in one group as in several. Dense networks are pruned to shares of
their MACs by `Fisher()`, repaired, and not trained: a row for each share has the accuracies and, in brackets, the share
of all scores that is kept, as means over the seeds. *MACs* ranks by score per MAC, *uniform* takes from all alike.

    python -m benchmarks.together digits letters
    python -m benchmarks.together characters --factors 0 1 3 --shares 0.5 0.3
"""

import argparse
import copy
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

from benchmarks.scores import Scores
from benchmarks.tasks import Task, accuracy, fit, loss, quiet, seen, task
from lightning_prune import Channel, Fisher, Global, MACs, OneShot, Recipe, Uniform, prune
from lightning_prune.selection import costs

RIVALS: dict[str, dict[str, Any]] = {
    "MACs": {"allocation": Global(cost="macs")},
    "uniform": {"allocation": Uniform()},
}


def pruned(dense: nn.Module, chosen: Task, share: float, way: str, scores: Scores) -> tuple[float, float]:
    """Return the accuracy of a copy at a share of its MACs, and the percent of scores that are kept.

    Args:
        dense: trained.
        chosen: its task.
        share: of the MACs that is left.
        way: a rival, or the factor.
        scores: of the dense network.
    """
    net, options = copy.deepcopy(dense), RIVALS.get(way, {})
    recipe = Recipe(granularity=Channel(), criterion=Fisher(), need=MACs(share), schedule=OneShot(), **options)
    factor = costs._TOGETHER if options else float(way)
    with scores.noted(), mock.patch.object(costs, "_TOGETHER", factor):
        prune(net, recipe, seen(chosen, 8, 0), loss=loss, progress=False)
    return accuracy(net.eval(), chosen), 100 * scores.kept(scores.widths(net))


def main() -> None:
    """Print a table for each task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=("digits", "letters", "characters"))
    parser.add_argument("--factors", nargs="+", default=["0", "1", "3", "10"])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.3, 0.2, 0.1], help="of the MACs")
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    ways = [*args.factors, *RIVALS]
    for name in args.tasks:
        chosen = task(name)
        told: dict[tuple[float, str], list[tuple[float, float]]] = {}
        dense = list[float]()
        for seed in range(args.seeds):
            torch.manual_seed(1000 + seed)
            net = fit(chosen.make(*chosen.widths), chosen, chosen.first, seed).eval()
            dense.append(accuracy(net, chosen))
            scores = Scores(chosen.example)
            for share, way in ((share, way) for share in args.shares for way in ways):
                told.setdefault((share, way), []).append(pruned(net, chosen, share, way, scores))
        print(f"{name}, dense {np.mean(dense):.1f}, {args.seeds} seeds\n{'':6}" + "".join(f"{way:>14}" for way in ways))
        for share in args.shares:
            cells = [np.mean(told[share, way], axis=0) for way in ways]
            print(f"{share:<6}" + "".join(f"{right:7.1f} ({kept:.1f})" for right, kept in cells), flush=True)
        means = [np.mean([told[share, way] for share in args.shares], axis=(0, 1)) for way in ways]
        print(f"{'mean':6}" + "".join(f"{right:7.1f} ({kept:.1f})" for right, kept in means), flush=True)


if __name__ == "__main__":
    main()
