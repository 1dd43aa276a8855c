"""Kernels that a layer computes of its own weight with statistics over the inputs: weight standardisation."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from lightning_prune.graph._removed_value import RemovedValue
from lightning_prune.graph._vanishing import WEIGHTED
from lightning_prune.graph.rules.families import base_name
from lightning_prune.graph.trace import Trace
from lightning_prune.model.counting import KERNEL


@dataclass(frozen=True, eq=False)
class Kernel:
    """A kernel that is computed of a parameter row by row, each row of zeros giving zeros.

    Removed inputs are zeros in the statistics of a row: masked, because they are zero, and compact, because the layer
    counts them further on (:mod:`lightning_prune.model.counting`).

    Args:
        weight: the parameter of the kernel's shape, which the layer calls ``weight``.
        name: its dense name.
        beside: parameters with an entry for each row, such as a gain, with the axis.
        inside: the calls that compute the kernel, itself included.
        attribute: path of the attribute that says how many inputs are counted; "" where none can.
    """

    weight: fx.Node
    name: str
    beside: Mapping[fx.Node, int]
    inside: frozenset[fx.Node]
    attribute: str


def kernels(trace: Trace, activations: Collection[fx.Node], removed_value: RemovedValue) -> dict[fx.Node, Kernel]:
    """Return the kernels of a graph by the node that a convolution or linear layer takes.

    Args:
        trace: of the model.
        activations: nodes that depend on inputs.
        removed_value: of the same trace; a kernel that is zero wherever its weight is needs no rule of its own.
    """
    found: dict[fx.Node, Kernel] = {}
    for user in trace.calls.values():
        name = base_name(user.operator)
        if name not in WEIGHTED or "transpose" in name:
            continue
        node = user["weight"]
        if node in trace.names or node in activations or removed_value.is_zero(node):
            continue
        inside, leaves, ahead = {node}, dict[fx.Node, str](), [node]
        while ahead:
            for argument in ahead.pop().all_input_nodes:
                if argument.op == "placeholder":
                    leaves[argument] = trace.names.get(argument, "")
                elif argument not in inside:
                    inside.add(argument)
                    ahead.append(argument)
        shape = tuple(node.meta["val"].shape)
        weights = [leaf for leaf in leaves if tuple(leaf.meta["val"].shape) == shape]
        beside = {
            leaf: leaf.meta["val"].shape.index(shape[0])
            for leaf in leaves
            if leaf not in weights and leaf.meta["val"].numel() == shape[0] > 1
        }
        is_known = len(weights) == 1 and len(beside) + 1 == len(leaves) and trace.parameters.issuperset(leaves.values())
        is_own = all(trace.calls[one].where == user.where for one in inside if one in trace.calls)
        is_read_alone = all(reader in inside or reader is user.node for one in inside for reader in one.users)
        if is_known and is_own and is_read_alone and _is_by_rows(trace, weights[0], node, inside, leaves):
            where = trace.first_paths.get(user.where, user.where)
            weight = leaves[weights[0]]
            attribute = f"{where}.{KERNEL}" if where and weight == f"{where}.weight" else ""
            found[node] = Kernel(weights[0], weight, beside, frozenset(inside), attribute)
    return found


@torch.no_grad()
def _is_by_rows(
    trace: Trace, weight: fx.Node, node: fx.Node, inside: Collection[fx.Node], leaves: Collection[fx.Node]
) -> bool:
    """Tell whether rows of zeros are zero and the others finite, by what the calls compute of a weight of one row."""
    forms = {leaf: (leaf.meta["val"].shape, leaf.meta["val"].dtype) for leaf in leaves}
    values: dict[fx.Node, Any] = {leaf: torch.ones(shape, dtype=dtype) for leaf, (shape, dtype) in forms.items()}
    values[weight].zero_()
    values[weight][0] = torch.arange(values[weight][0].numel()).view_as(values[weight][0])
    for one in trace.nodes:
        if one in inside:
            target: Any = one.target
            args, kwargs = fx.map_arg((one.args, one.kwargs), values.__getitem__)
            values[one] = target(*args, **kwargs)
    kernel = values[node]
    return bool(kernel.isfinite().all()) and bool((kernel[1:] == 0).all()) and bool(kernel[0].any())
