"""Operators that move integers about: what goes in and what comes out must have one scale."""

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from lightning_prune.deploy.rewriting.editing import Editor, arguments_of, calls

aten = torch.ops.aten
_PADS = (aten.pad.default, aten.constant_pad_nd.default)
_MOVES = (
    *(aten.slice.Tensor, aten.reshape.default, aten.view.default, aten.permute.default, aten.transpose.int),
    *(aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default, aten.flatten.using_ints),
    *_PADS,
)


def with_one_scale(program: ExportedProgram) -> int:
    """Let an operator that moves integers give integers of the same scale; nothing where nothing is quantized.

    ExecuTorch 1.4.1 lets the scale of a view pass through, but not that of ``slice.Tensor``, nor of what becomes a
    slice. The part of a convolution's output that goes into a product gets the product's scale, and beside such a part
    another one that goes on in float is taken for integers too: XNNPACK then refuses the file when it is loaded
    ("Failed to create static slice node"), and so it does where the input of a padding alone is of integers ("Failed
    to create StaticConstantPad node"). It could go when the list has them:
    https://github.com/pytorch/executorch/blob/v1.4.1/backends/xnnpack/quantizer/xnnpack_quantizer_utils.py#L1087
    """
    editor, changed = Editor(program), 0
    for node in calls(program):
        source = node.args[0] if node.args else None
        if node.target not in _MOVES or not isinstance(source, Node) or not _is(source, "dequantize_per_tensor"):
            continue
        if arguments_of(node).get("value"):
            continue  # padding: zero is an integer of every scale, and no other number is
        users = list(node.users)
        is_rounded = len(users) == 1 and _is(users[0], "quantize_per_tensor")
        is_taken = len(source.users) == 1 and node.target not in _PADS
        if users[0].args[1:3] == source.args[1:3] if is_rounded else is_taken:
            continue
        at = editor.at(node.next)
        whole = at.put(torch.ops.quantized_decomposed.quantize_per_tensor.default, node, *source.args[1:])
        again = at.put(source.target, whole, *source.args[1:])
        node.replace_all_uses_with(again, delete_user_cb=lambda user, whole=whole: user is not whole)
        changed += 1
    if changed:
        editor.finish()
    return changed


def _is(node: Node, name: str) -> bool:
    target: Any = node.target
    return node.op == "call_function" and getattr(target, "_opname", "") == name
