"""Operators that normalise, reduce, or otherwise mix the entries along an axis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

from lightning_prune.graph.axes import Dims, Fixed
from lightning_prune.graph.rules.families import SPATIAL, base_name

if TYPE_CHECKING:
    from lightning_prune.graph.flow import Flow
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
    """The last axes, as many as normalized_shape has, keep their size, with their weight and bias."""
    return _keep_normalised(call, flow, len(flow.of(call["input"])) - len(call["normalized_shape"]), None)


def group_norm(call: Call, flow: Flow) -> Dims:
    """The channel axis, with its weight and bias, and what follows it keep their size."""
    return _keep_normalised(call, flow, 1, 1)


def _keep_normalised(call: Call, flow: Flow, first: int, channel: int | None) -> Dims:
    """Freeze the axes from the first one on; weight and bias belong to one of them, or to all in order."""
    dims = flow.of(call["input"])
    flow.freeze(dims[first:], f"{call.place} normalises it")
    for name in ("weight", "bias"):
        if isinstance(call.get(name), fx.Node):
            entries = dims[first:] if channel is None else (dims[channel],)
            for entry, dim in zip(flow.of(call[name]), entries, strict=True):
                flow.join(entry, dim)
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
    """Mean, sum, extremes: reduced axes keep their size, the others go on."""
    dims = flow.of(call["self"])
    axes = _reduced_axes(call.get("dim"), len(dims))
    reason = f"{call.place} reduces it"
    flow.freeze([dims[axis] for axis in axes], reason)
    first = call.output if isinstance(call.output, Tensor) else call.output[0]
    if first.dim() == len(dims):
        out: Dims = tuple(Fixed(reason) if axis in axes else dim for axis, dim in enumerate(dims))
    else:
        out = tuple(dim for axis, dim in enumerate(dims) if axis not in axes)
    return out if isinstance(call.output, Tensor) else [out] * len(call.output)


def spatial(call: Call, flow: Flow) -> Any:  # noqa: ANN401
    """Pooling, interpolation, reflection: the last axes are space, the others go on."""
    count = SPATIAL[base_name(call.operator)]
    dims = flow.of(call.node.all_input_nodes[0])
    reason = f"spatial axis of {call.place}"
    flow.freeze(dims[-count:], reason)
    out: Dims = (*dims[:-count], *(Fixed(reason),) * count)
    return [out] * len(call.output) if isinstance(call.output, (tuple, list)) else out


def _reduced_axes(dim: Any, count: int) -> set[int]:  # noqa: ANN401
    if dim is None or dim == []:
        return set(range(count))
    return {axis % count for axis in (dim if isinstance(dim, (list, tuple)) else [dim])}
