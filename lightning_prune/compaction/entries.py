"""Set algebra on the entries of tensors: dense name -> axis -> sorted indices along it."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

Entries = Mapping[str, Mapping[int, tuple[int, ...]]]


def merge(parts: Iterable[Entries]) -> Entries:
    """Return the union."""
    found: dict[str, dict[int, list[np.ndarray]]] = {}
    for entries in parts:
        for name, axes in entries.items():
            for axis, indices in axes.items():
                found.setdefault(name, {}).setdefault(axis, []).append(np.asarray(indices, dtype=np.int64))
    return {
        name: {axis: ints(np.unique(np.concatenate(i))) for axis, i in axes.items()} for name, axes in found.items()
    }


def complement(removed: Entries, shapes: Mapping[str, tuple[int, ...]]) -> Entries:
    """Return what is left of each axis that loses entries."""
    return {
        name: {axis: ints(np.setdiff1d(np.arange(shapes[name][axis]), gone)) for axis, gone in axes.items()}
        for name, axes in removed.items()
    }


def translate(entries: Entries, kept: Entries) -> Entries:
    """Return where entries of the smaller tensors lie in the larger ones, of which ``kept`` is left."""
    return {
        name: {
            axis: ints(np.array(kept[name][axis])[list(indices)]) if axis in kept.get(name, {}) else indices
            for axis, indices in axes.items()
        }
        for name, axes in entries.items()
    }


def positions(entries: Entries, kept: Entries) -> Entries:
    """Return where entries of the larger tensors lie in the smaller ones, of which ``kept`` is left; others drop out.

    The inverse of :func:`translate`.
    """
    return {name: inner for name, axes in entries.items() if (inner := _inner(axes, kept.get(name, {})))}


def _inner(axes: Mapping[int, tuple[int, ...]], kept: Mapping[int, tuple[int, ...]]) -> dict[int, tuple[int, ...]]:
    found = {}
    for axis, indices in axes.items():
        left = np.intersect1d(indices, kept[axis]) if axis in kept else np.asarray(indices)
        if left.size:
            found[axis] = ints(np.searchsorted(kept[axis], left) if axis in kept else left)
    return found


def fit(entries: Entries, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Say in words what is wrong with entries of tensors of these shapes; "" when nothing is."""
    for name, axes in entries.items():
        for axis, indices in axes.items():
            where = f"axis {axis} of {name}"
            if name not in shapes or not 0 <= axis < len(shapes[name]):
                return f"{where}, which is not among the plan's shapes"
            size, array = shapes[name][axis], np.asarray(indices)
            if array.size == 0 or (np.diff(array) <= 0).any() or array[0] < 0 or array[-1] >= size:
                return f"{where}, where indices must be sorted, distinct and in [0, {size}), got {indices!r}"
    return ""


def ints(values: Any) -> tuple[int, ...]:  # noqa: ANN401
    """Return the values as a flat tuple of Python ints."""
    return tuple(np.ravel(np.asarray(values, dtype=np.int64)).tolist())
