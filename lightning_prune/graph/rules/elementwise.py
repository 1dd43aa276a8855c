"""Operators that look at one entry at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, fx

from lightning_prune.graph._sizes import ZEROS, Size
from lightning_prune.graph.axes import Dim, Dims, Fixed
from lightning_prune.graph.flow import Flow
from lightning_prune.graph.rules.families import base_name
from lightning_prune.graph.trace import Call

POLE_AT_ZERO = ("log", "log2", "log10", "logit", "reciprocal", "rsqrt", "digamma", "lgamma", "acosh")
DIVISIONS = ("div", "true_divide", "floor_divide", "remainder", "fmod", "divide")


def pointwise(call: Call, flow: Flow) -> Dims:
    """Activations, sums, products, comparisons: axes of the same size are one, axes of size 1 are broadcast."""
    # What an operator would turn into infinity or NaN where a mask has put zeros stays: the mask could not be trained.
    pole = _argument_with_a_pole(call)
    is_tensor = isinstance(pole, fx.Node) and isinstance(pole.meta.get("val"), Tensor)
    if is_tensor and not flow.removed_value.is_positive(pole):
        flow.freeze(flow.of(pole), f"{call.place} may not be finite where a channel is zero")
    shape = call.output.shape
    tensors = [node for node in call.node.all_input_nodes if isinstance(node.meta.get("val"), Tensor)]
    out: list[Dim] = []
    for axis, size in enumerate(shape):
        place = axis - len(shape)
        whole = [node for node in tensors if len(node.meta["val"].shape) >= -place]
        dims = [flow.of(node)[place] for node in whole if size == 1 or node.meta["val"].shape[place] != 1]
        out.append(flow.join_all(dims) if dims else Fixed(f"broadcast by {call.place}"))
    return tuple(out)


def copy(call: Call, flow: Flow) -> Any:  # noqa: ANN401
    """Dropout, casts, clone: the axes of the first argument."""
    dims = flow.of(call.node.all_input_nodes[0])
    return [dims] * len(call.output) if isinstance(call.output, (tuple, list)) else dims


def create(call: Call, flow: Flow) -> Any:  # noqa: ANN401
    """Constants have no channels; zeros have those of what they are made in the size of, such as a first state."""
    reason = f"constant made by {call.place}"
    if base_name(call.operator) not in ZEROS:
        return flow.fixed(call.node, reason)
    shape = tuple(call.output.shape)
    stated = flow.trace.sizes.get((call.where, shape), ())
    dims = tuple(
        flow.made(call.node, axis, size) if size > 1 and isinstance(origin, Size) else Fixed(reason)
        for axis, (size, origin) in enumerate(zip(shape, stated or shape, strict=True))
    )
    flow.note_sizes(call, shape, dims)
    return dims


def prelu(call: Call, flow: Flow) -> Dims:
    """The slope is one number, or one for each channel (axis 1)."""
    dims, slope = list(flow.of(call["self"])), flow.of(call["weight"])
    if call["weight"].meta["val"].numel() > 1:
        dims[1] = flow.join(dims[1], slope[0])
    return tuple(dims)


def glu(call: Call, flow: Flow) -> Dims:
    """Both halves of the axis are the same channels."""
    dims = list(flow.of(call["self"]))
    dim = dims[call["dim"]]
    if isinstance(dim, np.ndarray):
        dims[call["dim"]] = flow.tie(dim.reshape(2, -1).T)
    return tuple(dims)


def _argument_with_a_pole(call: Call) -> Any:  # noqa: ANN401
    name = base_name(call.operator)
    if name in POLE_AT_ZERO:
        return call["self"]
    if name in DIVISIONS or name == "addcdiv":
        return call["tensor2" if name == "addcdiv" else "other"]
    exponent = call.get("exponent")
    is_whole_power = isinstance(exponent, (int, float)) and exponent >= 0
    return call["self"] if name in ("pow", "float_power") and exponent is not None and not is_whole_power else None
