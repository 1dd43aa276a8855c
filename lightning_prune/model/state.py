"""What a model remembers from one call to the next: the buffers that its forward changes."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


@dataclass(frozen=True)
class State:
    """A buffer that a forward changes.

    Args:
        name: dense name.
        shape: its shape.
        dtype: its element type, without torch.
        first: what a sequence of calls begins with, in words.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    first: str

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(map(str, self.shape))}) {self.dtype}, first {self.first}"


def state_in(model: nn.Module, names: Iterable[str]) -> tuple[State, ...]:
    """Return what these buffers of a model hold now as that with which its state begins."""
    found = []
    for name in names:
        buffer = model.get_buffer(name).detach()
        value = buffer.flatten()[:1].tolist()
        first = "values of its own" if not value or bool((buffer != value[0]).any()) else f"{value[0]:g} throughout"
        dtype = str(buffer.dtype).removeprefix("torch.")
        found.append(State(name, tuple(buffer.shape), dtype, "zeros" if not bool(buffer.any()) else first))
    return tuple(found)


@contextmanager
def kept_state(model: nn.Module) -> Iterator[Callable[[], tuple[str, ...]]]:
    """Let the buffers of a model be after the block what they were before it, whatever ran in between.

    Args:
        model: whose forward may write into its buffers (``copy_``, ``buf[i] = x``), put others in their place
            (``self.buf = new``), or change what they hold behind autograd's back (``self.buf.data = new``).

    Yields:
        a function that names the buffers that were written since the block began, in the order of the model; also
        where what was written equals what stood there.
    """
    held = [
        (f"{path}.{name}" if path else name, module._buffers, name, buffer, buffer.detach().clone(), _mark(buffer))
        for path, module in model.named_modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and not is_lazy(buffer)
    ]

    def is_changed(now: Tensor | None, buffer: Tensor, value: Tensor, mark: tuple[int, int]) -> bool:
        if now is not buffer or _mark(buffer) != mark or (buffer.shape, buffer.dtype) != (value.shape, value.dtype):
            return True
        return not buffer.is_meta and not bool(((buffer == value) | (buffer != buffer)).all())  # NaN stays NaN

    def changed() -> tuple[str, ...]:
        return tuple(
            full for full, own, name, buffer, value, mark in held if is_changed(own.get(name), buffer, value, mark)
        )

    try:
        yield changed
    finally:
        with torch.no_grad():
            for _, own, name, buffer, value, mark in held:
                if not is_changed(own.get(name), buffer, value, mark):
                    continue
                if _mark(buffer)[1] == mark[1] and buffer.shape == value.shape and buffer.dtype == value.dtype:
                    buffer.copy_(value)  # in place: other names of this tensor see it too
                else:
                    buffer.data = value
                own[name] = buffer


@contextmanager
def assigned_in_place(model: nn.Module) -> Iterator[None]:
    """Let a buffer that the block puts another tensor in the place of (``self.buf = new``) hold its values instead.

    torch.export loses the assignment and records the writing. What has another shape or dtype stays assigned.
    """
    held = [
        (module._buffers, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    yield
    assigned = [
        (own, name, buffer, now.clone())  # all before any is written: a value may be another buffer
        for own, name, buffer in held
        if (now := own.get(name)) is not None
        and now is not buffer
        and (now.shape, now.dtype) == (buffer.shape, buffer.dtype)
    ]
    for own, name, buffer, value in assigned:
        buffer.copy_(value)
        own[name] = buffer


def outside_buffers(model: nn.Module) -> dict[str, tuple[Tensor, tuple[int, int]]]:
    """Return the tensors of a model that are no buffers, by name, each with what changes where it is written."""
    return {
        f"{path}.{name}" if path else name: (x, _mark(x))
        for path, module in model.named_modules()
        for name, x in (*vars(module).items(), *module._parameters.items())
        if isinstance(x, Tensor) and not is_lazy(x)
    }


def _mark(buffer: Tensor) -> tuple[int, int]:
    """Return what changes where a buffer is written, or is given other memory."""
    return 0 if buffer.is_inference() else buffer._version, 0 if buffer.is_meta else buffer.data_ptr()
