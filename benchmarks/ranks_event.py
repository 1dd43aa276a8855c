"""What one pruning event costs on several ranks, beside the same event on one rank, in one run.

DDP: seconds of one global event at 90 % on 2 ranks, by magnitude and by gradients (Taylor), whose sums are compared
between the ranks. Beside it the same event on one rank, and on two processes at once that do not ask each other: what
two processes cost that share a memory bus is not the price of the agreement. Each process has one thread.
FSDP2: the extra peak memory of an event on each rank, over what it holds before, relative to the bytes of its shards.

    python -m benchmarks.ranks_event
    python -m benchmarks.ranks_event --millions 40 --rounds 9
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.global_event import network, resident
from lightning_prune import Magnitude, OneShot, Recipe, Taylor
from lightning_prune.distributed import shards
from lightning_prune.model import masks
from lightning_prune.run.binding import bind
from lightning_prune.run.pruner import Pruner, prune_step

SPARSITY = 0.9
RANKS = 2


def prepared(model: nn.Module, recipe: Recipe) -> Pruner:
    """Bind the recipe and attach its masks."""
    pruner = bind(recipe, model, None)
    pruner.attach(model)
    return pruner


def show_gradients(pruner: Pruner, model: nn.Module) -> None:
    """Let a gradient criterion see gradients, the same on each rank as DDP leaves them."""
    for parameter in model.parameters():
        parameter.grad = parameter.detach().sin()
    pruner.observe(masks.dense_parameters(model))
    for parameter in model.parameters():
        parameter.grad = None


def seconds_of_event(millions: int, recipe: Recipe) -> float:
    """Return the seconds of one event on a fresh network."""
    model = network(millions)
    pruner = prepared(model, recipe)
    show_gradients(pruner, model)
    start = time.perf_counter()
    prune_step(pruner, model, SPARSITY)
    return time.perf_counter() - start


def rounds_of_events(rank: int, meet: str, millions: int, rounds: int) -> dict[str, list[tuple[float, float, float]]]:
    """Return seconds of each round: on the first rank alone, on all without a process group, and with one."""
    found: dict[str, list[tuple[float, float, float]]] = {"magnitude": [], "Taylor": []}
    for turn in range(rounds):
        for name, times in found.items():
            one = 0.0 if rank else seconds_of_event(millions, recipe_of(name))
            with process_group(rank, f"{meet}.{name}.{turn}.start"):
                pass
            beside = seconds_of_event(millions, recipe_of(name))
            with process_group(rank, f"{meet}.{name}.{turn}"):
                times.append((one, beside, seconds_of_event(millions, recipe_of(name))))
    return found


def recipe_of(name: str) -> Recipe:
    """Return a recipe that ranks globally by this criterion."""
    criterion = Taylor() if name == "Taylor" else Magnitude()
    return Recipe(schedule=OneShot(SPARSITY, begin_step=1), criterion=criterion)


@contextmanager
def process_group(rank: int, meet: str) -> Iterator[None]:
    """Join the other ranks by way of a file, and leave them again."""
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=RANKS)
    dist.barrier()
    try:
        yield
    finally:
        dist.destroy_process_group()


def memory_of_event(rank: int, meet: str, millions: int, name: str) -> tuple[int, int, int]:
    """Return bytes of this rank's shards, of its masks, and the extra peak of an event over what it holds before."""
    from torch.distributed.fsdp import fully_shard

    with process_group(rank, meet):
        model = network(millions)
        pruner = prepared(model, recipe_of(name))
        for layer in model.children():
            fully_shard(layer)
        owned = sum(shards.local(parameter).numel() * 4 for parameter in model.parameters())
        for sparsity in (0.1, SPARSITY):  # the first time some things are allocated for good
            show_gradients(pruner, model)
            Path("/proc/self/clear_refs").write_text("5")
            before = resident()
            prune_step(pruner, model, sparsity)
        return owned, sum(mask.numel() for mask in masks.read(model).values()), peak() - before


def peak() -> int:
    """Return the largest resident size since the mark was cleared, in bytes (Linux)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def measured_memory(millions: int, name: str) -> list[tuple[int, int, int]]:
    """Return what :func:`memory_of_event` says of each rank, in processes that give freed memory back at once."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(1 << 16)
    try:
        return on_ranks(memory_of_event, millions, name)
    finally:
        del os.environ["MALLOC_MMAP_THRESHOLD_"]


def _rank(sender: Connection, function: Callable[..., Any], rank: int, *args: object) -> None:
    torch.set_num_threads(1)
    sender.send(function(rank, *args))


def on_ranks(function: Callable[..., Any], *args: object) -> list[Any]:
    """Call the function on each rank, with its number and the file where they meet, and return what they return."""
    context, pipes = multiprocessing.get_context("spawn"), []
    with tempfile.TemporaryDirectory() as folder:
        for rank in range(RANKS):
            receiver, sender = context.Pipe(duplex=False)
            everything = (sender, function, rank, f"{folder}/meet", *args)
            context.Process(target=_rank, args=everything, daemon=True).start()
            sender.close()
            pipes.append(receiver)
        return [pipe.recv() for pipe in pipes]


def main() -> None:
    """Measure both and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("ddp", "fsdp2"))
    args = parser.parse_args()
    print(f"{args.millions} million weights, {RANKS} ranks, one thread each, sparsity {SPARSITY}")
    if args.only != "fsdp2":
        print_seconds(args.millions, args.rounds)
    if args.only != "ddp":
        print_memory(args.millions)


def print_seconds(millions: int, rounds: int) -> None:
    """Measure events under DDP and print the ratios."""
    for name, times in on_ranks(rounds_of_events, millions, rounds)[0].items():
        one, beside, all_ = (statistics.median(side) for side in zip(*times, strict=True))
        ratio, price = (statistics.median(turn[2] / turn[base] for turn in times) for base in (0, 1))
        print(
            f"DDP, {name:>9}: one rank {one:.3f} s, two side by side {beside:.3f} s, {RANKS} ranks {all_:.3f} s;"
            f" {RANKS} ranks / one {ratio:.2f}, / side by side {price:.2f} (medians)"
        )


def print_memory(millions: int) -> None:
    """Measure events on shards and print their extra peaks."""
    for name in ("magnitude", "Taylor"):
        for rank, (owned, held, extra) in enumerate(measured_memory(millions, name)):
            print(
                f"FSDP2, {name:>9}, rank {rank}: shards {owned / 1e6:.0f} MB, masks {held / 1e6:.0f} MB,"
                f" extra peak of an event {extra / 1e6:.0f} MB = {extra / owned:.2f} of the shards"
            )


if __name__ == "__main__":
    main()
