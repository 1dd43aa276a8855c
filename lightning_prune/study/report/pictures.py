"""Figures as matplotlib figures, for loggers and papers; matplotlib is imported when the first is drawn."""

import math
from typing import TYPE_CHECKING

from lightning_prune.study.report.figures import Bars, Columns, Dots, Figure, HeatMap, Line, Mark, Plot, Tone
from lightning_prune.study.report.markup import cleaned, shortened
from lightning_prune.study.report.numbers import brief
from lightning_prune.study.report.spans import span_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture

COLOURS = {
    Tone.MAIN: "#2f6fb4",
    Tone.SECOND: "#c2620e",
    Tone.THIRD: "#2b8a57",
    Tone.FOURTH: "#8a4fa8",
    Tone.FIFTH: "#8f7000",
    Tone.GOOD: "#2b8a57",
    Tone.BAD: "#c43b3b",
    Tone.QUIET: "#b5bbc4",
}
"""The colours of a light page; ``page`` writes them into its style."""
_SHAPES = {"circle": "o", "ring": "o", "cross": "x"}


def picture(figure: Figure) -> "Picture":
    """Return a figure as a matplotlib figure; it belongs to no window and to no global state.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure as Picture
    except ImportError as error:
        raise ImportError("figures for loggers need matplotlib: pip install 'lightning-prune[plots]'") from error
    drawn = Picture(figsize=(5.6, _height(figure)), layout="constrained", dpi=110)
    axes = drawn.subplots()
    axes.set_title(_plain(shortened(figure.title, 60)), loc="left", fontsize=10)
    if isinstance(figure, Plot):
        _plot(axes, figure)
    elif isinstance(figure, Bars):
        _bars(axes, figure)
    else:
        _heat_map(axes, figure)
    return drawn


def _height(figure: Figure) -> float:
    if isinstance(figure, Plot):
        return 2.4 if figure.is_small else 3.2
    rows = len(figure.rows) * (len(figure.series) if isinstance(figure, Bars) else 1)
    return min(1.2 + 0.24 * rows, 60.0)


def _plain(text: str) -> str:
    return cleaned(text).replace("$", r"\$")  # matplotlib sets what stands between two of them as a formula


def _plot(axes: "Axes", plot: Plot) -> None:
    for mark in plot.marks:
        _mark(axes, mark)
    for axis, own, limit in ((axes.xaxis, plot.x, axes.set_xlim), (axes.yaxis, plot.y, axes.set_ylim)):
        if own.is_log:
            (axes.set_xscale if own is plot.x else axes.set_yscale)("log")
        limit(*span_of(plot, int(own is plot.y)))
        axis.set_label_text(_plain(shortened(own.label, 60)))
        if own.is_share:
            axis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.spines[["top", "right"]].set_visible(False)
    if len(plot.marks) > 1:
        axes.legend(frameon=False, fontsize=8)


def _mark(axes: "Axes", mark: Mark) -> None:
    colour, name = COLOURS[mark.tone], _plain(shortened(mark.name, 40))
    if isinstance(mark, Line):
        x, y = zip(*mark.points, strict=True) if mark.points else ((), ())
        style = "steps-post" if mark.is_stepped else "default"
        axes.plot(x, y, color=colour, label=name, drawstyle=style, linestyle="--" if mark.is_dashed else "-")
    elif isinstance(mark, Dots):
        face = "none" if mark.shape == "ring" else colour
        x, y = [dot.x for dot in mark.dots], [dot.y for dot in mark.dots]
        axes.plot(x, y, _SHAPES[mark.shape], color=colour, markerfacecolor=face, label=name, zorder=3)
        axes.errorbar(x, y, [dot.spread for dot in mark.dots], color=colour, linestyle="none")
        for dot in mark.dots:
            axes.annotate(
                _plain(shortened(dot.label, 24)), (dot.x, dot.y), (5, 4), textcoords="offset points", fontsize=8
            )
    elif isinstance(mark, Columns):
        axes.stairs([b + c for b, c in zip(mark.bottoms, mark.counts, strict=True)], mark.edges, baseline=mark.bottoms,
                    fill=True, color=colour, label=name)  # fmt: skip
    else:
        axes.axvline(mark.x, color=colour, label=name, linestyle="--")


def _bars(axes: "Axes", bars: Bars) -> None:
    count = len(bars.series)
    for index, series in enumerate(bars.series):
        values = [row[index] if math.isfinite(row[index]) else 0.0 for _, row in bars.rows]
        places = [place + (index - (count - 1) / 2) * 0.8 / count for place in range(len(values))]
        tone = (Tone.QUIET, Tone.MAIN)[index] if count == 2 else Tone(index % 5)
        axes.barh(places, values, 0.8 / count, color=COLOURS[tone], label=_plain(series))
    names = [_plain(shortened(name, 32)) for name, _ in bars.rows]
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel(_plain(bars.unit))
    if bars.is_share:
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def _heat_map(axes: "Axes", heat: HeatMap) -> None:
    if not heat.rows or not heat.columns:
        return
    values = [[math.nan if value is None else value for value in row] for row in heat.values]
    shown = axes.imshow(values, aspect="auto", cmap="Blues_r" if heat.is_low_strong else "Blues")
    axes.set_xticks(range(len(heat.columns)), [_plain(shortened(name, 12)) for name in heat.columns], fontsize=8)
    axes.set_yticks(range(len(heat.rows)), [_plain(shortened(name, 32)) for name in heat.rows], fontsize=7)
    axes.set_xlabel(_plain(heat.column_label))
    for down, row in enumerate(values):
        for across, value in enumerate(row):
            if math.isfinite(value):
                tone = "white" if heat.shade(value) > 0.55 else "black"
                axes.text(across, down, brief(value), ha="center", va="center", fontsize=7, color=tone)
    axes.figure.colorbar(shown, ax=axes, label=_plain(heat.unit))
