"""The pictures of the page on a matplotlib canvas, for loggers and papers; matplotlib is imported when it is needed."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element

from lightning_prune.study.report._figures import Figure
from lightning_prune.study.report._pictures import WIDTH, framed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture

_INCH = 4.6 / WIDTH
"""Inches of a unit."""
_HIGHEST = 150.0
"""Inches; matplotlib's renderer refuses about 600 at 110 dots each."""
_COLOURS = {"grid": "grid", "axis": "dim", "label": "dim", "on": "on", "unknown": "rule"}
"""Classes whose colour is no tone's -> its name in the page's style."""


def picture(figure: Figure) -> "Picture":
    """Return a figure as a matplotlib figure; it belongs to no window and to no global state.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure as Picture
    except ImportError as error:
        raise ImportError("figures for loggers need matplotlib: pip install 'lightning-prune[plots]'") from error
    svg = framed(figure, "")
    left, top, wide, high = map(float, svg.get("viewBox", "").split())
    inch = min(_INCH, _HIGHEST / high)
    drawn = Picture(figsize=(wide * inch, high * inch), dpi=110)
    axes = drawn.add_axes((0, 0, 1, 1), xlim=(left, left + wide), ylim=(top + high, top))
    axes.set_axis_off()
    _Brush(axes, inch * 72).paint(svg, frozenset())
    return drawn


class _Brush:
    """Paints SVG elements of ``_pictures`` in the light colours of the page's style.

    Args:
        axes: with the units of the picture.
        point: what a unit measures in points, as matplotlib counts strokes and letters.
    """

    def __init__(self, axes: "Axes", point: float) -> None:
        light = Path(__file__).with_name("figures.css").read_text(encoding="utf-8").partition("@media")[0]
        self.colours = dict(re.findall(r"--(\w+):(#\w+)", light))
        self.axes, self.point = axes, point

    def paint(self, element: Element, above: frozenset[str]) -> None:
        """Paint an element and what it holds, with the classes of those above it."""
        from matplotlib.patches import Circle, PathPatch, Rectangle
        from matplotlib.path import Path as Strokes

        classes = above.union(element.get("class", "").split())
        named = [_COLOURS[name] for name in classes if name in _COLOURS]
        tones = [name for name in classes if re.fullmatch(r"t\d", name)]
        colour = self.colours[(named or tones or ["t0"])[0]]
        at = {key: float(value) for key, value in element.items() if re.fullmatch(r"-?[\d.]+", value)}
        line: dict[str, Any] = {"edgecolor": colour, "linewidth": self.point * (1 if named else 2)}
        if element.tag == "text":
            side = "right" if "end" in classes else "center" if "middle" in classes else "left"
            size = 10.5 if "small" in classes else 11.5
            color, weight = self.colours[named[0] if named else "ink"], "bold" if "title" in classes else "normal"
            # two dollar signs in a name are no formula
            text = {"fontsize": size * self.point, "ha": side, "color": color, "weight": weight}
            self.axes.text(at["x"], at["y"], element.text or "", parse_math=False, **text)
        elif element.tag == "rect":
            filled: dict[str, Any] = {"facecolor": colour, "alpha": at.get("fill-opacity", 1)}
            look: dict[str, Any] = {"fill": False} | line if "unknown" in classes else filled
            self.axes.add_patch(Rectangle((at["x"], at["y"]), at["width"], at["height"], **look))
        elif element.tag == "circle":
            face = self.colours["card"] if "ring" in classes else colour
            self.axes.add_patch(Circle((at["cx"], at["cy"]), at["r"], facecolor=face, zorder=3, **line))
        elif element.tag in ("line", "path"):
            d = "M{x1} {y1}L{x2} {y2}".format_map(at) if element.tag == "line" else element.get("d", "")
            steps = re.findall(r"([ML])(\S+) ([^ML]+)", d)
            if steps:
                codes = [Strokes.MOVETO if pen == "M" else Strokes.LINETO for pen, _, _ in steps]
                strokes = Strokes([(float(x), float(y)) for _, x, y in steps], codes)
                dash = "--" if classes & {"rule", "dashed"} else "-"
                self.axes.add_patch(PathPatch(strokes, fill=False, linestyle=dash, **line))
        for part in element:
            self.paint(part, classes)
