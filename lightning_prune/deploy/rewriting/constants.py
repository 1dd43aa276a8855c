"""What does not depend on the inputs is computed once, here."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec
from torch.fx import Node
from torch.utils import _pytree as pytree

from lightning_prune.deploy.rewriting.editing import Editor, calls

_SMALL = 2**16
"""Bytes that a stored result may always take."""
_SHARE = 0.1
"""Share of all that the program stores that a stored result may always take."""


def stored(program: ExportedProgram) -> dict[Node, Tensor]:
    """Return the parameters, buffers that stay as they are, and constants of a program, by their node."""
    signature, found = program.graph_signature, {}
    changing = set(signature.buffers_to_mutate.values())
    placeholders = [n for n in program.graph_module.graph.nodes if n.op == "placeholder"]
    for node, spec in zip(placeholders, signature.input_specs, strict=True):
        if spec.kind is InputKind.USER_INPUT or spec.target in changing or spec.target is None:
            continue
        value = program.state_dict.get(spec.target, program.constants.get(spec.target))
        if isinstance(value, Tensor):
            found[node] = value
    return found


def constant_value(program: ExportedProgram, node: Node) -> Tensor | None:
    """Return the value of a stored tensor; None for anything that is computed."""
    return stored(program).get(node) if node.op == "placeholder" else None


def apart(program: ExportedProgram) -> ExportedProgram:
    """Return a program that may be lowered: the same graph and tensors, in tables and a signature of its own.

    ExecuTorch 1.4.1 takes what goes into a delegate out of the tables of the program that it is given. Of a constant
    with several users it makes copies under one name, which torch cannot turn back into a module; of a buffer that is
    not saved it can, and the file is the same. So every constant becomes such a buffer, until this copies them too:
    https://github.com/pytorch/executorch/blob/v1.4.1/exir/lowered_backend_module.py#L962
    Only a kernel becomes one that is saved, since XNNPACK writes that of a 1D convolution anew, among what is saved.

    No tensor is a part of a larger one, such as a share of ``nn.MultiheadAttention``'s packed weight: XNNPACK 1.4.1
    writes the bytes from the beginning of its storage, which are another part's, until this clones what is a view:
    https://github.com/pytorch/executorch/blob/v1.4.1/backends/xnnpack/operators/node_visitor.py#L616

    Every tensor is contiguous, its node included: ExecuTorch 1.4.1 makes such of constants, but looks for them among
    those that this made buffers of, and stops at "Missing input spec":
    https://github.com/pytorch/executorch/blob/v1.4.1/exir/passes/convert_constant_dim_order_pass.py#L69
    That is to the last stride: torch calls (24, 1, 32) contiguous whatever the second one is, and ExecuTorch reads an
    order of dimensions from it, in which XNNPACK broadcasts another one or refuses the shapes when the program runs.
    """
    signature, graph = copy.deepcopy(program.graph_signature), copy.deepcopy(program.graph)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node, spec in zip(placeholders, signature.input_specs, strict=True):
        if spec.kind is not InputKind.USER_INPUT and isinstance(node.meta.get("val"), Tensor):
            node.meta["val"] = _contiguous(node.meta["val"])
    named = _kernels(program)
    kernels = {
        str(s.target): program.constants[str(s.target)]
        for s in signature.input_specs
        if s.arg.name in named and s.kind is InputKind.CONSTANT_TENSOR
    }
    signature.input_specs[:] = [
        InputSpec(InputKind.BUFFER, spec.arg, spec.target, persistent=spec.target in kernels)
        if spec.kind is InputKind.CONSTANT_TENSOR
        else spec
        for spec in signature.input_specs
    ]
    return ExportedProgram(
        root=program.graph_module,
        graph=graph,
        graph_signature=signature,
        state_dict=_with_own_storage(program.state_dict | kernels),
        range_constraints=dict(program.range_constraints),
        module_call_graph=copy.deepcopy(program.module_call_graph),
        example_inputs=program.example_inputs,
        constants=_with_own_storage({name: v for name, v in program.constants.items() if name not in kernels}),
        verifiers=program.verifiers,
    )


def _with_own_storage(values: Mapping[str, Any]) -> dict[str, Any]:
    own = dict(values)
    for name, value in values.items():
        is_plain = type(value) in (Tensor, nn.Parameter)
        if is_plain and (value.untyped_storage().nbytes() != _bytes(value) or _contiguous(value) is not value):
            copied = value.detach().clone(memory_format=torch.contiguous_format)
            own[name] = copied if type(value) is Tensor else nn.Parameter(copied, value.requires_grad)
    return own


def _contiguous(x: Tensor) -> Tensor:
    """Return a tensor with the strides of a new one of its shape."""
    return (
        x
        if x.stride() == torch.empty(x.shape, device="meta").stride()
        else x.clone(memory_format=torch.contiguous_format)
    )


def _kernels(program: ExportedProgram) -> set[str]:
    """Return the names of the nodes that hold the kernel of a convolution."""
    calls = (node for node in program.graph.nodes if node.op == "call_function" and "conv" in str(node.target))
    return {node.args[1].name for node in calls if len(node.args) > 1 and isinstance(node.args[1], Node)}


@torch.no_grad()
def fold_constants(program: ExportedProgram) -> int:
    """Store the results of operators that depend on no input, unless that takes more room than what they come from."""
    known: dict[Node, Any] = dict(stored(program))
    for node in program.graph_module.graph.nodes:
        if node.op == "call_function" and _is_pure(node) and all(n in known for n in node.all_input_nodes):
            arguments, options = pytree.tree_map_only(Node, known.__getitem__, (node.args, node.kwargs))
            known[node] = node.target(*arguments, **options)  # type: ignore[operator]
    editor, changed = Editor(program), 0
    room = max(_SMALL, _SHARE * sum(map(_bytes, stored(program).values())))
    for node, value in known.items():
        used = [user for user in node.users if user not in known]
        if node.op == "placeholder" or not used or not isinstance(value, Tensor):
            continue
        if any(user.op == "output" for user in used) or _bytes(value) > room + _freed(node, known):
            continue
        new = editor.at(node).constant(value)
        node.replace_all_uses_with(new, delete_user_cb=lambda user, used=used: user in used)
        changed += 1
    editor.finish()
    return changed


def fold_weights(program: ExportedProgram) -> int:
    """Store the weights that are computed from parameters, as weight norm has them, before a quantization.

    They become parameters, since torchao 0.18 folds a batch norm into such alone ("Expected get_attr node"):
    https://github.com/pytorch/ao/blob/v0.18.0/torchao/quantization/pt2e/utils.py#L922
    """
    layers = [n for n in calls(program) if "conv" in str(n.target) or "linear" in str(n.target)]
    weights = [layer.args[1] for layer in layers if len(layer.args) > 1]
    if not any(isinstance(weight, Node) and weight.op == "call_function" for weight in weights):
        return 0
    changed, kernels = fold_constants(program), _kernels(program)
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.CONSTANT_TENSOR and spec.arg.name in kernels:
            spec.kind = InputKind.PARAMETER
            name = str(spec.target)
            value = program.constants.pop(name)
            assert isinstance(value, Tensor)
            program.state_dict[name] = nn.Parameter(value, requires_grad=False)
    return changed


def _is_pure(node: Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return bool(node.all_input_nodes)  # a part of several results
    return (
        target.namespace == "aten"
        and not target._schema.is_mutable
        and torch.Tag.nondeterministic_seeded not in target.tags
        and isinstance(node.meta.get("val"), Tensor | tuple | list)
    )


def _freed(node: Node, known: Mapping[Node, Any]) -> int:
    """Return the bytes of the stored tensors that a node comes from and that nothing else would need."""
    seen, todo, total = {node}, [node], 0
    while todo:
        for source in todo.pop().all_input_nodes:
            if source not in seen and all(user in known for user in source.users):
                seen.add(source)
                todo.append(source)
                total += _bytes(known[source]) if source.op == "placeholder" else 0
    return total


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()
