"""Sort the atoms of a solved graph into removable units, and equal units into channel groups; no loop over atoms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lightning_prune.graph._scales import Scale, Site
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
    held = {**flow.held.by_path, **{path: site.dim for site in _living(flow) for path in site.taken.attributes}}
    if not held:
        return
    slot_labels = np.split(flow.label[: flow.count], flow.starts[1:-1])
    by_unit: dict[int, list[int]] = {}
    for slot, labels in enumerate(slot_labels):
        if labels.size and not flow.frozen[labels[0]]:
            by_unit.setdefault(int(labels.min()), []).append(slot)
    for path, dim in held.items():
        labels = flow.label[dim]
        units, counts = np.unique(labels, return_counts=True)
        for slot in by_unit.get(int(labels.min()), ()):
            # the same units, each with the same share of the axis
            others, other_counts = np.unique(slot_labels[slot], return_counts=True)
            shares = counts * slot_labels[slot].size, other_counts * labels.size
            if np.array_equal(units, others) and np.array_equal(*shares):
                yield path, flow.slots[slot]
                break


def _living(flow: Flow) -> list[Site]:
    return [site for site in flow.sites if not flow.frozen[site.dim].all()]


def scales_of(flow: Flow, found: Sequence[Signature]) -> list[dict[str, Scale]]:
    """Return what the parameters that take up a change are multiplied by, for each signature.

    A mean is over a width that goes in proportion only where all of its channels are of one channel group. What takes
    up its change may serve nothing else. Where this does not hold, the mean's call is entered in ``flow.refused``.
    """
    number_of = np.full(flow.why.size, -1)
    for number, signature in enumerate(found):
        if not signature.reason:
            number_of[flow.label[signature.atoms[0][:, 0]]] = number
    scales: list[dict[str, Scale]] = [{} for _ in found]
    sites: dict[int, list[Site]] = {}
    for site in _living(flow):
        units, counts = np.unique(flow.label[site.dim], return_counts=True)
        number = int(number_of[units[0]])
        is_whole = (counts == counts[0]).all() and (number_of[units] == number).all()
        if number >= 0 and is_whole and found[number].size == units.size:
            sites.setdefault(number, []).append(site)
        else:
            flow.refused.add((site.node, site.kind))
    for number, those in sites.items():
        for site in those:
            for name, scale in site.taken.scales.items():
                alike = [other for other in those if other.kind == site.kind]
                users = {user for other in alike for user in other.taken.users.get(name, ())}
                is_one = all(other.taken.scales.get(name, scale) == scale for other in alike)
                if not is_one or users != flow.scales.users(name):
                    flow.refused.add((site.node, site.kind))
            for path in site.taken.attributes:
                if {n for other in those for n in other.taken.attributes.get(path, ())} != flow.scales.adding(path):
                    flow.refused.add((site.node, site.kind))
        by_kind = {(name, site.kind): scale for site in those for name, scale in site.taken.scales.items()}
        for (name, _), scale in by_kind.items():
            earlier = scales[number].get(name)
            scales[number][name] = scale if earlier is None else Scale(earlier.power + scale.power, scale.offset)
        scales[number] = {name: scale for name, scale in scales[number].items() if scale.power}
    return scales
