"""The part of a network that reads some of its tensors, as a module that runs by itself."""

import operator
from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from lightning_prune.deploy.executorch.quiet import quiet_lowering
from lightning_prune.deploy.program.eager import EagerModel
from lightning_prune.errors import ExportError


def part_reading(
    model: nn.Module, tensors: Collection[Tensor], inputs: tuple[Tensor, ...]
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Cut out the operators from the first to the last one that reads one of the tensors.

    Values that come from outside become inputs of the part, those that are used outside its outputs. A tuple of
    tensors, or a tensor that is changed in place or viewed, never crosses the border: its maker belongs to the part.

    Args:
        model: the network, as :func:`~lightning_prune.deploy.program.eager.folded_copy` returns it.
        tensors: parameters or buffers of it.
        inputs: of the network.

    Returns:
        the part, and its inputs as they are when the network runs on ``inputs``. Where nothing reads the tensors it is
        the whole network.

    Raises:
        ExportError: the network cannot be traced.
    """
    try:
        with quiet_lowering():
            network = torch.export.export(EagerModel(model), inputs).module(check_guards=False)
    except Exception as error:
        raise ExportError(f"{type(model).__name__} cannot be traced by torch.export: {error}") from error
    network = cast(fx.GraphModule, network)
    inside = _closed(_between(network, {_storage(tensor) for tensor in tensors}))
    makers = (maker for node in inside for maker in node.all_input_nodes)
    outside = dict.fromkeys(maker for maker in makers if maker not in inside and maker.op != "get_attr")
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in outside:
        copies[node] = graph.placeholder(node.name)
    for node in network.graph.nodes:
        if node in inside or node.op == "get_attr":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in inside if any(user not in inside for user in node.users)))
    graph.eliminate_dead_code()
    values = _Border(network, outside).recorded(inputs)
    return fx.GraphModule(network, graph), values


class _Border(fx.Interpreter):
    """Runs a graph and keeps copies of the values of some of its nodes."""

    def __init__(self, network: fx.GraphModule, wanted: Collection[fx.Node]) -> None:
        super().__init__(network)
        self._wanted = list(wanted)
        self._kept: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401
        """Run it, and keep what comes out if it is wanted."""
        value = super().run_node(n)
        if n in self._wanted:
            self._kept[n] = value.detach().clone(memory_format=torch.contiguous_format)
        return value

    def recorded(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the values of the wanted nodes on these inputs, in order."""
        with torch.no_grad():
            self.run(*(x.clone() for x in inputs))
        return tuple(self._kept[node] for node in self._wanted)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _between(network: fx.GraphModule, storages: Collection[int]) -> set[fx.Node]:
    """Return the operator calls from the first to the last that reads a tensor with one of these storages."""
    calls = [node for node in network.graph.nodes if node.op not in ("placeholder", "get_attr", "output")]

    def is_read(node: fx.Node) -> bool:
        found = operator.attrgetter(str(node.target))(network) if node.op == "get_attr" else None
        return isinstance(found, Tensor) and _storage(found) in storages

    reading = [index for index, node in enumerate(calls) if any(map(is_read, node.all_input_nodes))]
    return set(calls[reading[0] : reading[-1] + 1] if reading else calls)


def _closed(inside: set[fx.Node]) -> dict[fx.Node, None]:
    """Return the same nodes in the order of their graph, with all that cannot be on the other side of a border."""
    new = list(inside)
    while new:
        node = new.pop()
        bound = [] if isinstance(node.meta.get("val"), Tensor) else list(node.users)
        is_alias = isinstance(node.target, torch._ops.OpOverload) and any(
            argument.alias_info is not None for argument in node.target._schema.arguments
        )
        makers = node.all_input_nodes
        bound += makers if is_alias else [maker for maker in makers if not isinstance(maker.meta.get("val"), Tensor)]
        for other in bound:
            if other not in inside and other.op not in ("placeholder", "get_attr", "output"):
                inside.add(other)
                new.append(other)
    return {node: None for node in next(iter(inside)).graph.nodes if node in inside}
