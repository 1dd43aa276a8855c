"""Operators that move entries around: permutations, concatenation, indexing, windows, shuffles."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lightning_prune.graph.axes import Dim, Dims, Fixed
from lightning_prune.graph.flow import Flow
from lightning_prune.graph.trace import Call


def permute(call: Call, flow: Flow) -> Dims:
    """Axes in the order ``dims``."""
    dims = flow.of(call["self"])
    return tuple(dims[axis] for axis in call["dims"])


def transpose(call: Call, flow: Flow) -> Dims:
    """Two axes change places."""
    dims = list(flow.of(call["self"]))
    a, b = (call["dim0"], call["dim1"]) if "dim0" in call.arguments else (call["axis0"], call["axis1"])
    dims[a], dims[b] = dims[b], dims[a]
    return tuple(dims)


def swap_last(call: Call, flow: Flow) -> Dims:
    """The matrix transpose ``mT``: the last two axes change places."""
    *leading, rows, columns = flow.of(call["self"])
    return (*leading, columns, rows)


def movedim(call: Call, flow: Flow) -> Dims:
    """Axes ``source`` go to the places ``destination``, the others keep their order."""
    dims = flow.of(call["self"])
    given = [
        call[name] if isinstance(call[name], (list, tuple)) else [call[name]] for name in ("source", "destination")
    ]
    source, destination = ([axis % len(dims) for axis in axes] for axes in given)
    rest = iter([axis for axis in range(len(dims)) if axis not in source])
    moved = dict(zip(destination, source, strict=True))
    return tuple(dims[moved[place] if place in moved else next(rest)] for place in range(len(dims)))


def reverse(call: Call, flow: Flow) -> Dims:
    """The transpose ``t``: axes in reverse order."""
    return tuple(reversed(flow.of(call["self"])))


def expand(call: Call, flow: Flow) -> Dims:
    """Axes that keep their size go on; broadcast ones are fixed."""
    node = call["self"]
    new = len(call.output.shape) - len(flow.of(node))
    pairs = zip(flow.of(node), node.meta["val"].shape, call.output.shape[new:], strict=True)
    broadcast = Fixed(f"broadcast by {call.place}")
    return (*(broadcast,) * new, *(dim if before == after else broadcast for dim, before, after in pairs))


def expand_as(call: Call, flow: Flow) -> Dims:
    """Axes that keep their size go on; broadcast ones are those of the other tensor."""
    others, shape = list(flow.of(call["other"])), call.output.shape
    new = len(shape) - len(flow.of(call["self"]))
    for axis, dim in enumerate(flow.of(call["self"]), start=new):
        if call["self"].meta["val"].shape[axis - new] == shape[axis]:
            others[axis] = flow.join(dim, others[axis])
    return tuple(others)


def as_complex(call: Call, flow: Flow) -> Dims:
    """(…, 2) to (…): real and imaginary part, as of rotary pairs, are one entry."""
    *leading, pair = flow.of(call["self"])
    flow.freeze(pair, f"{call.place} takes it for real and imaginary part")
    return tuple(leading)


def as_real(call: Call, flow: Flow) -> Dims:
    """(…) to (…, 2): real and imaginary part."""
    return (*flow.of(call["self"]), Fixed(f"real and imaginary part of {call.place}"))


def repeat(call: Call, flow: Flow) -> Dims:
    """Repeat and tile: each axis laid out several times; the copies of a channel are the same channel."""
    dims, repeats = flow.of(call["self"]), call.get("repeats", call.get("dims"))
    new = call.output.dim() - len(dims)
    repeats = [1] * (call.output.dim() - len(repeats)) + list(repeats)
    out: list[Dim] = [Fixed(f"repeated by {call.place}")] * new
    out += [np.tile(d, n) if isinstance(d, np.ndarray) else d for d, n in zip(dims, repeats[new:], strict=True)]
    return tuple(out)


def repeat_interleave(call: Call, flow: Flow) -> Any:  # noqa: ANN401
    """Each entry of one axis several times in a row: the same channel."""
    repeats, axis = call["repeats"], call["dim"]
    if not isinstance(repeats, int) or axis is None:
        return flow.give_up(call, f"{call.place} repeats entries one by one")
    dims = list(flow.of(call["self"]))
    dim = dims[axis]
    dims[axis] = np.repeat(dim, repeats) if isinstance(dim, np.ndarray) else dim
    return tuple(dims)


def flip(call: Call, flow: Flow) -> Dims:
    """Entries in reverse order along some axes."""
    dims = list(flow.of(call["self"]))
    for axis in call["dims"]:
        dim = dims[axis]
        dims[axis] = dim[::-1].copy() if isinstance(dim, np.ndarray) else dim
    return tuple(dims)


def cat(call: Call, flow: Flow) -> Dims:
    """Atoms one after the other along ``dim``; the other axes are one. Empty tensors of one axis are skipped."""
    count = call.output.dim()
    nodes = [node for node in call["tensors"] if len(flow.of(node)) == count]
    out: list[Dim] = []
    for axis in range(count):
        dims, sizes = [flow.of(node)[axis] for node in nodes], [node.meta["val"].shape[axis] for node in nodes]
        if axis != call["dim"] % count:
            out.append(flow.join_all(dims))
        elif all(isinstance(dim, Fixed) for dim in dims):
            out.append(dims[0])
        else:
            out.append(np.concatenate([flow.fill(dim, size) for dim, size in zip(dims, sizes, strict=True)]))
    return tuple(out)


def stack(call: Call, flow: Flow) -> Dims:
    """A new axis of fixed size; the others are one."""
    parts = [flow.of(node) for node in call["tensors"]]
    out = [flow.join_all(dims) for dims in zip(*parts, strict=True)]
    out.insert(call["dim"] % call.output.dim(), Fixed(f"stacked by {call.place}"))
    return tuple(out)


def roll(call: Call, flow: Flow) -> Dims:
    """Rolled axes keep their size."""
    dims = list(flow.of(call["self"]))
    reason = f"{call.place} moves its entries by a fixed number"
    for axis in call["dims"] or range(len(dims)):
        flow.freeze(dims[axis], reason)
        dims[axis] = Fixed(reason)
    return tuple(dims)


def index(call: Call, flow: Flow) -> Any:  # noqa: ANN401
    """x[:, idx]: the indexed axis keeps its size; with several index tensors everything does."""
    indexed = [axis for axis, tensor in enumerate(call["indices"]) if tensor is not None]
    reason = f"{call.place} addresses its entries by number"
    if len(indexed) != 1:
        return flow.give_up(call, reason)
    axis, node = indexed[0], call["indices"][indexed[0]]
    dims = flow.of(call["self"])
    flow.freeze([dims[axis], *flow.of(node)], reason)
    return (*dims[:axis], *(Fixed(reason),) * node.meta["val"].dim(), *dims[axis + 1 :])


def gather(call: Call, flow: Flow) -> Any:  # noqa: ANN401
    """Entries picked along ``dim``, which keeps its size; another axis is that of the index where it is as long."""
    axis = call["dim"] % max(1, call.output.dim())
    reason = f"{call.place} addresses its entries by number"
    out: list[Dim] = []
    for number, (dim, index_dim) in enumerate(zip(flow.of(call["self"]), flow.of(call["index"]), strict=True)):
        if number == axis or call["self"].meta["val"].shape[number] != call.output.shape[number]:
            flow.freeze((dim, index_dim), reason)
            out.append(Fixed(reason))
        else:
            out.append(flow.join(dim, index_dim))
    return tuple(out)


def index_select(call: Call, flow: Flow) -> Dims:
    """The axis that is picked from keeps its size, the others go on."""
    dims, axis = flow.of(call["self"]), call["dim"] % max(1, call.output.dim())
    reason = f"{call.place} addresses its entries by number"
    flow.freeze([dims[axis], *flow.of(call["index"])], reason)
    return (*dims[:axis], Fixed(reason), *dims[axis + 1 :])


def windows(call: Call, flow: Flow) -> Dims:
    """Tensor.unfold: windows along one axis, which keeps its size; a new last axis."""
    dims, axis = flow.of(call["self"]), call["dimension"] % max(1, call["self"].meta["val"].dim())
    reason = f"{call.place} slides over it"
    flow.freeze(dims[axis], reason)
    return (*dims[:axis], Fixed(reason), *dims[axis + 1 :], Fixed(reason))


def triangle(call: Call, flow: Flow) -> Dims:
    """The last two axes keep their size."""
    *leading, rows, columns = flow.of(call["self"])
    reason = f"{call.place} compares positions along it"
    flow.freeze((rows, columns), reason)
    return (*leading, Fixed(reason), Fixed(reason))


def im2col(call: Call, flow: Flow) -> Dims:
    """(…, c, h, w) to (…, c·k, places): each channel becomes the k entries of its window."""
    *leading, channel, height, width = flow.of(call["self"])
    reason = f"spatial axis of {call.place}"
    flow.freeze((height, width), reason)
    if isinstance(channel, np.ndarray):
        channel = np.repeat(channel, math.prod(call["kernel_size"]))
    return (*leading, channel, Fixed(reason))


def col2im(call: Call, flow: Flow) -> Dims:
    """(…, c·k, places) to (…, c, h, w): the k entries of a window are one channel."""
    *leading, channel, places = flow.of(call["self"])
    reason = f"spatial axis of {call.place}"
    flow.freeze(places, reason)
    if isinstance(channel, np.ndarray):
        channel = flow.tie(channel.reshape(-1, math.prod(call["kernel_size"])))
    return (*leading, channel, Fixed(reason), Fixed(reason))


def pixel_shuffle(call: Call, flow: Flow) -> Dims:
    """(…, c·r², h, w) to (…, c, h·r, w·r): r² neighbouring channels become one."""
    *leading, channel, height, width = flow.of(call["self"])
    flow.freeze((height, width), f"spatial axis of {call.place}")
    if isinstance(channel, np.ndarray):
        channel = flow.tie(channel.reshape(-1, call["upscale_factor"] ** 2))
    return (*leading, channel, *(Fixed(f"spatial axis of {call.place}"),) * 2)


def pixel_unshuffle(call: Call, flow: Flow) -> Dims:
    """(…, c, h·r, w·r) to (…, c·r², h, w): each channel becomes r² neighbouring ones."""
    *leading, channel, height, width = flow.of(call["self"])
    flow.freeze((height, width), f"spatial axis of {call.place}")
    if isinstance(channel, np.ndarray):
        channel = np.repeat(channel, call["downscale_factor"] ** 2)
    return (*leading, channel, *(Fixed(f"spatial axis of {call.place}"),) * 2)


def channel_shuffle(call: Call, flow: Flow) -> Dims:
    """Axis 1 seen as (groups, n) and transposed; the same slot of every group goes together."""
    dims = list(flow.of(call["self"]))
    if isinstance(dims[1], np.ndarray):
        table = dims[1].reshape(call["groups"], -1).T
        flow.tie(table)
        dims[1] = table.reshape(-1).copy()
    return tuple(dims)
