"""Which entries of which tensor axes live and die together.

An *atom* is one entry (parameter, axis, index). Rules join atoms and freeze them with a reason; the connected
components of the joins are the units that can be removed, and a component with a frozen atom cannot. Concatenation,
channel shuffle and attention heads need no index maps of their own: they only reorder arrays of atoms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

NOT_A_CHANNEL = "not a channel axis"
"""The reason of kernel axes and the like, which no table lists."""

NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Fixed:
    """An axis of a tensor that keeps its size, and why."""

    reason: str


Dim = np.ndarray | Fixed
"""One axis of a tensor in the graph: int64 atoms, one for each entry, or fixed."""

Dims = tuple[Dim, ...]


def components(size: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Label the connected components of the graph with edges ``(a[i], b[i])`` over ``size`` nodes.

    Larger roots are hooked onto smaller ones, then every node jumps to its root, until no edge joins two labels.

    Args:
        size: number of nodes.
        a: one end of each edge; shape (edges,).
        b: the other end; shape (edges,).

    Returns:
        The smallest node of each node's component; shape (size,).

    Example:
        >>> components(5, np.array([0, 3]), np.array([2, 4])).tolist()
        [0, 1, 0, 3, 3]
    """
    label = np.arange(size)
    while a.size:
        la, lb = label[a], label[b]
        differ = la != lb
        a, b = a[differ], b[differ]
        np.minimum.at(label, np.maximum(la, lb)[differ], np.minimum(la, lb)[differ])
        while not np.array_equal(jumped := label[label], label):
            label = jumped
    return label


def _smallest(label: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return for each node the smallest value in its component; shapes (size,)."""
    smallest = np.full(values.size, NEVER)
    np.minimum.at(smallest, label, values)
    return smallest[label]


class Axes:
    """The atoms of a set of tensors, their joins and freezes, solved pass by pass.

    A pass starts with :meth:`begin_pass`, adds joins and freezes, and ends with :meth:`end_pass`. Freezes stay for
    the passes that follow, joins do not.

    Args:
        shapes: shape of each tensor by name.
        allow_inexact: whether axes may shrink over which a normalisation runs.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], allow_inexact: bool = False) -> None:
        self.allow_inexact = allow_inexact
        self.slots = [(name, axis) for name, shape in shapes.items() for axis in range(len(shape))]
        self.sizes = np.array([shapes[name][axis] for name, axis in self.slots], dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)
        self.count = int(self.starts[-1])
        self._slot_of = {slot: number for number, slot in enumerate(self.slots)}
        self.reasons: list[str] = []
        self._reason_ids: dict[str, int] = {}
        self.consumed = np.zeros(self.count, dtype=bool)
        self.produced = np.zeros(self.count, dtype=bool)
        self.unmasked = np.zeros(self.count, dtype=bool)
        self.restart()

    def restart(self) -> None:
        """Forget every freeze and label."""
        self._phantoms: dict[str, int] = {}
        self._is_phantom = np.zeros(self.count, dtype=bool)
        self.why = np.full(self.count, NEVER)
        self.changed_by = np.full(self.count, NEVER)
        self.label = np.arange(self.count)
        self.frozen = np.zeros(self.count, dtype=bool)
        self.deferred = np.zeros(self.count, dtype=bool)
        self.begin_pass()

    def begin_pass(self) -> None:
        """Forget the joins."""
        self._joins: list[tuple[np.ndarray, np.ndarray]] = []

    def end_pass(self) -> bool:
        """Solve the joins of this pass; tell whether labels or freezes have changed since the last one."""
        empty = np.zeros(0, dtype=np.int64)
        a = np.concatenate([empty, *(pair[0] for pair in self._joins)])
        b = np.concatenate([empty, *(pair[1] for pair in self._joins)])
        # A phantom stands for every fixed axis of its reason: as an edge it would make one unit of all that meet it,
        # so a join with it becomes a freeze instead.
        for one, other in ((a, b), (b, a)):
            meets = self._is_phantom[one]
            np.minimum.at(self.why, other[meets], self.why[one[meets]])
        is_real = ~(self._is_phantom[a] | self._is_phantom[b])
        label = components(self.why.size, a[is_real], b[is_real])
        self.why, self.changed_by = _smallest(label, self.why), _smallest(label, self.changed_by)
        frozen = self.why != NEVER
        has_changed = not (np.array_equal(label, self.label) and np.array_equal(frozen, self.frozen))
        self.label, self.frozen = label, frozen
        return has_changed

    def atoms(self, name: str, axis: int) -> np.ndarray:
        """Return the atoms of one axis of a named tensor."""
        number = self._slot_of[name, axis]
        return np.arange(self.starts[number], self.starts[number + 1])

    def is_live(self, dim: Dim) -> bool:
        """Tell whether the axis has an atom that was not frozen by an earlier pass."""
        return isinstance(dim, np.ndarray) and not bool(self.frozen[dim].all())

    def settle(self, dim: Dim) -> Dim:
        """Return the axis itself while it is live, otherwise as fixed, with its reason."""
        if isinstance(dim, Fixed) or self.is_live(dim):
            return dim
        first = int(self.why[dim].min(initial=NEVER))
        return Fixed(self.reasons[first] if first != NEVER else "it is empty")

    def freeze(self, dims: Dim | Iterable[Dim], reason: str) -> None:
        """Keep every atom of these axes; the first reason that a unit gets is the one reported."""
        for dim in (dims,) if isinstance(dims, (np.ndarray, Fixed)) else dims:
            if isinstance(dim, np.ndarray):
                self.why[dim] = np.minimum(self.why[dim], self._reason_id(reason))

    def normalise(self, dims: Iterable[Dim], reason: str) -> None:
        """Note that removing entries of these axes changes what becomes of the others; without leave they stay."""
        if not self.allow_inexact:
            self.freeze(dims, reason)
            return
        for dim in dims:
            if isinstance(dim, np.ndarray):
                self.changed_by[dim] = np.minimum(self.changed_by[dim], self._reason_id(reason))

    def join(self, a: Dim, b: Dim) -> Dim:
        """Make two axes of the same size one, entry by entry, and return it."""
        if isinstance(a, Fixed) and isinstance(b, Fixed):
            return a
        if isinstance(a, Fixed):
            self.freeze(b, a.reason)
            return a
        if isinstance(b, Fixed):
            self.freeze(a, b.reason)
            return b
        self._joins.append((a, b))
        return a

    def join_all(self, dims: Sequence[Dim]) -> Dim:
        """Make several axes of the same size one, entry by entry, and return it."""
        joined = dims[0]
        for dim in dims[1:]:
            joined = self.join(joined, dim)
        return joined

    def tie(self, table: np.ndarray) -> np.ndarray:
        """Join the atoms of each row of a table (units, parts) and return the first column."""
        self._joins += [(table[:, 0], table[:, part]) for part in range(1, table.shape[1])]
        return table[:, 0].copy()

    def fill(self, dim: Dim, size: int) -> np.ndarray:
        """Return the axis as atoms; a fixed one becomes ``size`` times an atom that freezes what it meets."""
        if isinstance(dim, np.ndarray):
            return dim
        if dim.reason not in self._phantoms:
            (self._phantoms[dim.reason],) = self._extend(1, self._reason_id(dim.reason))
        return np.full(size, self._phantoms[dim.reason])

    def scratch(self, size: int) -> np.ndarray:
        """Return new atoms that belong to no parameter."""
        return self._extend(size, NEVER)

    def _extend(self, size: int, why: int) -> np.ndarray:
        first = self.why.size
        self._is_phantom = np.append(self._is_phantom, np.full(size, why != NEVER))
        self.why = np.append(self.why, np.full(size, why))
        self.changed_by = np.append(self.changed_by, np.full(size, NEVER))
        self.label = np.append(self.label, np.arange(first, first + size))
        self.deferred = np.append(self.deferred, np.zeros(size, dtype=bool))
        self.frozen = np.append(self.frozen, np.full(size, why != NEVER))
        return np.arange(first, first + size)

    def defer(self, dim: Dim) -> None:
        """Note that another axis of the same split is the better one to carry it, as long as it can."""
        if isinstance(dim, np.ndarray):
            self.deferred[dim] = True

    def is_deferred(self, dim: Dim) -> bool:
        """Tell whether :meth:`defer` was said of any entry of the axis."""
        return isinstance(dim, np.ndarray) and bool(self.deferred[dim].any())

    def consume(self, dim: Dim) -> None:
        """Note that this axis of a weight is contracted: removed entries are a consumer's slice."""
        if isinstance(dim, np.ndarray):
            self.consumed[dim[dim < self.count]] = True

    def produce(self, dim: Dim) -> None:
        """Note that this axis of a weight makes channels, whatever else it is used for."""
        if isinstance(dim, np.ndarray):
            self.produced[dim[dim < self.count]] = True

    def unmask(self, dim: Dim) -> None:
        """Note that these entries of a weight go along without a mask, because zeros would not be finite."""
        if isinstance(dim, np.ndarray):
            self.unmasked[dim[dim < self.count]] = True

    def _reason_id(self, reason: str) -> int:
        if reason not in self._reason_ids:
            self._reason_ids[reason] = len(self.reasons)
            self.reasons.append(reason)
        return self._reason_ids[reason]
