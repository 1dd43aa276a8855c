"""Median latency of several programs, measured in turns on one machine."""

import math
import statistics
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from lightning_prune.deploy.runtime import RuntimeModel, thread_count
from lightning_prune.report import as_tuple

Key = TypeVar("Key", bound=Hashable)
Prepared = tuple[RuntimeModel, tuple[Tensor, ...]]
"""A program and what its ``prepared`` returned for its inputs."""

_SECONDS_PER_TURN = 0.005


@dataclass(frozen=True)
class Latency:
    """Latency of one program.

    Args:
        name: as given.
        median_ms: median over the rounds, milliseconds per run.
        spread_ms: interquartile range over the rounds, milliseconds.
        ratio: median over the rounds of this program's time by the first one's in the same round.
        rounds: number of rounds.
        runs: runs per round; their mean is one measurement.
    """

    name: str
    median_ms: float
    spread_ms: float
    ratio: float
    rounds: int
    runs: int

    def __str__(self) -> str:
        return f"{self.name}: {self.median_ms:.3f} ms ± {self.spread_ms / 2:.3f}, {self.ratio:.2f}×"


@dataclass(frozen=True)
class Latencies(Mapping[str, Latency]):
    """Latencies by name, in the order given; ``str()`` of it is a table.

    Args:
        rows: one per program.
        threads: of the ExecuTorch runtime.
    """

    rows: tuple[Latency, ...]
    threads: int

    def __getitem__(self, name: str) -> Latency:
        return {row.name: row for row in self.rows}[name]

    def __iter__(self) -> Iterator[str]:
        return (row.name for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        width = max(len("program"), *(len(name) for name in self))
        threads = f"{self.threads} thread" + ("s" if self.threads > 1 else "")
        lines = [f"{'program':<{width}}  median ms  spread ms   ratio   ({threads}, {self.rows[0].rounds} rounds)"]
        for row in self.rows:
            lines.append(f"{row.name:<{width}}  {row.median_ms:9.3f}  {row.spread_ms:9.3f}  {row.ratio:5.2f}×")
        return "\n".join(lines)


def latency(
    programs: Mapping[str, str | Path], example_inputs: Tensor | Sequence[Tensor], rounds: int = 30, threads: int = 1
) -> Latencies:
    """Measure programs in the ExecuTorch runtime, in turns so that the machine's moods hit all of them alike.

    Each round runs every program once around, beginning one further than the round before; a turn is as many runs as
    take 5 ms. Two turns of each warm up.

    Args:
        programs: name -> path of a .pte; the first is the one that ratios refer to.
        example_inputs: a tensor or a tuple of tensors that every program takes.
        rounds: number of rounds, at least 1.
        threads: of the ExecuTorch runtime, set for this call; see
            :func:`~lightning_prune.deploy.runtime.thread_count` for what that means for methods loaded elsewhere.

    Returns:
        median, spread and ratio by name, in the order given.

    Raises:
        ValueError: no program, no round, or inputs that a program does not take.
        ExportError: a file cannot be loaded.
        ImportError: ExecuTorch is not installed.
    """
    if not programs or rounds < 1:
        raise ValueError(f"latency needs at least one program and one round, got {len(programs)} and {rounds}")
    with thread_count(threads):
        models = {name: RuntimeModel(path) for name, path in programs.items()}
        prepared = {name: (model, model.prepared(*as_tuple(example_inputs))) for name, model in models.items()}
        times, runs = in_turns(prepared, rounds)
    return _table(times, runs, threads)


def in_turns(programs: Mapping[Key, Prepared], rounds: int) -> tuple[dict[Key, list[float]], dict[Key, int]]:
    """Measure loaded programs, each on inputs of its own, in turns as :func:`latency` does.

    Returns:
        key -> seconds per run in each round, and key -> runs per turn.
    """
    runs = {key: _calibrated(*program) for key, program in programs.items()}
    times: dict[Key, list[float]] = {key: [] for key in programs}
    for index in range(rounds):
        for key in _rotated(list(programs), index):
            times[key].append(_turn(*programs[key], runs[key]))
    return times, runs


def _table(times: Mapping[str, list[float]], runs: Mapping[str, int], threads: int) -> Latencies:
    first = next(iter(times.values()))
    rows = [
        Latency(
            name=name,
            median_ms=1000 * statistics.median(taken),
            spread_ms=1000 * interquartile_range(taken),
            ratio=statistics.median(t / reference for t, reference in zip(taken, first, strict=True)),
            rounds=len(taken),
            runs=runs[name],
        )
        for name, taken in times.items()
    ]
    return Latencies(tuple(rows), threads)


def _rotated(keys: list[Key], by: int) -> list[Key]:
    by %= len(keys)
    return keys[by:] + keys[:by]


def _turn(model: RuntimeModel, inputs: tuple[Tensor, ...], runs: int) -> float:
    start = time.perf_counter()
    for _ in range(runs):
        model.run(inputs)
    return (time.perf_counter() - start) / runs


def _calibrated(model: RuntimeModel, inputs: tuple[Tensor, ...]) -> int:
    model.run(inputs)
    runs = max(1, math.ceil(_SECONDS_PER_TURN / _turn(model, inputs, 3)))
    _turn(model, inputs, runs)
    return max(1, math.ceil(_SECONDS_PER_TURN / _turn(model, inputs, runs)))


def interquartile_range(values: list[float]) -> float:
    """Return the distance between the first and the third quartile; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low
