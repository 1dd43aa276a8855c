"""Sizes that the code of a model states, and where they come from: attributes of modules, or shapes of tensors.

While the model is traced, every int attribute of a module that is not torch's own, and every length in a shape, is an
int that knows its origin. It computes like any int, and the reshapes, splits and slices that it reaches are written
down. An int without an origin is a constant.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

SHAPED = frozenset(("view", "reshape", "unflatten", "split", "split_with_sizes"))

Key = tuple[str, tuple[int, ...]]
"""Path of the module whose forward makes the call, and the sizes that it states."""

Sizes = Mapping[Key, tuple[int, ...]]

END = sys.maxsize
"""The end of a slice that has none."""


class Size(int):
    """An int that is proportional to lengths of axes or to attributes.

    Attributes:
        attributes: value by path, e.g. ``{"block.attention.num_heads": 4}``; empty for what comes from shapes alone.
    """

    attributes: Mapping[str, int]

    @classmethod
    def of(cls, value: int, attributes: Mapping[str, int]) -> Size:
        """Return the value as a size that comes from these attributes, or from a shape."""
        size = cls(value)
        size.attributes = attributes
        return size

    def __mul__(self, other: Any) -> Any:  # noqa: ANN401
        product = int.__mul__(self, other)
        others = other.attributes if isinstance(other, Size) else {}
        return product if product is NotImplemented else Size.of(product, {**self.attributes, **others})

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:  # noqa: ANN401
        quotient = int.__floordiv__(self, other)
        is_plain = type(other) is int and quotient is not NotImplemented and quotient * other == int(self)
        return Size.of(quotient, self.attributes) if is_plain else quotient

    def __sub__(self, other: Any) -> Any:  # noqa: ANN401
        is_of_shapes = isinstance(other, Size) and not self.attributes and not other.attributes
        difference = int.__sub__(self, other)
        return Size.of(difference, {}) if is_of_shapes else difference

    def __neg__(self) -> Size:
        return Size.of(int.__neg__(self), self.attributes)

    def __deepcopy__(self, memo: object) -> Size:
        return self

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)


class Recorder(TorchFunctionMode):
    """Writes down which sizes reach the reshapes, splits and slices of each module.

    Attributes:
        sizes: the sizes of each call that are not all constants.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[Key, tuple[int, ...]] = {}
        self._running: list[str] = [""]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in SHAPED:
            self._note(tuple(_ints(_without_dim(name, args, kwargs))))
        elif name == "__getitem__":
            for one in args[1] if isinstance(args[1], tuple) else (args[1],):
                if isinstance(one, slice):
                    self._note(bounds(one.start, one.stop))
        result = func(*args, **kwargs)
        if isinstance(result, torch.Size):
            return torch.Size([_of_shape(length) for length in result])
        return _of_shape(result) if name == "size" else result

    def _note(self, stated: tuple[int, ...]) -> None:
        if any(isinstance(size, Size) for size in stated):
            self.sizes[self._running[-1], tuple(map(int, stated))] = stated

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Let the sizes of the model know their origin while the block runs."""
        plain: list[tuple[dict[str, Any], str, int]] = []
        handles = []
        for path, module in model.named_modules():
            handles += [module.register_forward_pre_hook(self._enter(path)), module.register_forward_hook(self._leave)]
            if not type(module).__module__.startswith("torch."):
                plain += [(module.__dict__, name, value) for name, value in module.__dict__.items() if _is_size(value)]
                for name, value in list(module.__dict__.items()):
                    if _is_size(value):
                        where = f"{path}.{name}" if path else name
                        module.__dict__[name] = Size.of(value, {where: value})
        try:
            with self:
                yield
        finally:
            for attributes, name, value in plain:
                if isinstance(attributes.get(name), Size):
                    attributes[name] = value
            for handle in handles:
                handle.remove()

    def _enter(self, path: str) -> Callable[..., None]:
        return lambda *_: self._running.append(path)

    def _leave(self, *_: object) -> None:
        self._running.pop()


def bounds(start: Any, stop: Any) -> tuple[int, ...]:  # noqa: ANN401
    """Return the bounds of a slice as ints; () where one of them is none."""
    pair = (0 if start is None else start, END if stop is None else stop)
    return pair if all(isinstance(bound, int) for bound in pair) else ()


def are_origins_known(stated: tuple[int, ...]) -> bool:
    """Tell whether none of the sizes is a constant; 0, 1, -1 and the end of a slice are none."""
    return bool(stated) and all(isinstance(size, Size) or size in (-1, 0, 1, END) for size in stated)


def have_own_attributes(stated: tuple[int, ...]) -> bool:
    """Tell whether each of the sizes comes from attributes of its own."""
    paths = [path for size in stated if isinstance(size, Size) for path in size.attributes]
    return len(set(paths)) == len(paths) and all(isinstance(size, Size) and size.attributes for size in stated)


def _of_shape(length: Any) -> Any:  # noqa: ANN401
    return Size.of(length, {}) if type(length) is int else length


def _is_size(value: object) -> bool:
    return type(value) is int and value > 1


def _without_dim(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Return the arguments that are sizes."""
    given = list(args[1:])
    if name.startswith("split"):
        given = given[:1]
    elif name == "unflatten":
        given = given[1:]
    return given + [value for key, value in kwargs.items() if key != "dim"]


def _ints(value: Any) -> Iterator[int]:  # noqa: ANN401
    if isinstance(value, int):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _ints(one)
