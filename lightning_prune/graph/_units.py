"""Sort the atoms of a solved graph into removable units, and equal units into channel groups; no loop over atoms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lightning_prune.graph.axes import NEVER, Axes
from lightning_prune.graph.flow import Flow


@dataclass(frozen=True, eq=False)
class Signature:
    """Units with the same number of entries on the same axes, frozen for the same reason or not at all.

    Attributes:
        slots: axes that a unit has entries on, as positions in ``Axes.slots``; ascending.
        atoms: for each of them the atoms of the units; shape (size, entries per unit).
        reason: why the units stay; "" when they can go.
        inexact: what removing a unit changes for the others; "" when nothing.
    """

    slots: tuple[int, ...]
    atoms: tuple[np.ndarray, ...]
    reason: str
    inexact: str

    @property
    def size(self) -> int:
        """Number of units."""
        return len(self.atoms[0])


def signatures(axes: Axes) -> list[Signature]:
    """Return the solved units by signature, in the order of their first atoms."""
    if not axes.count:
        return []
    label, slot_of = axes.label[: axes.count], np.repeat(np.arange(len(axes.slots)), axes.sizes)
    order = np.argsort(label, kind="stable")
    unit, slot = label[order], slot_of[order]
    is_start = np.r_[True, (unit[1:] != unit[:-1]) | (slot[1:] != slot[:-1])]
    starts = np.flatnonzero(is_start)
    runs = _Runs(order, starts, np.diff(np.r_[starts, order.size]), slot[starts], unit[starts])
    found = list(_by_signature(axes, runs))
    return sorted(found, key=lambda one: int(one.atoms[0][0, 0]))


@dataclass(frozen=True, eq=False)
class _Runs:
    """Atoms sorted by unit, cut into runs of one unit on one slot; arrays of shape (runs,) but for ``atoms``."""

    atoms: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    slots: np.ndarray
    units: np.ndarray


def _by_signature(axes: Axes, runs: _Runs) -> Iterator[Signature]:
    units, first, lengths = np.unique(runs.units, return_index=True, return_counts=True)
    codes = runs.slots * (int(runs.counts.max()) + 1) + runs.counts
    for length in np.unique(lengths):
        here = lengths == length
        table = first[here][:, None] + np.arange(length)
        why, changed_by = axes.why[units[here]], axes.changed_by[units[here]]
        _, inverse = np.unique(np.column_stack([codes[table], why, changed_by]), axis=0, return_inverse=True)
        for number in range(int(inverse.max()) + 1):
            rows = inverse.reshape(-1) == number
            reasons = int(why[rows][0]), int(changed_by[rows][0])
            reason, inexact = ("" if number == NEVER else axes.reasons[number] for number in reasons)
            columns = table[rows].T
            positions = [runs.starts[column][:, None] + np.arange(int(runs.counts[column[0]])) for column in columns]
            yield Signature(
                slots=tuple(int(slot) for slot in runs.slots[columns[:, 0]]),
                atoms=tuple(runs.atoms[position] for position in positions),
                reason=reason,
                inexact="" if reason else inexact,
            )


def sizes_held(flow: Flow) -> Iterator[tuple[str, tuple[str, int]]]:
    """Yield each attribute that holds the size of an axis, and the axis of a parameter with the same units."""
    if not flow.held.by_path:
        return
    slot_labels = np.split(flow.label[: flow.count], flow.starts[1:-1])
    by_unit: dict[int, list[int]] = {}
    for slot, labels in enumerate(slot_labels):
        if labels.size and not flow.frozen[labels[0]]:
            by_unit.setdefault(int(labels.min()), []).append(slot)
    for path, dim in flow.held.by_path.items():
        labels = flow.label[dim]
        found = (slot for slot in by_unit.get(int(labels.min()), ()) if _are_proportional(labels, slot_labels[slot]))
        if (slot := next(found, None)) is not None:
            yield path, flow.slots[slot]


def _are_proportional(labels: np.ndarray, others: np.ndarray) -> bool:
    """Tell whether two axes have the same units, each with the same share of the axis."""
    units, counts = np.unique(labels, return_counts=True)
    other_units, other_counts = np.unique(others, return_counts=True)
    same = np.array_equal(units, other_units)
    return same and np.array_equal(counts * others.size, other_counts * labels.size)
