"""torchvision's attentions over windows, which tell the width of a head by that of their input, with fewer heads.

``C // num_heads`` in the code of Swin, and ``reshape(B, G, P, D)`` in that of MaxViT, hold for all heads alone. As with
``nn.MultiheadAttention`` the class is set to a subclass with another forward; torchvision is not imported for it.
"""

from __future__ import annotations

import importlib
import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SWIN, _MAXVIT = "torchvision.models.swin_transformer", "torchvision.models.maxvit"
_PROJECTIONS = {
    "ShiftedWindowAttention": (_SWIN, "qkv", "proj"),
    "ShiftedWindowAttentionV2": (_SWIN, "qkv", "proj"),
    "RelativePositionalMultiHeadAttention": (_MAXVIT, "to_qkv", "merge"),
}
"""Name of each class -> its module, and its layers that project to query, key and value, and out of the heads."""


def torchvisions_own(kind: type[nn.Module]) -> type[nn.Module] | None:
    """Return which of torchvision's attentions a class is, or computes as with fewer heads; None: neither."""
    if kind.__module__ == __name__:
        return kind.__bases__[0]
    return kind if _PROJECTIONS.get(kind.__name__, ("",))[0] == kind.__module__ else None


def settled(module: nn.Module, own: type[nn.Module]) -> type[nn.Module]:
    """Return the class that the sizes of one of torchvision's attentions ask for: its own while all heads are there."""
    into, out = (module.get_parameter(f"{layer}.weight").shape for layer in _PROJECTIONS[own.__name__][1:])
    is_whole = into[0] == 3 * into[1] and out[0] == out[1]
    return own if is_whole else resizable(own)


@cache
def resizable(own: type[nn.Module]) -> type[nn.Module]:
    """Return the subclass that computes the same with as many heads as its tensors hold."""
    forward = _in_groups if own.__module__ == _MAXVIT else _in_shifted_windows
    return type(f"Resizable{own.__name__}", (own,), {"__module__": __name__, "forward": forward})


def __getattr__(name: str) -> type[nn.Module]:
    """Let pickles name these classes, which are made when the first one is needed."""
    own = name.removeprefix("Resizable")
    if own == name or own not in _PROJECTIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return resizable(getattr(importlib.import_module(_PROJECTIONS[own][0]), own))


def _in_groups(self: Any, x: Tensor) -> Tensor:  # noqa: ANN401
    """MaxViT: (batch, groups, places, channels), with a bias for each pair of places."""
    q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(2, 3) for part in self.to_qkv(x).chunk(3, -1))
    scores = q @ (k * self.scale_factor).transpose(-2, -1) + self.get_relative_positional_bias()
    return self.merge((scores.softmax(-1) @ v).transpose(2, 3).flatten(3))


def _in_shifted_windows(self: Any, x: Tensor) -> Tensor:  # noqa: ANN401
    """Swin: (batch, height, width, channels), padded to whole windows; the second version compares by cosine."""
    size, window = x.shape[1:3], self.window_size
    x = F.pad(x, (0, 0, 0, -size[1] % window[1], 0, -size[0] % window[0]))
    padded = x.shape[1:3]
    # no -1 but for the heads: sizes are known again by their values
    count = [padded[axis] // window[axis] for axis in (0, 1)]
    shift = [0 if window[axis] >= padded[axis] else self.shift_size[axis] for axis in (0, 1)]
    if sum(shift) > 0:
        x = x.roll((-shift[0], -shift[1]), (1, 2))
    x = _windows(x, count, window)

    weights = self.qkv.weight.chunk(3)
    biases = [None] * 3 if self.qkv.bias is None else list(self.qkv.bias.chunk(3))
    logit_scale = getattr(self, "logit_scale", None)
    if logit_scale is not None:
        biases[1] = None  # torchvision's second version writes zeros there
    q, k, v = (
        F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(2, 3)
        for weight, bias in zip(weights, biases, strict=True)
    )
    if logit_scale is None:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    else:
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        scores = scores * logit_scale.clamp(max=math.log(100.0)).exp()
    scores = scores + self.get_relative_position_bias()
    if sum(shift) > 0:
        # places that the shift has brought together lie in different regions of the image: -100 between them
        region = torch.zeros((1, 1, 1), dtype=torch.int64, device=x.device)
        for axis in (0, 1):
            place = torch.arange(padded[axis], device=x.device)
            number = (place >= padded[axis] - window[axis]).long() + (place >= padded[axis] - shift[axis]).long()
            region = 3 * region + (number if shift[axis] else 0 * number).view(1, *((-1, 1) if axis == 0 else (1, -1)))
        region = _windows(region, count, window)[0]
        between = (region[:, None] != region[:, :, None]).to(x.dtype) * -100.0
        scores = scores + between[:, None]
    heads = F.dropout(scores.softmax(-1), self.attention_dropout, self.training) @ v
    x = F.dropout(self.proj(heads.transpose(2, 3).flatten(3)), self.dropout, self.training)

    x = x.unflatten(1, tuple(count)).unflatten(3, tuple(window))
    x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    if sum(shift) > 0:
        x = x.roll((shift[0], shift[1]), (1, 2))
    return x[:, : size[0], : size[1], :].contiguous()


def _windows(x: Tensor, count: list[int], window: list[int]) -> Tensor:
    """Return (batch, windows, places) and what follows, of (batch, height, width) and what follows."""
    x = x.unflatten(1, (count[0], window[0])).unflatten(3, (count[1], window[1]))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
