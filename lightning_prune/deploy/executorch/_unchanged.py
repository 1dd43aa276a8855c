"""What leaves a program as it is, and so need not be done: decompositions of torch, passes of ExecuTorch."""

import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch._export.utils as utils
from torch import Tensor, fx
from torch.export import ExportedProgram, exported_program
from torch.fx.node import map_arg


class Known:
    """Graphs whose values were worked out by torch or ExecuTorch, as long as nobody edits them."""

    def __init__(self) -> None:
        self._graphs: dict[int, tuple[fx.Graph, object, object]] = {}

    def keep(self, graph: fx.Graph) -> None:
        """Take the values of a graph for right."""
        self._graphs[id(graph)] = graph, *self._told(graph)

    def holds(self, graph: fx.Graph, with_targets: bool) -> bool:
        """Whether nobody edited a graph since.

        Args:
            graph: the graph.
            with_targets: whether another operator in the same place counts.
        """
        kept = self._graphs.get(id(graph))
        told, targets = self._told(graph)
        return kept is not None and kept[1] == told and (kept[2] == targets or not with_targets)

    @staticmethod
    def _told(graph: fx.Graph) -> tuple[object, object]:
        nodes = graph.nodes
        return [(id(n), n.op, n.args, n.kwargs, id(n.meta.get("val"))) for n in nodes], [n.target for n in nodes]


@functools.lru_cache(maxsize=1)
def decompositions(make: Callable[[], Any], registered: int) -> tuple[dict[Any, Any], frozenset[Any]]:
    """Return the decompositions of a table, and the operators that torch can keep whole though they are made of others.

    Args:
        make: makes the table.
        registered: how many such operators there are; both are made anew where a library has brought more.
    """
    return make().materialize(), frozenset(utils._collect_all_valid_cia_ops())


def decomposing(known: Known, composite: frozenset[Any]) -> Callable[..., ExportedProgram]:
    """Return what decomposes a program as ``ExportedProgram.run_decompositions`` does, if there is something to do.

    With an empty table nothing is decomposed, but what changes a tensor in place is replaced; with another one a
    program that went through a decomposition before, and has no operator of the table, is the same after it.
    """
    decompose = ExportedProgram.run_decompositions

    @exported_program._disable_prexisiting_fake_mode
    def run(self: ExportedProgram, decomp_table: Any = None, decompose_custom_triton_ops: bool = False) -> Any:  # noqa: ANN401
        present = {node.target for node in self.graph.nodes if node.op not in ("placeholder", "output")}
        operators = present - {operator.getitem}
        if decomp_table is None or not all(isinstance(each, torch._ops.OpOverload) for each in operators):
            return decompose(self, decomp_table, decompose_custom_triton_ops)
        table = {**decomp_table}
        kept = {
            each: table.get(each, utils._special_op_to_preserve_cia)
            for each in operators
            if utils._is_preservable_cia_op(each)
        }
        is_same = not table or (
            known.holds(self.graph, with_targets=False) and not kept and table.keys().isdisjoint(operators)
        )
        changes = self.graph_signature.buffers_to_mutate or any(each._schema.is_mutable for each in operators)
        if is_same and not changes:
            return self
        kept |= {each: utils._special_op_to_preserve_cia for each in composite - table.keys()}
        others = {each: function for each, function in table.items() if each not in kept and each not in composite}
        program = exported_program._decompose_exported_program(
            self,
            cia_to_decomp=kept,
            python_decomp_table=others,
            joint_loss_index=None,
            decompose_custom_triton_ops=decompose_custom_triton_ops,
        )
        known.keep(program.graph)
        return program

    return run


def passing(known: Known, passes: Any) -> Callable[..., Any]:  # noqa: ANN401
    """Return what runs a pass of ExecuTorch as ``ExportPass.call`` does, unless it would write the same graph again.

    It would, where it does nothing but ask ``call_operator`` about each operator, is told the same operator with the
    same arguments, and the values of the graph are known.
    """
    base, common = passes._ExportPassBase, passes.ExportPass
    write = base.call
    functions = {name for kind in (base, common) for name, each in vars(kind).items() if inspect.isfunction(each)}
    hooks = functions - {"__init__", "call", "call_operator"}

    def leaves(self: Any, graph: fx.Graph) -> bool:  # noqa: ANN401
        """Whether a pass answers every operator with itself."""
        asked: Any = None
        values: dict[fx.Node, Any] = {}

        def answer(kind: str, target: object, args: object, kwargs: object, meta: Any) -> Any:  # noqa: ANN401
            node, given = asked
            is_asked = kind == "call_function" and target is node.target and meta.data == node.meta
            return values[node] if is_asked and _is_same((args, kwargs), given) else None

        self._fx = answer
        try:
            for node in graph.nodes:
                values[node] = passes.ProxyValue(node.meta.get("val"), node)
                if node.op == "call_function" and hasattr(node.target, "_schema"):
                    asked = node, map_arg((node.args, node.kwargs), values.__getitem__)
                    meta = passes.NodeMetadata(node.meta)
                    if self.call_operator(node.target, *asked[1], meta) is not values[node]:
                        return False
        except Exception:  # what a pass makes of a value that is another one by now: it runs as it always did
            return False
        finally:
            del self._fx
        return True

    def call(self: Any, graph_module: fx.GraphModule) -> Any:  # noqa: ANN401
        kind, graph = type(self), graph_module.graph
        is_plain = all(getattr(kind, name) is getattr(common, name) for name in hooks)
        is_asking = kind.call_operator is not base.call_operator
        if is_plain and known.holds(graph, with_targets=True) and (not is_asking or leaves(self, graph)):
            return passes.PassResult(graph_module, True)
        result = write(self, graph_module)
        known.keep(result.graph_module.graph)
        return result

    return call


def _is_same(a: object, b: object) -> bool:
    """Whether arguments are the same values, and numbers the same of one type."""
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(_is_same, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_is_same(a[key], b[key]) for key in a)
    return a is b or (type(a) is type(b) and not isinstance(a, Tensor) and bool(a == b))
