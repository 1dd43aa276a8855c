"""Masks without infinities."""

from typing import Any

import torch
from torch.fx import Node

from lightning_prune.deploy.rewriting.attention import LOWEST
from lightning_prune.deploy.rewriting.editing import Editor, Rule

aten = torch.ops.aten
_PASSING = (
    *(aten.add.Tensor, aten.masked_fill.Scalar, aten.where.self, aten.view.default, aten.reshape.default),
    *(aten.unsqueeze.default, aten.expand.default, aten.permute.default, aten.transpose.int, aten.slice.Tensor),
    *(aten.clone.default, aten.to.dtype, aten.triu.default, aten.tril.default),
)
_SOFTMAX = (aten.softmax.int, aten._softmax.default)


def finite_fill(editor: Editor, node: Node) -> Node | None:
    """A fill with −∞ that ends in softmax alone as one with the lowest finite number."""
    arguments = tuple(LOWEST if argument == -torch.inf else argument for argument in node.args)
    if arguments == node.args or not _ends_in_softmax(node):
        return None
    return editor.put(node.target, *arguments, **node.kwargs)


def _ends_in_softmax(node: Node) -> bool:
    return bool(node.users) and all(
        user.target in _SOFTMAX or (user.target in _PASSING and _ends_in_softmax(user)) for user in node.users
    )


INFINITIES: dict[Any, Rule] = {
    operator: finite_fill
    for operator in (
        *(aten.masked_fill.Scalar, aten.full.default, aten.full_like.default, aten.where.ScalarOther),
        *(aten.where.ScalarSelf, aten.scalar_tensor.default, aten.new_full.default),
    )
}
"""Fills whose value is written into the file."""
