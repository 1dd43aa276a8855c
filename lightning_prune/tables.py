"""Tables of words and figures: aligned text in print, HTML in a notebook and on a page; and reasons as lines."""

import html
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

_QUANTITY = re.compile(r"[−–+±-]?\s?[\d∞].{0,24}")
"""A figure with its unit, which is not broken over lines as words are."""
_STYLE = """<style>
.lightning-prune{overflow:auto;max-height:40em}
.lightning-prune table{border-collapse:collapse;margin:0;font-size:.875em;font-variant-numeric:tabular-nums}
.lightning-prune table th,.lightning-prune table td{text-align:left;vertical-align:top;padding:.2em .7em;
white-space:pre-line}
.lightning-prune table .flush{text-align:right;white-space:nowrap}
.lightning-prune table caption{caption-side:bottom;text-align:left;white-space:pre-line;padding:.2em .8em}
</style>"""
"""What a notebook's own style for tables says otherwise: all of its cells are flush right."""


def reasons(stay: Mapping[str, str]) -> str:
    """Return what stays and why, a line each."""
    return "\n".join(f"{name}: {reason}" for name, reason in stay.items())


def cleaned(text: object) -> str:
    """Return a text with the replacement sign in place of characters that no page may hold."""
    # controls and lone surrogates; marks of direction would turn the text around them as well
    barred = ("Cc", "Cs", "Cf")
    return "".join("\ufffd" if unicodedata.category(c) in barred and c not in "\n\t" else c for c in str(text))


def escaped(text: object) -> str:
    r"""Return a text in a line, controls in it as Python writes them: a name can forge no row and move no cursor.

    Example:
        >>> print(escaped("conv\n1"))
        conv\n1
    """
    barred = ("Cc", "Cs", "Cf", "Zl", "Zp")
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in barred else c for c in str(text))


def lines(text: object) -> str:
    """Return :func:`escaped` of each line of a text."""
    return "\n".join(map(escaped, str(text).split("\n")))


def aligned(rows: Sequence[Sequence[str]], words: int = 1, remarks: int = 0, *, has_total: bool = False) -> str:
    """Return a table: the first row is its header, figures are flush right.

    Args:
        rows: of the same number of cells; a cell of several lines takes as many.
        words: how many columns at the left are words, flush left.
        remarks: how many at the right are.
        has_total: whether the last row sums up the others, and stands under a line.

    Example:
        >>> print(aligned([("layer", "size"), ("conv1", "8"), ("in all", "8")], has_total=True))
        layer   size
        ------------
        conv1      8
        ------------
        in all     8
    """
    rows = [[lines(cell) for cell in row] for row in rows]
    widths = [max(len(line) for row in rows for line in row[column].split("\n")) for column in range(len(rows[0]))]
    blocks = [
        "\n".join(
            "  ".join(
                cell.ljust(width) if column < words or column >= len(row) - remarks else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in zip_longest(*(cell.split("\n") for cell in row), fillvalue="")
        )
        for row in rows
    ]
    rule = "-" * max(len(line) for block in blocks for line in block.split("\n"))
    body = [*blocks[1:-1], rule, blocks[-1]] if has_total else blocks[1:]
    return "\n".join([blocks[0], rule, *body])


@dataclass(frozen=True)
class Table:
    """Rows of words and figures; ``str()`` of it is aligned text.

    Args:
        head: names of the columns, with units.
        rows: as many cells each; a cell of several lines takes as many.
        words: how many columns at the left are words.
        remarks: how many at the right are.
        has_total: whether the last row sums up the others.
        note: stands under it; "" for nothing.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    remarks: int = 0
    has_total: bool = False
    note: str = ""

    def __str__(self) -> str:
        text = aligned([self.head, *self.rows], self.words, self.remarks, has_total=self.has_total)
        return f"{text}\n{lines(self.note)}" if self.note else text

    def to_html(self) -> str:
        """Return it as an element of a page; every text is escaped, whatever it holds.

        Cells that begin with a digit or a sign are of the class "number", and columns of nothing else "flush".
        """
        flush = {
            number
            for number, cells in enumerate(zip(*self.rows, strict=True))
            if number and all(_QUANTITY.fullmatch(cell) or cell in ("", "-", "–") for cell in cells)
        }
        heads = (_cell('th scope="col"', text, flush=number in flush) for number, text in enumerate(self.head))
        parts = ["<table>", _cell("caption", self.note)] if self.note else ["<table>"]
        row_head = 'th scope="row"'
        parts += [f"<thead><tr>{''.join(heads)}</tr></thead>", "<tbody>"]
        for row in self.rows:
            cells = (
                _cell("td", text, number=_QUANTITY.fullmatch(text) is not None, flush=number in flush)
                for number, text in enumerate(row[1:], 1)
            )
            parts.append(f"<tr>{_cell(row_head, row[0])}{''.join(cells)}</tr>")
        return "\n".join([*parts, "</tbody></table>"])


def _cell(tag: str, text: str, **classes: bool) -> str:
    names = " ".join(name for name, holds in classes.items() if holds)
    kind = f' class="{names}"' if names else ""
    return f"<{tag}{kind}>{html.escape(cleaned(text))}</{tag.partition(' ')[0]}>"


class Tabular(ABC):
    """A value that people read as a table: aligned text where it is printed, HTML in a notebook."""

    @abstractmethod
    def table(self) -> Table:
        """Return it as a table, for a page or a file of your own."""

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return f'<div class="lightning-prune">{_STYLE}{self.table().to_html()}</div>'

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: ANN401 - IPython's, in a terminal
        printer.text(str(self))
