"""Sizes that the code of a model states, and where they come from: attributes of modules, or shapes of tensors.

While the model is traced, every int attribute of a module that is not torch's own, and every length in a shape, is an
int that knows its origin. It computes like any int, and the reshapes, splits and slices that it reaches are written
down. An int without an origin is a constant.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

SHAPED = frozenset(
    ("view", "reshape", "unflatten", "split", "split_with_sizes", "layer_norm", "rms_norm", "group_norm")
)

ZEROS = frozenset(("zeros", "new_zeros"))
"""Functions that make zeros, which are the same at any size; ones would not be zero where a channel is removed."""

Axis = tuple[int, int]
"""Identity of a tensor, and one of its axes."""

Held = int | tuple[int, ...]
"""An attribute that holds a size: an int, or a tuple of one such as ``normalized_shape``."""

Key = tuple[str, tuple[int, ...]]
"""Path of the module whose forward makes the call, and the sizes that it states."""

Sizes = Mapping[Key, tuple[int, ...]]

_AS_FLOATS: dict[int, set[str | None]] = {}
"""Sizes of which the code makes floats, such as the root that divides scores -> attributes; None is a shape."""

END = sys.maxsize
"""The end of a slice that has none."""


class Size(int):
    """An int that is proportional to lengths of axes or to attributes.

    Attributes:
        attributes: value by path, e.g. ``{"block.attention.num_heads": 4}``; empty for what comes from shapes alone.
        axis: the axis of a tensor that it is the length of; None for what was computed or comes from attributes.
    """

    attributes: Mapping[str, int]
    axis: Axis | None

    @classmethod
    def of(cls, value: int, attributes: Mapping[str, int], axis: Axis | None = None) -> Size:
        """Return the value as a size that comes from these attributes, or from a shape."""
        size = cls(value)
        size.attributes, size.axis = attributes, axis
        return size

    def __mul__(self, other: Any) -> Any:  # noqa: ANN401
        product = int.__mul__(self, other)
        others = other.attributes if isinstance(other, Size) else {}
        return product if product is NotImplemented else Size.of(product, {**self.attributes, **others})

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:  # noqa: ANN401
        quotient = int.__floordiv__(self, other)
        if quotient is NotImplemented or quotient * other != int(self):
            return quotient
        if isinstance(other, Size):
            return Quotient.of(quotient, self, other) if other.attributes else quotient
        return Size.of(quotient, self.attributes) if type(other) is int else quotient

    def __sub__(self, other: Any) -> Any:  # noqa: ANN401
        is_of_shapes = isinstance(other, Size) and not self.attributes and not other.attributes
        difference = int.__sub__(self, other)
        return Size.of(difference, {}) if is_of_shapes else difference

    def __pow__(self, exponent: Any, modulus: int | None = None) -> Any:  # noqa: ANN401
        return int.__pow__(self, exponent) if isinstance(exponent, int) and exponent >= 0 else float(self) ** exponent

    def __float__(self) -> float:
        _AS_FLOATS.setdefault(int(self), set()).update(self.attributes or (None,))
        return float(int(self))

    def __neg__(self) -> Size:
        return Size.of(int.__neg__(self), self.attributes)

    def __deepcopy__(self, memo: object) -> Size:
        return self

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)


class Quotient(int):
    """An int that one size is over another one: it is a constant only while both change in proportion.

    Attributes:
        over: attributes of the numerator, as in :class:`Size`; empty for a length of a tensor.
        under: attributes of the denominator.
        axis: the axis that the numerator is the length of, as in :class:`Size`.
    """

    over: Mapping[str, int]
    under: Mapping[str, int]
    axis: Axis | None

    @classmethod
    def of(cls, value: int, over: Size, under: Size) -> Quotient:
        """Return the value as such a quotient."""
        quotient = cls(value)
        quotient.over, quotient.under, quotient.axis = over.attributes, under.attributes, over.axis
        return quotient

    def is_length_of(self, tensor: object) -> bool:
        """Tell whether the numerator is the length of an axis of this very tensor."""
        return self.axis is not None and self.axis[0] == id(tensor)

    def __deepcopy__(self, memo: object) -> Quotient:
        return self

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)


class Recorder(TorchFunctionMode):
    """Writes down which sizes reach the reshapes, splits and slices of each module.

    Attributes:
        sizes: the sizes of each call that are not all constants.
        as_floats: sizes of which the code makes floats -> attributes that they come from; None is a shape.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[Key, tuple[int, ...]] = {}
        self.as_floats: dict[int, set[str | None]] = {}
        self._running: list[str] = [""]
        # Kept alive, so that no identity is given to a second tensor while sizes refer to the first.
        self._measured: list[Any] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        name, tensor = getattr(func, "__name__", ""), next(iter(args), None)
        if name in SHAPED:
            stated = list(args[1:])
            if name.startswith("split") or name.endswith("norm"):
                stated = stated[:1]
            elif name == "unflatten":
                stated = stated[1:]
            stated += [value for key, value in kwargs.items() if key != "dim"]
            self._note(tuple(_ints(stated)), tensor)
        elif name in ZEROS:
            self._note(tuple(_ints([args[name == "new_zeros" :], kwargs.get("size")])))
        elif name == "__getitem__":
            for one in args[1] if isinstance(args[1], tuple) else (args[1],):
                if isinstance(one, slice):
                    self._note(bounds(one.start, one.stop))
        result = func(*args, **kwargs)
        if isinstance(result, torch.Size):
            self._measured.append(tensor)
            return torch.Size([_of_shape(length, (id(tensor), axis)) for axis, length in enumerate(result)])
        if name == "size" and isinstance(tensor, torch.Tensor):
            self._measured.append(tensor)
            axis = int(kwargs["dim"] if "dim" in kwargs else args[-1]) % tensor.dim()
            return _of_shape(result, (id(tensor), axis))
        return result

    def _note(self, stated: tuple[int, ...], reshaped: Any = None) -> None:  # noqa: ANN401
        if any(isinstance(size, Size) for size in stated):
            beside = {path for size in stated if isinstance(size, Size) for path in size.attributes}
            # t.reshape(b, n, heads, c // heads) with b, n, c = t.shape, as rearranging functions write it, means
            # t.reshape(b, n, heads, -1): whatever becomes of the heads and of c, the last axis gets what is left.
            are_left = [
                isinstance(size, Quotient) and size.is_length_of(reshaped) and beside.issuperset(size.under)
                for size in stated
            ]
            key = self._running[-1], tuple(map(int, stated))
            sizes = tuple(-1 if is_left else size for is_left, size in zip(are_left, stated, strict=True))
            # heads of queries, and repeated ones of keys, may be of one number: the code states it by either
            self.sizes[key] = tuple(
                Size.of(size, {**known.attributes, **size.attributes}, size.axis)
                if isinstance(size, Size) and isinstance(known, Size)
                else size
                for size, known in zip(sizes, self.sizes.get(key, sizes), strict=True)
            )

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Let the sizes of the model know their origin while the block runs."""
        plain: list[tuple[dict[str, Any], str, Held]] = []
        handles = []
        for path, module in model.named_modules():
            enter, leave = partial(self._enter, path), self._leave
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
            for name, value in _sizes_held(module):
                where, length = f"{path}.{name}" if path else name, value[0] if isinstance(value, tuple) else value
                size = Size.of(length, {where: length})
                plain.append((module.__dict__, name, value))
                module.__dict__[name] = (size,) if isinstance(value, tuple) else size
        _AS_FLOATS.clear()
        try:
            with self, _without_cache():
                yield
        finally:
            self.as_floats = {size: set(origins) for size, origins in _AS_FLOATS.items()}
            for attributes, name, value in plain:
                # An attribute that the forward has set anew keeps what it was set to.
                now = attributes.get(name)
                if isinstance(now[0] if isinstance(now, tuple) and now else now, Size):
                    attributes[name] = value
            for handle in handles:
                handle.remove()

    def _enter(self, path: str, *_: object) -> None:
        self._running.append(path)

    def _leave(self, *_: object) -> None:
        self._running.pop()


@contextmanager
def _without_cache() -> Iterator[None]:
    # einops (read in 0.8.2) computes the shapes of a pattern in a function behind functools.lru_cache. Sizes are equal
    # and hashed as any int, so that two attentions of one width would share the sizes of the first.
    einops: Any = sys.modules.get("einops.einops")
    cached = getattr(einops, "_reconstruct_from_shape", None)
    if einops is None or cached is None:
        yield
        return
    einops._reconstruct_from_shape = getattr(cached, "__wrapped__", cached)
    try:
        yield
    finally:
        einops._reconstruct_from_shape = cached


def bounds(start: Any, stop: Any) -> tuple[int, ...]:  # noqa: ANN401
    """Return the bounds of a slice as ints; () where one of them is none."""
    pair = (0 if start is None else start, END if stop is None else stop)
    return pair if all(isinstance(bound, int) for bound in pair) else ()


def are_origins_known(stated: tuple[int, ...]) -> bool:
    """Tell whether none of the sizes is a constant; 0, 1, -1 and the end of a slice are none."""
    return bool(stated) and all(isinstance(size, Size) or size in (-1, 0, 1, END) for size in stated)


def own_attributes(stated: tuple[int, ...]) -> list[frozenset[str]]:
    """Return the attributes of each size, as long as sizes of other attributes lack one of them; () where not."""
    kinds = [frozenset(size.attributes) if isinstance(size, Size) else frozenset[str]() for size in stated]
    others = [frozenset[str]().union(*(other for other in kinds if other != kind)) for kind in kinds]
    return kinds if all(kind - other for kind, other in zip(kinds, others, strict=True)) else []


def _of_shape(length: Any, axis: Axis) -> Any:  # noqa: ANN401
    return Size.of(length, {}, axis) if type(length) is int else length


def _sizes_held(module: nn.Module) -> list[tuple[str, Held]]:
    """Return the attributes that may hold a size; of torch's own layers those that no tensor tells."""
    held: list[tuple[str, Held]] = []
    for name, value in module.__dict__.items():
        length = value[0] if type(value) is tuple and len(value) == 1 else value
        if type(length) is int and length > 1:
            held.append((name, value))
    if not type(module).__module__.startswith("torch."):
        return held
    is_bare_norm = isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and not module.elementwise_affine
    untold = "normalized_shape" if is_bare_norm else "num_groups" if isinstance(module, nn.GroupNorm) else ""
    return [(name, value) for name, value in held if name == untold]


def _ints(value: Any) -> Iterator[int]:  # noqa: ANN401
    if isinstance(value, int):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _ints(one)
