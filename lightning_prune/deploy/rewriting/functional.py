"""Operators that change a tensor in place, as ones that return a new one."""

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from lightning_prune.deploy.rewriting.editing import calls, is_static

_MAYBE_VIEWS = ("reshape", "contiguous", "flatten", "unflatten", "to", "dropout", "feature_dropout", "expand_as")


def functional(program: ExportedProgram) -> ExportedProgram:
    """Return a program without operators that change a tensor in place, so that views may be replaced by copies.

    What changes a tensor that nothing else looks at, such as ``relu_`` after a convolution, is replaced on the spot;
    anything else is left to torch, which traces the program again.
    """
    overloads = [node for node in calls(program) if isinstance(node.target, torch._ops.OpOverload)]
    changing = [node for node in overloads if node.target._schema.is_mutable]  # type: ignore[union-attr]
    if any(_without_effect(node) is None for node in changing):
        return program.run_decompositions({})
    for node in changing:
        node.target = _without_effect(node)  # type: ignore[assignment]
    return program


def any_strides(program: ExportedProgram) -> None:
    """Let every view be a reshape, which takes its input in any memory layout."""
    for node in calls(program):
        if node.target is torch.ops.aten.view.default and is_static(node):
            node.target = torch.ops.aten.reshape.default


def _without_effect(node: Node) -> Any:  # noqa: ANN401
    """Return the operator that does the same to a copy, if nothing could tell the difference."""
    packet, overload = str(node.target.overloadpacket).rpartition(".")[2], node.target._overloadname  # type: ignore[union-attr]
    functional = getattr(torch.ops.aten, packet.removesuffix("_"), None)
    if not packet.endswith("_") or functional is None or overload not in functional.overloads() or not _is_alone(node):
        return None
    return getattr(functional, overload)


def _is_alone(node: Node) -> bool:
    """Whether the changed tensor, and all that it is a view of, has no other user."""
    changed = node.args[0]
    user = node
    while isinstance(changed, Node) and changed.op == "call_function" and set(changed.users) == {user}:
        target = changed.target
        # what is no operator of its own takes a part of several results, and counts as a view of them
        returned = target._schema.returns if isinstance(target, torch._ops.OpOverload) else None
        is_new = returned is not None and all(result.alias_info is None for result in returned)
        if is_new and target._opname not in _MAYBE_VIEWS:  # type: ignore[union-attr]
            return True
        user, changed = changed, changed.args[0]
    return False
