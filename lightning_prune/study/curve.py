"""A sensitivity curve as a value: metric against sparsity of each layer or channel group."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from lightning_prune.documents import Form, typed
from lightning_prune.tables import Table, Tabular
from lightning_prune.values import check_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORM = Form("lightning_prune.sensitivity", 1, "sensitivity curve")


@dataclass(frozen=True)
class Sensitivity(Tabular):
    """The metric of a model with one target or channel group alone pruned; printed, and shown in a notebook, a table.

    Args:
        base: the metric with nothing pruned.
        levels: shares of the units that were removed, rising, in (0, 1).
        metrics: target or channel group -> metric at each level.
        sizes: the same -> number of its units.
        higher_is_better: whether more of the metric is better.
        granularity: the units, as text.
        criterion: what ranked them, as text.
        metric: its name.
    """

    base: float
    levels: tuple[float, ...]
    metrics: Mapping[str, tuple[float, ...]]
    sizes: Mapping[str, int]
    higher_is_better: bool
    granularity: str
    criterion: str
    metric: str

    def drops(self, name: str) -> tuple[float, ...]:
        """Return by how much the metric is worse at each level than with nothing pruned; negative: better.

        Raises:
            ValueError: nothing was measured of this name.
        """
        if name not in self.metrics:
            raise ValueError(f"nothing was measured of {name!r}; there are {', '.join(self.metrics)}")
        sign = 1 if self.higher_is_better else -1
        return tuple(sign * (self.base - value) for value in self.metrics[name])

    def limits(self, max_drop: float) -> dict[str, float]:
        """Return for each target or channel group the largest share that may go before the metric falls too far.

        Linear between the measured levels; where the drop never exceeds ``max_drop``, the highest level.

        Args:
            max_drop: in the unit of the metric, at least 0.

        Raises:
            ValueError: it is negative or not finite.
        """
        check_number("max_drop", max_drop, 0)
        return {name: _limit(self.levels, self.drops(name), max_drop) for name in self.metrics}

    def table(self) -> Table:
        """Return a row for each target or channel group, with the metric at each level."""
        head = ["", "units", *(f"{level:.0%}" for level in self.levels)]
        rows = [
            [name, f"{self.sizes[name]:,}", *(f"{value:.4g}" for value in self.metrics[name])] for name in self.metrics
        ]
        note = f"{self.metric} with nothing pruned: {self.base:.4g}; units of {self.granularity}"
        return Table(head, rows, note=note)

    def to_json(self) -> str:
        """Return it as JSON text, for :meth:`from_json`."""
        return FORM.write(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Sensitivity":
        """Return what :meth:`to_json` wrote, or a run of :func:`sensitivity` with ``path=`` that came to its end.

        Raises:
            ValueError: the text is no curve, of a newer version, or of a run that was stopped.
        """
        document = FORM.read(text)
        names = [one.name for one in fields(cls)]
        with FORM.parsing():
            curve = typed(cls, {name: document[name] for name in names})
            if not curve.levels or set(curve.sizes) != set(curve.metrics):
                raise ValueError("it has no levels, or sizes of other names than its metrics")
        # a file of a stopped run has every name, with fewer points than levels
        missing = sum(len(curve.levels) - len(values) for values in curve.metrics.values())
        if missing:
            raise ValueError(f"the curve lacks {missing} points; run sensitivity(…, path=…) again to complete it")
        return curve

    def plot(self) -> "Figure":
        """Return a figure: the drop of the metric by layer or channel group and level, white where there is none.

        Raises:
            ImportError: matplotlib is not installed: ``pip install 'lightning-prune[plots]'``.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("plot() draws with matplotlib: pip install 'lightning-prune[plots]'") from error
        drops = [[max(0.0, drop) for drop in self.drops(name)] for name in self.metrics]
        figure = Figure(figsize=(2.5 + 0.7 * len(self.levels), 1.2 + 0.28 * len(self.metrics)), layout="constrained")
        axes = figure.add_subplot()
        image = axes.imshow(drops, cmap="Reds", aspect="auto", vmin=0)
        axes.set_xticks(range(len(self.levels)), [f"{level:.0%}" for level in self.levels])
        axes.set_yticks(range(len(self.metrics)), list(self.metrics))
        axes.set(xlabel=f"removed from this one alone, {self.granularity.partition('(')[0].lower()}s")
        figure.colorbar(image, label=f"drop of {self.metric} (from {self.base:.4g})")
        return figure


def _limit(levels: tuple[float, ...], drops: tuple[float, ...], max_drop: float) -> float:
    level_before, drop_before = 0.0, 0.0
    for level, drop in zip(levels, drops, strict=True):
        if not drop <= max_drop:
            share = (max_drop - drop_before) / (drop - drop_before) if math.isfinite(drop) else 0.0
            return level_before + min(1.0, max(0.0, share)) * (level - level_before)
        level_before, drop_before = level, drop
    return levels[-1]
