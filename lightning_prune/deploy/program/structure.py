"""Structured arguments and outputs of a method: dicts, named tuples, dataclasses, and the flat tensors of a program."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_prune.model.example import TARGETS, Example, renaming, walked

_PLAIN = (type(None), bool, int, float, str)
"""What stands beside the tensors and becomes part of the program."""


def named_leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    """Yield what stands in nested containers and dataclasses, in order, each by the keys on its way joined by a dot.

    A field of a dataclass that is None is left out, as transformers' outputs have many.
    """
    parts: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping):  # before dataclasses: the outputs of transformers are both
        parts = value.items()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        parts = ((key, part) for key, part in fields if part is not None)
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = zip(value._fields, value, strict=True)  # pyright: ignore[reportAttributeAccessIssue]
    elif isinstance(value, tuple | list):
        parts = enumerate(value)
    elif pytree.tree_is_leaf(value):
        yield name, value
        return
    else:  # a class that torch was told how to take apart
        parts = enumerate(pytree.tree_flatten(value, is_leaf=lambda part: part is not value)[0])
    for key, part in parts:
        yield from named_leaves(part, f"{name}.{key}" if name else str(key))


@dataclass(frozen=True)
class Arguments:
    """The arguments of a method, by which the inputs of a program find their places.

    Args:
        example: all of them, in the order of the signature.
        names: of the tensors in them, in order: ``audio``, ``batch.x``, ``args_0``.
    """

    example: Example
    names: tuple[str, ...]

    @classmethod
    def of(cls, function: Callable[..., Any], example: Example, method: str = "forward") -> "Arguments":
        """Return an example as a method takes it.

        Args:
            function: a method, or a module whose ``forward`` is meant.
            example: its arguments; a dict that does not fit as keyword arguments is taken for a single one.
            method: its name, in errors.

        Raises:
            TypeError: it does not take them, or one is neither a tensor nor a plain value nor a container of them.
        """
        for index, value in enumerate(example.args):
            if type(value) in (int, float):
                raise _no_tensor(f"example_inputs[{index}]", value, method)
        signature = inspect.signature(function.forward if isinstance(function, nn.Module) else function)
        try:
            bound = signature.bind(*example.args, **example.kwargs)
        except TypeError:
            if example.args or not example.kwargs:
                raise
            bound = signature.bind(dict(example.kwargs))
        leaves = list[tuple[str, Any]]()
        for name, value in bound.arguments.items():
            match signature.parameters[name].kind:
                case inspect.Parameter.VAR_POSITIONAL:
                    leaves += [leaf for i, part in enumerate(value) for leaf in named_leaves(part, f"{name}_{i}")]
                case inspect.Parameter.VAR_KEYWORD:
                    leaves += named_leaves(value)
                case _:
                    leaves += named_leaves(value, name)
        for name, value in leaves:
            if not isinstance(value, (Tensor, *_PLAIN)):
                raise _no_tensor(f"example_inputs: {name}", value, method)
        ordered = cls(Example(bound.args, bound.kwargs), tuple(n for n, x in leaves if isinstance(x, Tensor)))
        if len(ordered.tensors) != len(ordered.names):
            raise TypeError(
                f"example_inputs: {method} takes an object of a class that is neither a container nor a dataclass: pass"
                " its tensors in a dict, a named tuple or a dataclass"
            )
        return ordered

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors in them, in order."""
        tensors = list[Tensor]()
        walked(self.example, lambda x: tensors.append(x) or x)
        return tuple(tensors)

    @property
    def fixed(self) -> dict[str, Any]:
        """What is no tensor, and therefore part of the program, by name; what is None is left out."""
        arguments = [*enumerate(self.example.args), *self.example.kwargs.items()]
        leaves = (leaf for key, value in arguments for leaf in named_leaves(value, str(key)))
        return {name: x for name, x in leaves if x is not None and not isinstance(x, Tensor)}

    def filled(self, tensors: Sequence[Tensor]) -> Example:
        """Return the arguments with other tensors in their places."""
        left = iter(tensors)
        return cast(Example, walked(self.example, lambda _: next(left)))


def _no_tensor(what: str, value: object, method: str) -> TypeError:
    return TypeError(
        f"{what} is a {type(value).__name__}: pass one tensor per positional argument of {method}, or a dict of its"
        " keyword arguments; tensors may stand in dicts, tuples and dataclasses, beside plain values by keyword"
    )


def shaped(function: Callable[..., Any], names: Sequence[str], tensors: Sequence[Tensor]) -> Example:
    """Return the tensors of a program as its method takes them, as far as their names tell: by keyword and in dicts."""
    parameters = inspect.signature(function.forward if isinstance(function, nn.Module) else function).parameters
    tops = [name.partition(".")[0] for name in names]
    by_keyword = any(top in parameters and parameters[top].kind is inspect.Parameter.KEYWORD_ONLY for top in tops)
    if not by_keyword and tops == list(names):
        return Example(tuple(tensors))
    arguments: dict[str, Any] = {}
    for name, tensor in zip(names, tensors, strict=True):
        *way, last = name.split(".")
        place = arguments
        for key in way:
            place = place.setdefault(key, {})
        place[last] = tensor
    return Example((), {name: _listed(value) for name, value in arguments.items()})


def _listed(value: Any) -> Any:  # noqa: ANN401
    """Return dicts whose keys are positions as tuples."""
    if not isinstance(value, dict):
        return value
    inside = {key: _listed(part) for key, part in value.items()}
    return tuple(inside.values()) if list(inside) == list(map(str, range(len(inside)))) else inside


def is_record(value: object) -> bool:
    """Whether the parts of a value have names."""
    return isinstance(value, Mapping) or hasattr(value, "_fields") or dataclasses.is_dataclass(value)


def by_name(record: object, names: Sequence[str]) -> dict[str, Any] | None:
    """Return the inputs in a record, by their own names there and in the order of the program; None where one misses.

    An input ``batch.x`` is ``batch.x`` or, where the record is the batch, ``x``.
    """
    leaves = dict(named_leaves(record))
    for known in (list(names), [name.partition(".")[2] for name in names]):
        if all(name in leaves for name in known):
            return {name: leaves[name] for name in known}
    return None


def misnamed(record: Any, names: Sequence[str], what: str) -> ValueError:  # noqa: ANN401
    """Return the error for a record in which :func:`by_name` misses an input."""
    held = [name for name, _ in named_leaves(record)]
    line = renaming(held, names) if isinstance(record, Mapping) and held == [*record] else ""
    return ValueError(
        f"{what} holds {', '.join(held)}, the inputs are {', '.join(names)}: name them as the arguments of the"
        f" method{f', such as {line}' if line else ''}"
    )


def flat_inputs(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the tensors of a call in the order of a program's inputs; those that are named by their names."""
    record = kwargs if not args else args[0] if len(args) == 1 and not kwargs else None
    if record is not None and is_record(record) and (inputs := by_name(record, names)) is not None:
        return tuple(inputs.values())
    named, free = dict(named_leaves(kwargs)), [leaf for _, leaf in named_leaves(list(args))]
    unnamed = [name for name in names if name not in named]
    if not named or not named.keys() <= set(names) or len(free) != len(unnamed):
        return *free, *named.values()
    named |= dict(zip(unnamed, free, strict=True))
    return tuple(named[name] for name in names)


@dataclass(frozen=True)
class Records:
    """A loader whose inputs are tuples in the order of a program, where its batches are dicts or other records.

    Args:
        names: of the program's inputs.
        loader: of batches: inputs, or ``(inputs, targets)``. A record that holds more than the inputs holds the
            targets too: as what is left, or under a name such as ``target`` or ``labels``.
        where: of the loader, in errors.
    """

    names: Sequence[str]
    loader: Iterable[Any]
    where: str

    def __iter__(self) -> Iterator[Any]:
        return map(self._converted, self.loader)

    def _converted(self, batch: Any) -> Any:  # noqa: ANN401
        is_pair = isinstance(batch, tuple | list) and len(batch) > 0 and is_record(batch[0])
        record = batch[0] if is_pair else batch  # pyright: ignore[reportGeneralTypeIssues]
        if not is_record(record):
            return batch
        inputs = by_name(record, self.names)
        if inputs is None and isinstance(record, tuple):
            return batch  # a named tuple of inputs and targets
        if inputs is None:
            raise misnamed(record, self.names, f"{self.where}: a batch")
        if is_pair:
            return tuple(inputs.values()), *batch[1:]
        rest = {name: leaf for name, leaf in named_leaves(record) if name not in inputs}
        targets = [rest[name] for name in TARGETS if name in rest] if len(rest) > 1 else list(rest.values())
        return tuple(inputs.values()), *targets[:1]
