"""Fills by a mask, without infinities where they end in a softmax."""

from typing import Any

import torch
from torch.fx import Node

from lightning_prune.deploy.rewriting.attention import LOWEST
from lightning_prune.deploy.rewriting.constants import constant_value
from lightning_prune.deploy.rewriting.editing import Editor, Rule, arguments_of, is_float

aten = torch.ops.aten
_PASSING = (
    *(aten.add.Tensor, aten.masked_fill.Scalar, aten.where.self, aten.view.default, aten.reshape.default),
    *(aten.unsqueeze.default, aten.expand.default, aten.permute.default, aten.transpose.int, aten.slice.Tensor),
    *(aten.clone.default, aten.to.dtype, aten.triu.default, aten.tril.default),
)
_SOFTMAX = (aten.softmax.int, aten._softmax.default)
_ATTENTION = aten.scaled_dot_product_attention.default


def finite_fill(editor: Editor, node: Node) -> Node | None:
    """A fill with −∞ that ends in softmax alone as one with the lowest finite number."""
    arguments = tuple(LOWEST if argument == -torch.inf else argument for argument in node.args)
    if arguments == node.args or not _ends_in_softmax(node):
        return None
    return editor.put(node.target, *arguments, **node.kwargs)


def filled(editor: Editor, node: Node) -> Node | None:
    """A fill by a mask that is known: x · kept + fill, which is x where the mask is False, as long as x is finite."""
    x, mask, value = arguments_of(node).values()
    known = constant_value(editor.program, mask) if isinstance(mask, Node) else None
    if known is None or not (is_float(node) and isinstance(x, Node) and is_float(x)):
        return None
    if value == -torch.inf and _ends_in_softmax(node) and not known.all(-1).any():
        value = LOWEST
    kept = editor.put(aten.mul.Tensor, x, editor.constant((~known).float()))
    return editor.put(aten.add.Tensor, kept, editor.constant(torch.where(known, value, 0.0)))


def _ends_in_softmax(node: Node) -> bool:
    return bool(node.users) and all(
        user.target in _SOFTMAX
        or (user.target in _PASSING and _ends_in_softmax(user))
        or (user.target is _ATTENTION and arguments_of(user)["attn_mask"] is node)
        for user in node.users
    )


INFINITIES: dict[Any, Rule] = {
    operator: finite_fill
    for operator in (
        *(aten.masked_fill.Scalar, aten.full.default, aten.full_like.default, aten.where.ScalarOther),
        *(aten.where.ScalarSelf, aten.scalar_tensor.default, aten.new_full.default),
    )
}
"""Fills whose value is written into the file."""
FILLS: dict[Any, Rule] = {aten.masked_fill.Scalar: filled}
"""What XNNPACK has no choice between two values for."""
