"""Batch-norm statistics measured anew, for what the layers compute after a cut."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_M = TypeVar("_M", bound=nn.Module)


def frozen_statistics(model: nn.Module) -> list[str]:
    """Return the names of the batch norms whose running statistics a forward pass does not change as modes stand."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and module.track_running_stats
        and (not module.training or module.momentum == 0)
    ]


def recalibrate(model: _M, loader: Iterable[Any]) -> _M:
    """Measure the running mean and variance of each batch norm anew; nothing is learned and no label is looked at.

    mean = sum_b n_b mean_b / sum_b n_b over the calls b of a batch norm with n_b samples, the same for the unbiased
    variance: the exact average, not one that forgets. Only batch norms run in training mode, so dropout and the like
    stay still.

    Args:
        model: masked, compact or dense. Masks are kept.
        loader: batches, each a tensor of inputs or a tuple or list that begins with them; inputs may be a tuple of
            positional arguments. A few hundred samples of the training data are enough.

    Returns:
        the same model.

    Raises:
        ValueError: there is no batch norm with running statistics, the loader is empty, or a batch norm is given NaN or
            infinite values; the model is as it was then, as after any other error.

    Changes:
        ``running_mean``, ``running_var`` and ``num_batches_tracked`` of the batch norms that are called. Modes,
        momentum, gradients and the random state come back.

    Source:
        Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima", appendix, and torch.optim.swa_utils.update_bn,
        which gives a smaller last batch the weight of a full one.

    Example:
        >>> norm = nn.BatchNorm1d(1)
        >>> batches = [torch.tensor([[1.0], [3.0]]), torch.tensor([[8.0]] * 4)]
        >>> recalibrate(norm, batches).running_mean
        tensor([6.])
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        raise ValueError(f"{type(model).__name__} has no batch norm with running statistics, so nothing to recalibrate")
    device = next(tensor.device for tensor in (*model.parameters(), *model.buffers()))
    with _measuring(model, norms) as seen, torch.no_grad():
        samples = 0
        for batch in loader:
            inputs = inputs_of(batch, device)
            samples += _samples(inputs[0])
            model(*inputs)
        if not samples:
            raise ValueError("the loader has no samples; give it batches of the training data")
        for name, norm in model.named_modules():
            if norm in seen and not all(bool(buffer.isfinite().all()) for buffer in norm.buffers(recurse=False)):
                raise ValueError(
                    f"what enters {name or type(norm).__name__} has NaN or infinite values, so its statistics would"
                    " have too: look for them in the loader's inputs and in the weights"
                )
    return model


@contextmanager
def _measuring(model: nn.Module, norms: Sequence[_BatchNorm]) -> Iterator[dict[_BatchNorm, int]]:
    """Let batch norms alone run in training mode, with fresh statistics, and count the samples that each one sees.

    The statistics of those that see none come back, and those of all after an error.
    """
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    before = {norm: [buffer.clone() for buffer in norm.buffers(recurse=False)] for norm in norms}
    devices = sorted({buffer.device.index or 0 for norm in norms for buffer in norm.buffers() if buffer.is_cuda})
    seen: dict[_BatchNorm, int] = {}

    def weigh(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        one, count = cast(_BatchNorm, norm), _samples(args[0])
        seen[one] = seen.get(one, 0) + count
        one.momentum = count / max(seen[one], 1)

    handles = [norm.register_forward_pre_hook(weigh) for norm in norms]
    model.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.training = True
        with torch.random.fork_rng(devices=devices):
            yield seen
    except BaseException:
        seen.clear()
        raise
    finally:
        for handle in handles:
            handle.remove()
        for norm, buffers in before.items():
            if not seen.get(norm):
                for buffer, value in zip(norm.buffers(recurse=False), buffers, strict=True):
                    buffer.copy_(value)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode


def inputs_of(batch: Any, device: torch.device) -> tuple[Any, ...]:  # noqa: ANN401
    """Return the inputs of a batch as positional arguments on a device.

    Args:
        batch: a tensor, or a tuple or list that begins with the inputs: a tensor, or a tuple of positional arguments.
        device: where to.

    Raises:
        TypeError: it is something else.
    """
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    inputs = tuple(first) if isinstance(first, tuple | list) else (first,)
    if not inputs or not isinstance(inputs[0], Tensor):
        raise TypeError(
            f"a batch is a tensor of inputs, or a tuple or list that begins with them; got {type(batch).__name__} of"
            f" {type(first).__name__}"
        )
    return tuple(value.to(device) if isinstance(value, Tensor) else value for value in inputs)


def _samples(inputs: Tensor) -> int:
    return inputs.shape[0] if inputs.dim() else 1
