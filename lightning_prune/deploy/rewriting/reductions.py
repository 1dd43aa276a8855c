"""Means, sums and layer norms as pooling and products with a vector; what XNNPACK has for images alone."""

import math
from typing import Any

import torch
from torch.fx import Node

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
_IMAGE = (2, 3)


def mean(editor: Editor, node: Node) -> Node | None:
    """A mean over some dimensions: the one that XNNPACK has, else a product with a vector of 1/n."""
    arguments = arguments_of(node)
    if arguments["dtype"] is not None:
        return None
    return _reduced(editor, node, arguments, lambda count: 1 / count)


def total(editor: Editor, node: Node) -> Node | None:
    """A sum over some dimensions: a product with a vector of ones."""
    arguments = arguments_of(node)
    return None if arguments["dtype"] is not None else _reduced(editor, node, arguments, lambda count: 1.0)


def pooled(editor: Editor, node: Node) -> Node | None:
    """``x.mean((2, 3))`` of an image as global average pooling and a flat view."""
    x, dims, keepdim, dtype = arguments_of(node).values()
    if not _is_image_mean(x, dims) or keepdim or dtype is not None or not is_float(node):
        return None
    return reshaped(editor, editor.put(aten.adaptive_avg_pool2d.default, x, [1, 1]), shape_of(node))


def layer_norm(editor: Editor, node: Node) -> Node | None:
    """(x − mean) / sqrt(mean((x − mean)²) + eps) · weight + bias, each mean as a product with a vector of 1/n."""
    x, normalized, weight, bias, eps = list(arguments_of(node).values())[:5]
    if not is_float(node) or not all(isinstance(size, int) for size in normalized):
        return None
    count = math.prod(normalized)
    flat = reshaped(editor, x, [*shape_of(x)[: -len(normalized)], count])
    if flat is None:
        return None
    average = editor.constant(torch.full((1, count), 1 / count))
    centred = editor.put(aten.sub.Tensor, flat, editor.put(aten.linear.default, flat, average))
    squares = editor.put(aten.mul.Tensor, centred, centred)
    variance = editor.put(aten.linear.default, squares, average)
    shifted = editor.put(aten.add.Tensor, variance, editor.constant(torch.tensor([eps])))
    result = editor.put(aten.mul.Tensor, centred, editor.put(aten.rsqrt.default, shifted))
    result = reshaped(editor, result, shape_of(node))
    if weight is not None:
        result = editor.put(aten.mul.Tensor, result, weight)
    return result if bias is None else editor.put(aten.add.Tensor, result, bias)


def average_pool(editor: Editor, node: Node) -> Node | None:
    """Average pooling in the words that XNNPACK takes: padding as an operator of its own, one window as a mean."""
    arguments = arguments_of(node)
    x, kernel, stride, padding = (arguments[name] for name in ("self", "kernel_size", "stride", "padding"))
    counted = arguments["count_include_pad"]
    if not is_float(node) or arguments["divisor_override"] is not None or len(shape_of(x)) != 4:
        return None
    high, wide = _pair(padding)
    covers = all(isinstance(n, int) and k >= n for k, n in zip(_pair(kernel), shape_of(x)[2:], strict=True))
    if covers and shape_of(node)[2:] == [1, 1] and not (high or wide):
        return editor.put(aten.mean.dim, x, list(_IMAGE), True)
    spaces = zip(shape_of(x)[2:], (high, wide), _pair(kernel), _pair(stride or kernel), strict=True)
    whole = [(n + 2 * pad - size) // step + 1 if isinstance(n, int) else None for n, pad, size, step in spaces]
    if (arguments["ceil_mode"] and shape_of(node)[2:] != whole) or (not counted and (high or wide)):
        return None
    if high or wide:
        x = editor.put(aten.constant_pad_nd.default, x, [wide, wide, high, high], 0.0)
    return editor.put(aten.avg_pool2d.default, x, kernel, stride or kernel, [0, 0], False, False)


def with_stride(editor: Editor, node: Node) -> Node | None:
    """Pooling without a stride with that of its window, which ExecuTorch 1.4.1 looks for in every call.

    https://github.com/pytorch/executorch/issues/21488; Core ML's converter does the same for sequences.
    """
    arguments = arguments_of(node)
    return (
        None
        if arguments["stride"]
        else editor.put(node.target, *(arguments | {"stride": arguments["kernel_size"]}).values())
    )


def pool_of_depth(editor: Editor, node: Node) -> Node | None:
    """Average pooling along depth alone, as local response norms have it, as that of an image of one row a depth.

    ExecuTorch 1.4.1 has no kernel for ``avg_pool3d``, and no delegate takes it.
    """
    arguments = arguments_of(node)
    x, ends = arguments["self"], [arguments["ceil_mode"], arguments["count_include_pad"], arguments["divisor_override"]]
    windows = [(list(arguments[name]) * 3)[:3] for name in ("kernel_size", "stride", "padding") if arguments[name]]
    kernel, stride, padding = windows if len(windows) == 3 else (windows[0], windows[0], windows[1])
    if kernel[1:] != [1, 1] or stride[1:] != [1, 1] or padding[1:] != [0, 0]:
        return None
    (*sizes, high, wide), depth_first = shape_of(x), [[each[0], each[1]] for each in (kernel, stride, padding)]
    flat = reshaped(editor, x, [*sizes, high * wide])
    return flat and reshaped(editor, editor.put(aten.avg_pool2d.default, flat, *depth_first, *ends), shape_of(node))


def prelu(editor: Editor, node: Node) -> Node | None:
    """relu(x) − weight · relu(−x): XNNPACK has a PReLU for images, and fails on one of tokens (ExecuTorch 1.4.1)."""
    x, weight = arguments_of(node).values()
    if not is_float(node) or len(shape_of(x)) == 4:
        return None
    spread = reshaped(editor, weight, [-1, *[1] * (len(shape_of(x)) - 2)]) if len(shape_of(x)) > 2 else weight
    negative = editor.put(aten.relu.default, editor.put(aten.neg.default, x))
    return editor.put(aten.sub.Tensor, editor.put(aten.relu.default, x), editor.put(aten.mul.Tensor, spread, negative))


def adaptive_pool(editor: Editor, node: Node) -> Node | None:
    """Adaptive average pooling of a sequence: a product with a matrix of the shares of each window."""
    x, (count,) = node.args  # type: ignore[misc]
    length = shape_of(x)[-1]  # type: ignore[arg-type]
    if not is_float(node) or not isinstance(length, int) or not isinstance(count, int):
        return None
    shares = torch.zeros(count, length)
    for index in range(count):
        first, end = index * length // count, -(-(index + 1) * length // count)
        shares[index, first:end] = 1 / (end - first)
    return editor.put(aten.linear.default, x, editor.constant(shares))


def _pair(size: int | list[int]) -> list[int]:
    return [size, size] if isinstance(size, int) else (size * 2)[:2]


def _is_image_mean(x: Node, dims: list[int] | None) -> bool:
    return len(shape_of(x)) == 4 and dims is not None and sorted(d % 4 for d in dims) == list(_IMAGE)


def _reduced(editor: Editor, node: Node, arguments: dict[str, Any], weigh: Any) -> Node | None:  # noqa: ANN401
    x, dims = next(iter(arguments.values())), arguments["dim"]
    if not is_float(node) or not is_float(x) or not dims:
        return None
    sizes = shape_of(x)
    gone = sorted(dim % len(sizes) for dim in dims)
    count = math.prod(sizes[dim] for dim in gone)
    if not isinstance(count, int) or not count or (_is_image_mean(x, gone) and weigh(2) != 1):
        return None
    kept = [dim for dim in range(len(sizes)) if dim not in gone]
    flat = reshaped(editor, permuted(editor, x, [*kept, *gone]), [*(sizes[dim] for dim in kept), count])
    if flat is None:
        return None
    vector = editor.constant(torch.full((1, count), weigh(count)))
    return reshaped(editor, editor.put(aten.linear.default, flat, vector), shape_of(node))


SEQUENCES: dict[Any, Rule] = {aten.adaptive_avg_pool1d.default: adaptive_pool}
"""Pooling of sequences, which delegates have for images alone."""
REDUCTIONS: dict[Any, Rule] = {
    aten.avg_pool2d.default: average_pool,
    aten.mean.dim: mean,
    aten.sum.dim_IntList: total,
    aten.layer_norm.default: layer_norm,
    aten.prelu.default: prelu,
}
"""What XNNPACK reduces over an image alone."""
POOLING: dict[Any, Rule] = {
    aten.mean.dim: pooled,
    aten.avg_pool3d.default: pool_of_depth,
    **dict.fromkeys((aten.max_pool1d.default, aten.max_pool2d.default, aten.avg_pool1d.default), with_stride),
}
"""Pooling in the words that every backend has and quantizers know."""
