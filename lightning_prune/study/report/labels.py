"""Where the names of points stand: beside their point, over no other name and no other point."""

from collections.abc import Sequence

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""
LETTER = 6.4
"""Widest average letter at the size of labels, in units of the picture."""
_HIGH = 12.0
_ROWS = (-7, 15, -12, 20, -18, 26)
"""Where a name may stand above or below its point, the nearest first."""


def placed(points: Sequence[tuple[float, float, str]], frame: Box) -> list[tuple[float, float, str] | None]:
    """Return where each name begins or ends and its anchor ("start" or "end"); None where there is no room.

    Args:
        points: x, y and name of each point, in the order of who chooses first; "" for none.
        frame: what names may not leave.
    """
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y, _ in points]
    found: list[tuple[float, float, str] | None] = []
    for x, y, name in points:
        wide = LETTER * len(name)
        free = next((place for place in _places(x, y) if _fits(_box(place, wide), frame, taken)), None)
        found.append(free if name else None)
        if name and free:
            taken.append(_box(free, wide))
    return found


def _places(x: float, y: float) -> Sequence[tuple[float, float, str]]:
    beside = (x + 8, y + 4, "start"), (x - 8, y + 4, "end")
    return beside + tuple(place for down in _ROWS for place in ((x + 6, y + down, "start"), (x - 6, y + down, "end")))


def _box(place: tuple[float, float, str], wide: float) -> Box:
    x, y, anchor = place
    left = x if anchor == "start" else x - wide
    return left, y - _HIGH + 2, left + wide, y + 2


def _fits(box: Box, frame: Box, taken: Sequence[Box]) -> bool:
    left, top, right, bottom = box
    if left < frame[0] or top < frame[1] or right > frame[2] or bottom > frame[3]:
        return False
    return all(right <= t[0] or left >= t[2] or bottom <= t[1] or top >= t[3] for t in taken)
