"""Figures as inline SVG: colours are classes that the page's style fills in, for light and for dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_prune.study.report.figures import (
    Axis,
    Bars,
    Columns,
    Dot,
    Dots,
    Figure,
    HeatMap,
    Line,
    Mark,
    Plot,
    Rule,
    Tone,
)
from lightning_prune.study.report.labels import LETTER, placed
from lightning_prune.study.report.markup import Markup, joined, shortened, tag
from lightning_prune.study.report.numbers import brief, log_ticks, ticks
from lightning_prune.study.report.spans import span_of

WIDTH = 340
"""Units of a figure's width: about pixels on a phone, up to 1.4 pixels on a wide screen."""
_SMALL = 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 24, 38


@dataclass(frozen=True)
class Scale:
    """An axis's values -> places in the picture.

    Args:
        axis: the axis.
        low: value at the first place.
        high: value at the last place; above low.
        first: place, in units of the picture.
        last: place.
    """

    axis: Axis
    low: float
    high: float
    first: float
    last: float

    def __call__(self, value: float) -> float:
        """Return the place of a value."""
        to = math.log10 if self.axis.is_log else float
        value = min(max(value, self.low), self.high)
        part = (to(value) - to(self.low)) / (to(self.high) - to(self.low))
        return self.first + part * (self.last - self.first)

    @property
    def ticks(self) -> list[float]:
        """The values to mark."""
        found = (log_ticks if self.axis.is_log else ticks)(self.low, self.high, 4)
        return [tick for tick in found if tick == int(tick)] if self.axis.is_whole else found


def draw(figure: Figure, name: str) -> Markup:
    """Return a figure as an SVG element with a title for those who cannot see it.

    Args:
        figure: the figure.
        name: an id that no other figure of the page has.
    """
    if isinstance(figure, Plot):
        return _plot(figure, name)
    return _bars(figure, name) if isinstance(figure, Bars) else _heat_map(figure, name)


def _picture(name: str, title: str, size: tuple[float, float], parts: Sequence[object]) -> Markup:
    wide, high = size
    return tag(
        "svg",
        tag("title", title, id=f"{name}-title"),
        *parts,
        viewBox=f"0 0 {wide:.0f} {high:.0f}",
        role="img",
        aria_labelledby=f"{name}-title",
    )


def _plot(plot: Plot, name: str) -> Markup:
    wide, high = (_SMALL, 140) if plot.is_small else (WIDTH, 220)
    x = Scale(plot.x, *span_of(plot, 0), _LEFT, wide - _RIGHT)
    y = Scale(plot.y, *span_of(plot, 1), high - _BOTTOM, _TOP)
    parts = [_axes(x, y), *(_mark(mark, x, y) for mark in plot.marks), _names(plot, x, y)]
    return _picture(name, f"{plot.title}: {plot.y.label} against {plot.x.label}", (wide, high), parts)


def _axes(x: Scale, y: Scale) -> Markup:
    lines = [tag("line", x1=x.first, x2=x.last, y1=y(v), y2=y(v), class_="grid") for v in y.ticks]
    names = [tag("text", y.axis.text(v), x=x.first - 6, y=y(v) + 4, class_="end") for v in y.ticks]
    until = -4.0
    for value in x.ticks:
        text, place = x.axis.text(value), x(value)
        half = len(text) * LETTER / 2
        lines.append(tag("line", x1=place, x2=place, y1=y.first, y2=y.first + 4, class_="axis"))
        if place - half > until + 4:
            middle = min(place, x.last + _RIGHT - half)
            names.append(tag("text", text, x=middle, y=y.first + 16, class_="middle"))
            until = place + half
    lines.append(tag("line", x1=x.first, x2=x.last, y1=y.first, y2=y.first, class_="axis"))
    most = int((x.last - 4) / LETTER)
    names.append(tag("text", shortened(y.axis.label, most), x=4, y=12, class_="label"))
    names.append(tag("text", shortened(x.axis.label, most), x=x.last, y=y.first + 32, class_="label end"))
    return joined([*lines, *names])


def _names(plot: Plot, x: Scale, y: Scale) -> Markup:
    """Write the names of the points, after everything else, so that nothing covers them."""
    dots = [dot for mark in plot.marks if isinstance(mark, Dots) for dot in mark.dots if _is_drawn(dot)]
    points = [(x(dot.x), y(dot.y), shortened(dot.label, 24)) for dot in dots]
    found = placed(points, (x.first, _TOP - 10.0, x.last + _RIGHT, y.first))
    return joined(
        tag("text", text, x=place[0], y=place[1], class_="name end" if place[2] == "end" else "name")
        for (_, _, text), place in zip(points, found, strict=True)
        if place is not None
    )


def _is_drawn(dot: Dot) -> bool:
    return math.isfinite(dot.x) and math.isfinite(dot.y)


def _mark(mark: Mark, x: Scale, y: Scale) -> Markup:
    if isinstance(mark, Line):
        return _line(mark, x, y)
    if isinstance(mark, Columns):
        return _columns(mark, x, y)
    if isinstance(mark, Rule):
        place = x(mark.x)
        shape = tag("line", x1=place, x2=place, y1=y.first, y2=y.last)
        return tag("g", tag("title", f"{mark.name}: {x.axis.text(mark.x)}"), shape, class_=f"rule t{mark.tone.value}")
    drawn = (_dot(mark, dot, x, y) for dot in mark.dots if _is_drawn(dot))
    return tag("g", *drawn, class_=f"{mark.shape} t{mark.tone.value}")


def _line(line: Line, x: Scale, y: Scale) -> Markup:
    path, pen, last = [], "M", 0.0
    for at, value in line.points:
        if not math.isfinite(value):
            pen = "M"
            continue
        if pen == "L" and line.is_stepped:
            path.append(f"L{x(at):.1f} {last:.1f}")
        last = y(value)
        path.append(f"{pen}{x(at):.1f} {last:.1f}")
        pen = "L"
    return tag(
        "path",
        tag("title", line.name),
        d="".join(path),
        class_=f"line{' dashed' if line.is_dashed else ''} t{line.tone.value}",
    )


def _columns(columns: Columns, x: Scale, y: Scale) -> Markup:
    drawn = []
    for index, (bottom, count) in enumerate(zip(columns.bottoms, columns.counts, strict=True)):
        if count > 0:
            left, right = x(columns.edges[index]), x(columns.edges[index + 1])
            top = y(bottom + count)
            drawn.append(
                tag("rect", x=left, y=top, width=max(right - left - 0.5, 0.5), height=max(y(bottom) - top, 0.0))
            )
    return tag("g", tag("title", columns.name), *drawn, class_=f"columns t{columns.tone.value}")


def _dot(dots: Dots, dot: Dot, x: Scale, y: Scale) -> Markup:
    across, down = x(dot.x), y(dot.y)
    if dots.shape == "cross":
        shape = tag("path", d=f"M{across - 4:.1f} {down - 4:.1f}l8 8m0 -8l-8 8")
    else:
        shape = tag("circle", cx=across, cy=down, r=4)
    parts = [tag("title", dot.note or f"{dots.name}: {x.axis.text(dot.x)}, {y.axis.text(dot.y)}"), shape]
    if dot.spread > 0:
        ends = y(dot.y - dot.spread), y(dot.y + dot.spread)
        parts.append(tag("line", x1=across, x2=across, y1=ends[0], y2=ends[1], class_="spread"))
    return tag("g", *parts)


def _bars(bars: Bars, name: str) -> Markup:
    thick, gap = (9 if len(bars.series) > 1 else 12), 22
    step = gap + thick * len(bars.series)
    values = [v for _, row in bars.rows for v in row if math.isfinite(v)]
    x = Scale(Axis(bars.unit), 0, max([*values, 1e-12]), 4, WIDTH - 64)
    rows = [_bar_row(bars, row, (x, 4.0 + index * step, thick)) for index, row in enumerate(bars.rows)]
    return _picture(name, f"{bars.title}, {bars.unit}", (WIDTH, 8.0 + len(bars.rows) * step), rows)


def _bar_row(bars: Bars, row: tuple[str, tuple[float, ...]], place: tuple[Scale, float, int]) -> Markup:
    (name, values), (x, top, thick) = row, place
    parts = [tag("title", f"{name}: {', '.join(map(bars.text, values))}")]
    parts.append(tag("text", shortened(name, int((WIDTH - 8) / LETTER)), x=4, y=top + 11))
    for index, value in enumerate(values):
        down = top + 15 + index * thick
        tone = (Tone.QUIET, Tone.MAIN)[index] if len(values) == 2 else Tone(index % 5)
        width = max(x(value) - x.first, 1.0) if math.isfinite(value) else 1.0
        parts.append(tag("rect", x=x.first, y=down, width=width, height=thick - 1, class_=f"bar t{tone.value}"))
        parts.append(tag("text", bars.text(value), x=x.first + width + 5, y=down + thick - 1.5, class_="small"))
    return tag("g", *parts)


def _heat_map(heat: HeatMap, name: str) -> Markup:
    letters = max([4, *(min(len(row), 18) for row in heat.rows)])
    left = 8 + LETTER * letters
    wide = (WIDTH - left - 4) / max(len(heat.columns), 1)
    tall = 22
    names = [
        tag("text", shortened(text, max(3, int(wide / LETTER))), x=left + wide * (index + 0.5), y=30, class_="middle")
        for index, text in enumerate(heat.columns)
    ]
    parts: list[Markup] = [tag("text", shortened(heat.column_label, 60), x=WIDTH - 4, y=14, class_="label end"), *names]
    for index, (row, values) in enumerate(zip(heat.rows, heat.values, strict=True)):
        top = 36 + index * tall
        parts.append(tag("g", tag("title", row), tag("text", shortened(row, 18), x=4, y=top + 15)))
        for column, value in enumerate(values):
            words = f"{row}, {heat.columns[column]}: {'not measured' if value is None else brief(value)}"
            place = (left + wide * column, top, wide, tall)
            parts.append(_cell(heat, words, value, place))
    return _picture(
        name, f"{heat.title}: {heat.unit} by {heat.column_label}", (WIDTH, 40.0 + tall * len(heat.rows)), parts
    )


def _cell(heat: HeatMap, words: str, value: float | None, place: tuple[float, float, float, float]) -> Markup:
    left, top, wide, tall = place
    if value is None:
        shape = tag("rect", x=left, y=top, width=wide - 1.5, height=tall - 1.5, class_="unknown")
        return tag("g", tag("title", words), shape)
    part = heat.shade(value)
    shape = tag("rect", x=left, y=top, width=wide - 1.5, height=tall - 1.5, fill_opacity=0.06 + 0.94 * part)
    text = brief(value)
    parts = [tag("title", words), shape]
    if len(text) * LETTER * 0.9 <= wide:
        style = "middle small on" if part > 0.55 else "middle small"
        parts.append(tag("text", text, x=left + (wide - 1.5) / 2, y=top + 14.5, class_=style))
    return tag("g", *parts, class_="cell")
