"""Modules whose code takes statistics over channels: when some of these go, it counts them further on, as zeros.

A mean over channels is another one over fewer of them, and so is a kernel that its layer standardises. Where no
parameter can take that up the class of the module is set to a subclass, which runs the module's own code: each mean is
divided by how many times as many channels there were, and a kernel is standardised together with the zeros that were
removed from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

KERNEL, MEAN = "kernel_counted", "mean_counted"
"""Attributes of such a module: how many inputs of its kernel, or channels in its means, are counted for each left."""


class _DividedMeans(TorchFunctionMode):
    """Divides each mean by a number."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self._number = number

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:  # noqa: ANN401
        result = func(*args, **(kwargs or {}))
        return result / self._number if func in (torch.mean, Tensor.mean) else result


class _NarrowedKernels(TorchFunctionMode):
    """Leaves the first inputs of each kernel that is as wide as stated."""

    def __init__(self, width: int, left: int) -> None:
        super().__init__()
        self._width, self._left = width, left

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:  # noqa: ANN401
        kwargs = dict(kwargs or {})
        if func in (torch.conv1d, torch.conv2d, torch.conv3d, F.linear):
            kernel = kwargs["weight"] if "weight" in kwargs else args[1]
            if kernel.shape[1] == self._width:
                kernel = kernel[:, : self._left]
            args = args[:1] if "weight" in kwargs else (args[0], kernel, *args[2:])
            kwargs |= {"weight": kernel} if "weight" in kwargs else {}
        return func(*args, **kwargs)


def settled(module: nn.Module) -> type[nn.Module]:
    """Return the class that a module needs to count what is gone: its own where all is there."""
    own = type(module)
    if issubclass(own, _Counts):
        own = own.counts_for
    counted = [name for name in (KERNEL, MEAN) if module.__dict__.get(name, 1.0) != 1.0]
    return counting(own, counted[0]) if counted else own


class _Counts(nn.Module):
    """What the subclasses share."""

    counts_for: type[nn.Module]
    counts_what: str

    def __reduce_ex__(self, protocol: Any) -> Any:  # noqa: ANN401  (pickles name the module's own class)
        return _Counts.blank, (self.counts_for, self.counts_what), *super().__reduce_ex__(protocol)[2:]

    @staticmethod
    def blank(own: type[nn.Module], what: str) -> nn.Module:
        """Return a module that has nothing yet."""
        kind = counting(own, what)
        return kind.__new__(kind)


@cache
def counting(own: type[nn.Module], what: str) -> type[nn.Module]:
    """Return the subclass that counts what was removed, of kernels or in means."""

    def divided(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        with _DividedMeans(self.mean_counted):
            return own.forward(self, *args, **kwargs)

    def narrowed(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        kernel, shown = self.weight, self.__dict__.get("weight")
        left = kernel.shape[1]
        width = round(left * self.kernel_counted)
        self.__dict__["weight"] = F.pad(kernel, (0, 0) * (kernel.dim() - 2) + (0, width - left))
        try:
            with _NarrowedKernels(width, left):
                return own.forward(self, *args, **kwargs)
        finally:
            # what a mask shows in its place stays shown
            self.__dict__.pop("weight") if shown is None else self.__dict__.update(weight=shown)

    forward = divided if what == MEAN else narrowed
    body = {"counts_for": own, "counts_what": what, "forward": forward, "__module__": __name__}
    return type(f"Counting{own.__name__}", (_Counts, own), body)
