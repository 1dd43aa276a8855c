"""Networks that are accepted by measurement, and their rivals at equal measured time.

A network is trained, its latency table is measured, and `deploy.accepted` brings it down to shares of the dense time:
by the widths that the table and Fisher's scores choose, and, as rivals, by `Global(cost="macs")` and by `Uniform()`, of
which other MACs are asked until their time is as close. *Of the need* is the measured time over what was wished, in the
session that accepted it; *score* what is kept of the sum of Fisher's scores of all channels; *repaired* the accuracy
without training, *tuned* after some epochs.

    python -m benchmarks.accepted characters
    python -m benchmarks.accepted digits --widths 32 64 --shares 0.5 --seeds 3 --tune 4
"""

import argparse
import copy
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

from benchmarks.tasks import accuracy, fit, loss, quiet, seen, task
from lightning_prune import Channel, Fisher, Global, Latency, MACs, OneShot, Recipe, Uniform, prune
from lightning_prune.deploy import accepted, latency_table
from lightning_prune.errors import PruningError
from lightning_prune.run import pruner
from lightning_prune.run.binding import units_of
from lightning_prune.selection.costs import widths_within
from lightning_prune.selection.targets import Targets

WAYS: dict[str, dict[str, Any]] = {
    "by the table": {},
    "Global(cost=macs)": {"allocation": Global(cost="macs")},
    "Uniform": {"allocation": Uniform()},
}


def main() -> None:
    """Print a row for each seed, share and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("digits", "characters"))
    parser.add_argument("--widths", type=int, nargs="+", help="of the dense network; those of the task unless given")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.7, 0.5, 0.3], help="of the dense time")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, help="of the dense training; those of the task unless given")
    parser.add_argument("--tune", type=int, default=0, help="epochs from there on")
    parser.add_argument("--tries", type=int, default=5)
    args = parser.parse_args()
    quiet()
    chosen = task(args.task)
    table = None
    print("seed share way                tries  of the need   score  repaired  tuned")
    for seed in range(args.seeds):
        torch.manual_seed(1000 + seed)
        dense = fit(chosen.make(*(args.widths or chosen.widths)), chosen, args.epochs or chosen.first, seed).eval()
        table = table or latency_table(dense, chosen.example, points=5, progress=False)
        whole, data = table.networks[0].anchors[0].milliseconds, seen(chosen, 8, seed)
        print(f"{seed:4}     1 dense, {whole:.4f} ms{'':33}{accuracy(dense, chosen):8.1f}", flush=True)
        values: dict[str, np.ndarray] = {}

        def noted(units: Any, candidates: Any, *rest: Any, values: Any = values) -> Any:  # noqa: ANN401
            for name in units.sizes:
                scores = candidates.scores[name] / candidates.scales.get(name, 1.0)
                values.setdefault(name, np.sort(scores.flatten().double().numpy())[::-1])
            return widths_within(units, candidates, *rest)

        for share in args.shares:
            for way, options in WAYS.items():

                def make(need: Latency, options: dict[str, Any] = options) -> nn.Module:
                    net = copy.deepcopy(dense)  # noqa: B023 - called in this turn
                    wished = MACs(need.ms / whole) if options else need  # noqa: B023
                    recipe = Recipe(
                        granularity=Channel(), criterion=Fisher(), need=wished, schedule=OneShot(), **options
                    )
                    with mock.patch.object(pruner, "widths_within", noted):
                        prune(net, recipe, data, loss=loss, progress=False)  # noqa: B023
                    return net.eval()

                try:
                    done = accepted(make, Latency(share * whole, table), dense, chosen.example, tries=args.tries)
                except (PruningError, ValueError) as error:
                    print(f"{seed:4} {share:5} {way:18} refused: {error}", flush=True)
                    continue
                left = units_of(Channel(), Targets(), done.model, (chosen.example,)).sizes
                kept = sum(own[: left.get(name, 1)].sum() for name, own in values.items())
                score = kept / sum(own.sum() for own in values.values())
                of_need = done.rounds[done.chosen].milliseconds / done.need.ms
                told = f"{len(done.rounds):5} {of_need:12.3f} {score:7.1%} {accuracy(done.model, chosen):9.1f}"
                tuned = accuracy(fit(done.model, chosen, args.tune, seed, slower=2), chosen) if args.tune else np.nan
                print(f"{seed:4} {share:5} {way:18} {told} {tuned:6.1f}", flush=True)


if __name__ == "__main__":
    main()
