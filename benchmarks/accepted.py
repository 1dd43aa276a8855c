"""Networks that are accepted by measurement, and their rivals at equal measured time.

A network is trained, its latency table is measured, and `deploy.accepted` brings it down to shares of the dense time:
by the widths that the table and Fisher's scores choose, and, as rivals, by `Global(cost="macs")` and by `Uniform()`, of
which other MACs are asked until their time is as close. *Of the need* is the measured time over what was wished, in the
session that accepted it; *score* what is kept of the sum of Fisher's scores of all channels; *at equal time* the
score at the very need, between the two tries that lie around it; *repaired* the accuracy without training, *tuned*
after some epochs; *predicted* the table's milliseconds over the measured ones. mobilenet and resnet are networks of
those shapes for digits of 48x48.

    python -m benchmarks.accepted characters
    python -m benchmarks.accepted digits --widths 32 64 --shares 0.5 --seeds 3 --tune 4
    python -m benchmarks.accepted mobilenet --shares 0.3
"""

import argparse
import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from benchmarks.removal_speed import mobilenet, resnet
from benchmarks.scores import Scores
from benchmarks.tasks import Task, accuracy, fit, loss, quiet, seen, task
from lightning_prune import Channel, Fisher, Global, Latency, MACs, OneShot, Recipe, Uniform, prune
from lightning_prune.deploy import accepted, latency_table
from lightning_prune.errors import PruningError
from lightning_prune.run.binding import units_of
from lightning_prune.selection.targets import Targets

WAYS: dict[str, dict[str, Any]] = {
    "table": {},
    "macs": {"allocation": Global(cost="macs")},
    "uniform": {"allocation": Uniform()},
}

LARGE: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "mobilenet": (mobilenet, ()),
    "resnet": (resnet, (32,)),
}


def named(name: str) -> Task:
    """Return the task of this name, or digits of 48x48 in three equal colours for the network of this name."""
    if name not in LARGE:
        return task(name)
    small, (make, widths) = task("digits"), LARGE[name]

    def enlarged(data: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return interpolate(data[0], (48, 48)).repeat(1, 3, 1, 1), data[1]

    return replace(
        small, name=name, train=enlarged(small.train), test=enlarged(small.test), make=make, widths=widths, adam=True,
        rate=2e-3, smoothing=0.0, first=12,
    )  # fmt: skip


def asked() -> argparse.Namespace:
    """Return the arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("digits", "characters", *LARGE))
    parser.add_argument("--widths", type=int, nargs="+", help="of the dense network; those of the task unless given")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.7, 0.5, 0.3], help="of the dense time")
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=list(WAYS), help="table comes first: it tells scores"
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, help="of the dense training; those of the task unless given")
    parser.add_argument("--tune", type=int, default=0, help="epochs from there on")
    parser.add_argument("--tries", type=int, default=6)
    return parser.parse_args()


def main() -> None:
    """Print a row for each seed, share and way."""
    args = asked()
    quiet()
    chosen = named(args.task)
    table = None
    print("seed share way      tries  of the need   score  at equal time  repaired  tuned  predicted  widths")
    for seed in range(args.seeds):
        torch.manual_seed(1000 + seed)
        dense = fit(chosen.make(*(args.widths or chosen.widths)), chosen, args.epochs or chosen.first, seed).eval()
        table = table or latency_table(dense, chosen.example, points=5, progress=False)
        whole, data = table.networks[0].anchors[0].milliseconds, seen(chosen, 8, seed)
        print(f"{seed:4}     1 dense, {whole:.4f} ms{'':48}{accuracy(dense, chosen):8.1f}", flush=True)
        cost = table.cost(
            units_of(Channel(), Targets(), dense, (chosen.example,)),  # type: ignore[arg-type]
            {name: x.numel() for name, x in dense.state_dict().items()},
            [tuple(chosen.example.shape)],
        )
        dense_scores = Scores(chosen.example)
        for share in args.shares:
            for way in args.ways:
                scores, widths = list[float](), list[dict[str, int]]()

                def make(
                    need: Latency,
                    options: dict[str, Any] = WAYS[way],
                    scores: list[float] = scores,
                    widths: list[dict[str, int]] = widths,
                ) -> nn.Module:
                    net = copy.deepcopy(dense)  # noqa: B023 - called in this turn
                    wished = MACs(need.ms / whole) if options else need  # noqa: B023
                    recipe = Recipe(
                        granularity=Channel(), criterion=Fisher(), need=wished, schedule=OneShot(), **options
                    )
                    with dense_scores.noted():  # noqa: B023
                        prune(net, recipe, data, loss=loss, progress=False)  # noqa: B023
                    widths.append(dense_scores.widths(net))  # noqa: B023
                    scores.append(dense_scores.kept(widths[-1]))  # noqa: B023
                    return net.eval()

                try:
                    done = accepted(make, Latency(share * whole, table), dense, chosen.example, tries=args.tries)
                except (PruningError, ValueError) as error:
                    print(f"{seed:4} {share:5} {way:8} refused: {error}", flush=True)
                    continue
                of_need = [each.milliseconds / done.need.ms for each in done.rounds]
                order = np.argsort(of_need)
                equal = np.interp(1.0, np.take(of_need, order), np.take(scores, order), right=np.nan)
                told = f"{len(of_need):5} {of_need[done.chosen]:12.3f} {scores[done.chosen]:7.1%} {equal:14.1%}"
                told += f" {accuracy(done.model, chosen):9.1f}"
                tuned = accuracy(fit(done.model, chosen, args.tune, seed, slower=2), chosen) if args.tune else np.nan
                left = widths[done.chosen]
                predicted = cost.left({name: len(own) - left[name] for name, own in dense_scores.values.items()})
                ratio = predicted / done.rounds[done.chosen].milliseconds
                print(f"{seed:4} {share:5} {way:8} {told} {tuned:6.1f} {ratio:9.3f}  {[*left.values()]}", flush=True)


if __name__ == "__main__":
    main()
