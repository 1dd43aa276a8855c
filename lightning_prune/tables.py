"""Rows of words and figures as aligned text, and reasons as lines."""

from collections.abc import Mapping, Sequence


def reasons(stay: Mapping[str, str]) -> str:
    """Return what stays and why, a line each."""
    return "\n".join(f"{name}: {reason}" for name, reason in stay.items())


def aligned(rows: Sequence[Sequence[str]], words: int = 1, remarks: int = 0, *, has_total: bool = False) -> str:
    """Return a table: the first row is its header, figures are flush right.

    Args:
        rows: of the same number of cells.
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
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < words or column >= len(row) - remarks else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    rule = "-" * max(map(len, lines))
    body = [*lines[1:-1], rule, lines[-1]] if has_total else lines[1:]
    return "\n".join([lines[0], rule, *body])
