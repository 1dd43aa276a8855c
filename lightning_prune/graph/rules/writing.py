"""Operators that write a part of a tensor, such as the step of a cache of keys.

In the traced graph each later read of a buffer is its placeholder again: to join what is written with the axes of what
it is written into is all that is needed. An assignment to a slice is a ``copy_`` into a view, which is pointwise.
"""

from __future__ import annotations

from torch import Tensor, fx

from lightning_prune.graph.axes import Dim, Dims, Fixed
from lightning_prune.graph.flow import Flow
from lightning_prune.graph.trace import Call


def index_copy(call: Call, flow: Flow) -> Dims:
    """self[…, index, …] = source, or += it: the addressed axis keeps its size, the others are those of the source."""
    dims, source = flow.of(call["self"]), flow.of(call["source"])
    if not dims:
        return dims
    axis, reason = call["dim"] % len(dims), f"{call.place} addresses its entries by number"
    flow.freeze([dims[axis], source[axis], *flow.of(call["index"])], reason)
    out: list[Dim] = [flow.join(dim, other) for dim, other in zip(dims, source, strict=True)]
    out[axis] = Fixed(reason)
    return tuple(out)


def index_put(call: Call, flow: Flow) -> Dims:
    """self[:, index] = values with a single index; several, or a mask, keep all of it."""
    dims, reason = list(flow.of(call["self"])), f"{call.place} addresses its entries by number"
    (axis, index), *further = [(axis, index) for axis, index in enumerate(call["indices"]) if index is not None]
    picks, values = index.meta["val"], call["values"]
    if further or picks.dtype.is_floating_point or str(picks.dtype) in ("torch.bool", "torch.uint8"):
        return flow.give_up(call, reason)
    flow.freeze([dims[axis], *flow.of(index)], reason)
    dims[axis] = Fixed(reason)
    picked = [*dims[:axis], *(Fixed(reason) for _ in picks.shape), *dims[axis + 1 :]]
    for place, other in enumerate(reversed(flow.of(values)), 1):
        # values of size 1 along an axis are broadcast into it
        if values.meta["val"].shape[-place] != 1:
            flow.join(picked[-place], other)
    return tuple(dims)


def scatter(call: Call, flow: Flow) -> Dims:
    """Axes that the index covers whole are joined; the addressed one, and those in part, keep their size."""
    written = [call["index"]]
    if isinstance(source := call.get("src"), fx.Node) and isinstance(source.meta.get("val"), Tensor):
        written.append(source)
    dims, shape = flow.of(call["self"]), call["self"].meta["val"].shape
    axis, reason = call["dim"] % max(1, len(dims)), f"{call.place} addresses its entries by number"
    out: list[Dim] = []
    for number, dim in enumerate(dims):
        own = [dim, *(flow.of(node)[number] for node in written)]
        is_whole = all(node.meta["val"].shape[number] == shape[number] for node in written)
        if number == axis or not is_whole:
            flow.freeze(own, reason)
            out.append(Fixed(reason))
        else:
            out.append(flow.join_all(own))
    return tuple(out)
