"""What a comparison came to, as values: ranked at equal cost, with mean and spread."""

import json
import math
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, overload

from lightning_prune.study.training import Outcome
from lightning_prune.tables import Table, Tabular

Cost = Literal["macs", "effective_macs", "bytes"]

CLOSE = 0.05
"""Costs that differ by no more than this share are equal."""


@dataclass(frozen=True)
class Row:
    """One side of a comparison over all seeds.

    Args:
        name: of the recipe, or of a dense network.
        is_control: whether it is a dense network, whole or small, to which recipes are compared.
        cost: mean over the seeds of what was made equal.
        level: sides of one level cost the same; 0 is the cheapest.
        rank: among the sides of its level, 1 is the best.
        outcomes: one for each seed.
    """

    name: str
    is_control: bool
    cost: float
    level: int
    rank: int
    outcomes: tuple[Outcome, ...]

    @property
    def mean(self) -> float:
        """The metric's mean over the seeds."""
        return statistics.fmean(one.metric for one in self.outcomes)

    @property
    def spread(self) -> float:
        """The metric's standard deviation over the seeds; 0 for a single one."""
        return statistics.stdev(one.metric for one in self.outcomes) if len(self.outcomes) > 1 else 0.0


@dataclass(frozen=True)
class Comparison(Tabular, Sequence[Row]):
    """Rows from the cheapest level to the dearest, best first in each; printed, and shown in a notebook, a table.

    Args:
        rows: in that order.
        equal: what was made equal.
        metric: name of the metric.
        higher_is_better: whether more of it is better.
        epochs: of each run.
    """

    rows: tuple[Row, ...]
    equal: Cost
    metric: str
    higher_is_better: bool
    epochs: int

    @overload
    def __getitem__(self, index: int | str) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | str | slice) -> Row | Sequence[Row]:
        if not isinstance(index, str):
            return self.rows[index]
        for row in self.rows:
            if row.name == index:
                return row
        raise KeyError(f"no side is called {index!r}; there are {', '.join(row.name for row in self.rows)}")

    def __len__(self) -> int:
        return len(self.rows)

    def table(self) -> Table:
        """Return a row for each side, in order."""
        head = ("", "rank", self.metric, "spread", "MACs", "effective", "parameters", "bytes", "s per run")
        rows = [
            (
                row.name,
                str(row.rank),
                f"{row.mean:.4f}",
                f"± {row.spread:.4f}",
                _mean(one.macs for one in row.outcomes),
                _mean(one.effective_macs for one in row.outcomes),
                _mean(one.parameters for one in row.outcomes),
                _mean(one.bytes for one in row.outcomes),
                f"{statistics.fmean(one.seconds for one in row.outcomes):.1f}",
            )
            for row in self.rows
        ]
        seeds = len(self.rows[0].outcomes)
        note = f"ranked at equal {self.equal}; {self.epochs} epochs, {seeds} seeds each"
        return Table(head, rows, note=note)

    def control_of(self, name: str) -> Row | None:
        """Return the best dense network that costs as much as this side; None where there is none."""
        row = self[name]
        return next((one for one in self.rows if one.level == row.level and one.is_control), None)

    def to_json(self) -> str:
        """Return the rows and their outcomes as JSON text."""
        return json.dumps(asdict(self), indent=1)


def _mean(values: Iterable[int | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.fmean(known):,.0f}" if known else "-"


def cost_of(outcome: Outcome, equal: Cost) -> float:
    """Return what a run costs, in what is made equal."""
    found = {"macs": outcome.macs, "effective_macs": outcome.effective_macs, "bytes": outcome.bytes}[equal]
    return float(found or 0)


def levels(costs: Mapping[str, float]) -> list[list[str]]:
    """Return the names that cost the same, cheapest first: each within :data:`CLOSE` of the first of its level.

    Example:
        >>> levels({"a": 100.0, "b": 51.0, "c": 50.0})
        [['c', 'b'], ['a']]
    """
    found: list[list[str]] = []
    for name in sorted(costs, key=lambda name: costs[name]):
        if found and costs[name] <= costs[found[-1][0]] * (1 + CLOSE):
            found[-1].append(name)
        else:
            found.append([name])
    return found


def by_side(outcomes: Iterable[Outcome]) -> dict[str, tuple[Outcome, ...]]:
    """Return the outcomes of each side in the order of their seeds."""
    found: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.name, []).append(outcome)
    return {name: tuple(sorted(several, key=lambda one: one.seed)) for name, several in found.items()}


def mean_cost(outcomes: Sequence[Outcome], equal: Cost) -> float:
    """Return what a side costs, the mean of its runs."""
    return statistics.fmean(cost_of(one, equal) for one in outcomes)


def ranked(
    sides: Mapping[str, tuple[Outcome, ...]],
    same: Sequence[Sequence[str]],
    controls: Collection[str],
    equal: Cost,
    higher_is_better: bool,
) -> Iterator[Row]:
    """Yield the rows of a comparison in order, those whose metric is NaN last in their level.

    Args:
        sides: name -> outcomes.
        same: the names of each level, cheapest level first.
        controls: names of the sides that are dense networks.
        equal: what is made equal.
        higher_is_better: whether more of the metric is better.
    """
    means = {name: statistics.fmean(one.metric for one in several) for name, several in sides.items()}
    sign = -1 if higher_is_better else 1

    def place(name: str) -> float:
        return math.inf if math.isnan(means[name]) else sign * means[name]

    for level, names in enumerate(same):
        for rank, name in enumerate(sorted(names, key=place), start=1):
            yield Row(name, name in controls, mean_cost(sides[name], equal), level, rank, sides[name])
