"""One figure of a report by itself: in a notebook, a README or a paper."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from torch import nn

from lightning_prune.documents import whole
from lightning_prune.model.summary import Summary, summarize
from lightning_prune.study.report._figures import Figure, Section
from lightning_prune.study.report._pictures import framed
from lightning_prune.study.report._sections import WIDTHS, layers
from lightning_prune.study.report.history import History

_STYLE = Path(__file__).with_name("figures.css")
_ZOOM = 1.4
"""Pixels of a unit, as on a wide page."""


@dataclass(frozen=True)
class Chart:
    """A figure with title and legend, light or dark as the reader's screen is; a notebook shows it.

    Args:
        title: what it shows.
        figure: what is drawn, as values.
    """

    title: str
    figure: Figure = field(repr=False)

    def to_svg(self) -> str:
        """Return it as an SVG document that loads nothing; every text is escaped, whatever it holds."""
        svg = framed(self.figure, "picture")
        left, top, wide, high = map(float, svg.get("viewBox", "").split())
        left, top, wide, high = left - 8, top - 4, wide + 16, high + 8
        svg.set("xmlns", "http://www.w3.org/2000/svg")
        svg.set("viewBox", f"{left:.0f} {top:.0f} {wide:.0f} {high:.0f}")
        svg.set("width", f"{wide * _ZOOM:.0f}")
        svg.set("height", f"{high * _ZOOM:.0f}")
        style, card = ElementTree.Element("style"), ElementTree.Element("rect", {"class": "card", "rx": "8"})
        style.text = _STYLE.read_text(encoding="utf-8")
        for key, value in (("x", left + 1), ("y", top + 1), ("width", wide - 2), ("height", high - 2)):
            card.set(key, f"{value:.0f}")
        svg.insert(1, style)
        svg.insert(2, card)
        return ElementTree.tostring(svg, encoding="unicode")

    def save(self, path: str | Path) -> Path:
        """Write it as a file, which appears whole or not at all.

        Args:
            path: of the file, ending in .svg; one that is there is replaced.

        Returns:
            the path.

        Raises:
            ValueError: another ending.
            OSError: the folder does not exist or cannot be written to; nothing is changed then.
        """
        return written(path, (".svg",), lambda: self.to_svg() + "\n")

    def _repr_svg_(self) -> str:
        return self.to_svg()


def written(path: str | Path, suffixes: Sequence[str], text: Callable[[], str]) -> Path:
    """Write a text as a file of one of these suffixes, whole or not at all, and return its path.

    Raises:
        ValueError: another suffix.
        FileNotFoundError: the folder does not exist.
        OSError: it cannot be written to.
    """
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        example = path.with_suffix(suffixes[0]) if path.name else f"report{suffixes[0]}"
        raise ValueError(f"path: got {str(path)!r}, must end in {suffixes[0]}, as in {str(example)!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist; make it first")
    content = text()
    with whole(path) as temporary:
        temporary.write_text(content, encoding="utf-8", newline="\n")
    return path


def charts(sections: Iterable[Section]) -> dict[str, Chart]:
    """Return the figures of sections by title."""
    return {figure.title: Chart(figure.title, figure) for section in sections for figure in section.figures}


def widths(before: nn.Module | Summary, after: nn.Module | Summary) -> Chart:
    """Return a picture of the output channels of each layer before and after.

    Args:
        before: a model, or what :func:`~lightning_prune.summarize` returned of it.
        after: the same model later; layers of one name belong together.

    Raises:
        ValueError: no layer of theirs has another number of channels.

    Example:
        >>> widths(nn.Linear(4, 8), nn.Linear(4, 6)).title
        'Output channels per layer'
    """
    summaries = [summarize(model) if isinstance(model, nn.Module) else model for model in (before, after)]
    shown = charts(layers(History(before=summaries[0], after=summaries[1])))
    if WIDTHS not in shown:
        raise ValueError("no layer has another number of output channels after than before: there is nothing to show")
    return shown[WIDTHS]
