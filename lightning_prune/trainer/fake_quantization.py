"""Layers that compute as if weights and inputs were 8-bit integers, while gradients pass as if they were not."""

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from lightning_prune.distributed import ranks

RATE = 0.01
"""Share of the newest batch in the range of a layer's input."""

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)


def quantizable(model: nn.Module, skip: Sequence[str] = ()) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers whose weight and input become 8-bit integers, by module path.

    Args:
        model: any module.
        skip: name patterns (fnmatch) of module paths, or of modules around them, that are left out.
    """
    for path, module in model.named_modules():
        parts = path.split(".")
        around = [".".join(parts[: i + 1]) for i in range(len(parts))]
        is_skipped = any(fnmatchcase(name, pattern) for name in around for pattern in skip)
        is_grouped = isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d) and module.groups > 1
        if isinstance(module, _LAYERS) and not is_skipped and not is_grouped and not is_lazy(module.weight):
            yield path, module


def fake_quantized_weight(weight: Tensor, axis: int) -> Tensor:
    """Return a weight rounded to 255 steps per output channel, symmetric, so that zeros stay zeros.

    w ↦ s · round(w / s) with s = max|w| / 127 of the channel; the gradient is that of w.

    Args:
        weight: of any shape.
        axis: of the output channels.
    """
    whole = weight.float()
    scale = whole.detach().abs().amax([d for d in range(weight.ndim) if d != axis]) / 127
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(whole, scale, zero, axis, -127, 127).to(weight.dtype)


def fake_quantized(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return a tensor rounded to 256 steps from low to high, of which zero is one; the gradient is 0 outside.

    Args:
        x: floating, of any shape.
        low: lower end of the range, at most 0.
        high: upper end of the range, at least 0.
    """
    scale = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).eps)
    zero = (-128 - low / scale).round().clamp(-128, 127).to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, -128, 127).to(x.dtype)


class FakeQuantization:
    """Two hooks on a layer: its weight and input are rounded before it runs, its own weight is back afterwards.

    A traced graph is that of the layer in float.

    Args:
        range_: lower and upper end of the input's range, shape (2,); None: not known yet.
    """

    def __init__(self, range_: Tensor | None = None) -> None:
        self.range = range_
        self.seen: Tensor | None = None
        self._handles: list[RemovableHandle] = []
        self._weight: Tensor | None = None

    def attach(self, layer: nn.Module) -> None:
        """Round in this layer from now on.

        Changes: the layer's hooks.
        """
        self.remove()
        self._handles = [
            layer.register_forward_pre_hook(self._before),
            layer.register_forward_hook(self._after, prepend=True, always_call=True),
        ]

    def is_last(self, layer: nn.Module) -> bool:
        """Whether no hook that was registered later, such as a mask's, would undo the rounding."""
        return bool(self._handles) and next(reversed(layer._forward_pre_hooks), None) == self._handles[0].id

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _before(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if torch.compiler.is_exporting():
            return inputs
        x = inputs[0]
        if layer.training and torch.is_grad_enabled() and x.numel():
            low, high = x.detach().float().aminmax()
            ends = torch.stack([low.clamp(max=0), high.clamp(min=0)])
            seen = ends if self.seen is None else self.seen
            self.seen = torch.stack([seen[0].minimum(ends[0]), seen[1].maximum(ends[1])])
        known = self.seen if self.range is None else self.range
        weight = self._weight = cast(Tensor, layer.weight)
        axis = 1 if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d) else 0
        _put(layer, fake_quantized_weight(weight, axis))
        return inputs if known is None else (fake_quantized(x, *known.to(x.device)), *inputs[1:])

    def _after(self, layer: nn.Module, inputs: object, output: object) -> None:
        if self._weight is not None:
            _put(layer, self._weight)
            self._weight = None


def _put(layer: nn.Module, weight: Tensor) -> None:
    """Let ``layer.weight`` be another tensor; a parameter keeps its place in the order of parameters."""
    # while a masked layer computes, its masked weight stands before the parameter
    table: dict[str, Any] = layer.__dict__ if "weight" in layer.__dict__ else layer._parameters
    table["weight"] = weight


def update_ranges(layers: Mapping[str, FakeQuantization]) -> None:
    """Move the range of each input towards what was seen since the last call, on the average of the ranks.

    Changes: ``range`` and ``seen``, which ends up the same on all ranks.
    """
    if not layers:
        return
    rows = [torch.zeros(3) if one.seen is None else torch.tensor([*one.seen.tolist(), 1.0]) for one in layers.values()]
    table = ranks.add_up(torch.stack(rows))
    for one, (*ends, count) in zip(layers.values(), table, strict=True):
        one.seen = None
        if count:
            newest = torch.stack(ends) / count
            one.range = newest if one.range is None else one.range + RATE * (newest - one.range)
