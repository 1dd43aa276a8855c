"""Operators that take parts of an axis or add to it: splits, chunks, slices, selections, padding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from lightning_prune.graph._sizes import END, are_origins_known, bounds, own_attributes
from lightning_prune.graph.axes import Dim, Dims, Fixed
from lightning_prune.graph.flow import Flow
from lightning_prune.graph.trace import Call


def split(call: Call, flow: Flow) -> list[Dims]:
    """Parts of a stated size, as long as it is no constant: equal parts are the same channels."""
    dims = flow.of(call["self"])
    axis = call["dim"] % len(dims)
    stated = call.get("split_size", call.get("split_sizes"))
    given = list(stated) if isinstance(stated, (list, tuple)) else [stated]
    sizes = [part.shape[axis] for part in call.output]
    held = flow.trace.sizes.get((call.where, tuple(given)), ())
    if not are_origins_known(held):
        return _keep_whole(call, flow, axis)
    parts = _parts(flow, dims[axis], sizes, own_attributes(held) if len(set(sizes)) > 1 else ())
    flow.note_sizes(call, given, parts)
    return [(*dims[:axis], part, *dims[axis + 1 :]) for part in parts]


def chunk(call: Call, flow: Flow) -> list[Dims]:
    """A stated number of parts: equal ones are the same channels; unequal ones keep their size."""
    dims = flow.of(call["self"])
    axis = call["dim"] % len(dims)
    sizes = [part.shape[axis] for part in call.output]
    if len(set(sizes)) > 1 or len(sizes) != call["chunks"]:
        return _keep_whole(call, flow, axis)
    return [(*dims[:axis], part, *dims[axis + 1 :]) for part in _parts(flow, dims[axis], sizes)]


def _parts(flow: Flow, dim: Dim, sizes: list[int], kinds: Sequence[frozenset[str]] = ()) -> list[Dim]:
    """Cut an axis; entries at the same place of each stretch of the parts' common length are tied.

    Parts whose sizes come from attributes of their own (kinds) go by themselves, equal ones of the same together.
    """
    if isinstance(dim, Fixed):
        return [dim] * len(sizes)
    parts = np.split(dim, np.cumsum(sizes)[:-1])
    if kinds and len(set(zip(kinds, sizes, strict=True))) == len(set(kinds)):
        for kind in set(kinds):
            flow.tie(np.stack([part for part, own in zip(parts, kinds, strict=True) if own == kind], 1))
    else:
        flow.tie(dim.reshape(-1, math.gcd(*sizes)).T)
    return [*parts]


def _keep_whole(call: Call, flow: Flow, axis: int) -> list[Dims]:
    dims = flow.of(call["self"])
    reason = f"{call.place} cuts it into parts of a stated size"
    flow.freeze(dims[axis], reason)
    return [(*dims[:axis], Fixed(reason), *dims[axis + 1 :])] * len(call.output)


def drop_axis(call: Call, flow: Flow) -> Any:  # noqa: ANN401
    """Select and unbind: entries of the axis are addressed by number, so it keeps its size."""
    dims = flow.of(call["self"])
    axis = call["dim"] % len(dims)
    flow.freeze(dims[axis], f"{call.place} addresses its entries by number")
    out = (*dims[:axis], *dims[axis + 1 :])
    return out if isinstance(call.output, Tensor) else [out] * len(call.output)


def resized(call: Call, flow: Flow) -> Dims:
    """Slices: a part whose bounds are no constants is like a split; else an axis keeps its size from now on.

    Of ``x[..., 1::2]``, the halves of interleaved rotary pairs, entries that stand together go together.
    """
    node = call["self"]
    dims = list(flow.of(node))
    reason = f"{call.place} takes or adds a part of it"
    is_slice = call.operator == "slice" and call["step"] == 1
    stated = bounds(call["start"], call["end"]) if is_slice else ()
    can_follow = is_slice and are_origins_known(flow.trace.sizes.get((call.where, stated), ()))
    for axis, (before, after) in enumerate(zip(node.meta["val"].shape, call.output.shape, strict=True)):
        dim, step = dims[axis], call.get("step", 1)
        has_stride = call.operator == "slice" and before == step * after and 0 <= (call["start"] or 0) < step
        if before != after and isinstance(dim, np.ndarray) and has_stride and (call["end"] or END) >= END:
            flow.tie(dim.reshape(-1, step))
            dims[axis] = dim[call["start"] or 0 :: step]
        elif before != after and isinstance(dim, np.ndarray) and can_follow:
            first, last = ((call[bound] or 0) for bound in ("start", "end"))
            start = first + dim.size if first < 0 else first
            _, dims[axis], _ = _parts(flow, dim, [start, after, dim.size - start - after])
            flow.note_sizes(call, stated, [dim[: abs(first)], dim[: abs(last)]])
        elif before != after:
            flow.freeze(dim, reason)
            dims[axis] = Fixed(reason)
    return tuple(dims)


def pad(call: Call, flow: Flow) -> Dims:
    """Padded axes keep their size, even where what is added at one end is cut at the other."""
    dims = list(flow.of(call["self"]))
    reason = f"{call.place} pads it"
    amounts = call["pad"]
    for number in range(len(amounts) // 2):
        if amounts[2 * number] or amounts[2 * number + 1]:
            flow.freeze(dims[-1 - number], reason)
            dims[-1 - number] = Fixed(reason)
    return tuple(dims)
