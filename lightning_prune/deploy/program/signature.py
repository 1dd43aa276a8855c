"""Names, shapes and dtypes of what goes into a program and comes out of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_prune.deploy.program.structure import named_leaves
from lightning_prune.errors import ExportError

Sides = Sequence[Any]
"""Largest shape, and name of the element type, of an input or an output."""

DTYPES = {
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
    "bool": torch.bool,
    "bfloat16": torch.bfloat16,
}
"""Element types that a program takes or gives, by the name that the manifest uses."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    Args:
        name: of the argument of ``forward`` or of the key in what it returns.
        shape: sizes, batch dimension included; of the example where a size may vary.
        dtype: element type.
        dynamic: dimension -> smallest and largest size, for those that may vary.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    dynamic: Mapping[int, tuple[int, int]] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return f"{self.name} {self.shape_text()} {dtype_name(self.dtype)}"

    def shape_text(self) -> str:
        """Return the shape in words, a size that may vary as its range: ``(1…8, 3, 32, 32)``."""
        return describe_shape(self.size_texts())

    def size_texts(self) -> list[str]:
        """Return the size of each dimension in words: ``3`` or ``1…8``."""
        return [str(low) if low == high else f"{low}…{high}" for low, high in self._ranges()]

    def range_of(self, dimension: int) -> tuple[int, int]:
        """Return the smallest and the largest size of a dimension, equal where it is fixed."""
        return self.dynamic.get(dimension, (self.shape[dimension], self.shape[dimension]))

    def takes(self, tensor: Tensor) -> bool:
        """Whether a tensor has this dtype and a shape in range."""
        return (
            tensor.dtype == self.dtype
            and tensor.ndim == len(self.shape)
            and all(low <= n <= high for n, (low, high) in zip(tensor.shape, self._ranges(), strict=True))
        )

    def _ranges(self) -> Iterable[tuple[int, int]]:
        return (self.range_of(i) for i in range(len(self.shape)))

    def to_json(self) -> dict[str, Any]:
        """Return ``{"name", "shape", "dtype"}`` of plain values, and ``"dynamic"`` where a size may vary."""
        dynamic = {str(i): list(limits) for i, limits in sorted(self.dynamic.items())}
        plain = {"name": self.name, "shape": list(self.shape), "dtype": dtype_name(self.dtype)}
        return plain | ({"dynamic": dynamic} if dynamic else {})


def holds(dtype: torch.dtype, number: float) -> bool:
    """Whether a tensor of this type can hold a number, rounded where it is of floats."""
    if dtype == torch.bool:
        return number in (0, 1)
    limits = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    return limits.min <= number <= limits.max and (dtype.is_floating_point or number == int(number))


@dataclass(frozen=True)
class Feed:
    """An output that is an input of the next call.

    Args:
        input: name of the input.
        output: name of the output.
        first: number that the input holds throughout at the first call.
    """

    input: str
    output: str
    first: float = 0.0

    def __str__(self) -> str:
        return f"{self.output} into {self.input}, first {self.first:g}"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return {"input": self.input, "output": self.output, "first": self.first}


@dataclass(frozen=True)
class MethodSpec:
    """What a method of a program takes and gives, in the order of the call.

    Args:
        inputs: that it takes.
        outputs: that it gives.
        feeds: which of these are inputs of the next call, in the order of the inputs.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    feeds: tuple[Feed, ...] = ()


def takes(inputs: Sequence[TensorSpec], values: Sequence[object]) -> bool:
    """Whether values are tensors that these inputs take, as many and in order."""
    return len(values) == len(inputs) and all(
        isinstance(x, Tensor) and each.takes(x) for each, x in zip(inputs, values, strict=True)
    )


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name without torch: ``float32``."""
    return str(dtype).removeprefix("torch.")


def describe_shape(shape: Sequence[int | str]) -> str:
    """Return ``(1, 3, 8, 8)`` for any sequence of sizes."""
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def describe(tensors: Sequence[object]) -> str:
    """Return shapes and dtypes of tensors in words, anything else by its type."""
    return ", ".join(
        f"{describe_shape(x.shape)} {dtype_name(x.dtype)}" if isinstance(x, Tensor) else type(x).__name__
        for x in tensors
    )


def specs(names: Sequence[str], tensors: Sequence[Tensor]) -> tuple[TensorSpec, ...]:
    """Return one spec per tensor, in order."""
    return tuple(TensorSpec(n, tuple(t.shape), t.dtype) for n, t in zip(names, tensors, strict=True))


def flatten_outputs(outputs: object) -> dict[str, Tensor]:
    """Return the tensors in what a model returned, by name and in the order in which a program gives them.

    Args:
        outputs: a tensor (named ``output``) or a tuple, list, named tuple, dict or dataclass of such, nested at will;
            keys and field names become names, positions ``output_0``; levels are joined by a dot.

    Raises:
        ExportError: something in it is no tensor.
    """
    parts = [("", outputs)]
    if isinstance(outputs, tuple | list) and not hasattr(outputs, "_fields"):
        parts = [(f"output_{i}", part) for i, part in enumerate(outputs)]
    named: dict[str, Tensor] = {}
    for path, leaf in (leaf for name, part in parts for leaf in named_leaves(part, name)):
        name = path or "output"
        if not isinstance(leaf, Tensor):
            raise ExportError(
                f"output {name!r} is a {type(leaf).__name__}, and a .pte gives only tensors: return tensors, or a"
                " tuple, list, dict or dataclass of them (wrap the model in a module whose forward leaves the rest out)"
            )
        named[name if name not in named else f"{name}_{len(named)}"] = leaf
    if not named:
        raise ExportError("the model returns no tensor: nothing to export")
    return named


def check_labels(labels: Sequence[str] | None, outputs: Sequence[TensorSpec]) -> None:
    """Check that labels fit the first output of shape (N, classes).

    Raises:
        ValueError: there are none, or their count is not the number of classes.
    """
    if labels is None:
        return
    first = outputs[0]
    if not labels or (len(first.shape) == 2 and first.shape[1] != len(labels)):
        wanted = f"give one label per class, {first.shape[1]} in all" if len(first.shape) == 2 else "give at least one"
        raise ValueError(
            f"labels: got {len(labels)} for output {first.name!r} of shape {describe_shape(first.shape)}; {wanted}"
        )


def check_methods_told(path: Path, told: Iterable[str], methods: Iterable[str]) -> None:
    """Refuse a .pte whose methods that take something are others than those that are said of it."""
    if set(told) != set(methods):
        raise ExportError(
            f"{path} has the methods {', '.join(methods) or 'none'}, which is not what is said of it"
            f" ({', '.join(told)}): export the model again"
        )


def check_told(path: Path, spec: MethodSpec, inputs: Sequence[Sides], outputs: Sequence[Sides]) -> None:
    """Refuse a .pte whose method takes or gives something else than is said of it.

    Args:
        path: of the file, for the error.
        spec: what is said.
        inputs: largest shape and dtype of each, as the file has them.
        outputs: the same; where sizes vary they are bounds, and none of what is said may be above.
    """
    varies = any(one.dynamic for one in (*spec.inputs, *spec.outputs))
    is_so = [len(side) for side in (inputs, outputs)] == [len(spec.inputs), len(spec.outputs)]
    for told, found, is_bound in ((spec.inputs, inputs, False), (spec.outputs, outputs, varies)):
        for one, (shape, dtype) in zip(told, found, strict=False):
            largest = [one.range_of(dim)[1] for dim in range(len(one.shape))]
            is_so &= (dtype_name(one.dtype), len(largest)) == (dtype, len(shape))
            is_so &= all(n <= bound if is_bound else n == bound for n, bound in zip(largest, shape, strict=False))
    if not is_so:
        takes, gives = (", ".join(f"{describe_shape(s)} {dtype}" for s, dtype in each) for each in (inputs, outputs))
        raise ExportError(
            f"{path} takes {takes or 'no input'} and gives {gives or 'no output'}, which is not what is said of it"
            f" ({', '.join(map(str, spec.inputs))}; {', '.join(map(str, spec.outputs))}): export the model again"
        )
