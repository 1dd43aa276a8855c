"""Attention and batched products written out."""

import math
from functools import partial
from typing import Any

import torch
from torch.fx import Node

from lightning_prune.deploy.rewriting.constants import constant_value
from lightning_prune.deploy.rewriting.editing import (
    Editor,
    Rule,
    arguments_of,
    is_float,
    permuted,
    reshaped,
    shape_of,
)

aten = torch.ops.aten
LOWEST = torch.finfo(torch.float32).min
"""Stands for −∞ in a mask: a softmax gives exactly 0 for either, as long as one entry of the row is left."""


def attention(editor: Editor, node: Node, *, any_mask: bool = False) -> Node | None:
    """softmax(query·scale @ keyᵀ + mask) @ value, heads merged into the batch.

    A mask whose values come with the call is left alone where it may be −∞ throughout a row, unless any is asked for.
    Queries that share a head of keys become rows of one product: ExecuTorch 1.4.1 writes attention out with a copy of
    keys and values for each, the whole cache at every token.
    """
    arguments = arguments_of(node)
    query, key, value, mask = (arguments[name] for name in ("query", "key", "value", "attn_mask"))
    (*heads, length, width), (*kept, source, _) = shape_of(query), shape_of(key)
    if not all(is_float(x) for x in (query, key, value)) or arguments["dropout_p"] or heads[:-1] != kept[:-1]:
        return None
    if shape_of(value)[:-2] != kept or not kept:
        return None
    added, kept_places = _mask(editor, mask, arguments["is_causal"], length, source), None
    if added is _UNKNOWN and (any_mask or heads != kept) and mask is not None:
        added, kept_places = _mask_of_the_call(editor, mask)
    if added is _UNKNOWN or (heads != kept and not arguments["enable_gqa"]):
        return None
    merged = [_merged(editor, x, kept) for x in (query, key, value)]
    if any(x is None for x in merged):
        return None
    scale = arguments["scale"] if arguments["scale"] is not None else 1 / math.sqrt(width)
    scaled = editor.put(aten.mul.Tensor, merged[0], editor.constant(torch.tensor([scale])))
    scores = editor.put(aten.bmm.default, scaled, permuted(editor, merged[1], (0, 2, 1)))  # type: ignore[arg-type]
    if added is None:
        weights = editor.put(aten.softmax.int, scores, -1)
    else:
        unmerged = reshaped(editor, scores, [*heads, length, source])
        if unmerged is None:
            return None
        weights = editor.put(aten.softmax.int, editor.put(aten.add.Tensor, unmerged, added), -1)
        if kept_places is not None:
            weights = editor.put(aten.mul.Tensor, weights, kept_places)
        weights = reshaped(editor, weights, shape_of(scores))
    return None if weights is None else _product(editor, weights, merged[2], shape_of(node))  # type: ignore[arg-type]


def laid_out(editor: Editor, node: Node) -> Node:
    """Attention as it is, whose result lies in memory as its shape says.

    The CPU's attention gives heads and places in another order in memory, and what is traced then takes views of it
    that no other attention allows. Core ML keeps attention whole, and traces its result as contiguous ("Cannot view a
    tensor", ExecuTorch 1.4.1).
    """
    whole = editor.put(node.target, *node.args, **node.kwargs)
    return editor.put(aten.clone.default, whole, memory_format=torch.contiguous_format)


def matmul(editor: Editor, node: Node) -> Node | None:
    """A product of two stacks of matrices of the same batch dimensions as one of three dimensions."""
    left, right = node.args
    if not (is_float(node) and isinstance(left, Node) and isinstance(right, Node)):
        return None
    batch = shape_of(left)[:-2]
    if not batch or batch != shape_of(right)[:-2]:
        return None
    if len(batch) == 1:
        return editor.put(aten.bmm.default, left, right)
    merged = [_merged(editor, x, batch) for x in (left, right)]
    return None if None in merged else _product(editor, merged[0], merged[1], shape_of(node))  # type: ignore[arg-type]


def softmax(editor: Editor, node: Node) -> Node | None:
    """A softmax over the last dimension of a stack of matrices, between two permutations where it is over another.

    XNNPACK keeps images channels-last behind a convolution, and takes the last dimension in memory for the one that
    was meant (ExecuTorch 1.4.1). A view has the dimensions in order.
    """
    x, dim, dtype = arguments_of(node).values()
    if not is_float(node) or not is_float(x) or (last := len(shape_of(node)) - 1) < 1:
        return None
    order = list(range(last + 1))
    order[dim % (last + 1)], order[last] = last, dim % (last + 1)
    x = permuted(editor, x, order)
    stacked = _merged(editor, x, shape_of(x)[:-2]) if last == 3 else x
    if stacked is None or (stacked is x and dim % (last + 1) == last):
        return None
    weights = reshaped(editor, editor.put(aten.softmax.int, stacked, -1, dtype), shape_of(x))
    return None if weights is None else permuted(editor, weights, order)


_UNKNOWN = object()
_CHOICES = (aten.where.self, aten.where.Scalar, aten.where.ScalarSelf, aten.where.ScalarOther)
"""Operators whose second and third argument are what they give."""
_PARTS = (aten.index.Tensor, aten.slice.Tensor, aten.unsqueeze.default, aten.expand.default, aten.alias.default)
"""Operators that give entries of their first argument."""


def _mask(editor: Editor, mask: Node | None, is_causal: bool, length: Any, source: Any) -> Any:  # noqa: ANN401
    """Return the node of what is added to the scores, None for nothing, _UNKNOWN where its values are not known."""
    if mask is None and not is_causal:
        return None
    if is_causal and not (isinstance(length, int) and isinstance(source, int)):
        return _UNKNOWN
    causal = torch.ones(length, source, dtype=torch.bool).tril() if is_causal else None
    if mask is not None and _is_finite(editor, mask):
        return mask
    whole, index = mask, None
    if mask is not None and mask.target is aten.index.Tensor:
        whole, index = mask.args  # rows of a mask, as in causal[position]
        if len(index) == len(shape_of(whole)):  # type: ignore[arg-type]
            return _UNKNOWN
    known = causal if mask is None else constant_value(editor.program, whole)  # type: ignore[arg-type]
    if known is None:
        return _UNKNOWN
    added = torch.where(known, 0.0, LOWEST) if known.dtype is torch.bool else known.float().clamp(min=LOWEST)
    # the softmax of a row in which nothing is left has no meaning that finite numbers could keep
    if not (added > LOWEST).any(-1).all():
        return _UNKNOWN
    stored = editor.constant(added)
    return stored if index is None else editor.put(aten.index.Tensor, stored, index)


def _is_finite(editor: Editor, mask: Any) -> bool:  # noqa: ANN401
    """Whether what is added to the scores is finite for certain: no row of it can be empty then."""
    if not isinstance(mask, Node):
        return isinstance(mask, int | float) and math.isfinite(mask)
    if (known := constant_value(editor.program, mask)) is not None:
        return known.is_floating_point() and bool(known.isfinite().all())
    if mask.target in _CHOICES:
        return is_float(mask) and all(_is_finite(editor, each) for each in mask.args[1:3])
    return mask.target in _PARTS and _is_finite(editor, mask.args[0])


def _mask_of_the_call(editor: Editor, mask: Node) -> tuple[Node, Node]:
    """Return what is added to the scores, and 1 at the places that are kept: torch's weights of an empty row are 0."""
    if is_float(mask):
        added = editor.put(aten.clamp.default, mask, LOWEST)
        return added, editor.put(aten.to.dtype, editor.put(aten.gt.Scalar, added, LOWEST), torch.float32)
    nothing, lowest = (editor.constant(torch.tensor([value])) for value in (0.0, LOWEST))
    added = editor.put(aten.where.self, mask, nothing, lowest)
    return added, editor.put(aten.to.dtype, mask, torch.float32)


def _merged(editor: Editor, x: Node, batch: list[Any]) -> Node | None:
    *_, last = shape_of(x)
    flat = math.prod(batch) if batch else 1
    rows = math.prod(shape_of(x)[:-1])
    if not isinstance(flat, int):
        return reshaped(editor, x, [flat, shape_of(x)[-2], last]) if shape_of(x)[:-2] == batch else None
    return reshaped(editor, x, [flat, rows // flat, last])


def _product(editor: Editor, left: Node, right: Node, shape: list[Any]) -> Node | None:
    return reshaped(editor, editor.put(aten.bmm.default, left, right), shape)


ATTENTION: dict[Any, Rule] = {aten.scaled_dot_product_attention.default: attention}
"""Attention, which ExecuTorch would write out with infinities."""
WITH_ANY_MASK: dict[Any, Rule] = {aten.scaled_dot_product_attention.default: partial(attention, any_mask=True)}
"""The same, also with a mask that is an input or computed from one."""
WHOLE: dict[Any, Rule] = {aten.scaled_dot_product_attention.default: laid_out}
"""Attention, where the backend has it."""
PRODUCTS: dict[Any, Rule] = {aten.matmul.default: matmul, aten.softmax.int: softmax}
"""Products and softmax as XNNPACK has them."""
