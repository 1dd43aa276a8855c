"""Changes to a traced program that keep its signature and the shapes of its nodes right."""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Node
from torch.utils import _pytree as pytree

Rewrite = Callable[[ExportedProgram], int]
"""Changes a traced program in place and returns at how many places; it computes what it computed before."""

_CONSTANT_KINDS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


class Editor:
    """Writes operators and constants before one node of a program.

    Args:
        program: a traced program; it is changed in place.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        self.graph = program.graph_module.graph
        self.fake = detect_fake_mode([n.meta.get("val") for n in self.graph.nodes if n.op == "placeholder"])
        self.place = next(iter(self.graph.nodes))
        self._constants: dict[tuple[Any, ...], Node] = {}

    def at(self, node: Node) -> "Editor":
        """Return the editor, set to write before a node."""
        self.place = node
        return self

    def put(self, operator: Any, *arguments: Any, **options: Any) -> Node:  # noqa: ANN401
        """Write a call of an operator and return its node; shapes are worked out on the spot."""
        with self.graph.inserting_before(self.place):
            node = self.graph.call_function(operator, arguments, options)
        values, named = pytree.tree_map_only(Node, lambda n: n.meta["val"], (arguments, options))
        with self.fake:  # type: ignore[union-attr]
            node.meta["val"] = operator(*values, **named)
        node.meta |= {key: self.place.meta[key] for key in ("stack_trace", "nn_module_stack") if key in self.place.meta}
        return node

    def constant(self, value: Tensor) -> Node:
        """Return a node of a tensor that belongs to the program; equal ones are stored once."""
        value = value.detach().contiguous()
        content = value.view(torch.uint8).numpy().tobytes() if value.ndim else repr(value.item()).encode()
        key = (value.shape, value.dtype, hashlib.sha256(content).digest())
        if key in self._constants:
            return self._constants[key]
        specs = self.program.graph_signature.input_specs
        index = next(i for i, spec in enumerate(specs) if spec.kind is InputKind.USER_INPUT)
        first = [n for n in self.graph.nodes if n.op == "placeholder"][index]
        with self.graph.inserting_before(first):
            numbered = (f"c_rewritten_{number}" for number in itertools.count())
            node = self.graph.placeholder(next(name for name in numbered if name not in self.program.constants))
        node.meta["val"] = self.fake.from_tensor(value, static_shapes=True)  # type: ignore[union-attr]
        specs.insert(index, InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(node.name), node.name))
        self.program.constants[node.name] = value
        self._constants[key] = node
        return node

    def replace(self, node: Node, new: Node) -> None:
        """Let every user of a node use another one instead."""
        node.replace_all_uses_with(new)
        self.graph.erase_node(node)

    def finish(self) -> None:
        """Drop what nothing uses any more, constants included, and bring the signature up to date."""
        self.graph.eliminate_dead_code()
        signature = self.program.graph_signature
        placeholders = [n for n in self.graph.nodes if n.op == "placeholder"]
        kept, written = [], set(signature.buffers_to_mutate.values())
        for node, spec in zip(placeholders, list(signature.input_specs), strict=True):
            if node.users or spec.kind not in _CONSTANT_KINDS or spec.target in written:
                kept.append(spec)
            else:
                self.graph.erase_node(node)
        signature.input_specs[:] = kept
        output = next(n for n in self.graph.nodes if n.op == "output")
        for spec, node in zip(signature.output_specs, output.args[0], strict=True):
            if isinstance(node, Node) and isinstance(spec.arg, TensorArgument):
                spec.arg = TensorArgument(node.name)
        self.graph.lint()
        self.program.graph_module.recompile()


Rule = Callable[[Editor, Node], Node | None]
"""Writes what takes a node's place and returns its last node; None where there is nothing better."""


def by_operator(rules: Mapping[Any, Rule]) -> Rewrite:
    """Return a rewrite that offers each call to the rule of its operator."""

    def rewrite(program: ExportedProgram) -> int:
        editor, changed = Editor(program), 0
        for node in list(program.graph_module.graph.nodes):
            rule = rules.get(node.target) if node.op == "call_function" and node.users else None
            new = rule(editor.at(node), node) if rule is not None else None
            if new is None or new is node:
                continue
            # an input, or what is an output already, is no output in the node's place
            is_taken = new.op == "placeholder" or any(user.op == "output" for user in new.users)
            if not (is_taken and any(user.op == "output" for user in node.users)):
                editor.replace(node, new)
                changed += 1
        editor.finish()
        return changed

    return rewrite


def shape_of(node: Node) -> list[Any]:
    """Return sizes of what a node gives: integers, and symbols where a dimension is dynamic."""
    return list(node.meta["val"].shape)


def is_static(*nodes: Node) -> bool:
    """Whether every size of every node is fixed."""
    return all(isinstance(size, int) for node in nodes for size in shape_of(node))


def is_float(node: Node) -> bool:
    """Whether a node gives one float32 tensor."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype is torch.float32


def arguments_of(node: Node) -> dict[str, Any]:
    """Return the arguments of a call by their names, defaults included."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = dict(zip((a.name for a in schema), node.args, strict=False)) | dict(node.kwargs)
    return {a.name: given.get(a.name, a.default_value) for a in schema}


def reshaped(editor: Editor, x: Node, shape: Sequence[Any]) -> Node | None:
    """Write a view of a shape of which at most one size is dynamic; None where more are."""
    sizes = [size if isinstance(size, int) else -1 for size in shape]
    if sizes.count(-1) > 1:
        return None
    if -1 not in sizes and sizes == shape_of(x):
        return x
    if -1 not in sizes:
        return editor.put(torch.ops.aten.reshape.default, x, sizes)
    x = editor.put(torch.ops.aten.clone.default, x, memory_format=torch.contiguous_format)
    return editor.put(torch.ops.aten.view.default, x, sizes)  # of a reshape, -1 would become a symbol again


def sliced(editor: Editor, x: Node, dim: int, start: int, end: int) -> Node:
    """Write a slice along one dimension."""
    return editor.put(torch.ops.aten.slice.Tensor, x, dim, start, end)


def permuted(editor: Editor, x: Node, order: Sequence[int]) -> Node:
    """Write a permutation, or nothing where it changes nothing."""
    return x if list(order) == sorted(order) else editor.put(torch.ops.aten.permute.default, x, list(order))


def calls(program: ExportedProgram) -> Iterator[Node]:
    """Return the operator calls of a program in order."""
    return iter([n for n in program.graph_module.graph.nodes if n.op == "call_function"])
