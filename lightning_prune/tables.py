"""Rows of words and figures as aligned text."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Return a table: the first row is its header, the first ``words`` columns are flush left, figures flush right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:]])
