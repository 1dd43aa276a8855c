"""The layers of a traced graph by name, and which of them a pattern means."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from lightning_prune.deploy.program.feeds import Feeding
from lightning_prune.deploy.quantization.base import UnmatchedError

WEIGHTED = frozenset(
    {
        torch.ops.aten.linear.default,
        torch.ops.aten.convolution.default,
        torch.ops.aten.conv1d.default,
        torch.ops.aten.conv1d.padding,
        torch.ops.aten.conv2d.default,
        torch.ops.aten.conv2d.padding,
        torch.ops.aten.conv3d.default,
        torch.ops.aten.conv3d.padding,
        torch.ops.aten.conv_transpose1d.default,
        torch.ops.aten.conv_transpose2d.input,
        torch.ops.aten.conv_transpose3d.input,
    }
)
"""Operators with a weight."""
PLAIN = frozenset(
    {
        torch.ops.aten.add.Tensor,
        torch.ops.aten.mul.Tensor,
        torch.ops.aten.cat.default,
        torch.ops.aten.adaptive_avg_pool2d.default,
    }
)
"""Operators without one that are computed on integers."""


@dataclass(frozen=True)
class Layer:
    """One operator that may be quantized.

    Args:
        name: module path, such as ``encoder.conv1``; of an operator that is no module by itself, or of a module that
            is called more than once, the path and the node: ``encoder:add_1``.
        path: module path alone.
        node: name of the node in the graph.
        output: name of the node whose value is the layer's output: a ReLU that only this layer feeds, or the node.
        has_weight: whether it is a convolution or Linear.
    """

    name: str
    path: str
    node: str
    output: str
    has_weight: bool

    def is_meant_by(self, pattern: str) -> bool:
        """Whether the pattern matches its name, its path or the path of a module around it."""
        parts = self.path.split(".")
        around = [".".join(parts[: i + 1]) for i in range(len(parts))]
        return any(fnmatchcase(name, pattern) for name in (self.name, *around))


def layers_of(graph: GraphModule) -> dict[str, Layer]:
    """Return what may be quantized in a traced graph, by node and in order."""
    nodes = []
    for node in graph.graph.nodes:
        value = node.meta.get("val")
        is_float = not isinstance(value, torch.Tensor) or value.dtype == torch.float32
        is_layer = node.op == "call_function" and node.target in WEIGHTED | PLAIN
        # not by a number: rounding it saves nothing, and it is an operator of its own that may land in another
        # partition than its user, where XNNPACK's fusion of tables (ExecuTorch 1.4.1) reads a number that is not there
        stored = [n.meta.get("val") for n in node.all_input_nodes if n.op == "get_attr"]
        is_by_number = any(isinstance(x, torch.Tensor) and x.numel() == 1 for x in stored)
        if is_layer and is_float and (not is_by_number if node.target in PLAIN else _has_stored_weight(node)):
            nodes.append(node)
    weighted = Counter(module_path(node) for node in nodes if node.target in WEIGHTED)
    layers = {}
    for node in nodes:
        path, has_weight, users = module_path(node), node.target in WEIGHTED, list(node.users)
        is_alone = path and has_weight and weighted[path] == 1
        name = path if is_alone else f"{path}:{node.name}".removeprefix(":")
        output = users[0] if len(users) == 1 and is_relu(users[0]) else node
        layers[node.name] = Layer(name, path, node.name, output.name, has_weight)
    return layers


def in_loops(graph: GraphModule, state: Collection[str], feeding: Feeding) -> set[str]:
    """Return the nodes without a weight between what a call reads of a state and what it writes into it.

    Args:
        graph: traced.
        state: buffers that a call writes.
        feeding: inputs that are outputs of the call before.
    """
    nodes = list(graph.graph.nodes)
    after = {node for node in nodes if node.op == "get_attr" and node.target in state}
    taken = [node for node in nodes if node.op == "placeholder"]
    after |= {taken[place] for place in feeding.sources}
    for node in nodes:
        after |= {node} if after.intersection(node.all_input_nodes) else set()
    written = [n for n in nodes if isinstance(n.target, torch._ops.OpOverload) and n.target._schema.is_mutable]
    given = pytree.tree_leaves(nodes[-1].args)
    before = {*written, *(given[place] for place in feeding.sources.values())}
    for node in reversed(nodes):
        before |= set(node.all_input_nodes) if node in before else set()
    return {node.name for node in nodes if node.target in PLAIN and node in after & before}


def is_relu(node: Node) -> bool:
    """Whether it is a ReLU, which is computed together with the operator before it."""
    return node.target in (torch.ops.aten.relu.default, torch.ops.aten.relu_.default)


def _has_stored_weight(layer: Node) -> bool:
    """Whether the weight depends on no input: integer kernels take no other."""
    todo, seen = [layer.args[1]], set[Node]()
    while todo:
        node = todo.pop()
        if isinstance(node, Node) and node not in seen:
            if node.op == "placeholder":
                return False
            seen.add(node)
            todo += node.all_input_nodes
    return True


def module_path(node: Node) -> str:
    """Return the path of the innermost module that a node came from, as the user's model names it; '' for its root."""
    stack: Mapping[str, tuple[str, object]] = node.meta.get("nn_module_stack") or {}
    entries = list(stack.values())
    if not entries:
        return ""
    path = entries[-1][0]
    is_wrapped = str(entries[0][1]).endswith("eager.EagerModel")
    return path.removeprefix("model").removeprefix(".") if is_wrapped else path


def chosen(layers: Iterable[Layer], patterns: Sequence[str]) -> set[str]:
    """Return the nodes of the layers that the patterns mean.

    Raises:
        UnmatchedError: a pattern means none.
    """
    layers = tuple(layers)
    meant = {pattern: {layer.node for layer in layers if layer.is_meant_by(pattern)} for pattern in patterns}
    unmatched = [pattern for pattern, nodes in meant.items() if not nodes]
    if unmatched:
        raise UnmatchedError(unmatched, [layer.name for layer in layers])
    return set().union(*meant.values())
