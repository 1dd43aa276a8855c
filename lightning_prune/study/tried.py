"""The networks that were tried on the way to the smallest one that keeps a metric, as a value."""

import math
from dataclasses import dataclass

from lightning_prune.tables import Table, Tabular


@dataclass(frozen=True)
class Attempt:
    """One network that was tried.

    Args:
        share: how far it went on the way from the dense network to where the recipe ends, in (0, 1].
        asked: the sparsity there, in what the recipe counts: 0.7 leaves 30 % of the multiply-accumulates.
        parameters: that are left and not zero.
        macs: multiply-accumulates that are left; None where they are not known.
        metric: its value; NaN counts as failed.
        is_kept: whether it is within the drop that is allowed.
        reason: why, in words.
        milliseconds: that it takes, where it was timed.
    """

    share: float
    asked: float
    parameters: int
    macs: int | None
    metric: float
    is_kept: bool
    reason: str
    milliseconds: float | None = None

    @property
    def cost(self) -> float:
        """What it costs: its time where it was timed, otherwise MACs, otherwise parameters."""
        known = (self.milliseconds, self.macs, self.parameters)
        return float(next(cost for cost in known if cost is not None))


@dataclass(frozen=True)
class Tried(Tabular):
    """All networks that :func:`~lightning_prune.prune` tried for ``max_drop``; printed, and in a notebook, a table.

    Args:
        counted: what the recipe counts, in words: ``MACs``.
        metric: its name.
        base: its value of the dense network.
        max_drop: how much worse it may be.
        higher_is_better: whether more of it is better.
        parameters: of the dense network, without zeros.
        macs: of the dense network; None where they are not known.
        milliseconds: that the dense network takes, where it was timed.
        attempts: in the order in which they were tried.
    """

    counted: str
    metric: str
    base: float
    max_drop: float
    higher_is_better: bool
    parameters: int
    macs: int | None
    milliseconds: float | None = None
    attempts: tuple[Attempt, ...] = ()

    @property
    def best(self) -> Attempt | None:
        """The one that went furthest of those within the drop; None where there is none."""
        return max((one for one in self.attempts if one.is_kept), key=lambda one: one.share, default=None)

    @property
    def pareto(self) -> tuple[Attempt, ...]:
        """Those that no other beats in cost and metric both, the cheapest first."""
        sign = 1 if self.higher_is_better else -1
        places = {(one.cost, -sign * one.metric): one for one in self.attempts if math.isfinite(one.metric)}

        def is_beaten(place: tuple[float, float]) -> bool:
            return any(cost <= place[0] and lost <= place[1] and (cost, lost) != place for cost, lost in places)

        return tuple(places[place] for place in sorted(places) if not is_beaten(place))

    def table(self) -> Table:
        """Return a row for the dense network and for each that was tried, the largest first."""
        best, front = self.best, self.pareto
        rows = [("100%", *_cells(self.parameters, self.macs, self.milliseconds), f"{self.base:.4f}", "dense")]
        for one in sorted(self.attempts, key=lambda one: one.share):
            verdict = "chosen" if one is best else "within the drop" if one.is_kept else "too much"
            if math.isfinite(one.metric) and not any(one.cost == other.cost for other in front):
                verdict += ", beaten by a smaller one"
            cells = _cells(one.parameters, one.macs, one.milliseconds)
            rows.append((f"{1 - one.asked:.1%}", *cells, f"{one.metric:.4f}", verdict))
        head = (f"{self.counted} left", "parameters", "MACs", "ms", self.metric, "")
        shown = [place for place in range(len(head)) if any(row[place] for row in rows)]
        cells = [[row[place] for place in shown] for row in rows]
        note = f"{self.metric} may be {self.max_drop:g} worse than that of the dense network"
        return Table([head[place] for place in shown], cells, words=0, remarks=1, note=note)


def _cells(parameters: int, macs: int | None, milliseconds: float | None) -> tuple[str, str, str]:
    known = "" if macs is None else f"{macs:,}", "" if milliseconds is None else f"{milliseconds:.3g}"
    return f"{parameters:,}", *known
