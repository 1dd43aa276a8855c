"""Operators that change a tensor in place, as ones that return a new one."""

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from lightning_prune.deploy.rewriting.editing import Editor, calls, is_static

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


def with_own_values(program: ExportedProgram) -> None:
    """Let each ``copy_`` of a buffer, a view of one, or what was copied already, write a tensor of its own.

    A program without effects has the new value of each buffer among its outputs: torch 2.13 stops at two of one name
    ("User output … is not in the correct order"), and ExecuTorch 1.4.1 takes a buffer for one that is written in place,
    and copies the new value of another one where it is a view of that:
    https://github.com/pytorch/executorch/blob/v1.4.1/exir/passes/insert_write_back_for_buffers_pass.py#L78
    The larger of a tensor and itself is such a tensor, exactly and of every dtype: XNNPACK drops a clone, and a
    quantizer would round a sum or a product.
    """
    editor, copied = Editor(program), set[Node]()
    for node in calls(program):
        value = node.args[1] if node.target is torch.ops.aten.copy_.default else None
        if not isinstance(value, Node):
            continue
        source: Any = value
        while isinstance(source, Node) and source.op == "call_function" and _is_view(source):
            source = source.args[0]
        if (isinstance(source, Node) and source.op == "placeholder") or value in copied:
            own = editor.at(node).put(torch.ops.aten.maximum.default, value, value)
            node.args = (node.args[0], own, *node.args[2:])
        copied.add(value)
    program.graph_module.recompile()


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
        if not _is_view(changed):
            return True
        user, changed = changed, changed.args[0]
    return False


def _is_view(node: Node) -> bool:
    """Whether a call may give what its first argument holds, changed or not."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return True  # what is no operator of its own takes a part of several results, and counts as a view of them
    aliases = any(result.alias_info is not None for result in target._schema.returns)
    return aliases or target._opname in _MAYBE_VIEWS
