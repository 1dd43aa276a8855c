"""What a network holds, computes and costs, and how far two of them are apart."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from lightning_prune.graph import ChannelGroups
from lightning_prune.model import masks
from lightning_prune.model.plain_copy import plain_copy

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def tensors(value: Any) -> list[Tensor]:
    """Return all tensors in a nest of containers, named tuples, dataclasses and mappings."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, np.ndarray):
        return [torch.from_numpy(value)] if value.dtype.kind in "fiub" else []
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    values = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [x for one in values for x in tensors(one)]


def copied(value: Any, dtype: torch.dtype | None = None) -> Any:
    """Return a detached copy of a nest of arguments, floating tensors in ``dtype``."""

    def one(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x.detach().clone().to(dtype if dtype and x.is_floating_point() else x.dtype)

    return pytree.tree_map(one, value)


def few(arguments: Any) -> Any:
    """Return the first two samples of a batch; all of it where its tensors do not have one length."""
    if len({x.shape[:1] for x in tensors(arguments)}) != 1:
        return arguments
    return pytree.tree_map(lambda x: x[:2].clone() if isinstance(x, Tensor) and x.dim() else x, arguments)


def parameters(model: nn.Module) -> int:
    """Return the number of entries of all parameters."""
    return sum(p.numel() for p in model.parameters())


def zeros(model: nn.Module) -> int:
    """Return how many of them are zero."""
    return sum(int((p == 0).sum()) for p in model.parameters())


@contextlib.contextmanager
def evaluated(model: nn.Module) -> Iterator[nn.Module]:
    """Run without dropout, gradients and random draws, and without kernels that the counter does not know."""
    model.eval()
    kernels = sdpa_kernel(SDPBackend.MATH), torch.backends.mkldnn.flags(enabled=False), torch.no_grad()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.random.fork_rng(devices=[]), kernels[0], kernels[1], kernels[2]:
            torch.manual_seed(0)
            yield model
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def macs(model: nn.Module, arguments: Arguments) -> int:
    """Return the multiply-accumulates of one call, as torch counts them."""
    counter = FlopCounterMode(display=False)
    with evaluated(plain_copy(model)) as model, counter:
        model(*copied(arguments[0]), **copied(arguments[1]))
    return counter.get_total_flops() // 2


def difference(first: nn.Module, second: nn.Module, arguments: Arguments) -> tuple[float, str]:
    """Return max|first − second| / max|first| of the outputs, and at which precision: float64 where the network can."""
    try:
        return _difference(first, second, arguments, torch.float64), "float64"
    except (RuntimeError, TypeError, ValueError):
        return _difference(first, second, arguments, torch.float32), "float32"


def _difference(first: nn.Module, second: nn.Module, arguments: Arguments, dtype: torch.dtype) -> float:
    outputs = []
    for model in (first, second):
        args, kwargs = copied(arguments, dtype)
        with evaluated(plain_copy(model).to(dtype)) as model:
            outputs.append([x.double() for x in tensors(model(*args, **kwargs)) if x.numel()])
    return apart(*outputs)


def apart(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Return the largest difference of what should be equal, relative to the largest value."""
    shapes = [x.shape for x in first], [x.shape for x in second]
    if shapes[0] != shapes[1]:
        raise ValueError(f"outputs of shapes {shapes[0]} became {shapes[1]}")
    if not first:
        raise ValueError("there are no outputs to compare")
    gaps = [x.isnan() for x in first]  # forecasts of different lengths end in nan
    if any(not torch.equal(gap, y.isnan()) for gap, y in zip(gaps, second, strict=True)):
        return float("nan")
    scale = max(float(x.nan_to_num().abs().max()) for x in first) or 1.0
    return max(float((x - y).nan_to_num().abs().max()) for x, y in zip(first, second, strict=True)) / scale


def staying(groups: ChannelGroups) -> dict[str, int]:
    """Return how many channels stay for which reason."""
    reasons: Counter[str] = Counter()
    for group in groups:
        if not group.prunable and group.reason not in ("input of the model", "model output"):
            reasons[group.reason] += group.size
    return dict(reasons.most_common())


def finalized(masked: nn.Module) -> nn.Module:
    """Return a copy with its masks folded, in the dense shape."""
    copy_ = plain_copy(masked)
    masks.fold(copy_)
    return copy_
