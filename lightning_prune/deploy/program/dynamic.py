"""Dynamic shapes: what the caller asked for, what the trace made of it, and inputs of the sizes at both ends."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim
from torch.utils._sympy.numbers import int_oo

from lightning_prune.deploy.program.signature import MethodSpec, TensorSpec, describe_shape
from lightning_prune.errors import ExportError

Sizes = Mapping[int, Any]
"""Dimension of an input -> ``torch.export.Dim``, or ``Dim.AUTO`` or ``Dim.DYNAMIC``."""

_HINT = type(Dim.AUTO)
_DERIVED = type(2 * Dim("n"))
_UNBOUNDED = 2**31
LARGEST = "the largest sizes"
"""What :func:`ends` calls them."""
_EXAMPLE = "dynamic_shapes={{{name!r}: {{0: torch.export.Dim('batch', min=1, max=8)}}}}"


def checked_shapes(dynamic_shapes: Any, names: Sequence[str], inputs: Sequence[Tensor]) -> tuple[Sizes, ...] | None:  # noqa: ANN401
    """Return what may vary, one entry per input, in the one form that is used from here on.

    Args:
        dynamic_shapes: as in torch.export: by the name of the input or by position, and in that by dimension.
        names: of the inputs.
        inputs: the examples.

    Returns:
        dimension -> Dim for each input; None where nothing may vary.

    Raises:
        ValueError: there is no such input or dimension, or the example's size is out of its range.
        TypeError: it is something else than torch.export takes.
    """
    if dynamic_shapes is None:
        return None
    entries = _by_input(dynamic_shapes, names)
    found = tuple(_by_dimension(entry, name, x) for entry, name, x in zip(entries, names, inputs, strict=True))
    for sizes, name, x in zip(found, names, inputs, strict=True):
        for dim, wanted in sizes.items():
            low, high = _limits(wanted)
            if not low <= x.shape[dim] <= high:
                by = "Dim.AUTO or Dim.DYNAMIC" if isinstance(wanted, _HINT) else repr(wanted)
                raise ValueError(
                    f"dynamic_shapes: dimension {dim} of {name!r} is {x.shape[dim]} in the example, out of the range"
                    f" {low} to {high} that {by} gives it: change the example or the range"
                )
    return found if any(found) else None


def _by_input(dynamic_shapes: Any, names: Sequence[str]) -> list[Any]:  # noqa: ANN401
    if isinstance(dynamic_shapes, Mapping):
        nested = {top: entry for top, entry in dynamic_shapes.items() if any(n.startswith(f"{top}.") for n in names)}
        inside = {f"{top}.{key}": dims for top, entry in nested.items() for key, dims in (entry or {}).items()}
        dynamic_shapes = {name: entry for name, entry in dynamic_shapes.items() if name not in nested} | inside
        unknown = [name for name in dynamic_shapes if name not in names]
        if unknown:
            raise ValueError(
                f"dynamic_shapes: there is no input {unknown[0]!r}; the inputs are {', '.join(map(repr, names))}, as in"
                f" {_EXAMPLE.format(name=names[0])}"
            )
        return [dynamic_shapes.get(name) for name in names]
    if not isinstance(dynamic_shapes, tuple | list):
        raise TypeError(
            f"dynamic_shapes: got a {type(dynamic_shapes).__name__}, must be a dict by the name of the input or a tuple"
            f" with one entry per input, as in {_EXAMPLE.format(name=names[0])}"
        )
    if len(dynamic_shapes) != len(names):
        raise ValueError(f"dynamic_shapes: got {len(dynamic_shapes)} entries for {len(names)} inputs, one each needed")
    return list(dynamic_shapes)


def _by_dimension(entry: Any, name: str, x: Tensor) -> Sizes:  # noqa: ANN401
    if entry is None:
        return {}
    if isinstance(entry, tuple | list):
        if len(entry) != x.ndim:
            raise ValueError(f"dynamic_shapes: got {len(entry)} sizes for {name!r} of {x.ndim} dimensions, one each")
        entry = dict(enumerate(entry))
    if not isinstance(entry, Mapping):
        raise TypeError(
            f"dynamic_shapes: got {entry!r} for {name!r}, must be a dict such as {{0: Dim('batch', max=8)}}"
        )
    for dim, wanted in entry.items():
        if type(dim) is not int or not 0 <= dim < x.ndim:
            raise ValueError(
                f"dynamic_shapes: {name!r} has no dimension {dim!r}; its shape is {describe_shape(tuple(x.shape))}, the"
                f" dimensions are 0 to {x.ndim - 1}"
            )
        if not (wanted is None or isinstance(wanted, int | Dim | _HINT)):
            raise TypeError(f"dynamic_shapes: dimension {dim} of {name!r} is {wanted!r}, must be a torch.export.Dim")
        if isinstance(wanted, int) and wanted != x.shape[dim]:
            raise ValueError(
                f"dynamic_shapes: dimension {dim} of {name!r} is {x.shape[dim]} in the example, not {wanted}"
            )
    return {
        dim: wanted
        for dim, wanted in entry.items()
        if isinstance(wanted, Dim) or (isinstance(wanted, _HINT) and wanted.type != Dim.STATIC.type)
    }


def _limits(wanted: Any) -> tuple[float, float]:  # noqa: ANN401
    low, high = wanted.min, wanted.max
    return 0 if low is None else int(low), math.inf if high is None or high == int_oo else int(high)


def traceable(inputs: Sequence[Tensor], shapes: tuple[Sizes, ...] | None) -> tuple[Tensor, ...]:
    """Return inputs whose varying dimensions are at least 2 where they may be: a trace takes 1 for a constant."""
    if shapes is None:
        return tuple(inputs)
    pairs = list(zip(shapes, inputs, strict=True))
    small = [w for sizes, x in pairs for dim, w in sizes.items() if x.shape[dim] < 2 <= _limits(w)[1]]
    grown = []
    for sizes, x in pairs:
        shape = list(x.shape)
        for dim, wanted in sizes.items():
            if isinstance(wanted, _DERIVED) and any(wanted.root is each for each in small):  # pyright: ignore[reportAttributeAccessIssue]
                shape[dim] = wanted.fn(2)  # pyright: ignore[reportAttributeAccessIssue]
            elif shape[dim] < 2 and any(wanted is each for each in small):
                shape[dim] = 2
        grown.append(resized(x, shape))
    return tuple(grown)


def resized(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a tensor of this shape: cut, or its entries repeated in order."""
    for dim, size in enumerate(shape):
        if size != x.shape[dim]:
            x = x.index_select(dim, torch.arange(size) % max(x.shape[dim], 1))
    return x.contiguous()


def claimed(spec: MethodSpec, shapes: tuple[Sizes, ...] | None) -> MethodSpec:
    """Return what a method takes with the ranges that the caller asked for, before a trace has found them."""
    if shapes is None:
        return spec
    limits = [{d: _limits(wanted) for d, wanted in sizes.items()} for sizes in shapes]
    whole = [{d: (int(low), int(min(high, _UNBOUNDED))) for d, (low, high) in one.items()} for one in limits]
    inputs = [replace(one, dynamic=dynamic) for one, dynamic in zip(spec.inputs, whole, strict=True)]
    return replace(spec, inputs=tuple(inputs))


def found_ranges(program: torch.export.ExportedProgram, spec: MethodSpec) -> MethodSpec:
    """Return what a method takes and gives with the ranges that its trace has.

    Args:
        program: traced.
        spec: without ranges.

    Raises:
        ExportError: a dimension of an input has no largest size, which the memory plan of a .pte needs.
    """
    nodes = {node.name: node for node in program.graph.nodes}
    signature = program.graph_signature
    inputs = {
        one.name: _with_ranges(one, nodes[str(n)], program)
        for one, n in zip(spec.inputs, signature.user_inputs, strict=True)
    }
    outputs = {
        one.name: _with_ranges(one, nodes[str(n)], program, is_input=False)
        for one, n in zip(spec.outputs, signature.user_outputs, strict=True)
    }
    for feed in spec.feeds:
        if inputs[feed.input].dynamic != outputs[feed.output].dynamic:
            raise ExportError(
                f"feeds: output {outputs[feed.output]} cannot always be the next call's input {inputs[feed.input]}: let"
                " the same sizes of both vary, or none"
            )
    return MethodSpec(tuple(inputs.values()), tuple(outputs.values()), spec.feeds)


def ends(spec: MethodSpec) -> dict[str, list[list[int]]]:
    """Return shapes of all inputs by what they are: one above the smallest, largest, smallest; none where all is fixed.

    The first two grow: XNNPACK's int8 convolutions have been seen to go wrong where the first size is not the largest.
    """
    if not any(one.dynamic for one in spec.inputs):
        return {}

    def at(size: Callable[[int, int], int]) -> list[list[int]]:
        return [[size(*one.range_of(d)) for d in range(len(one.shape))] for one in spec.inputs]

    return {
        "sizes one above the smallest": at(lambda low, high: min(low + 1, high)),
        LARGEST: at(lambda _, high: high),
        "the smallest sizes": at(lambda low, _: low),
    }


def _with_ranges(
    spec: TensorSpec, node: torch.fx.Node, program: torch.export.ExportedProgram, is_input: bool = True
) -> TensorSpec:
    limits = {}
    for dim, size in enumerate(node.meta["val"].shape):
        if is_input and isinstance(size, torch.SymInt) and not size.node.expr.is_symbol:
            raise ExportError(
                f"dynamic_shapes: dimension {dim} of {spec.name!r} can only be {size.node.expr}, and a .pte takes every"
                " size between a smallest and a largest: give it a Dim of its own, or leave it fixed"
            )
        if isinstance(size, torch.SymInt) and (found := _range(size, program)) is not None:
            limits[dim] = found
        elif isinstance(size, torch.SymInt) and is_input:
            raise ExportError(
                f"dynamic_shapes: dimension {dim} of {spec.name!r} has no largest size, which a .pte needs to plan its"
                f" memory: give one, as in {{{dim}: torch.export.Dim('size', min=1, max=64)}}"
            )
    return replace(spec, dynamic={dim: (low, high) for dim, (low, high) in limits.items() if low < high})


def _range(size: torch.SymInt, program: torch.export.ExportedProgram) -> tuple[int, int] | None:
    expression = size.node.expr
    symbols = {symbol: program.range_constraints.get(symbol) for symbol in expression.free_symbols}
    if any(limits is None or not limits.upper.is_finite or limits.upper >= _UNBOUNDED for limits in symbols.values()):
        return None
    low = expression.subs({symbol: max(1, int(limits.lower)) for symbol, limits in symbols.items() if limits})
    high = expression.subs({symbol: int(limits.upper) for symbol, limits in symbols.items() if limits})
    return min(int(low), int(high)), max(int(low), int(high))


def restore_ranges(lowered: torch.export.ExportedProgram, program: torch.export.ExportedProgram) -> None:
    """Let sizes vary again as far as they did before the lowering; the memory plan goes by it.

    On the way PyTorch chooses kernels of this machine for convolutions, by conditions such as a batch below 16, and
    keeps the condition as if it were one of the program.
    """
    values = (node.meta.get("val") for node in lowered.graph.nodes)
    tensors = (x for value in values for x in (value if isinstance(value, tuple | list) else (value,)))
    sizes = (size for x in tensors if isinstance(x, torch.Tensor) for size in x.shape)
    environments = {id(s.node.shape_env): s.node.shape_env for s in sizes if isinstance(s, torch.SymInt)}
    for environment in environments.values():
        for symbol, limits in program.range_constraints.items():
            if symbol in environment.var_to_range:
                environment.var_to_range[symbol] = limits


def trace_refusal(message: str, names: Sequence[str], shapes: tuple[Sizes, ...] | None) -> str | None:
    """Return torch.export's refusal of a dynamic dimension in words; None where it is about something else.

    Args:
        message: of its exception.
        names: of the inputs.
        shapes: what may vary.
    """
    if shapes is None or "Constraints violated" not in message:
        return None
    lines = [line.strip(" -") for line in message.splitlines() if line.startswith("  - ")]
    constant = re.search(
        r"You marked (.+?) as dynamic but your code specialized it to be a constant \((\d+)\)", message
    )
    if constant is not None:
        where = _in_words(constant[1], names, shapes)
        return (
            f"dynamic_shapes: {where} cannot vary, since forward makes it the constant {constant[2]}: leave it out of"
            " dynamic_shapes, or take the size from the input, as in x.shape[0], where forward writes the number"
        )
    told = _in_words(lines[0] if lines else message, names, shapes)
    fixes = message.partition("Suggested fixes:")[2].partition("\n\n")[0].split("\n")
    suggested = "; ".join(line.strip() for line in fixes if line.strip())
    return f"dynamic_shapes: {told}" + (f" What torch.export suggests: {suggested}" if suggested else "")


def _in_words(text: str, names: Sequence[str], shapes: tuple[Sizes, ...]) -> str:
    for name, sizes in zip(names, shapes, strict=True):
        for dim, wanted in sizes.items():
            if not isinstance(wanted, _HINT) and wanted.__name__ == text:
                return f"dimension {dim} of {name!r} ({text})"

    def worded(match: re.Match[str]) -> str:
        return f"dimension {match[2]} of {names[int(match[1])]!r}"

    text = re.sub(r"L\['inputs'\]\[(\d+)\]\.size\(\)\[(\d+)\]", worded, text)
    return re.sub(r"(\w+) = (dimension \d+ of '\w+')", r"\2 (\1)", text)
