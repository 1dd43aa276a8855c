"""Where integers begin and end in a graph: ExecuTorch's quantizer for XNNPACK, and what it leaves out."""

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from lightning_prune.deploy.quantization.layers import PLAIN, WEIGHTED, is_relu

if TYPE_CHECKING:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer_utils import QuantizationConfig


def quantizer(nodes: frozenset[str], is_dynamic: bool, taken: set[str]) -> "XNNPACKQuantizer":
    """Return a quantizer with one scale per output channel that takes the given nodes alone.

    Args:
        nodes: names of those that may become integers.
        is_dynamic: whether activations are measured at run time.
        taken: here the names of those that will become integers are put.

    The patterns for quantization-aware training are left out: they look for batch norms, which are folded by now, and
    trace 24 small graphs to find none.
    """
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack

    class Quantizer(xnnpack.XNNPACKQuantizer):
        SUPPORTED_PATTERNS: ClassVar = [p for p in xnnpack.XNNPACKQuantizer.SUPPORTED_PATTERNS if not p.is_qat]

        def annotate(self, model: GraphModule) -> GraphModule:
            if not nodes:
                return model
            if is_dynamic:
                annotate_convolutions_before_relu(model, nodes, config)
            annotated = super().annotate(model)
            taken.update(node.name for node in model.graph.nodes if node.name in nodes and _is_annotated(node))
            return annotated

    def takes(node: Node) -> bool:
        return node.target not in WEIGHTED | PLAIN or node.name in nodes

    config = xnnpack.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=is_dynamic)
    return Quantizer().set_global(config).set_filter_function(takes)


def annotate_convolutions_before_relu(graph: GraphModule, nodes: frozenset[str], config: "QuantizationConfig") -> None:
    """Mark 2D convolutions whose only user is a ReLU, which the quantizer leaves out where activations are dynamic.

    Depthwise ones stay out: XNNPACK has no such kernel.
    """
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation

    for node in graph.graph.nodes:
        if node.target is not torch.ops.aten.conv2d.default or node.name not in nodes:
            continue
        source, weight = node.args[:2]
        users = list(node.users)
        if len(users) == 1 and is_relu(users[0]) and weight.meta["val"].shape[1] > 1:
            specs: dict[Any, Any] = {source: config.input_activation, weight: config.weight}
            for annotated, map_ in ((node, specs), (weight, {})):
                annotated.meta["quantization_annotation"] = QuantizationAnnotation(map_, _annotated=True)


def _is_annotated(node: Node) -> bool:
    annotation = node.meta.get("quantization_annotation")
    return annotation is not None and any(spec is not None for spec in annotation.input_qspec_map.values())


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
