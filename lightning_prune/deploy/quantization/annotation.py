"""Where integers begin and end in a graph: what XNNPACK's quantizer is asked for, and what it leaves out."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from lightning_prune.deploy.executorch.torchao import is_marked, mark, xnnpack_quantizer
from lightning_prune.deploy.quantization.layers import PLAIN, WEIGHTED, is_relu


def quantizer(nodes: frozenset[str], is_dynamic: bool, taken: set[str]) -> Any:  # noqa: ANN401
    """Return a quantizer with one scale per output channel that takes the given nodes alone.

    Args:
        nodes: names of those that may become integers.
        is_dynamic: whether activations are measured at run time.
        taken: here the names of those that will become integers are put.
    """

    def takes(node: Node) -> bool:
        return node.target not in WEIGHTED | PLAIN or node.name in nodes

    def around(graph: GraphModule, config: Any, annotate: Callable[[GraphModule], object]) -> None:  # noqa: ANN401
        if not nodes:
            return
        for node in graph.graph.nodes:
            if node.target is torch.ops.aten.cat.default and node.name not in nodes:
                # ExecuTorch 1.4.1 does not ask ``takes`` of concatenations, but leaves marked ones alone
                mark(node, {})
        if is_dynamic:
            annotate_convolutions_before_relu(graph, nodes, config)
        annotate(graph)
        taken.update(node.name for node in graph.graph.nodes if node.name in nodes and is_marked(node))

    return xnnpack_quantizer(is_dynamic, takes, around)


def annotate_convolutions_before_relu(graph: GraphModule, nodes: frozenset[str], config: Any) -> None:  # noqa: ANN401
    """Mark 2D convolutions whose only user is a ReLU, which the quantizer leaves out where activations are dynamic.

    Depthwise ones stay out: XNNPACK has no such kernel.
    """
    for node in graph.graph.nodes:
        if node.target is not torch.ops.aten.conv2d.default or node.name not in nodes:
            continue
        source, weight = node.args[:2]
        users = list(node.users)
        if len(users) == 1 and is_relu(users[0]) and weight.meta["val"].shape[1] > 1:
            mark(node, {source: config.input_activation, weight: config.weight})
            mark(weight, {})


def give_each_its_own_weight(graph: GraphModule) -> None:
    """Give every layer that shares its weight or bias with another one a copy.

    The quantizer would take the first of them alone, and torchao would fold the batch norms of both into one weight.

    Changes: the graph.
    """
    layers = [node for node in graph.graph.nodes if node.target in WEIGHTED]
    seen: set[object] = set()
    for layer in layers:
        for node in [n for n in layer.args[1:3] if isinstance(n, Node) and n.op == "get_attr"]:
            if node.target not in seen:
                seen.add(node.target)
                continue
            name = f"{layer.name}_{str(node.target).replace('.', '_')}"
            value = attribute(graph, str(node.target)).detach().clone()
            graph.register_parameter(name, nn.Parameter(value, requires_grad=False))
            with graph.graph.inserting_before(layer):
                own = graph.graph.get_attr(name)
            own.meta = dict(node.meta)
            layer.replace_input_with(node, own)
    graph.recompile()


def attribute(graph: GraphModule, target: str) -> Tensor:
    """Return what a ``get_attr`` node names."""
    path, _, name = target.rpartition(".")
    return getattr(graph.get_submodule(path), name)
