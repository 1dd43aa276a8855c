"""Time per operator of a program, in a runtime that gives none: measured with its calls doubled."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_prune.deploy.runtime.child import CHILD
from lightning_prune.deploy.runtime.model import RuntimeModel
from lightning_prune.deploy.runtime.turns import in_turns
from lightning_prune.documents import scratch
from lightning_prune.tables import aligned, escaped


@dataclass(frozen=True)
class OperatorTime:
    """Time that one operator, or one delegate, takes in a run.

    Args:
        name: of the operator, as in ``aten::mean.out``, or of the backend.
        is_delegate: whether a backend runs it.
        calls: per run.
        milliseconds: per run, all calls together: what doubling them adds to the fastest run of all.
        resolution_ms: how far the fastest runs of two halves of the rounds lie apart; what is smaller was not measured.
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
        fastest_ms: the fastest run of the whole program.
        rows: slowest first.
    """

    name: str
    fastest_ms: float
    rows: tuple[OperatorTime, ...]

    @property
    def outside_share(self) -> float:
        """Share of the time that operators outside of all delegates take."""
        return sum(row.share for row in self.rows if not row.is_delegate)

    def __str__(self) -> str:
        remark = f"({self.outside_share:.0%} outside of delegates)"
        rows = [
            (
                escaped(row.name),
                str(row.calls),
                f"{row.milliseconds:.4f}",
                f"{row.share:.1%}",
                f"{'delegate' if row.is_delegate else 'outside'}, ±{row.resolution_ms:.4f}",
            )
            for row in self.rows
        ]
        return aligned([(self.name, "calls", "ms", "share", remark), *rows], remarks=1)


def profile(name: str, program: RuntimeModel, inputs: Sequence[Tensor], rounds: int) -> Profile:
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
    with scratch() as folder, CHILD.releasing():
        variants = [one for one in program.doubled(folder) if one["calls"] or not one["name"]]
        turns = {one["name"]: program.variant(one["file"]).timed(inputs, min) for one in variants}
        times = in_turns(turns, rounds)[0]
    whole, noise = _fastest(times[""])
    rows = []
    for one in variants[1:]:
        doubled, spread = _fastest(times[one["name"]])
        spent = max(0.0, doubled - whole)
        error = 1000 * (spread + noise)
        rows.append(OperatorTime(one["name"], one["is_delegate"], one["calls"], 1000 * spent, error, spent / whole))
    return Profile(name, 1000 * whole, tuple(sorted(rows, key=lambda row: -row.milliseconds)))


def _fastest(seconds: Sequence[float]) -> tuple[float, float]:
    """Return the fastest round, and by how much the fastest of every other one differs from that of the rest.

    Other work on the machine adds to some rounds and never takes away, so the fastest are nearest to the truth.
    """
    return min(seconds), abs(min(seconds[::2]) - min(seconds[1::2], default=seconds[0]))
