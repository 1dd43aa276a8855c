"""What it costs that ExecuTorch runs in a process of its own: a call, a turn of a benchmark, a latency table.

A call of :class:`~lightning_prune.deploy.RuntimeModel` stands beside one of ``executorch.runtime`` in this process, in
turns; the tensors go there and back. What ``benchmark`` and ``latency_table`` report is timed in the other process
around each run, so that the way does not count; what they take beside that is told here.

Run with::

    python -m benchmarks.runtime_cost
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from lightning_prune.deploy import RuntimeModel, benchmark, export, latency_table
from lightning_prune.deploy.executorch.quiet import imported, quiet_native
from lightning_prune.deploy.runtime.turns import in_turns

SHAPES = ((1, 3, 8, 8), (1, 3, 224, 224), (16, 3, 224, 224))


def network(width: int = 16) -> nn.Module:
    """Six convolutions over an image that is halved twice, and a Linear."""
    layers, channels = [], 3
    for index in range(6):
        layers += [nn.Conv2d(channels, width, 3, 2 if index in (1, 3) else 1, 1), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)).eval()


def turn_of(run: Callable[[], object]) -> Callable[[int], float]:
    """Return the turn of something that this process runs."""

    def turn(runs: int) -> float:
        start = time.perf_counter()
        for _ in range(runs):
            run()
        return (time.perf_counter() - start) / runs

    return turn


def calls(folder: Path, rounds: int) -> None:
    """Print the time of one call here and there, of a network that does next to nothing."""
    runtime = imported("executorch.runtime").Runtime.get()
    with quiet_native():
        imported("executorch.extension.pybindings.portable_lib")._unsafe_reset_threadpool(1)
    turns = {}
    kept = []
    for shape in SHAPES:
        x = torch.randn(shape)
        path = export(nn.Sequential(nn.AvgPool2d(8)), folder / f"{len(turns)}.pte", example_inputs=x).path
        with quiet_native():
            program = runtime.load_program(path)
        here, there = program.load_method("forward"), RuntimeModel(path, threads=1)
        kept += [program, there]
        turns[shape, "here"] = turn_of(lambda here=here, x=x: here.execute([x.contiguous()]))
        turns[shape, "there"] = turn_of(lambda there=there, x=x: there(x))
        turns[shape, "reported"] = there.timed(there.prepared(x), statistics.fmean)
    times = in_turns(turns, rounds)[0]
    print(f"{'inputs':>18}  {'':<8}  {'median µs':>9}  {'least µs':>9}")
    for (shape, where), taken in times.items():
        print(f"{shape!s:>18}  {where:<8}  {1e6 * statistics.median(taken):9.1f}  {1e6 * min(taken):9.1f}")


def timed(what: str, module: str, run: Callable[[], object]) -> object:
    """Print how long a function takes, and how much of it the turns take."""
    inside = []

    def measured(turns: dict, rounds: int) -> tuple:
        start = time.perf_counter()
        try:
            return in_turns(turns, rounds)
        finally:
            inside.append(time.perf_counter() - start)

    start = time.perf_counter()
    with mock.patch(f"{module}.in_turns", measured):
        result = run()
    taken = time.perf_counter() - start
    print(f"{what}: {taken:.2f} s, of which the turns {sum(inside):.2f} s")
    return result


def main(arguments: list[str]) -> None:
    """Print what each costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    image = torch.randn(1, 3, 64, 64)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        paths = [export(network(width), folder / f"{width}.pte", example_inputs=image).path for width in (16, 8)]
        for _ in "ab":
            times = timed(
                "benchmark of two programs", "lightning_prune.deploy.benchmark",
                lambda: benchmark(paths, image, rounds=options.rounds),
            )  # fmt: skip
            print(times)
        table = timed(
            "latency_table of six channel groups", "lightning_prune.deploy.latency_table",
            lambda: latency_table(network(), image),
        )  # fmt: skip
        print(table)
        calls(folder, options.rounds)


if __name__ == "__main__":
    main(sys.argv[1:])
