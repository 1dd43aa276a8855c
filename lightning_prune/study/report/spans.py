"""What an axis has to show."""

import math
from collections.abc import Iterator

from lightning_prune.study.report.figures import Columns, Dots, Line, Mark, Plot, Rule, Span

_LEAST, _MOST = 1e-140, 1e140
"""Beyond these, ratios and distances leave what a float holds."""


def span_of(plot: Plot, axis: int) -> Span:
    """Return the lowest and highest value of an axis: its data, what it asks for, and a little room; never equal.

    Args:
        plot: the plot.
        axis: 0 for x, 1 for y.
    """
    own = plot.y if axis else plot.x
    found = [v for mark in plot.marks for v in _values(mark, axis) if math.isfinite(v) and (v > 0 or not own.is_log)]
    values = [max(_LEAST if own.is_log else -_MOST, min(v, _MOST)) for v in (*found, *(own.span or ()))]
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


def _values(mark: Mark, axis: int) -> Iterator[float]:
    if isinstance(mark, Line):
        yield from (point[axis] for point in mark.points)
    elif isinstance(mark, Dots):
        yield from (v for dot in mark.dots for v in ((dot.y - dot.spread, dot.y + dot.spread) if axis else (dot.x,)))
    elif isinstance(mark, Rule):
        yield from () if axis else (mark.x,)
    elif axis:
        yield from (0.0, *(b + c for b, c in zip(mark.bottoms, mark.counts, strict=True)))
    else:
        yield from mark.edges
