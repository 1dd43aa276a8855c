"""Figures as SVG elements: colours are classes that the page's style fills in, for light and for dark.

This is the one place where figures are drawn: ``_page`` writes the elements, ``_canvas`` paints them for loggers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from xml.etree.ElementTree import Element, SubElement

from lightning_prune.study.report._figures import (
    Axis,
    Bars,
    Columns,
    Dots,
    Figure,
    HeatMap,
    Line,
    Mark,
    Plot,
    Rule,
    Span,
)
from lightning_prune.study.report._numbers import brief, log_ticks, ticks
from lightning_prune.study.report._texts import shortened
from lightning_prune.tables import cleaned

WIDTH = 340
"""Units of a figure's width: about pixels on a phone, up to 1.4 pixels on a wide screen."""
LETTER = 6.4
"""Widest average letter at the size of labels, in units of the picture."""
_SMALL = 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 24, 38
_LEAST, _MOST = 1e-140, 1e140
"""Beyond these, ratios and distances leave what a float holds."""


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
        marked = (log_ticks if self.axis.is_log else ticks)(self.low, self.high, 4)
        return [tick for tick in marked if tick == int(tick)] if self.axis.is_whole else marked


def draw(figure: Figure, name: str) -> Element:
    """Return a figure as an SVG element with a title for those who cannot see it.

    Args:
        figure: the figure.
        name: an id that no other figure of the page has.
    """
    svg = Element("svg", {"role": "img", "aria-labelledby": f"{name}-title"})
    title = _add(svg, "title", id=f"{name}-title")
    if isinstance(figure, Plot):
        words, size = _plot(svg, figure)
    elif isinstance(figure, Bars):
        words, size = _bars(svg, figure)
    else:
        words, size = _heat_map(svg, figure)
    title.text = cleaned(words)
    svg.set("viewBox", f"0 0 {size[0]:.0f} {size[1]:.0f}")
    return svg


def framed(figure: Figure, name: str) -> Element:
    """Return a figure as :func:`draw` does, with title and legend above it, where no page has them.

    Args:
        figure: the figure.
        name: an id that no other figure of the page has.
    """
    svg = draw(figure, name)
    _, _, wide, high = map(float, svg.get("viewBox", "").split())
    places, across, down = [], 4.0, 30.0
    for label, (tone, sample) in figure.legend.items():
        text = shortened(cleaned(label), 24)
        if across + LETTER * (len(text) + 3) > wide:
            across, down = 4.0, down + 16
        places.append((across, down, f"t{tone.value}", sample, text))
        across += LETTER * (len(text) + 5)
    head = down + 10 if places else 22.0
    title = f"{figure.title}, {figure.unit}" if isinstance(figure, HeatMap) else figure.title
    _add(svg, "text", shortened(cleaned(title), int((wide - 8) / LETTER)), x=4, y=14 - head, class_="title")
    for across, down, tone, sample, text in places:
        left, middle = across, down - head - 4
        if sample == "block":
            _add(svg, "rect", x=left, y=middle - 4, width=9, height=9, class_=f"bar {tone}")
        elif sample.startswith("stroke"):
            stroke = f"M{left:.1f} {middle:.1f}L{left + 12:.1f} {middle:.1f}"
            _add(svg, "path", d=stroke, class_=f"line {tone}{sample.removeprefix('stroke')}")
        else:
            _sign(_add(svg, "g", class_=f"{sample} {tone}"), left + 5, middle, is_cross=sample == "cross")
        _add(svg, "text", text, x=left + LETTER * 2.5, y=down - head, class_="small")
    svg.set("viewBox", f"0 {-head:.0f} {wide:.0f} {high + head:.0f}")
    return svg


def _add(parent: Element, kind: str, text: str = "", /, **attributes: float | str) -> Element:
    """Add an element: ``class_`` stands for class, and any other ``_`` for a hyphen."""
    element = SubElement(parent, kind)
    element.text = cleaned(text) or None
    for key, value in attributes.items():
        number = value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
        element.set(key.rstrip("_").replace("_", "-"), number)
    return element


def _named(parent: Element, words: str, **attributes: str) -> Element:
    """Add a part of a picture that says what it is to who points at it."""
    part = _add(parent, "g", **attributes)
    _add(part, "title", words)
    return part


Drawn = tuple[str, tuple[float, float]]
"""What a picture shows in words, and its width and height."""


def _plot(svg: Element, plot: Plot) -> Drawn:
    wide, high = (_SMALL, 140) if plot.is_small else (WIDTH, 220)
    x = Scale(plot.x, *span_of(plot, 0), _LEFT, wide - _RIGHT)
    y = Scale(plot.y, *span_of(plot, 1), high - _BOTTOM, _TOP)
    _axes(svg, x, y)
    for mark in plot.marks:
        _mark(svg, mark, x, y)
    # names of points come last, so that nothing covers them
    dots = [dot for mark in plot.marks if isinstance(mark, Dots) for dot in mark.drawn]
    points = [(x(dot.x), y(dot.y), shortened(dot.label, 24)) for dot in dots]
    lines = [[(x(a), y(b)) for a, b in mark.points] for mark in plot.marks if isinstance(mark, Line)]
    lines += [[(x(one.x), y(one.y + off)) for off in (-one.spread, one.spread)] for one in dots if one.spread > 0]
    places = placed(points, (x.first, _TOP - 10.0, x.last + _RIGHT, y.first - 2), lines)
    for (_, _, text), place in zip(points, places, strict=True):
        if place is not None:
            _add(svg, "text", text, x=place[0], y=place[1], class_="name end" if place[2] == "end" else "name")
    return f"{plot.title}: {plot.y.label} against {plot.x.label}", (wide, high)


def span_of(plot: Plot, axis: int) -> Span:
    """Return the lowest and highest value of an axis: its data, what it asks for, and a little room; never equal.

    Args:
        plot: the plot.
        axis: 0 for x, 1 for y.
    """
    own = plot.y if axis else plot.x
    shown = [v for mark in plot.marks for v in mark.reach(axis) if math.isfinite(v) and (v > 0 or not own.is_log)]
    values = [max(_LEAST if own.is_log else -_MOST, min(v, _MOST)) for v in (*shown, *(own.span or ()))]
    if not values:
        return (1.0, 10.0) if own.is_log else (0.0, 1.0)
    low, high = min(values), max(values)
    if own.is_log:
        room = max((high / low) ** 0.06, 1.02)
        return low / room, high * room
    is_closed = (isinstance(mark, Columns) for mark in plot.marks)
    room = 0.0 if own.span == (low, high) or any(is_closed) else 0.06 * (high - low)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = 0.05 * max(abs(low), abs(high)) or 0.5
    return low - room, high + room


def _axes(svg: Element, x: Scale, y: Scale) -> None:
    for value in y.ticks:
        _add(svg, "line", x1=x.first, x2=x.last, y1=y(value), y2=y(value), class_="grid")
        _add(svg, "text", y.axis.text(value), x=x.first - 6, y=y(value) + 4, class_="end")
    until = -4.0
    for value in x.ticks:
        text, place = x.axis.text(value), x(value)
        half = len(text) * LETTER / 2
        _add(svg, "line", x1=place, x2=place, y1=y.first, y2=y.first + 4, class_="axis")
        if place - half > until + 4:
            _add(svg, "text", text, x=min(place, x.last + _RIGHT - half), y=y.first + 16, class_="middle")
            until = place + half
    _add(svg, "line", x1=x.first, x2=x.last, y1=y.first, y2=y.first, class_="axis")
    most = int((x.last - 4) / LETTER)
    _add(svg, "text", shortened(y.axis.label, most), x=4, y=12, class_="label")
    _add(svg, "text", shortened(x.axis.label, most), x=x.last, y=y.first + 32, class_="label end")


def _mark(svg: Element, mark: Mark, x: Scale, y: Scale) -> None:
    tone = f"t{mark.tone.value}"
    if isinstance(mark, Line):
        path, pen, last = [], "M", 0.0
        for at, value in mark.points:
            if not math.isfinite(value):
                pen = "M"
                continue
            if pen == "L" and mark.is_stepped:
                path.append(f"L{x(at):.1f} {last:.1f}")
            last = y(value)
            path.append(f"{pen}{x(at):.1f} {last:.1f}")
            pen = "L"
        line = _add(svg, "path", d="".join(path), class_=f"line{' dashed' if mark.is_dashed else ''} {tone}")
        _add(line, "title", mark.name)
    elif isinstance(mark, Rule):
        part = _named(svg, f"{mark.name}: {x.axis.text(mark.x)}", class_=f"rule {tone}")
        _add(part, "line", x1=x(mark.x), x2=x(mark.x), y1=y.first, y2=y.last)
    elif isinstance(mark, Columns):
        part = _named(svg, mark.name, class_=f"columns {tone}")
        for index, (bottom, count) in enumerate(zip(mark.bottoms, mark.counts, strict=True)):
            left, right, top = x(mark.edges[index]), x(mark.edges[index + 1]), y(bottom + count)
            if count > 0:
                _add(part, "rect", x=left, y=top, width=max(right - left - 0.5, 0.5), height=max(y(bottom) - top, 0.0))
    else:
        group = _add(svg, "g", class_=f"{mark.shape} {tone}")
        for dot in mark.drawn:
            across, down = x(dot.x), y(dot.y)
            part = _named(group, dot.note or f"{mark.name}: {x.axis.text(dot.x)}, {y.axis.text(dot.y)}")
            _sign(part, across, down, is_cross=mark.shape == "cross")
            if dot.spread > 0:
                ends = y(dot.y - dot.spread), y(dot.y + dot.spread)
                _add(part, "line", x1=across, x2=across, y1=ends[0], y2=ends[1], class_="spread")


def _sign(part: Element, across: float, down: float, *, is_cross: bool) -> None:
    if is_cross:
        left, right, top, bottom = across - 4, across + 4, down - 4, down + 4
        strokes = f"M{left:.1f} {top:.1f}L{right:.1f} {bottom:.1f}M{right:.1f} {top:.1f}L{left:.1f} {bottom:.1f}"
        _add(part, "path", d=strokes)
    else:
        _add(part, "circle", cx=across, cy=down, r=4)


def placed(
    points: Sequence[tuple[float, float, str]],
    frame: tuple[float, float, float, float],
    lines: Sequence[Sequence[tuple[float, float]]] = (),
) -> list[tuple[float, float, str] | None]:
    """Return where each name begins or ends and its anchor ("start" or "end"); None where there is no room.

    A name stands beside its point, over no other name and no other point, and over no line where there is room beside.

    Args:
        points: x, y and name of each point, in the order of who chooses first; "" for none.
        frame: what names may not leave: left, top, right, bottom.
        lines: the corners of each.
    """
    strokes = [
        (x - 3, y - 3, x + 3, y + 3)
        for line in lines
        for (a, b), (c, d) in pairwise(line)
        for x, y in ((a + (c - a) * part / 40, b + (d - b) * part / 40) for part in range(41))
    ]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y, _ in points]
    places: list[tuple[float, float, str] | None] = []
    for x, y, name in points:
        places.append(None)
        # to the right or left of the point, else above or below it, the nearest first
        rows = ((6, -9), (6, 17), (6, -14), (6, 22), (6, -20), (6, 28), (6, -26), (6, 34))
        sides = [(a, d, side) for a, d in ((8, 4), *rows) for side in ("start", "end")]
        for avoided, (aside, down, anchor) in product(([*taken, *strokes], [*taken]), sides):
            across = x + aside if anchor == "start" else x - aside
            left, top = across - (LETTER * len(name) if anchor == "end" else 0), y + down - 10
            right, bottom = left + LETTER * len(name), y + down + 2
            is_inside = left >= frame[0] and top >= frame[1] and right <= frame[2] and bottom <= frame[3]
            if name and is_inside and all(right <= a or left >= c or bottom <= b or top >= d for a, b, c, d in avoided):
                places[-1] = (across, y + down, anchor)
                taken.append((left, top, right, bottom))
                break
    return places


def _bars(svg: Element, bars: Bars) -> Drawn:
    thick, gap = 13, 22
    step = gap + thick * len(bars.series)
    values = [v for _, row in bars.rows for v in row if math.isfinite(v)]
    x = Scale(Axis(bars.unit), 0, max([*values, 1e-12]), 4, WIDTH - 64)
    for number, (name, row) in enumerate(bars.rows):
        top = 4.0 + number * step
        part = _named(svg, f"{name}: {', '.join(map(bars.text, row))}")
        _add(part, "text", shortened(name, int((WIDTH - 8) / LETTER)), x=4, y=top + 11)
        for index, value in enumerate(row):
            down = top + 15 + index * thick
            width = max(x(value) - x.first, 1.0) if math.isfinite(value) else 1.0
            tone = f"bar t{bars.tone(index).value}"
            _add(part, "rect", x=x.first, y=down, width=width, height=thick - 1, class_=tone)
            _add(part, "text", bars.text(value), x=x.first + width + 5, y=down + thick - 1.5, class_="small")
    return f"{bars.title}, {bars.unit}", (WIDTH, 8.0 + len(bars.rows) * step)


def _heat_map(svg: Element, heat: HeatMap) -> Drawn:
    left = 8 + LETTER * max([4, *(min(len(row), 18) for row in heat.rows)])
    wide, tall = (WIDTH - left - 4) / max(len(heat.columns), 1), 22
    _add(svg, "text", shortened(heat.column_label, 60), x=WIDTH - 4, y=14, class_="label end")
    for index, text in enumerate(heat.columns):
        short = shortened(text, max(3, int(wide / LETTER)))
        _add(svg, "text", short, x=left + wide * (index + 0.5), y=30, class_="middle")
    for index, (row, values) in enumerate(zip(heat.rows, heat.values, strict=True)):
        top = 36 + index * tall
        _add(_named(svg, row), "text", shortened(row, 18), x=4, y=top + 15)
        for column, value in enumerate(values):
            words = f"{row}, {heat.columns[column]}: {'not measured' if value is None else brief(value)}"
            place = {"x": left + wide * column, "y": top, "width": wide - 1.5, "height": tall - 1.5}
            if value is None:
                _add(_named(svg, words), "rect", **place, class_="unknown")
                continue
            cell, strength = _named(svg, words, class_="cell"), heat.shade(value)
            _add(cell, "rect", **place, fill_opacity=0.06 + 0.94 * strength)
            if len(brief(value)) * LETTER * 0.9 <= wide:
                style = "middle small on" if strength > 0.55 else "middle small"
                _add(cell, "text", brief(value), x=place["x"] + (wide - 1.5) / 2, y=top + 14.5, class_=style)
    return f"{heat.title}: {heat.unit} by {heat.column_label}", (WIDTH, 40.0 + tall * len(heat.rows))
