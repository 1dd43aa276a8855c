"""Views, selections and splits as slices and views of fixed sizes."""

import operator
from typing import Any

import torch
from torch.fx import Node

from lightning_prune.deploy.rewriting.editing import (
    Editor,
    Rule,
    arguments_of,
    is_float,
    is_static,
    reshaped,
    shape_of,
    sliced,
)

aten = torch.ops.aten
_MOST_ONES = 2**16


def view(editor: Editor, node: Node) -> Node | None:
    """Any reshape as a view of integers, one of them -1 where a size is dynamic."""
    x = node.args[0]
    return reshaped(editor, x, shape_of(node)) if is_float(node) and isinstance(x, Node) else None


def _named_view(editor: Editor, node: Node) -> Node | None:
    already = all(isinstance(size, int) for size in node.args[1])  # type: ignore[union-attr]
    return None if already else view(editor, node)


def select(editor: Editor, node: Node) -> Node | None:
    """``x[:, i]`` as a slice of one, and a view without that dimension."""
    x, dim, index = arguments_of(node).values()
    if not (is_float(node) and is_static(x) and isinstance(index, int)):
        return None
    dim, index = dim % len(shape_of(x)), index % shape_of(x)[dim]
    return _flat(editor, sliced(editor, x, dim, index, index + 1), node)


def part(editor: Editor, node: Node) -> Node | None:
    """One part of an unbind, split or chunk as a slice."""
    source, index = node.args
    if not isinstance(source, Node) or source.target not in _SPLITS or not is_float(node):
        return None
    x, dim = source.args[0], arguments_of(source)["dim"]
    if not is_static(x):  # type: ignore[arg-type]
        return None
    dim %= len(shape_of(x))  # type: ignore[arg-type]
    sizes = [1 if source.target is aten.unbind.int else part.shape[dim] for part in source.meta["val"]]
    start = sum(sizes[:index])  # type: ignore[misc]
    return _flat(editor, sliced(editor, x, dim, start, start + sizes[index]), node)  # type: ignore[arg-type, index]


def strided(editor: Editor, node: Node) -> Node | None:
    """``x[:, start::step]`` as a view with a dimension for the steps, a slice of one, and a view without it."""
    x, dim, start, _, step = arguments_of(node).values()
    if not (is_float(node) and is_static(x, node)) or step == 1 or len(shape_of(x)) > 5:
        return None
    dim, sizes, start = dim % len(shape_of(x)), shape_of(x), start or 0
    if sizes[dim] % step or not 0 <= start < step or shape_of(node)[dim] != sizes[dim] // step:
        return None
    steps = reshaped(editor, x, [*sizes[:dim], sizes[dim] // step, step, *sizes[dim + 1 :]])
    return None if steps is None else _flat(editor, sliced(editor, steps, dim + 1, start, start + 1), node)


def expand(editor: Editor, node: Node) -> Node | None:
    """Nothing where it changes nothing; else a multiplication with ones, which broadcasts and changes no value."""
    x = node.args[0]
    if not isinstance(x, Node) or not is_float(node):
        return None
    given, wanted = shape_of(x), shape_of(node)
    if given == wanted or not is_static(x, node):
        return x if given == wanted else None
    padded = [1] * (len(wanted) - len(given)) + given
    ones = torch.ones([new if new != old else 1 for new, old in zip(wanted, padded, strict=True)])
    return editor.put(aten.mul.Tensor, x, editor.constant(ones)) if ones.numel() <= _MOST_ONES else None


def stack(editor: Editor, node: Node) -> Node | None:
    """A stack as a concatenation of views."""
    tensors, dim = arguments_of(node).values()
    if not is_float(node) or not is_static(node) or len(tensors) < 2:
        return None
    dim %= len(shape_of(node))
    parts = [reshaped(editor, x, [*shape_of(x)[:dim], 1, *shape_of(x)[dim:]]) for x in tensors]
    return editor.put(aten.cat.default, parts, dim)


def roll(editor: Editor, node: Node) -> Node | None:
    """A roll as two slices in the other order."""
    x, shifts, dims = arguments_of(node).values()
    if not is_float(node) or not is_static(x) or not dims or not all(isinstance(shift, int) for shift in shifts):
        return None
    for shift, dim in zip(shifts, dims, strict=True):
        size = shape_of(x)[dim]
        if shift % size:
            parts = [sliced(editor, x, dim, size - shift % size, size), sliced(editor, x, dim, 0, size - shift % size)]
            x = editor.put(aten.cat.default, parts, dim)
    return x


def _flat(editor: Editor, x: Node, like: Node) -> Node | None:
    return reshaped(editor, x, shape_of(like))


_SPLITS = (
    aten.unbind.int,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.split.sizes,
)
SHAPES: dict[Any, Rule] = {
    aten.select.int: select,
    operator.getitem: part,
    aten.slice.Tensor: strided,
    aten.expand.default: expand,
    aten.expand_as.default: expand,
    aten.stack.default: stack,
    aten.roll.default: roll,
    aten.view.default: _named_view,
    aten.reshape.default: _named_view,
    aten.flatten.using_ints: view,
    aten.unflatten.int: view,
    aten.squeeze.dim: view,
    aten.squeeze.dims: view,
    aten.squeeze.default: view,
    aten.unsqueeze.default: view,
}
"""What XNNPACK has no operator for, or only with fixed sizes."""
