"""Median latency of several programs, measured in turns in a process of its own."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_prune.deploy.program.arguments import program_path
from lightning_prune.deploy.program.eager import given_inputs
from lightning_prune.deploy.runtime.child import CHILD, TIMEOUT
from lightning_prune.deploy.runtime.model import RuntimeModel
from lightning_prune.deploy.runtime.profiling import Profile
from lightning_prune.deploy.runtime.profiling import profile as profiled
from lightning_prune.deploy.runtime.turns import in_turns, interquartile_range
from lightning_prune.model.example import Example, Inputs
from lightning_prune.tables import Table, Tabular
from lightning_prune.values import check_bool, check_whole

Programs = str | Path | Sequence[str | Path] | Mapping[str, str | Path]
"""A path, several of them, or name -> path."""


@dataclass(frozen=True)
class Timing:
    """Latency of one program.

    Args:
        name: as given, or from the file.
        median_ms: median over the rounds, milliseconds per run.
        spread_ms: interquartile range over the rounds, milliseconds; NaN for a single round, which has none.
        ratio: median over the rounds of this program's time by the first one's in the same round.
        rounds: number of rounds.
        runs: runs per round; their median is one measurement.
        is_verified: whether a manifest stands beside the file and describes it.
    """

    name: str
    median_ms: float
    spread_ms: float
    ratio: float
    rounds: int
    runs: int
    is_verified: bool = True

    def __str__(self) -> str:
        unverified = "" if self.is_verified else ", unverified"
        spread = "" if math.isnan(self.spread_ms) else f" ± {self.spread_ms / 2:.3f}"
        return f"{self.name}: {self.median_ms:.3f} ms{spread}, {self.ratio:.2f}×{unverified}"


@dataclass(frozen=True)
class Timings(Tabular, Mapping[str, Timing]):
    """Latency of each by name, in the order given; printed, and shown in a notebook, they are a table.

    Args:
        rows: one per program.
        threads: of the ExecuTorch runtime.
        profiles: name -> time per operator; empty if it was not asked for.
    """

    rows: tuple[Timing, ...]
    threads: int
    profiles: Mapping[str, Profile] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Timing:
        return {row.name: row for row in self.rows}[name]

    def __iter__(self) -> Iterator[str]:
        return (row.name for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def table(self) -> Table:
        """Return a row for each program."""
        threads = f"{self.threads} thread" + ("s" if self.threads > 1 else "")
        head = ("program", "median ms", "spread ms", "ratio", f"({threads}, {self.rows[0].rounds} rounds)")
        rows = []
        for row in self.rows:
            spread = "unknown" if math.isnan(row.spread_ms) else f"{row.spread_ms:.3f}"
            remark = "" if row.is_verified else "unverified: no manifest beside it"
            rows.append((row.name, f"{row.median_ms:.3f}", spread, f"{row.ratio:.2f}×", remark))
        return Table(head, rows, remarks=1)

    def __str__(self) -> str:
        return "\n\n".join(map(str, (self.table(), *self.profiles.values())))


def benchmark(
    programs: Programs,
    example_inputs: Inputs | None = None,
    *,
    rounds: int = 30,
    threads: int = 1,
    profile: bool = False,
    method: str = "forward",
    timeout: float = TIMEOUT,
    memory: int | None = None,
) -> Timings:
    """Measure programs in the ExecuTorch runtime, in turns so that the machine's moods hit all of them alike.

    All are loaded in one other process, which a bad file may take down without this one. Each round runs every program
    once around, beginning one further than the round before; a turn is as many runs as take 5 ms. Two turns of each
    warm up.

    Args:
        programs: paths of .pte files, named by their stems, or name -> path; the first is the one that ratios refer
            to. One with a manifest beside it must be the file that it describes; one without is marked as unverified.
        example_inputs: a tensor, a tuple of tensors or a dict by their names, which every program takes; None: random
            ones, for each program of the shapes that it takes.
        rounds: number of rounds, at least 1; at least 3 for a profile.
        threads: of the ExecuTorch runtime.
        profile: whether to measure each operator too; takes about as long again for each operator and delegate.
        method: which method is called.
        timeout: seconds after which a program that does not answer is given up.
        memory: bytes that each may take beyond the runtime; see :class:`RuntimeModel`.

    Returns:
        median, spread and ratio by name, in the order given.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no program, too few rounds, or inputs that a program does not take.
        TypeError: an argument is of another type.
        ExportError: a file is not the one that its manifest describes, cannot be loaded or run, takes the other process
            down or does not answer.
        ImportError: ExecuTorch is not installed.

    Example:
        >>> image = torch.zeros(1, 3, 96, 96)  # doctest: +SKIP
        >>> print(benchmark(["dense.pte", "pruned.pte"], image))  # doctest: +SKIP
    """
    paths = _named(programs)
    check_bool("profile", profile)
    check_whole(
        "rounds", rounds, 3 if profile else 1, why=": fewer do not say how sure a profile is" if profile else ""
    )
    if not paths:
        raise ValueError("programs: got none, must be the path of a file, or several of them")
    given = Example() if example_inputs is None else given_inputs(example_inputs)
    with CHILD.releasing():
        options: Mapping[str, Any] = {"threads": threads, "timeout": timeout, "memory": memory}
        models = {name: RuntimeModel(path, method, **options) for name, path in paths.items()}
        inputs = {
            name: model.random_inputs() if example_inputs is None else model.prepared(*given.args, **given.kwargs)
            for name, model in models.items()
        }
        times, runs = in_turns(
            {name: model.timed(inputs[name], statistics.median) for name, model in models.items()}, rounds
        )
        profiles = {name: profiled(name, models[name], inputs[name], rounds) for name in (models if profile else ())}
    first = next(iter(times.values()))
    rows = tuple(
        Timing(
            name=name,
            median_ms=1000 * statistics.median(taken),
            spread_ms=1000 * interquartile_range(taken) if len(taken) > 1 else math.nan,
            ratio=statistics.median(t / reference for t, reference in zip(taken, first, strict=True)),
            rounds=len(taken),
            runs=runs[name],
            is_verified=models[name].is_verified,
        )
        for name, taken in times.items()
    )
    return Timings(rows, threads, profiles)


def _named(programs: Programs) -> dict[str, Path]:
    """Return name -> path; names are stems where these differ, and else the paths as given."""
    if isinstance(programs, Mapping):
        return {str(name): program_path(path, f"programs[{name!r}]") for name, path in programs.items()}
    if not isinstance(programs, str | Path | Iterable):
        raise TypeError(f"programs: got {programs!r:.60}, must be paths of .pte files, or a dict of them by name")
    given = [programs] if isinstance(programs, str | Path) else programs
    paths = [program_path(path, "programs") for path in given]
    stems = Counter(path.stem for path in paths)
    named = {path.stem if stems[path.stem] == 1 else str(path): path for path in paths}
    if len(named) < len(paths):
        raise ValueError(f"programs: a file is named twice: {', '.join(map(str, paths))}; give names: {{name: path}}")
    return named
