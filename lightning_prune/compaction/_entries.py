"""Entries of tensors: dense name -> axis -> sorted indices along it.

Set algebra on them, and what the channels of a channel group are in them: chosen by index, or read off masks.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from lightning_prune.graph import ChannelGroup, ChannelGroups

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
    moved: dict[str, dict[int, tuple[int, ...]]] = {}
    for name, axes in entries.items():
        for axis, indices in axes.items():
            left = kept.get(name, {}).get(axis)
            inside = indices if left is None else np.searchsorted(left, np.intersect1d(indices, left))
            if len(inside):
                moved.setdefault(name, {})[axis] = ints(inside)
    return moved


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


def whole_number(value: object) -> int:
    """Return a number that stood in a document.

    Raises:
        ValueError: it is no whole number that a tensor could have as a size.
    """
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{value!r:.60} is no size")
    return value


def named(groups: ChannelGroups, name: str) -> ChannelGroup:
    """Return the prunable channel group of this name.

    Raises:
        ValueError: there is none, or it is not prunable.
    """
    group = next((group for group in groups if group.name == name), None)
    if group is None:
        raise ValueError(f"there is no channel group {name!r}; print(channel_groups(model, inputs)) lists them")
    if not group.prunable:
        raise ValueError(f"channel group {name!r} cannot be pruned: {group.reason}; leave it out of the plan")
    return group


def checked(group: ChannelGroup, indices: Collection[int] | Tensor) -> np.ndarray:
    """Return the indices of channels to keep, sorted.

    Raises:
        TypeError: they are no ints.
        ValueError: there are none, or one is outside the channel group or stands twice.
    """
    if isinstance(indices, int):
        raise TypeError(f"channels to keep of {group.name!r} must be a list of indices, got {indices!r}")
    kept = np.asarray(indices.tolist() if isinstance(indices, Tensor) else list(indices))
    who, allowed = f"channels to keep of {group.name!r}", f"distinct ints in [0, {group.size})"
    if kept.size == 0:
        raise ValueError(f"{who} are none, so nothing of it would be left; keep at least one, {allowed}")
    if kept.ndim != 1 or not np.issubdtype(kept.dtype, np.integer):
        raise TypeError(f"{who} must be {allowed}, got {kept.tolist()!r}")
    bad = kept[(kept < 0) | (kept >= group.size)]
    if bad.size or len(np.unique(kept)) < len(kept):
        raise ValueError(f"{who} must be {allowed}, got {f'{bad[0]}' if bad.size else 'one of them twice'}")
    return np.sort(kept)


def entries_without(group: ChannelGroup, kept: np.ndarray) -> Entries:
    """Return the entries of all channels but the kept ones."""
    gone = np.setdiff1d(np.arange(group.size), kept)
    return merge({member.parameter: {member.axis: ints(member.indices[gone])}} for member in group.members)


def masked_out(group: ChannelGroup, masks: Mapping[str, Tensor], parameters: Collection[str]) -> np.ndarray:
    """Return which channels of the group are masked out in every parameter; shape (size,)."""
    dead = np.ones(group.size, dtype=bool)
    for member in group.members:
        if member.parameter in parameters and member.role != "unmasked":
            if member.parameter not in masks:
                return np.zeros(group.size, dtype=bool)
            mask = masks[member.parameter]
            others = [axis for axis in range(mask.dim()) if axis != member.axis]
            alive = (mask.any(dim=others) if others else mask).cpu().numpy()
            dead &= ~alive[member.indices].any(axis=1)
    return dead
