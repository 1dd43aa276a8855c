"""Time per operator of a program, in a runtime that gives none: measured with its calls doubled."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from lightning_prune.deploy.child import CHILD
from lightning_prune.deploy.child_program import ChildProgram
from lightning_prune.deploy.turns import in_turns, standard_error


@dataclass(frozen=True)
class OperatorTime:
    """Time that one operator, or one delegate, takes in a run.

    Args:
        name: of the operator, as in ``aten::mean.out``, or of the backend.
        is_delegate: whether a backend runs it.
        calls: per run.
        milliseconds: per run, all calls together: the median over the rounds of what doubling them adds.
        resolution_ms: standard error of that median; what is smaller was not measured.
        share: of the program's time.
    """

    name: str
    is_delegate: bool
    calls: int
    milliseconds: float
    resolution_ms: float
    share: float


@dataclass(frozen=True)
class Profile:
    """Where the time of a program goes; ``str()`` of it is a table.

    Args:
        name: of the program.
        median_ms: of the whole program.
        rows: slowest first.
    """

    name: str
    median_ms: float
    rows: tuple[OperatorTime, ...]

    @property
    def outside_share(self) -> float:
        """Share of the time that operators outside of all delegates take."""
        return sum(row.share for row in self.rows if not row.is_delegate)

    def __str__(self) -> str:
        width = max(len(self.name), *(len(row.name) for row in self.rows), 0)
        lines = [f"{self.name:<{width}}  calls          ms   share   ({self.outside_share:.0%} outside of delegates)"]
        for row in self.rows:
            where = "delegate" if row.is_delegate else "outside"
            lines.append(
                f"{row.name:<{width}}  {row.calls:5}  {row.milliseconds:10.4f}  {row.share:6.1%}   {where},"
                f" ±{row.resolution_ms:.4f}"
            )
        return "\n".join(lines)


def profile(name: str, program: ChildProgram, inputs: Sequence[Tensor], rounds: int) -> Profile:
    """Measure what each operator and each delegate of a program takes.

    For each of them the file is written anew with all of its calls standing twice, and all these files take turns with
    the file as it is.

    Args:
        name: of the program.
        program: what to measure.
        inputs: as ``program.prepared`` returned them.
        rounds: number of rounds.

    Raises:
        ExportError: a file cannot be run.
    """
    with TemporaryDirectory() as folder:
        found = [one for one in program.doubled(Path(folder)) if one["calls"] or not one["name"]]
        turns = {one["name"]: partial(program.variant(one["file"]).turn, inputs) for one in found}
        times = in_turns(turns, rounds)[0]
        CHILD.forget()
    median = statistics.median(times[""])
    rows = []
    for one in found[1:]:
        added = [taken - plain for taken, plain in zip(times[one["name"]], times[""], strict=True)]
        spent = max(0.0, statistics.median(added))
        kind, error = one["is_delegate"], standard_error(added)
        rows.append(OperatorTime(one["name"], kind, one["calls"], 1000 * spent, 1000 * error, spent / median))
    return Profile(name, 1000 * median, tuple(sorted(rows, key=lambda row: -row.milliseconds)))
