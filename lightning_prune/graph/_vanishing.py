"""Which tensors are zero where a channel was removed, whatever the inputs: sums over such entries lose nothing."""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any

import torch
from torch import fx

from lightning_prune.graph._removed_value import RemovedValue
from lightning_prune.graph.rules.families import (
    COPIES,
    FILLS,
    JOINS,
    MOVES,
    PARTS,
    REDUCTIONS,
    RESHAPES,
    SPATIAL,
    base_name,
    is_pointwise,
)
from lightning_prune.graph.trace import Call, Trace

SAME = (COPIES - FILLS) | RESHAPES | MOVES | PARTS
SAME |= {"view_as_complex", "view_as_real", "index", "index_select", "gather"}
"""Operators that move entries, leave them where they are, or take some of them."""

_KEEP_ZEROS = SAME | SPATIAL.keys() | (REDUCTIONS - {"logsumexp", "prod", "any", "all"}) | {"glu"}
WEIGHTED = frozenset(f"{kind}{count}d" for kind in ("conv", "conv_transpose") for count in (1, 2, 3)) | {"linear"}
_PRODUCTS = frozenset(["matmul", "bmm", "mm", "einsum", "_grouped_mm", "grouped_mm_fallback"])
_OF_ALL = JOINS | {"index_add", "index_copy", "index_put"}
_OF_ONE = {"rms_norm": "input", "scaled_dot_product_attention": "value"}
_OF_PARAMETERS = {"addmm": ("mat2", "self"), "embedding": ("weight",)}
_AFFINE = frozenset(["batch_norm", "instance_norm", "layer_norm", "group_norm"])


def vanishing(trace: Trace, removed_value: RemovedValue, kernels: Collection[fx.Node] = ()) -> set[fx.Node]:
    """Return the nodes of a graph that are zero at the entries of a removed channel.

    Args:
        trace: of the model.
        removed_value: of the same trace; it tells which weights and biases a mask makes zero.
        kernels: computed ones of which a mask makes whole rows zero.
    """
    zero: set[fx.Node] = set()
    for node in trace.nodes:
        if node.op == "placeholder":
            is_zero = trace.names.get(node) in trace.parameters
        elif node.target is operator.getitem:
            is_zero = node.all_input_nodes[0] in zero
        else:
            is_zero = node in trace.calls and _is_zero(trace.calls[node], zero, removed_value, kernels)
        if is_zero:
            zero.add(node)
        elif node in trace.calls and node.all_input_nodes and base_name(name := trace.calls[node].operator) != name:
            zero.discard(node.all_input_nodes[0])  # written in place
    return zero


def _is_zero(call: Call, zero: set[fx.Node], removed_value: RemovedValue, kernels: Collection[fx.Node]) -> bool:
    name, inputs = base_name(call.operator), call.node.all_input_nodes

    def is_masked(*arguments: str) -> bool:
        nodes = [call.get(argument) for argument in arguments]
        return all(removed_value.is_zero(node) for node in nodes if isinstance(node, fx.Node))

    if name in _KEEP_ZEROS:
        return bool(inputs) and inputs[0] in zero
    if name in _OF_ALL:
        return zero.issuperset(one for one in inputs if one.meta["val"].is_floating_point())
    if name in WEIGHTED:
        return is_masked("bias") and (call["weight"] in kernels or is_masked("weight"))
    if name in _OF_PARAMETERS:
        return is_masked(*_OF_PARAMETERS[name])
    if name in _AFFINE:
        return isinstance(call.get("weight"), fx.Node) and is_masked("weight", "bias")
    if name in _OF_ONE:
        return call[_OF_ONE[name]] in zero
    if name in ("zeros_like", "zero", "zeros", "new_zeros"):
        return True
    if name in _PRODUCTS:
        return any(node in zero for node in inputs)
    if name == "masked_fill":
        return call["self"] in zero and call.get("value") == 0
    if not is_pointwise(call):
        return False
    # what is broadcast has other entries there
    whole = {node for node in inputs if node in zero and node.meta["val"].shape == call.output.shape}
    if name == "mul" and whole:
        return True
    return call["self"] in whole if name == "div" else zero.issuperset(inputs) and _of_zeros(call) == 0.0


def _of_zeros(call: Call) -> float | None:
    """Return what a pointwise operator makes of zeros."""

    def number(_: fx.Node) -> Any:  # noqa: ANN401
        return torch.tensor(0.0, dtype=torch.float64)

    target: Any = call.node.target
    try:
        return float(target(*fx.map_arg(call.node.args, number), **fx.map_arg(call.node.kwargs, number)))
    except (RuntimeError, TypeError, ValueError):  # an operator that takes no such numbers
        return None
