"""Operators that sum over channels with a weight: convolution, linear, matrix products, attention, embedding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import fx

from lightning_prune.graph.axes import NOT_A_CHANNEL, Dim, Dims, Fixed
from lightning_prune.graph.flow import Flow
from lightning_prune.graph.trace import Call

SPACE = Fixed("spatial axis")


def contract(call: Call, flow: Flow, channel: Dim, weight: fx.Node, axis: int) -> None:
    """Join a channel with the weight axis that sums over it; both stay where a masked weight would not be zero.

    A kernel that is standardised is not zero where its weight is. What it is multiplied with has to be.
    """
    dim = flow.of(weight)[axis]
    flow.consume(dim)
    kernel = flow.kernels.get(weight)
    if kernel is not None and kernel.attribute and call["input"] in flow.vanishing:
        if isinstance(joined := flow.join(channel, dim), np.ndarray):
            flow.held.by_path[kernel.attribute] = joined
    elif flow.is_activation(weight) or not flow.removed_value.is_zero(weight):
        flow.freeze((channel, dim), f"{call.place} sums over it with a weight that no mask makes zero")
    else:
        flow.join(channel, dim)


def linear(call: Call, flow: Flow) -> Dims:
    """Weight (out, in): the last axis goes from in to out."""
    dims, weight = flow.of(call["input"]), call["weight"]
    contract(call, flow, dims[-1], weight, 1)
    flow.produce(flow.of(weight)[0])
    return (*dims[:-1], _with_bias(flow, flow.of(weight)[0], call["bias"]))


def conv(call: Call, flow: Flow) -> Dims:
    """Weight (out, in / groups, *kernel): the channel axis goes from in to out."""
    weight, groups = call["weight"], call["groups"]
    rows, columns, *kernel = flow.of(weight)
    channel = _enter(call, flow, kernel)
    if groups == 1:
        contract(call, flow, channel, weight, 1)
        out: Dim = rows
    else:
        out = _grouped(call, flow, channel, rows, columns)
    flow.produce(out)
    return _leave(call, flow, _with_bias(flow, out, call["bias"]))


def conv_transpose(call: Call, flow: Flow) -> Dims:
    """Weight (in, out / groups, *kernel): the channel axis goes from in to out."""
    weight, groups = call["weight"], call["groups"]
    rows, columns, *kernel = flow.of(weight)
    channel = _enter(call, flow, kernel)
    if groups == 1:
        contract(call, flow, channel, weight, 0)
        out: Dim = columns
        flow.produce(columns)
    else:
        out = _grouped_transpose(call, flow, channel, rows, columns)
    return _leave(call, flow, _with_bias(flow, out, call["bias"]))


def _enter(call: Call, flow: Flow, kernel: list[Dim]) -> Dim:
    """Freeze kernel and space; return the channel axis of the input, batched or not."""
    dims = flow.of(call["input"])
    flow.freeze(kernel, NOT_A_CHANNEL)
    if not _is_pointwise(call):
        flow.freeze(dims[len(dims) - len(kernel) :], f"spatial axis of {call.place}")
    return dims[-len(kernel) - 1]


def _leave(call: Call, flow: Flow, channel: Dim) -> Dims:
    count = call["weight"].meta["val"].dim() - 2
    dims = flow.of(call["input"])
    space = dims[-count:] if _is_pointwise(call) else (SPACE,) * count
    return (*dims[: -count - 1], channel, *space)


def _is_pointwise(call: Call) -> bool:
    """Tell whether a convolution treats each place by itself."""
    kernel = call["weight"].meta["val"].shape[2:]
    padding = call["padding"]
    is_unpadded = padding == "valid" or (not isinstance(padding, str) and set(padding) == {0})
    return (
        set(kernel) == {1} and set(call["stride"]) == {1} and is_unpadded and not any(call.get("output_padding") or ())
    )


def _grouped(call: Call, flow: Flow, channel: Dim, rows: Dim, columns: Dim) -> Dim:
    """Remove whole convolution groups, or the same slots in each group, whichever leaves more to choose from."""
    groups, (total, inside) = call["groups"], call["weight"].meta["val"].shape[:2]
    kernel = flow.kernels.get(call["weight"])
    name = flow.trace.names.get(call["weight"]) if kernel is None else kernel.name
    if name is None or not isinstance(rows, np.ndarray):
        reason = rows.reason if isinstance(rows, Fixed) else f"{call.place} has groups and a computed weight"
        flow.freeze((channel, rows, columns), reason)
        return Fixed(reason)
    if groups >= inside and name not in flow.slotwise and flow.is_live(channel):
        flow.freeze(columns, NOT_A_CHANNEL)
        flow.whole.add(name)
        flow.tie(np.concatenate([flow.fill(channel, 0).reshape(groups, -1), rows.reshape(groups, -1)], axis=1))
        return rows
    flow.slotwise.add(name)
    if inside > 1:
        table = flow.fill(channel, groups * inside).reshape(groups, -1).T
        contract(call, flow, flow.tie(table), call["weight"], 1)
    if total == groups:
        kept = flow.settle(channel)
        reason = kept.reason if isinstance(kept, Fixed) else f"{call.place} has one channel for each group"
        flow.freeze((channel, rows), reason)
    else:
        flow.tie(rows.reshape(groups, -1).T)
    return rows


def _grouped_transpose(call: Call, flow: Flow, channel: Dim, rows: Dim, columns: Dim) -> Dim:
    """Remove whole convolution groups."""
    groups, outside = call["groups"], call["weight"].meta["val"].shape[1]
    name = flow.trace.names.get(call["weight"])
    flow.freeze(columns, NOT_A_CHANNEL)
    if name is None or not isinstance(rows, np.ndarray) or not isinstance(channel, np.ndarray):
        kept = channel if isinstance(channel, Fixed) else Fixed(f"{call.place} has groups and a computed weight")
        flow.freeze((channel, rows), kept.reason)
        return kept
    flow.whole.add(name)
    first = flow.tie(np.concatenate([rows.reshape(groups, -1), channel.reshape(groups, -1)], axis=1))
    flow.produce(rows)
    return np.repeat(first, outside)


def matmul(call: Call, flow: Flow) -> Any:  # noqa: ANN401
    """(…, n, k) times (…, k, m): one side may be a weight; between activations all but k can go."""
    left, right = call["self"], call.get("other", call.get("mat2"))
    a, b = flow.of(left), flow.of(right)
    if len(a) < 2 or len(b) < 2:
        return flow.give_up(call, f"{call.place} multiplies a vector")
    out: list[Dim] = []
    for axis in range(-len(call.output.shape), -2):
        operands = [node for node in (left, right) if len(flow.of(node)) >= -axis]
        size = max(node.meta["val"].shape[axis] for node in operands)
        out.append(flow.join_all([flow.of(node)[axis] for node in operands if node.meta["val"].shape[axis] == size]))
    if flow.is_activation(left) and flow.is_activation(right):
        sum_over_width(call, flow, left, right, (a[-1], b[-2]), left.meta["val"].shape[-1])
        # of both sides, since each is split by a view of its own, and no join tells one view of the other
        for dim in (a[-2], a[-1], b[-2], b[-1]) if flow.attention == "heads" else (*a[:-2], *b[:-2]):
            flow.defer(dim)
        return (*out, a[-2], b[-1])
    weight, axis, channel = (left, -1, b[-2]) if not flow.is_activation(left) else (right, -2, a[-1])
    contract(call, flow, channel, weight, axis)
    return (*out, a[-2], b[-1])


def grouped_mm(call: Call, flow: Flow) -> Any:  # noqa: ANN401
    """Rows (n, k) sorted by expert, weights (experts, k, m): each row is multiplied by its expert's."""
    left, weight = call.node.all_input_nodes[:2]
    (rows, channel), (experts, _, out) = flow.of(left), flow.of(weight)
    flow.freeze((rows, experts), f"{call.place} sorts by expert")
    contract(call, flow, channel, weight, 1)
    flow.produce(out)
    return (rows, out)


def matrix_vector(call: Call, flow: Flow) -> Any:  # noqa: ANN401
    """(n, k) times (k): a weight by a vector, as in spectral norm."""
    rows, _ = flow.of(call["self"])
    (channel,) = flow.of(call["vec"])
    contract(call, flow, channel, call["self"], 1)
    return (rows,)


def dot(call: Call, flow: Flow) -> Any:  # noqa: ANN401
    """A sum of products over (k): exact where one of the two is zero, such as a masked weight by a vector."""
    left, right = call["self"], call.get("other", call.get("tensor"))
    (a,), (b,) = flow.of(left), flow.of(right)
    if flow.removed_value.is_zero(left) or flow.removed_value.is_zero(right):
        flow.join(a, b)
    else:
        flow.freeze((a, b), f"{call.place} sums over it")
    return ()


def baddbmm(call: Call, flow: Flow) -> Any:  # noqa: ANN401
    """A tensor that is added to the product of batches of matrices."""
    left, right = call["batch1"], call["batch2"]
    product = matmul(Call(call.node, call.operator, {"self": left, "other": right}, call.where), flow)
    added = flow.of(call["self"])[-3:]
    shape, given = call.output.shape, call["self"].meta["val"].shape
    offset = 3 - len(given)
    pairs = [(product[axis], added[axis - offset]) for axis in range(offset, 3) if given[axis - offset] == shape[axis]]
    for one, other in pairs:
        flow.join(one, other)
    return product


def addmm(call: Call, flow: Flow) -> Dims:
    """Bias (m) or (n, m), input (n, k), weight (k, m)."""
    rows, channel = flow.of(call["mat1"])
    weight = call["mat2"]
    contract(call, flow, channel, weight, 0)
    flow.produce(flow.of(weight)[1])
    return rows, _with_bias(flow, flow.of(weight)[1], call["self"])


def _with_bias(flow: Flow, out: Dim, bias: Any) -> Dim:  # noqa: ANN401
    return flow.join(out, flow.of(bias)[-1]) if isinstance(bias, fx.Node) else out


def attention(call: Call, flow: Flow) -> Dims:
    """scaled_dot_product_attention: whole heads can go, or the width of query and key, and that of the value."""
    query, *others, mask = call["query"], call["key"], call["value"], call.get("attn_mask")
    key, value = others
    reason = f"width of the heads of {call.place}"
    widths = flow.of(query)[-1], flow.of(key)[-1]
    # scores stay as they are at another width where their scale does, or where what makes the query takes it up
    scale, size = call.get("scale"), query.meta["val"].shape[-1]
    has_own_scale = scale is not None and not (_is_root(scale, size) and _follows_width(flow, size))
    flow.freeze([flow.of(node)[-2] for node in (query, key, value)], reason)
    if flow.vanishing.isdisjoint((query, key)):
        flow.freeze(widths, f"{call.place} multiplies what is not zero where a mask is")
    elif has_own_scale or flow.scale(
        call, widths[:1], flow.scales.of_scores(call, query, key, value, call.node), "softmax"
    ):
        flow.join(*widths)
    else:
        flow.freeze(widths, f"{reason}, whose root divides it and which nothing takes up")
    width = flow.of(value)[-1]
    for dim in (*widths, width) if flow.attention == "heads" else ():
        flow.defer(dim)
    out: list[Dim] = []
    for axis in range(len(call.output.shape) - 2):
        dim = flow.of(query)[axis]
        heads = query.meta["val"].shape[axis]
        if flow.attention == "width":
            flow.defer(dim)
        for node in others:
            # Grouped-query attention: with fewer heads of keys and values, each belongs to a block of query heads.
            other = flow.of(node)[axis]
            if flow.attention == "width":
                flow.defer(other)
            if isinstance(other, np.ndarray) and other.size != heads:
                other = np.repeat(other, heads // other.size)
            dim = flow.join(dim, other)
        if isinstance(mask, fx.Node):
            position = axis - len(call.output.shape) + mask.meta["val"].dim()
            if position >= 0 and mask.meta["val"].shape[position] != 1:
                dim = flow.join(dim, flow.of(mask)[position])
        out.append(dim)
    return (*out, Fixed(reason), width)


def sum_over_width(call: Call, flow: Flow, left: fx.Node, right: fx.Node, widths: tuple[Dim, Dim], size: int) -> None:
    """Join the width that a product of two activations sums over: that of query and key, in an attention by hand."""
    if flow.vanishing.isdisjoint((left, right)):
        flow.freeze(widths, f"{call.place} multiplies two activations")
        return
    value, end = flow.scales.value_of(call.node)
    numbers = flow.scales.divisors(left, right, call.node) if _follows_width(flow, size) else []
    roots = [number for number in numbers if _is_root(number, size)]
    is_exact = not roots or (
        len(roots) == 1
        and flow.scale(call, widths[:1], flow.scales.of_scores(call, left, right, value, end), "softmax")
    )
    if is_exact:
        flow.join(*widths)
    else:
        flow.freeze(widths, f"width of the heads of {call.place}, whose root divides it and which nothing takes up")


def _is_root(number: float, size: int) -> bool:
    return any(math.isclose(number, size**power, rel_tol=1e-9) for power in (0.5, -0.5))


def _follows_width(flow: Flow, size: int) -> bool:
    """Tell whether the code of a module makes a number of a width that changes, by its shape or by an attribute."""
    return any(origin is None or origin in flow.held.by_path for origin in flow.trace.as_floats.get(size, ()))


def embedding(call: Call, flow: Flow) -> Dims:
    """Rows are looked up, so they stay; columns are channels."""
    rows, columns = flow.of(call["weight"])
    flow.freeze(rows, f"{call.place} looks its rows up by index")
    flow.produce(columns)
    return (*flow.of(call["indices"]), columns)
