"""Figures as values: what is drawn, in numbers and words; how it is drawn stands in ``_pictures``."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from lightning_prune.study.report._numbers import brief, share
from lightning_prune.tables import Table

Span = tuple[float, float]
Shape = Literal["circle", "ring", "cross"]
Legend = Mapping[str, tuple["Tone", str]]
"""Name -> its tone, and the class of its sample in the page's style; empty where there is nothing to tell apart."""


class Tone(IntEnum):
    """A colour by its part in a figure; light and dark pages give it different values."""

    MAIN = 0
    SECOND = 1
    THIRD = 2
    FOURTH = 3
    FIFTH = 4
    GOOD = 5
    BAD = 6
    QUIET = 7


SERIES = (Tone.MAIN, Tone.SECOND, Tone.THIRD, Tone.FOURTH, Tone.FIFTH)
"""The tones of series that only have to differ, in order."""


@dataclass(frozen=True)
class Axis:
    """One axis.

    Args:
        label: quantity and unit.
        is_log: whether equal distances are equal ratios; every value is then above 0.
        is_share: whether values are shares, written in percent.
        is_whole: whether only whole numbers are marked.
        span: what it shows at least; None: the data alone.
    """

    label: str
    is_log: bool = False
    is_share: bool = False
    is_whole: bool = False
    span: Span | None = None

    def text(self, value: float) -> str:
        """Return a value as text."""
        return share(value) if self.is_share else brief(value)


@dataclass(frozen=True)
class Line:
    """Points joined in order.

    Args:
        name: for the legend.
        points: (x, y); one that is not finite leaves a gap.
        tone: colour.
        is_stepped: whether y holds until the next x.
        is_dashed: whether it is drawn with gaps.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    tone: Tone = Tone.MAIN
    is_stepped: bool = False
    is_dashed: bool = False

    @property
    def sample(self) -> str:
        """The class of its sample in a legend."""
        return "stroke dashed" if self.is_dashed else "stroke"

    def reach(self, axis: int) -> Iterable[float]:
        """Return what it covers of an axis, 0 for x and 1 for y."""
        return (point[axis] for point in self.points)


@dataclass(frozen=True)
class Dot:
    """One point with its words.

    Args:
        x: place along the x axis.
        y: place along the y axis.
        label: written beside it; "" for nothing.
        note: what is known of it, for who points at it.
        spread: how far y may lie off, drawn up and down from it.
    """

    x: float
    y: float
    label: str = ""
    note: str = ""
    spread: float = 0.0


@dataclass(frozen=True)
class Dots:
    """Single points of one kind.

    Args:
        name: for the legend.
        dots: the points.
        tone: colour.
        shape: a full circle, a ring or a cross, so that kinds differ without colours too.
    """

    name: str
    dots: tuple[Dot, ...]
    tone: Tone = Tone.MAIN
    shape: Shape = "circle"

    @property
    def drawn(self) -> Sequence[Dot]:
        """Those that have a place."""
        return [dot for dot in self.dots if math.isfinite(dot.x) and math.isfinite(dot.y)]

    @property
    def sample(self) -> str:
        """The class of its sample in a legend."""
        return self.shape

    def reach(self, axis: int) -> Iterable[float]:
        """Return what it covers of an axis, 0 for x and 1 for y."""
        return (v for dot in self.dots for v in ((dot.y - dot.spread, dot.y + dot.spread) if axis else (dot.x,)))


@dataclass(frozen=True)
class Columns:
    """A histogram.

    Args:
        name: for the legend.
        edges: borders of the bins, one more than counts, rising.
        bottoms: where each column begins.
        counts: its height.
        tone: colour.
    """

    name: str
    edges: tuple[float, ...]
    bottoms: tuple[float, ...]
    counts: tuple[float, ...]
    tone: Tone = Tone.MAIN
    sample = "block"

    def reach(self, axis: int) -> Iterable[float]:
        """Return what it covers of an axis, 0 for x and 1 for y."""
        return (0.0, *map(sum, zip(self.bottoms, self.counts, strict=True))) if axis else self.edges


@dataclass(frozen=True)
class Rule:
    """A vertical line across the plot: the cut of a ranking.

    Args:
        name: for the legend.
        x: its place.
        tone: colour.
    """

    name: str
    x: float
    tone: Tone = Tone.BAD
    sample = "stroke dashed"

    def reach(self, axis: int) -> Iterable[float]:
        """Return what it covers of an axis, 0 for x and 1 for y."""
        return () if axis else (self.x,)


Mark = Line | Dots | Columns | Rule


@dataclass(frozen=True)
class Plot:
    """Marks over two axes.

    Args:
        title: what it shows.
        x: horizontal axis.
        y: vertical axis.
        marks: in the order in which they are drawn.
        table: the same in numbers.
        note: what to know to read it; "" for nothing.
        is_small: whether it is one of many and drawn flat.
    """

    title: str
    x: Axis
    y: Axis
    marks: tuple[Mark, ...]
    table: Table
    note: str = ""
    is_small: bool = False

    @property
    def legend(self) -> Legend:
        """The marks by name."""
        named = {mark.name: (mark.tone, mark.sample) for mark in self.marks if mark.name}
        return named if len(named) > 1 else {}


@dataclass(frozen=True)
class Bars:
    """Horizontal bars, a set for each row.

    Args:
        title: what it shows.
        unit: of all values.
        series: name of each bar in a set.
        rows: name of the row, and one value for each series.
        note: what to know to read it.
        is_share: whether values are shares, written in percent.
    """

    title: str
    unit: str
    series: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float, ...]], ...]
    note: str = ""
    is_share: bool = False

    def tone(self, index: int) -> Tone:
        """Return the tone of a series: of two the first is the quiet one, as what was before is."""
        return (Tone.QUIET, Tone.MAIN)[index] if len(self.series) == 2 else SERIES[index % len(SERIES)]

    @property
    def legend(self) -> Legend:
        """The series by name."""
        named = {name: (self.tone(index), "block") for index, name in enumerate(self.series)}
        return named if len(named) > 1 else {}

    def text(self, value: float) -> str:
        """Return a value as text."""
        return share(value) if self.is_share else brief(value)

    @property
    def table(self) -> Table:
        """The same in numbers."""
        head = ("layer", *(f"{name} ({self.unit})" for name in self.series))
        return Table(head, tuple((name, *map(self.text, values)) for name, values in self.rows))


@dataclass(frozen=True)
class HeatMap:
    """A matrix of values as colours.

    Args:
        title: what it shows.
        rows: names from top to bottom.
        columns: names from left to right.
        column_label: what the columns are.
        values: one tuple per row; None: not measured.
        unit: what the values are.
        note: what to know to read it.
        is_low_strong: whether the lowest value has the strongest colour.
    """

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    column_label: str
    values: tuple[tuple[float | None, ...], ...]
    unit: str
    note: str = ""
    is_low_strong: bool = False

    @property
    def legend(self) -> Legend:
        """None: values stand in the cells."""
        return {}

    def shade(self, value: float) -> float:
        """Return how strong the colour of a value is, in [0, 1]."""
        known = [v for row in self.values for v in row if v is not None and math.isfinite(v)]
        low, high = (min(known), max(known)) if known else (0.0, 1.0)
        part = (value - low) / (high - low) if high > low and math.isfinite(value) else 0.0
        return 1 - part if self.is_low_strong and high > low else part

    @property
    def table(self) -> Table:
        """The same in numbers."""
        cells = (tuple("–" if v is None else brief(v) for v in row) for row in self.values)
        return Table(
            (f"{self.unit}, by {self.column_label}", *self.columns),
            tuple((name, *row) for name, row in zip(self.rows, cells, strict=True)),
        )


Figure = Plot | Bars | HeatMap


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        title: its heading.
        text: what it answers, in one or two sentences.
        figures: in order.
        table: a table of its own; None: those of the figures are all.
    """

    title: str
    text: str
    figures: Sequence[Figure] = ()
    table: Table | None = None

    @property
    def is_dense(self) -> bool:
        """Whether all its figures are small ones, of which more stand side by side."""
        return all(isinstance(figure, Plot) and figure.is_small for figure in self.figures)
