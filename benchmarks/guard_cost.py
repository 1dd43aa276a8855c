"""What a quality guard costs per event: one snapshot and one rollback of a masked network with Adam.

The network has 25 million parameters by default, 90 % of which are masked out. Prints seconds, median and spread, of
a snapshot in memory and on disk and of the rollback from each, with one and with two threads, and beside them the
time of one bare copy of the same bytes (a fresh clone of each tensor, and copies back into place).

    python -m benchmarks.guard_cost
    python -m benchmarks.guard_cost --millions 100 --rounds 5
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_prune import OneShot, Recipe
from lightning_prune.guard.snapshots import Snapshot
from lightning_prune.run.binding import bind
from lightning_prune.run.pruner import prune_step

WIDTH = 1024


def trained(millions: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a masked network of so many parameters and an Adam that has stepped once."""
    torch.manual_seed(0)
    layers = max(1, round(millions * 1e6 / (WIDTH * (WIDTH + 1))))
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers)))
    pruner = bind(Recipe(schedule=OneShot(0.9)), model, None)
    pruner.attach(model)
    prune_step(pruner, model, 0.9)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(1, WIDTH)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def seconds(work: Callable[[], object]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the tensors whose bytes a snapshot holds."""
    state = [value for values in optimizer.state.values() for value in values.values()]
    return [*(p.data for p in model.parameters()), *model.buffers(), *state]


def round_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Time every side once."""
    found: dict[str, float] = {}
    tensors = tensors_of(model, optimizer)
    copies: list[Tensor] = []
    found["bare copy"] = seconds(lambda: copies.extend([tensor.clone() for tensor in tensors]))
    found["bare copy back"] = seconds(lambda: [a.copy_(b) for a, b in zip(tensors, copies, strict=True)])
    copies.clear()
    for where in ("memory", "disk"):
        held: list[Snapshot] = []
        found[f"snapshot, {where}"] = seconds(lambda: held.append(Snapshot.take(model, [optimizer], where=where)))  # noqa: B023
        found[f"rollback, {where}"] = seconds(lambda: held[0].restore(model, [optimizer]))  # noqa: B023
        held[0].drop()
        found[f"both, {where}"] = found[f"snapshot, {where}"] + found[f"rollback, {where}"]
    return found


def main() -> None:
    """Measure in turns and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, default=25)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    model, optimizer = trained(args.millions)
    size = sum(tensor.nbytes for tensor in tensors_of(model, optimizer))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters with Adam, {size / 1e6:,.0f} MB in all")
    results: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for _ in range(args.rounds):
        for threads, rounds in results.items():
            torch.set_num_threads(threads)
            rounds.append(round_of(model, optimizer))
    print(f"seconds, median (least to most) of {args.rounds} rounds in turns")
    for threads, rounds in results.items():
        print(f"{threads} thread{'s' if threads > 1 else ''}")
        for side in rounds[0]:
            times = [one[side] for one in rounds]
            print(f"  {side:<18} {statistics.median(times):6.3f}  ({min(times):.3f} to {max(times):.3f})")


if __name__ == "__main__":
    main()
