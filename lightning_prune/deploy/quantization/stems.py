"""A network's first convolution, brought into the form that integer kernels are quick at."""

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from lightning_prune.deploy.quantization.annotation import attribute

FEW = 4
"""Input channels up to which a convolution is rewritten: XNNPACK's integer kernels work on 8 at a time."""
LARGE = 5
"""Kernel size from which it pays."""


def halve_images(graph: GraphModule, nodes: frozenset[str]) -> int:
    """Let convolutions of large kernels, stride 2 and few input channels see four pixels as four channels.

    conv(x, w, stride 2) = conv(unshuffle(x), unshuffle(w)), where unshuffle makes (4C, H / 2, W / 2) of (C, H, W): the
    first convolution of a ResNet, 7x7 on 3 channels, becomes 4x4 on 12. In 8 bits on x86-64 it takes two thirds of the
    time; in float it is not quicker.

    Args:
        graph: traced.
        nodes: names of those that may be rewritten; they keep their names.

    Returns:
        how many were.

    Changes: the graph.
    """
    fitting = [node for node in graph.graph.nodes if node.name in nodes and _is_fitting(graph, node)]
    for node in fitting:
        source, weight, bias, _, padding, _, _ = _arguments(node)
        made, borders = halved(attribute(graph, weight.target).detach(), list(padding), source.meta["val"].shape[2:])
        name = f"{node.name}_halved"
        graph.register_parameter(name, nn.Parameter(made, requires_grad=False))
        with graph.graph.inserting_before(node):
            own = graph.graph.get_attr(name)
            quarters = graph.graph.call_function(torch.ops.aten.pixel_unshuffle.default, (source, 2))
            framed = graph.graph.call_function(torch.ops.aten.pad.default, (quarters, borders))
        own.meta = {**weight.meta, "val": made}
        for new in (quarters, framed):
            value = new.target(new.args[0].meta["val"], *new.args[1:])  # pyright: ignore
            new.meta = {"nn_module_stack": node.meta.get("nn_module_stack", {}), "val": value}
        node.args = (framed, own, bias)
    graph.recompile()
    return len(fitting)


def _is_fitting(graph: GraphModule, node: Node) -> bool:
    if node.target is not torch.ops.aten.conv2d.default:
        return False
    source, weight, _, stride, _, dilation, groups = _arguments(node)
    if not isinstance(weight, Node) or weight.op != "get_attr" or "val" not in source.meta:
        return False
    size, shape = source.meta["val"].shape[2:], attribute(graph, str(weight.target)).shape
    is_static = all(isinstance(length, int) and length % 2 == 0 for length in size)
    is_strided = list(stride) == [2, 2] and set(dilation) == {1} and groups == 1
    return is_static and is_strided and shape[1] <= FEW and min(shape[2:]) >= LARGE


def _arguments(node: Node) -> tuple:
    defaults = (None, None, None, [1, 1], [0, 0], [1, 1], 1)
    return (*node.args, *defaults[len(node.args) :])


def halved(weight: Tensor, padding: list[int], size: torch.Size) -> tuple[Tensor, list[int]]:
    """Return the weight for the unshuffled image, and how many of its pixels to add left, right, above and below.

    Args:
        weight: shape (out, C, height, width).
        padding: of the convolution, vertical and horizontal.
        size: of its image, even.

    Returns:
        shape (out, 4C, ⌈…⌉, ⌈…⌉), and zeros to add: [left, right, top, bottom].
    """
    kernel_frame: list[int] = []
    image_frame: list[int] = []
    for length, pad, pixels in zip(weight.shape[:1:-1], padding[::-1], tuple(size)[::-1], strict=True):
        before = (pad + 1) // 2
        lead = 2 * before - pad
        taps = (length + lead + 1) // 2
        outputs = (pixels + 2 * pad - length) // 2 + 1
        kernel_frame += [lead, 2 * taps - length - lead]
        image_frame += [before, outputs - 1 + taps - before - pixels // 2]
    return F.pixel_unshuffle(F.pad(weight, kernel_frame), 2), image_frame
