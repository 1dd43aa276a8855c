"""Reshapes: factor both shapes into the smallest blocks of equal product, and carry atoms through each block."""

from __future__ import annotations

import math

import numpy as np

from lightning_prune.graph._sizes import Size
from lightning_prune.graph.axes import Dim, Dims, Fixed
from lightning_prune.graph.flow import Flow
from lightning_prune.graph.trace import Call


def reshape(call: Call, flow: Flow) -> Dims:
    """View, flatten, squeeze, unflatten: entries keep their order, axes merge and split."""
    source = call.node.all_input_nodes[0]
    dims, before, after = flow.of(source), source.meta["val"].shape, call.output.shape
    if math.prod(before) != math.prod(after) or 0 in before:
        return flow.give_up(call, f"{call.place} changes the number of entries")
    out: list[Dim] = [Fixed(f"reshaped by {call.place}")] * len(after)
    for taken, made in blocks(before, after):
        live = [axis for axis in taken if flow.is_live(dims[axis])]
        if len(taken) == len(made) == 1:
            out[made[0]] = dims[taken[0]]
        elif live:
            carrier = max(live, key=lambda axis: (not flow.is_deferred(dims[axis]), before[axis]))
            # In the first half of the passes the others may still turn out frozen by themselves, with a better reason.
            if flow.is_strict:
                others = [dims[axis] for axis in taken if axis != carrier]
                flow.freeze(others, f"{call.place} merges it with a larger axis")
            column = [before[axis] if axis == carrier else 1 for axis in taken]
            atoms = flow.fill(dims[carrier], 0).reshape(column)
            atoms = np.broadcast_to(atoms, [before[axis] for axis in taken]).reshape(-1)
            _split(flow, call, made, [after[axis] for axis in made], atoms, out)
        else:
            for axis in made:
                out[axis] = flow.settle(dims[taken[0]])
    given, first = _given(call)
    flow.note_sizes(call, given, out[first : first + len(given)])
    return tuple(out)


def _given(call: Call) -> tuple[list[int], int]:
    """Return the sizes as the code gives them, with -1, and the first axis that gets one."""
    if "sizes" in call.arguments:
        return list(call["sizes"]), call["dim"] % call.node.all_input_nodes[0].meta["val"].dim()
    given = call.get("size", call.get("shape"))
    return (list(given) if isinstance(given, (list, tuple)) else []), 0


def blocks(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Pair the axes of two shapes into the smallest runs of equal product; axes of size 1 are left out.

    Example:
        >>> blocks((2, 8, 3, 3), (2, 72))
        [([0], [0]), ([1, 2, 3], [1])]
    """
    left = [axis for axis, size in enumerate(before) if size != 1]
    right = [axis for axis, size in enumerate(after) if size != 1]
    found: list[tuple[list[int], list[int]]] = []
    while left and right:
        taken, made = [left.pop(0)], [right.pop(0)]
        while (p := math.prod(before[a] for a in taken)) != (q := math.prod(after[a] for a in made)):
            shorter, longer = (taken, left) if p < q else (made, right)
            shorter.append(longer.pop(0))
        found.append((taken, made))
    return found


def _split(flow: Flow, call: Call, made: list[int], sizes: list[int], atoms: np.ndarray, out: list[Dim]) -> None:
    """Choose the new axis that carries the atoms: one along which alone they differ, else the largest that can."""
    table = atoms.reshape(sizes)
    labels, consistent = flow.label[table], list[int]()
    for position in range(len(made)):
        others = tuple(axis for axis in range(len(made)) if axis != position)
        if (labels.min(axis=others) == labels.max(axis=others)).all():
            consistent.append(position)
    key = (call.node, made[0])
    if flow.scouts is not None and not consistent:
        if key not in flow.scouts:
            flow.scouts[key] = [flow.scratch(size) for size in sizes]
        for axis, own in zip(made, flow.scouts[key], strict=True):
            out[axis] = own
        return
    ranked = sorted(consistent, key=lambda position: -sizes[position])
    if not ranked:
        stated, first = _given(call)
        known = flow.trace.sizes.get((call.where, tuple(stated)), tuple(stated))
        # of each new axis the size that the code states, -1 where it states none
        said = [known[axis - first] if 0 <= axis - first < len(known) else -1 for axis in made]
        constant = [position for position, size in enumerate(said) if size != -1 and not isinstance(size, Size)]
        ranked = flow.carriers(key, sizes, constant)
    chosen = ranked[0]
    carried = flow.tie(np.moveaxis(table, chosen, 0).reshape(sizes[chosen], -1))
    if not consistent:
        flow.splits[key] = (carried, len(ranked))
    out[made[chosen]] = carried
