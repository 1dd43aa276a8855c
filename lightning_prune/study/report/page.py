"""The page: sections of figures as one HTML file that loads nothing."""

import re
from collections.abc import Mapping, Sequence

from lightning_prune._version import __version__
from lightning_prune.study.report.figures import (
    Bars,
    Columns,
    Dots,
    Figure,
    HeatMap,
    Line,
    Mark,
    Plot,
    Section,
    Table,
    Tone,
)
from lightning_prune.study.report.markup import Markup, tag
from lightning_prune.study.report.style import STYLE
from lightning_prune.study.report.svg import draw


def page(title: str, facts: Sequence[tuple[str, str, str]], sections: Sequence[Section]) -> str:
    """Return the whole page as HTML.

    Args:
        title: heading.
        facts: what to know first: what it is, the figure, a word on it.
        sections: in order; may be empty.
    """
    links = [tag("li", tag("a", section.title, href=f"#s{index}")) for index, section in enumerate(sections)]
    body = [
        tag("header", tag("h1", title), tag("dl", *map(_fact, facts), class_="facts") if facts else ""),
        tag("nav", tag("ul", *links), aria_label="Sections") if len(links) > 1 else "",
        tag("main", *(_section(section, index) for index, section in enumerate(sections))),
        tag("footer", f"Written by lightning_prune {__version__}."),
    ]
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Markup(STYLE)),
    ]
    return "<!doctype html>\n" + tag("html", tag("head", *head), tag("body", *body), lang="en") + "\n"


_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def _fact(fact: tuple[str, str, str]) -> Markup:
    name, value, note = fact
    return tag("div", tag("dt", name), tag("dd", value), tag("dd", note, class_="note") if note else "")


def _section(section: Section, index: int) -> Markup:
    parts = [tag("h2", section.title), tag("p", section.text)]
    if section.table is not None:
        parts.append(_table(section.table, section.title))
    if section.figures:
        is_dense = all(isinstance(figure, Plot) and figure.is_small for figure in section.figures)
        figures = [_figure(figure, f"s{index}f{number}") for number, figure in enumerate(section.figures)]
        parts.append(tag("div", *figures, class_="figures dense" if is_dense else "figures"))
    return tag("section", *parts, id=f"s{index}")


def _figure(figure: Figure, name: str) -> Markup:
    caption = tag("figcaption", tag("h3", figure.title), tag("p", figure.note) if figure.note else "", _legend(figure))
    numbers = tag("details", tag("summary", "Numbers"), _table(figure.table, f"{figure.title}, numbers"))
    # a long picture scrolls in a frame of its own, which the keyboard reaches
    drawn = tag("div", draw(figure, name), class_="picture", tabindex=0, role="group", aria_label=figure.title)
    return tag("figure", caption, drawn, numbers)


def _legend(figure: Figure) -> Markup:
    entries: Mapping[str, tuple[Tone, str]] = {}
    if isinstance(figure, Plot):
        entries = {mark.name: (mark.tone, _shape(mark)) for mark in figure.marks if mark.name}
    elif isinstance(figure, Bars) and len(figure.series) > 1:
        tones = (Tone.QUIET, Tone.MAIN) if len(figure.series) == 2 else tuple(map(Tone, range(5)))
        entries = {name: (tones[index % len(tones)], "block") for index, name in enumerate(figure.series)}
    if isinstance(figure, HeatMap) or len(entries) < 2:
        return Markup("")
    items = (
        tag("li", tag("span", class_=f"swatch {shape} t{tone.value}"), name) for name, (tone, shape) in entries.items()
    )
    return tag("ul", *items, class_="legend", aria_hidden="true")


def _shape(mark: Mark) -> str:
    if isinstance(mark, Dots):
        return mark.shape
    return (
        "block"
        if isinstance(mark, Columns)
        else "stroke"
        if isinstance(mark, Line) and not mark.is_dashed
        else "stroke dashed"
    )


def _table(table: Table, title: str) -> Markup:
    head = tag("tr", *(tag("th", cell, scope="col") for cell in table.head))
    rows = [
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell, class_=_kind(cell)) for cell in row[1:]))
        for row in table.rows
    ]
    content = tag("table", tag("thead", head), tag("tbody", *rows))
    return tag("div", content, class_="table", tabindex=0, role="region", aria_label=title)


_FIGURE = re.compile(r"[−–+±]?\s?[\d∞].{0,24}")


def _kind(cell: str) -> str | None:
    """Return the class of a figure with its unit, which is not broken over lines as words are."""
    return "number" if _FIGURE.fullmatch(cell) else None
