"""The base of the values that a recipe chooses among, and the checks of plain arguments that all values share."""

import sys


class Choice:
    """One of several values for the same place in a recipe, such as ``Element()`` or ``Channel()``.

    It holds nothing. LightningCLI's YAML names such a value by its ``class_path``, and jsonargparse keeps that path
    only for a class with a base that is no dataclass.
    """


def check_bool(name: str, value: object) -> None:
    """Check a yes or no.

    Args:
        name: of the argument, as its user writes it: ``Channel.allow_inexact``.
        value: of it.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {_shown(value)}")


def check_whole(name: str, value: object, least: int | None = None, unit: str = "", why: str = "") -> None:
    """Check a whole number.

    Args:
        name: of the argument, as its user writes it.
        value: of it.
        least: the smallest that is allowed; None: any.
        unit: what it counts, in words: ``optimizer steps``.
        why: end of the sentence that refuses a smaller one.

    Raises:
        TypeError: it is no int.
        ValueError: it is smaller, or takes more than 64 bits.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        counted = f", a number of {unit}" if unit else ""
        raise TypeError(f"{name} must be an int{counted}, got {_shown(value)}")
    if abs(value) >= 2**64:  # nothing that is counted comes so far, and torch and floats take no such number
        raise ValueError(f"{name} must be below 2**64, got one of {value.bit_length()} bits")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}{why}")


def check_number(
    name: str,
    value: object,
    least: float | None = None,
    most: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
    why: str = "",
) -> None:
    """Check a finite number.

    Args:
        name: of the argument, as its user writes it.
        value: of it.
        least: the smallest that is allowed; None: any.
        most: the largest that is allowed; None: any.
        above: what it must be above.
        below: what it must be below.
        why: end of the sentence that refuses one outside.

    Raises:
        TypeError: it is no number.
        ValueError: it is NaN, infinite or outside.
    """
    bounds = (("at least", least), ("at most", most), ("above", above), ("below", below))
    allowed = " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
    meaning = f"a number {allowed}" if allowed else "a finite number"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be {meaning}, got {_shown(value)}")
    is_inside = (
        (least is None or value >= least)
        and (most is None or value <= most)
        and (above is None or value > above)
        and (below is None or value < below)
    )
    # NaN compares with nothing; an int may be more than any float
    if not (is_inside and abs(value) <= sys.float_info.max):
        raise ValueError(f"{name} must be {meaning}, got {value!r:.60}{why}")


def check_sparsity(name: str, value: object) -> None:
    """Check a share that is removed, in [0, 1).

    Raises:
        TypeError: it is no number.
        ValueError: it lies outside.
    """
    check_number(name, value, 0, below=1, why=": it is the share removed")


def _shown(value: object) -> str:
    return f"{value!r:.60} ({type(value).__name__})" if value is not None else "None"
