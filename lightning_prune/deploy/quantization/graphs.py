"""Traced graphs around their quantization: in float with batch norms fused, and as programs again."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.export import Dim
from torch.fx import GraphModule, Node

from lightning_prune.deploy.executorch.quiet import quiet_import, quiet_lowering
from lightning_prune.deploy.quantization.annotation import give_each_its_own_weight, quantizer
from lightning_prune.deploy.quantization.layers import Layer
from lightning_prune.deploy.quantization.stems import halve_images
from lightning_prune.errors import ExportError

_ATEN = torch.ops.aten
_OF_NUMBERS = {_ATEN.add.Tensor: _ATEN.add.Scalar, _ATEN.mul.Tensor: _ATEN.mul.Scalar}
"""Operators on two tensors -> the same on a tensor and a number."""


def fused(program: torch.export.ExportedProgram) -> GraphModule:
    """Return the graph of a program in float with its batch norms folded into the layers before them."""
    return prepared(program, frozenset(), is_dynamic=False)[0]


def prepared(
    program: torch.export.ExportedProgram, nodes: frozenset[str], is_dynamic: bool
) -> tuple[GraphModule, frozenset[str]]:
    """Return the graph of a program with torchao's observers, and the nodes that XNNPACK's quantizer takes.

    Args:
        program: left as it is.
        nodes: names of those that may become integers.
        is_dynamic: whether activations are measured at run time, rather than by the observers.

    Raises:
        ExportError: torchao fails.
    """
    with quiet_import():
        from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

    taken: set[str] = set()
    try:
        with quiet_lowering():
            graph = program.module(check_guards=False)
            give_each_its_own_weight(graph)
            for node in graph.graph.nodes:
                # XNNPACK's quantizer (ExecuTorch 1.4) makes floats of numbers in sums and products, of indices too
                is_number = node.target in _OF_NUMBERS and not isinstance(node.args[1], Node)
                if is_number and not node.meta["val"].is_floating_point():
                    node.target = _OF_NUMBERS[node.target]
            if not is_dynamic:
                halve_images(graph, nodes)
            return prepare_pt2e(graph, quantizer(nodes, is_dynamic, taken)), frozenset(taken)
    except Exception as error:
        raise ExportError(f"the program cannot be prepared for quantization: {error}") from error


def converted(graph: GraphModule) -> GraphModule:
    """Return an observed graph with integers in the place of the observers.

    Raises:
        ExportError: torchao fails.
    """
    with quiet_import():
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e
    try:
        with quiet_lowering():
            return convert_pt2e(graph)
    except Exception as error:
        raise ExportError(f"the program cannot be quantized: {error}") from error


def holders(graph: GraphModule, layer: Layer) -> tuple[str, ...]:
    """Return the nodes of a quantized graph that hold the output of a layer, after it was rounded where it is."""
    nodes: dict[str, Node] = {n.name: n for n in graph.graph.nodes}
    stored = [n for n in nodes[layer.output].users if _is(n, "quantize_per_tensor")]
    return tuple(n.name for q in stored for n in q.users if _is(n, "dequantize")) or (layer.output,)


def _is(node: Node, operator: str) -> bool:
    return node.op == "call_function" and getattr(node.target, "__name__", "").startswith(operator)


def retraced(
    graph: GraphModule, program: torch.export.ExportedProgram, inputs: Sequence[Tensor]
) -> torch.export.ExportedProgram:
    """Trace a quantized graph with the dynamic shapes of the program that it came from.

    Raises:
        ExportError: torch.export fails.
    """
    try:
        with quiet_lowering():
            return torch.export.export(graph, tuple(inputs), dynamic_shapes=dynamic_shapes(program))
    except Exception as error:
        raise ExportError(f"the quantized program cannot be traced again: {error}") from error


def dynamic_shapes(program: torch.export.ExportedProgram) -> tuple[dict[int, object], ...] | None:
    """Return the dynamic dimensions of a program's inputs as torch.export takes them; None where there are none."""
    dims: dict[str, object] = {}

    def dim(size: torch.SymInt) -> object:
        expression = size.node.expr
        if not expression.is_symbol:
            return Dim.AUTO
        allowed = program.range_constraints[expression]
        lower, upper = (int(x) if x.is_Integer else None for x in (allowed.lower, allowed.upper))
        return dims.setdefault(str(expression), Dim(str(expression), min=lower, max=upper))

    names = program.graph_signature.user_inputs
    values = {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "placeholder" and n.name in names}
    shapes = tuple(
        {axis: dim(size) for axis, size in enumerate(values[str(name)].shape) if isinstance(size, torch.SymInt)}
        for name in names
    )
    return shapes if any(shapes) else None
