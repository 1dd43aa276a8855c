"""How far a metric lets a trained network go without training: `python -m benchmarks.smallest [TASK] [SEEDS]`.

The test images are halved at random: one half judges the networks that are tried, the other says what that was worth.
"""

import sys
import time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.tasks import dense, quiet, seen, task
from lightning_prune import Channel, MACs, OneShot, Recipe, prune

DROPS = (0.005, 0.01, 0.02)


def right(model: nn.Module, batch: Any) -> Tensor:  # noqa: ANN401
    """Return the share of right answers."""
    return (model(batch[0]).argmax(1) == batch[1]).float().mean()


def main(name: str, seeds: int) -> None:
    """Print a row per seed and drop: what is left, and what it cost on either half."""
    quiet()
    recipe = Recipe(granularity=Channel(), need=MACs(1), schedule=OneShot())
    print("seed  may drop  MACs left  networks  dropped  on the other half  seconds")
    chosen = task(name)
    order = torch.randperm(len(chosen.test[1]), generator=torch.Generator().manual_seed(1))
    judging, other = ([(chosen.test[0][half], chosen.test[1][half])] for half in order.chunk(2))
    for seed in range(seeds):
        before = float(right(dense(name, seed).eval(), other[0]))
        for drop in DROPS:
            net, begin = dense(name, seed), time.perf_counter()
            data = seen(chosen, -(-512 // chosen.batch), seed)
            pruned = prune(net, recipe, data, metric=right, measure_on=judging, max_drop=drop, progress=False)
            tried, took = pruned.tried, time.perf_counter() - begin
            if tried is None or tried.best is None or tried.best.macs is None or tried.macs is None:
                continue
            cost = tried.base - tried.best.metric, before - float(right(net.eval(), other[0]))
            print(
                f"{seed:4}  {drop:8.1%}  {tried.best.macs / tried.macs:9.1%}  {len(tried.attempts):8}"
                f"  {cost[0]:7.1%}  {cost[1]:17.1%}  {took:7.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "digits", int(sys.argv[2]) if len(sys.argv) > 2 else 1)
