"""A traced network cut into cells: a kernel with what is fused to it, and few tensors that cross the borders."""

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from lightning_prune.deploy.executorch.quick import quick_graphs
from lightning_prune.deploy.executorch.quiet import quiet_lowering
from lightning_prune.deploy.executorch.torchao import fold_batch_norms
from lightning_prune.deploy.program.eager import EagerModel
from lightning_prune.errors import ExportError
from lightning_prune.graph.recordable import recordable
from lightning_prune.selection.cells import Kernel

_CROSSING = 2
"""Tensors that may cross a border: what a layer makes, and what goes past it to be added."""
_PREFIX = "model."
"""Of the names in what :class:`EagerModel` wraps."""


@dataclass(frozen=True)
class Piece:
    """A cell at the widths of one copy of a network.

    Args:
        module: runs it.
        inputs: shapes and dtypes that it takes.
        is_inner: whether channels come last in what it takes, as inside of a delegate: it takes no input of the
            network, which has the layout of the caller, and no axis of channels is of length 1, which has no layout.
        label: its operators, in short.
        tokens: operators, their numbers and their shapes, in order; those that change with widths stand at the same
            places for every copy.
        kernels: what computes in it.
        weights: of each kernel the dense name, the axis of outputs and that of inputs.
        widths: of each kernel, output and input channels.
    """

    module: nn.Module
    inputs: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    is_inner: bool
    label: str
    tokens: tuple[str, ...]
    kernels: tuple[Kernel, ...]
    weights: tuple[tuple[str, int, int], ...]
    widths: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, network: fx.GraphModule, inside: Sequence[fx.Node]) -> "Piece":
        """Return the cell of these operators of a traced network, in its order."""
        own = set(inside)
        makers = (maker for node in inside for maker in node.all_input_nodes)
        outside = dict.fromkeys(maker for maker in makers if maker not in own and maker.op != "get_attr")
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        tokens, names = list[str](), dict[fx.Node, str]()

        def told(node: fx.Node, name: str) -> None:
            """Name a value; its sizes are tokens, each of which may change with the widths."""
            names[node] = name
            tokens.append(name)
            for value in pytree.tree_leaves(node.meta.get("val")):
                if isinstance(value, Tensor):
                    tokens.extend((str(value.dtype), *map(str, value.shape), "|"))

        for node in outside:
            copies[node] = graph.placeholder(node.name)
            told(node, f"input {len(names)}")
        for node in network.graph.nodes:
            if node.op == "get_attr":
                copies[node] = graph.node_copy(node, copies.__getitem__)
            elif node in own:
                copies[node] = graph.node_copy(node, copies.__getitem__)
                # traced graphs leave out what is the default, as groups of which the narrow copy has one left
                schema = node.target._schema.arguments if isinstance(node.target, torch._ops.OpOverload) else ()
                unsaid = [each.default_value for each in schema[len(node.args) :] if each.name not in node.kwargs]
                for leaf in pytree.tree_leaves((node.args, unsaid, node.kwargs)):
                    if isinstance(leaf, fx.Node) and leaf.op == "get_attr":
                        weight = operator.attrgetter(str(leaf.target))(network)
                        tokens.extend(map(str, getattr(weight, "shape", ("constant",))))
                    else:
                        tokens.append(names[leaf] if isinstance(leaf, fx.Node) else repr(leaf))
                told(node, f"{node.target}")
                names[node] = f"value {len(names)}"
        made = [node for node in inside if any(user not in own for user in node.users)]
        graph.output(tuple(copies[node] for node in made))
        graph.eliminate_dead_code()
        crossing = pytree.tree_leaves([node.meta.get("val") for node in (*outside, *made)])
        has_single = any(isinstance(x, Tensor) and x.dim() == 4 and x.shape[1] == 1 for x in crossing)
        found = [kernel for node in inside for kernel in _kernels(network, node)]
        values: list[Any] = [node.meta["val"] for node in outside]
        return cls(
            module=fx.GraphModule(network, graph),
            inputs=tuple((tuple(map(int, value.shape)), value.dtype) for value in values),
            is_inner=all(node.op != "placeholder" for node in outside) and not has_single,
            label="+".join(
                name for node in inside if (name := str(node.target).split(".")[-2:][0]) and "<" not in name
            ),
            tokens=tuple(tokens),
            kernels=tuple(kernel for kernel, _, _ in found),
            weights=tuple(name for _, name, _ in found),
            widths=tuple(widths for _, _, widths in found),
        )


def cells_of(model: nn.Module, inputs: Sequence[Tensor], fold: bool = True) -> list[Piece]:
    """Cut a network into cells, in the order in which they run.

    A border lies before a kernel, where fewest tensors cross it since the kernel before, at most two: those that go
    past a cell unused do not count, nor what no weight takes part in, as masks and rotations that all layers share. A
    tuple of tensors never crosses one, nor a tensor that is changed in place after
    it. So a convolution has its norm and its activation with it, a LayerNorm stands with what reads it, and query, key
    and value are in one cell.

    Args:
        model: as :func:`~lightning_prune.deploy.program.eager.folded_copy` returns it.
        inputs: of the network.
        fold: whether batch norms become part of the convolutions before them, as a delegate makes them.

    Raises:
        ExportError: the network cannot be traced, or nothing in it computes with weights.
    """
    try:
        with quiet_lowering(), recordable(), quick_graphs():
            network = torch.export.export(EagerModel(model), tuple(inputs)).module(check_guards=False)
            network = cast(fx.GraphModule, network)
            if fold:
                fold_batch_norms(network)
    except Exception as error:
        raise ExportError(f"{type(model).__name__} cannot be traced by torch.export: {error}") from error
    calls = [node for node in network.graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
    borders = [0, *_borders(network, calls), len(calls)]
    pieces = [Piece.of(network, calls[start:end]) for start, end in pairwise(borders)]
    if not any(piece.kernels for piece in pieces):
        raise ExportError(f"{type(model).__name__} has no layer whose weights compute, so no width costs anything")
    return pieces


def _borders(network: fx.GraphModule, calls: Sequence[fx.Node]) -> Iterator[int]:
    """Yield the numbers of the calls before which a new cell begins."""
    place = {node: number for number, node in enumerate(calls)}
    values = [node for node in network.graph.nodes if node.op not in ("get_attr", "output") and node.users]
    made = {node: place.get(node, -1) for node in values}
    used = {node: sorted(place.get(user, len(calls)) for user in node.users) for node in values}
    barred, weighted = set[int](), _weighted(network)
    for node in calls:
        schema = node.target._schema.arguments if isinstance(node.target, torch._ops.OpOverload) else ()
        for argument, value in zip(schema, node.args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write and value in made:
                barred |= set(range(made[value] + 1, place[node] + 1))
    start, kernel = 0, None
    for number, node in enumerate(calls):
        if not any(_kernels(network, node)):
            continue
        if kernel is not None:
            best, fewest = None, _CROSSING
            for border in range(kernel + 1, number + 1):
                crossing = [
                    value
                    for value in values
                    if made[value] < border <= used[value][-1]
                    and (made[value] >= start or any(start <= at < border for at in used[value]))
                ]
                is_open = border not in barred and all(isinstance(v.meta.get("val"), Tensor) for v in crossing)
                if is_open and len(weighted & set(crossing)) <= fewest:
                    best, fewest = border, len(weighted & set(crossing))
            if best is not None:
                yield best
                start = best
        kernel = number


def _weighted(network: fx.GraphModule) -> set[fx.Node]:
    """Return the values in which weights take part."""
    weighted = set[fx.Node]()
    for node in network.graph.nodes:
        is_weight = node.op == "get_attr" and isinstance(operator.attrgetter(str(node.target))(network), nn.Parameter)
        if is_weight or any(_kernels(network, node)) or not weighted.isdisjoint(node.all_input_nodes):
            weighted.add(node)
    return weighted


def _kernels(network: fx.GraphModule, node: fx.Node) -> Iterator[tuple[Kernel, tuple[str, int, int], tuple[int, int]]]:
    """Yield the kernels of an operator, with the name and axes of the weight and its widths, output and input."""
    name = node.target.__name__.partition(".")[0] if callable(node.target) else ""
    made = node.meta.get("val")
    made = made[0] if isinstance(made, tuple | list) else made
    if not isinstance(made, Tensor) or not name.startswith(("conv", "linear", "mm", "addmm", "matmul", "lstm", "gru")):
        return
    arguments = [leaf for leaf in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(leaf, fx.Node)]
    taken = next((leaf.meta["val"] for leaf in arguments if leaf.op != "get_attr"), made)
    for leaf in arguments:
        source = _weight(network, leaf)
        if source is None:
            continue
        weight = operator.attrgetter(str(source.target))(network)
        if not isinstance(weight, Tensor) or weight.dim() < 2:
            continue
        is_turned = "transpose" in name or (name in ("mm", "matmul", "addmm") and leaf is source)
        out, into = (1, 0) if is_turned else (0, 1)
        window, rows = math.prod(weight.shape[2:]), made.numel() / max(1, made.shape[1 if weight.dim() > 2 else -1])
        channels = taken.shape[1 if weight.dim() > 2 else -1]
        is_grouped = weight.dim() > 2 and channels != weight.shape[into] and "transpose" not in name
        kind = "grouped" if is_grouped else "window" if window > 1 else "point"
        kernel = Kernel(kind, window * rows, taken.numel() / max(1, channels), rows)
        dense = str(source.target).removeprefix(_PREFIX)
        yield kernel, (dense, out, into), (int(weight.shape[out]), int(weight.shape[into]))


def _weight(network: fx.GraphModule, value: fx.Node) -> fx.Node | None:
    """Return the parameter that a value is, or that it is computed of, as by weight norm; None for an activation."""
    seen, new, shaped = {value}, [value], None
    while new:
        if (node := new.pop()).op == "placeholder":
            return None
        if node.op == "get_attr" and shaped is None:
            held = operator.attrgetter(str(node.target))(network)
            is_it = node is value or getattr(held, "shape", None) == getattr(value.meta.get("val"), "shape", ())
            shaped = node if is_it else None
        new += [parent for parent in node.all_input_nodes if parent not in seen]
        seen.update(node.all_input_nodes)
    return shaped
