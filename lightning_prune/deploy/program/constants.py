"""Constant methods: values that an app reads from the .pte itself."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

Constant = str | bool | int | float
"""One value that a constant method may hold, by itself or in a list of its kind."""

_LARGEST = 2**63 - 1


def checked_constants(
    constants: Mapping[str, Constant | Sequence[Constant]] | None,
    labels: Sequence[str] | None,
    methods: Collection[str],
) -> dict[str, Any]:
    """Return the constant methods of a program: the caller's, and ``labels`` where there are labels.

    Args:
        constants: strings, bools, ints, floats, or lists of one of them, by name.
        labels: names of the classes.
        methods: names that are taken.

    Raises:
        ValueError: a name is taken or no identifier, a list is empty, or an int has more than 64 bits.
        TypeError: a value is of another type, or a list mixes types.
    """
    if constants is not None and not isinstance(constants, Mapping):
        raise TypeError(
            f"constants: got a {type(constants).__name__}, must be a dict, as in {{'mean': [0.5, 0.5, 0.5]}}"
        )
    found: dict[str, Any] = {}
    for name, value in (constants or {}).items():
        values: list[Any] = list(value) if isinstance(value, tuple | list) else [value]
        kinds = {type(v) for v in values}
        if not values:
            raise ValueError(f"constants[{name!r}] is empty: a constant method holds at least one value")
        if len(kinds) > 1 or not kinds <= {str, bool, int, float}:
            raise TypeError(
                f"constants[{name!r}] holds {', '.join(sorted(kind.__name__ for kind in kinds))}: give a string, bool,"
                " int or float, or a list of one of them"
            )
        if any(type(v) is int and abs(v) > _LARGEST for v in values):
            raise ValueError(f"constants[{name!r}] holds an int of more than 64 bits")
        found[name] = values if isinstance(value, tuple | list) else values[0]
    if labels and "labels" in found:
        raise ValueError("constants: 'labels' is the constant method of labels=; leave one of them out")
    found |= {"labels": list(labels)} if labels else {}
    for name in found:
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"constants: got the name {name!r}, must be an identifier such as 'mean'")
        if name in methods:
            raise ValueError(f"constants: {name!r} is a method of the program already; choose another name")
    return found
