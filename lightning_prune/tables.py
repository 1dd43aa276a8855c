"""Rows of words and figures as aligned text."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], words: int = 1, remarks: int = 0) -> str:
    """Return a table: the first row is its header, figures are flush right.

    Args:
        rows: of the same number of cells.
        words: how many columns at the left are words, flush left.
        remarks: how many at the right are.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < words or column >= len(row) - remarks else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:]])
