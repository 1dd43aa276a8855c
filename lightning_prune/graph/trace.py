"""A model as the list of its operator calls, recorded by torch.export on a copy."""

from __future__ import annotations

import operator
import re
import sysconfig
import traceback
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from lightning_prune.errors import GraphError
from lightning_prune.graph._sizes import Recorder, Sizes
from lightning_prune.graph.recordable import recordable
from lightning_prune.model.attention import let_resize, why_rigid, without_fast_path
from lightning_prune.model.caches import refilled
from lightning_prune.model.example import Example, Inputs, tensors_in, walked
from lightning_prune.model.masks import fold
from lightning_prune.model.plain_copy import plain_copy
from lightning_prune.model.state import assigned_in_place


@dataclass(frozen=True, eq=False)
class Call:
    """One operator call.

    Attributes:
        node: its node in the graph.
        operator: ATen name without overload, e.g. ``conv2d``.
        arguments: value by the argument's name in the operator's schema, defaults filled in.
        where: path of the module whose forward made the call.
    """

    node: fx.Node
    operator: str
    arguments: Mapping[str, Any] = field(repr=False)
    where: str

    @property
    def output(self) -> Any:  # noqa: ANN401  (a tensor, a list of them, a number or None)
        """Fake tensor, or list of fake tensors, that the call returns."""
        return self.node.meta.get("val")

    @property
    def place(self) -> str:
        """The operator and its module, in words."""
        return f"{self.operator} at {self.where}" if self.where else f"{self.operator} in the model's own forward"

    def __getitem__(self, argument: str) -> Any:  # noqa: ANN401
        return self.arguments[argument]

    def get(self, argument: str, default: Any = None) -> Any:  # noqa: ANN401
        """Return an argument, or the default where the operator has no such argument."""
        return self.arguments.get(argument, default)


@dataclass(frozen=True, eq=False)
class Trace:
    """What torch.export recorded.

    Attributes:
        nodes: nodes of the graph in order.
        calls: operator call of each ``call_function`` node that calls an operator.
        names: dense name of the parameter or buffer that a placeholder node stands for.
        shapes: shape of each parameter and buffer that the graph uses, by dense name, in the order of first use.
        parameters: which of them are parameters.
        kept: reason for each parameter that keeps its sizes because its module does.
        sizes: sizes in reshapes and splits that come from attributes of modules.
        floats: path of each attribute of a module that holds a float, or of an RMS norm's eps that is None -> it.
        first_paths: path of each module -> the first of its paths; a shared module has several.
        as_floats: sizes of which the code makes floats -> attributes that they come from; None is a shape.
        written: names of the buffers that the calls write, in order.
    """

    nodes: list[fx.Node]
    calls: Mapping[fx.Node, Call]
    names: Mapping[fx.Node, str]
    shapes: Mapping[str, tuple[int, ...]]
    parameters: frozenset[str]
    kept: Mapping[str, str]
    sizes: Sizes = field(default_factory=dict)
    floats: Mapping[str, float | None] = field(default_factory=dict)
    first_paths: Mapping[str, str] = field(default_factory=dict)
    as_floats: Mapping[int, Collection[str | None]] = field(default_factory=dict)
    written: tuple[str, ...] = ()


class _Forward(nn.Module):
    """Forwards to the model: torch.export inspects its root, and a LightningModule has properties that then raise.

    It takes and gives tensors alone, since torch.export knows no dataclasses but those that were registered.
    """

    def __init__(self, inner: nn.Module, recorder: Recorder | None, example: Example) -> None:
        super().__init__()
        self.inner = inner
        self.recorder = recorder
        self.example = example

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        following = iter(tensors)
        inputs = walked(self.example, lambda _: next(following))
        watching = nullcontext() if self.recorder is None else self.recorder.watch(self.inner)
        with assigned_in_place(self.inner), watching:
            return list(tensors_in(inputs(self.inner)))


def trace(model: nn.Module, example_inputs: Inputs, example_kwargs: Mapping[str, Any] | None = None) -> Trace:
    """Record the operator calls of a model in eval mode, masks folded; the model itself is not touched.

    Args:
        model: any module that torch.export accepts.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments of ``forward``.
        example_kwargs: further keyword arguments.

    Returns:
        The calls, and the dense names of the parameters and buffers in them.

    Raises:
        GraphError: torch.export refuses the model or these inputs.
    """
    example = Example.of(example_inputs)
    example = Example(example.args, {**example.kwargs, **(example_kwargs or {})})
    tensors: list[Tensor] = []
    walked(example, tensors.append)
    for recorder in (Recorder(), None):
        try:
            inner = fold(plain_copy(model)).eval()
            with_own_masks = let_resize(inner)
            with _quietly(inner), recordable():
                # What an earlier run has cached would stand in the graph as a constant, without its parameter.
                refilled(inner, partial(example, inner))
                exported = torch.export.export(_Forward(inner, recorder, example), tuple(tensors), strict=False)
            return _record(exported, inner, recorder or Recorder(), with_own_masks)
        except Exception as error:
            refusal = error
    shapes = [_shape(x) for x in example.args] + [f"{name}={_shape(x)}" for name, x in example.kwargs.items()]
    message = str(refusal).strip().split("\n\n")[0][:600].rstrip(".")
    at = _line_of(refusal)
    raise GraphError(
        f"{type(model).__name__} cannot be traced with inputs ({', '.join(shapes)}): {type(refusal).__name__}: "
        f"{message}{f' (at {at})' if at else ''}. Give inputs that it takes in eval mode: example_inputs, or its "
        "example_input_array, a tensor, a tuple of positional or a dict of keyword arguments. If it takes these, its "
        "forward holds code that torch.export cannot record, such as a branch on values, a packed sequence or NumPy. "
        "Element() and the other granularities besides Channel need no trace, and prune such a model as it is."
    ) from refusal


def _record(
    exported: torch.export.ExportedProgram, inner: nn.Module, recorder: Recorder, with_own_masks: Collection[nn.Module]
) -> Trace:
    first: dict[int, str] = {}
    canonical = {name: first.setdefault(id(tensor), name) for name, tensor in _named_tensors(inner)}
    targets = {
        spec.arg.name: canonical[spec.target.removeprefix("inner.")]
        for spec in exported.graph_signature.input_specs
        if spec.target is not None and spec.target.removeprefix("inner.") in canonical
    }
    nodes = list(exported.graph.nodes)
    for node in nodes:
        if isinstance(value := node.meta.get("val"), Tensor) and any(isinstance(n, torch.SymInt) for n in value.shape):
            # a length that depends on values, such as the number of tokens of an expert, is equal to no other one:
            # each symbol, u0, u1, …, gets an odd number above ten thousand, which is hardly the size of anything
            shape: Any = value.shape
            lengths = [n if isinstance(n, int) else n.node.expr for n in shape]
            unknown = {one for n in lengths if not isinstance(n, int) for one in n.free_symbols}
            numbers = {one: 10_007 + 2 * int(str(one).lstrip("us")) for one in unknown}
            sizes = [n if isinstance(n, int) else int(n.subs(numbers)) for n in lengths]
            node.meta["val"] = torch.empty(sizes, dtype=value.dtype, device="meta")
    names = {node: targets[node.name] for node in nodes if node.op == "placeholder" and node.name in targets}
    users = [names[argument] for node in nodes for argument in node.all_input_nodes if argument in names]
    tensors = {**dict(inner.named_parameters()), **dict(inner.named_buffers())}
    written, owners = dict[str, None](), dict(names)
    for node in nodes:
        schema = node.target._schema if isinstance(node.target, torch._ops.OpOverload) else None
        owner = owners.get(node.args[0]) if schema and node.args and isinstance(node.args[0], fx.Node) else None
        if schema and owner and any(result.alias_info for result in schema.returns):
            owners[node] = owner  # a view, or what was written in place
            written |= {owner: None} if schema.is_mutable else {}
    paths = {module: path for path, module in inner.named_modules()}
    return Trace(
        nodes=nodes,
        calls={node: call for node in nodes if (call := _call(node)) is not None},
        names=names,
        shapes={name: tuple(tensors[name].shape) for name in dict.fromkeys(users)},
        parameters=frozenset(name for name, _ in inner.named_parameters()),
        kept={
            canonical[f"{path}.{name}" if path else name]: f"{type(module).__name__} at {path or 'the root'} {why}"
            for path, module in inner.named_modules()
            if (why := why_rigid(module, module in with_own_masks))
            for name, _ in module.named_parameters()
        },
        sizes=recorder.sizes,
        as_floats=recorder.as_floats,
        written=tuple(written),
        floats={
            f"{path}.{name}" if path else name: value
            for path, module in inner.named_modules()
            for name, value in module.__dict__.items()
            if type(value) is float or (name == "eps" and value is None and isinstance(module, nn.RMSNorm))
        },
        first_paths={path: paths[module] for path, module in inner.named_modules(remove_duplicate=False)},
    )


def _call(node: fx.Node) -> Call | None:
    if node.op != "call_function" or node.target is operator.getitem:
        return None
    where = module_path(node)
    if not isinstance(node.target, torch._ops.OpOverload):
        return Call(node, getattr(node.target, "__name__", str(node.target)), {}, where)
    schema = node.target._schema
    arguments = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    arguments.update(zip((a.name for a in schema.arguments), node.args, strict=False))
    return Call(node, schema.name.split("::")[1], {**arguments, **node.kwargs}, where)


def module_path(node: fx.Node) -> str:
    """Return the path of the module whose forward made this node; "" is the model itself."""
    stack = list((node.meta.get("nn_module_stack") or {"": ("", None)}).values())
    path = re.sub(r"@\d+", "", str(stack[-1][0]))
    return "" if path == "inner" else path.removeprefix("inner.")


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


@contextmanager
def _quietly(model: nn.Module) -> Iterator[None]:
    """Trace without gradients, warnings, fused attention paths, or draws from the global random generators."""
    devices = {tensor.device for _, tensor in _named_tensors(model) if tensor.device.type == "cuda"}
    draws = torch.random.fork_rng(sorted(devices, key=str))
    with torch.no_grad(), without_fast_path(), draws, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _line_of(error: Exception) -> str:
    """Return file, line and code of the last frame that is the user's: not torch's, Python's or this package's."""
    own = [Path(torch.__file__).parent, Path(__file__).parents[1], Path(sysconfig.get_path("stdlib"))]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        is_installed = not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
        is_foreign = any(path.is_relative_to(folder) for folder in own[: 2 if is_installed else 3])
        if path.is_absolute() and not is_foreign and "sympy" not in path.parts:
            return f"{frame.filename}:{frame.lineno}: {frame.line}"
    return ""


def _shape(value: Any) -> str:  # noqa: ANN401
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
