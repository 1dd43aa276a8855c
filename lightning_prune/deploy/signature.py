"""Names, shapes and dtypes of what goes into a program and comes out of it."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_prune.errors import ExportError


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    Args:
        name: of the argument of ``forward`` or of the key in what it returns.
        shape: sizes, batch dimension included.
        dtype: element type.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.name} {describe_shape(self.shape)} {dtype_name(self.dtype)}"

    def to_json(self) -> dict[str, Any]:
        """Return ``{"name", "shape", "dtype"}`` of plain values."""
        return {"name": self.name, "shape": list(self.shape), "dtype": dtype_name(self.dtype)}


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


def input_names(model: nn.Module, count: int) -> list[str]:
    """Return the names of the first ``count`` positional arguments of ``forward``; ``*args`` give args_0, args_1."""
    names: list[str] = []
    for parameter in inspect.signature(model.forward).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}_{i}" for i in range(count - len(names))]
        elif parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
    return names[:count]


def flatten_outputs(outputs: object) -> dict[str, Tensor]:
    """Return the tensors in what a model returned, by name and in the order in which a program gives them.

    Args:
        outputs: a tensor (named ``output``) or a tuple, list, named tuple or dict of such, nested at will; keys and
            field names become names, positions ``output_0``; levels are joined by a dot.

    Raises:
        ExportError: something in it is no tensor.
    """
    named: dict[str, Tensor] = {}
    for path, leaf in pytree.tree_flatten_with_path(outputs)[0]:
        name = _name(path)
        if not isinstance(leaf, Tensor):
            raise ExportError(
                f"output {name!r} is a {type(leaf).__name__}, and a .pte gives only tensors: return tensors, or a"
                " tuple, list or dict of them (wrap the model in a module whose forward leaves the rest out)"
            )
        named[name if name not in named else f"{name}_{len(named)}"] = leaf
    if not named:
        raise ExportError("the model returns no tensor: nothing to export")
    return named


def _name(path: Sequence[object]) -> str:
    parts = [_part(key) for key in path]
    if not parts or isinstance(path[0], pytree.SequenceKey):
        parts[:1] = ["_".join(["output", *parts[:1]])]
    return ".".join(parts)


def _part(key: object) -> str:
    match key:
        case pytree.SequenceKey(idx=index):
            return str(index)
        case pytree.MappingKey(key=name):
            return str(name)
        case pytree.GetAttrKey(name=name):
            return name
    return str(key)


def check_labels(labels: Sequence[str] | None, outputs: Mapping[str, Tensor]) -> tuple[str, ...] | None:
    """Return the labels as a tuple if they fit the first output of shape (N, classes).

    Raises:
        ValueError: their count is not the number of classes.
    """
    if labels is None:
        return None
    name, first = next(iter(outputs.items()))
    if first.ndim == 2 and first.shape[1] != len(labels):
        raise ValueError(
            f"labels: got {len(labels)} for output {name!r} of shape {describe_shape(first.shape)}; give one label per"
            f" class, {first.shape[1]} in all"
        )
    return tuple(labels)
