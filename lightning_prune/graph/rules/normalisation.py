"""Operators that normalise, reduce, or otherwise mix the entries along an axis."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, fx

from lightning_prune.graph._sizes import are_origins_known
from lightning_prune.graph.axes import Dims, Fixed
from lightning_prune.graph.flow import Flow
from lightning_prune.graph.rules.families import AVERAGES, SPATIAL, base_name
from lightning_prune.graph.trace import Call

PER_CHANNEL = ("weight", "bias", "running_mean", "running_var")


def batch_norm(call: Call, flow: Flow) -> Dims:
    """One weight, bias, mean and variance for each channel (axis 1); batch statistics mix the other axes."""
    batch, channel, *space = flow.of(call["input"])
    for name in PER_CHANNEL:
        if isinstance(call.get(name), fx.Node):
            channel = flow.join(channel, flow.of(call[name])[0])
    if call.get("training", call.get("use_input_stats")) is not False:
        flow.freeze([*([] if "use_input_stats" in call.arguments else [batch]), *space], f"{call.place} normalises it")
    return (batch, channel, *space)


def layer_norm(call: Call, flow: Flow) -> Dims:
    """The last axes, as many as normalized_shape has, are normalised, with their weight and bias."""
    dims, shape = flow.of(call["input"]), call["normalized_shape"]
    normalised = dims[len(dims) - len(shape) :]
    flow.normalise(normalised, f"{call.place} normalises it")
    flow.note_sizes(call, shape, normalised)
    _join_affine(call, flow, normalised)
    return dims


def rms_norm(call: Call, flow: Flow) -> Dims:
    """As a layer norm; over one axis of zeros and others, weight and eps take up what another width changes."""
    dims, shape = flow.of(call["input"]), call["normalized_shape"]
    normalised = dims[len(dims) - len(shape) :]
    if call["input"] not in flow.vanishing or not flow.scale(call, normalised, flow.scales.of_rms_norm(call)):
        flow.normalise(normalised, f"{call.place} normalises it")
    flow.note_sizes(call, shape, normalised)
    _join_affine(call, flow, normalised)
    return dims


def group_norm(call: Call, flow: Flow) -> Dims:
    """The channel axis is normalised, with its weight and bias; what follows it keeps its size.

    A whole norm group can go: no other one looks at it. That takes an attribute that holds their number. Where inexact
    removals are allowed the same slot of each goes at once, and their number stays.
    """
    batch, channel, *space = flow.of(call["input"])
    reason, count = f"{call.place} normalises it", call["num_groups"]
    flow.freeze(space, reason)
    stated = flow.trace.sizes.get((call.where, (count,)), ())
    if count > 1 and isinstance(channel, np.ndarray) and are_origins_known(stated) and not flow.allow_inexact:
        flow.tie(channel.reshape(count, -1))
        flow.note_sizes(call, [count], [channel])
    else:
        flow.normalise((channel,), reason)
        if flow.allow_inexact and isinstance(channel, np.ndarray):
            flow.tie(channel.reshape(count, -1).T)
    _join_affine(call, flow, (channel,))
    return (batch, channel, *space)


def _join_affine(call: Call, flow: Flow, normalised: Dims) -> None:
    for name in ("weight", "bias"):
        if isinstance(call.get(name), fx.Node):
            for entry, dim in zip(flow.of(call[name]), normalised, strict=True):
                flow.join(entry, dim)


def weight_norm(call: Call, flow: Flow) -> Any:  # noqa: ANN401
    """Direction v and length g: g·v/‖v‖, the norm over all axes of v but ``dim``.

    A channel that is made goes with its length, which a mask makes zero; its row of v goes along unmasked, since a row
    of zeros would be 0/0. A channel that is read is zero in v, and a norm does not mind zeros.
    """
    direction, length, axis = call["v"], call["g"], call["dim"]
    names, parameters = flow.trace.names, flow.trace.parameters
    is_plain = all(names.get(node) in parameters for node in (direction, length))
    if not is_plain or len(direction.users) > 1:
        return flow.give_up(call, f"{call.place} keeps its sizes")
    dims = flow.of(direction)
    if axis != -1:  # torch's way to say: one length for all of v
        flow.unmask(dims[axis])
        flow.join(dims[axis], flow.of(length)[axis])
        flow.produce(flow.of(length)[axis])
    return dims


def keep_whole(call: Call, flow: Flow) -> Any:  # noqa: ANN401
    """Operators that are known to need every channel."""
    return flow.give_up(call, f"{call.place} keeps its sizes")


def along(call: Call, flow: Flow) -> Any:  # noqa: ANN401
    """Softmax, cumulative sums, sorting: the axis ``dim`` keeps its size."""
    dims = list(flow.of(call["self"]))
    axis = call.get("dim", -1)
    reason = f"{call.place} mixes its channels"
    flow.freeze(dims[axis], reason)
    first = call.output if isinstance(call.output, Tensor) else call.output[0]
    if first.shape != call["self"].meta["val"].shape:
        dims[axis] = Fixed(reason)
    return tuple(dims) if isinstance(call.output, Tensor) else [tuple(dims)] * len(call.output)


def reduce(call: Call, flow: Flow) -> Any:  # noqa: ANN401
    """Mean, sum, extremes: reduced axes keep their size, the others go on.

    Where a removed channel is zero, a sum and a length are the same without it, and a mean is n / n' times as large,
    which something may take up. Otherwise a mean that keeps its axis is a part of a normalisation written by hand.
    """
    dims = flow.of(call["self"])
    reduced = call.get("dim")
    if reduced is None or reduced == []:
        reduced = range(len(dims))
    axes = {axis % len(dims) for axis in (reduced if isinstance(reduced, (list, tuple, range)) else [reduced])}
    reason = f"{call.place} reduces it"
    name, mixed = base_name(call.operator), [dims[axis] for axis in axes]
    # a sum and a length are the same without zeros
    is_sum = name == "sum" or (
        name in ("linalg_vector_norm", "norm") and call.get("ord", call.get("p")) in (None, 1, 2)
    )
    # what nobody reads may have any value, such as the attention's weights averaged over heads
    is_exact, why = not call.node.users, ""
    if call.node.all_input_nodes[0] in flow.vanishing:
        is_exact |= is_sum
        if name == "mean" and not is_exact:
            is_exact = flow.scale(call, mixed, flow.scales.of_mean(call))
            is_exact = is_exact or flow.scale(call, mixed, flow.scales.counted(call), "counted")
        why = f": {flow.scales.of_mean(call).reason}" if name == "mean" and flow.scales.of_mean(call).reason else ""
    if not is_exact:
        (flow.normalise if call.get("keepdim") and name in AVERAGES else flow.freeze)(mixed, reason + why)
    first = call.output if isinstance(call.output, Tensor) else call.output[0]
    if first.dim() == len(dims):
        out: Dims = tuple(Fixed(reason) if axis in axes else dim for axis, dim in enumerate(dims))
    else:
        out = tuple(dim for axis, dim in enumerate(dims) if axis not in axes)
    return out if isinstance(call.output, Tensor) else [out] * len(call.output)


def unpool(call: Call, flow: Flow) -> Dims:
    """Max unpooling: the indices are places within a channel, so they have its channels; the last axes are space."""
    count = SPATIAL[base_name(call.operator)]
    dims, indices = flow.of(call["self"]), flow.of(call["indices"])
    reason = f"spatial axis of {call.place}"
    flow.freeze((*dims[-count:], *indices[-count:]), reason)
    joined = [flow.join(dim, other) for dim, other in zip(dims[:-count], indices[:-count], strict=True)]
    return (*joined, *(Fixed(reason),) * count)


def spatial(call: Call, flow: Flow) -> Any:  # noqa: ANN401
    """Pooling, interpolation, reflection: the last axes are space, the others go on."""
    count = SPATIAL[base_name(call.operator)]
    dims = flow.of(call.node.all_input_nodes[0])
    reason = f"spatial axis of {call.place}"
    flow.freeze(dims[-count:], reason)
    out: Dims = (*dims[:-count], *(Fixed(reason),) * count)
    return [out] * len(call.output) if isinstance(call.output, (tuple, list)) else out
