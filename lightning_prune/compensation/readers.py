"""Layers that read channels: their weights as matrices, and what enters them as rows."""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.hooks import RemovableHandle

from lightning_prune.criteria import Run
from lightning_prune.model import masks
from lightning_prune.model.attention import calling_projections
from lightning_prune.model.summary import as_evaluated

MAX_COLUMNS = 1_536
"""Above it a convolution is fitted by channels, not by channels and taps: the fit costs the cube of the columns."""

_PIECE = 1 << 22
"""Numbers of a layer's rows that are laid out at a time, of which those to look at are taken."""


@dataclass(frozen=True)
class Reader:
    """A layer whose output is linear in its weight.

    Args:
        module: the layer.
        weight: its name of the weight.
        bias: its name of a bias that the fit may move; None: there is none, or it cannot follow.
        matrix: weight -> shape (groups, outputs, columns).
        fold: such a matrix -> the weight's shape.
        rows: input of the layer -> shape (samples, positions, groups, columns).
    """

    module: nn.Module
    weight: str
    bias: str | None
    matrix: Callable[[Tensor], Tensor]
    fold: Callable[[Tensor], Tensor]
    rows: Callable[[Tensor], Tensor]


def readers_of(module: nn.Module) -> Iterator[Reader]:
    """Yield how a layer reads its input; nothing for a layer that is not known to be linear in a weight."""
    if isinstance(module, _ConvNd) and not type(module).forward.__module__.startswith("torch."):
        return  # its own code pads the input, or standardises the weight
    if isinstance(module, nn.Linear):
        yield Reader(module, "weight", _name_of_bias(module), _one_group, _first, _last_axis)
    elif isinstance(module, _ConvTransposeNd):
        yield _transposed(module)
    elif isinstance(module, _ConvNd):
        taps = module.weight[0].numel()
        yield _by_taps(module) if taps <= MAX_COLUMNS and module.weight.dim() < 5 else _by_channels(module)
    elif isinstance(module, nn.LSTM | nn.GRU | nn.RNN):
        for suffix in ("", "_reverse") if module.bidirectional else ("",):
            # only the first layer's inputs can be seen from outside
            name = f"bias_ih_l0{suffix}" if module.bias else None
            yield Reader(module, f"weight_ih_l0{suffix}", name, _one_group, _first, _last_axis)
    elif isinstance(module, nn.RNNCellBase):
        yield Reader(module, "weight_ih", "bias_ih" if module.bias else None, _one_group, _first, _last_axis)


def _one_group(weight: Tensor) -> Tensor:
    return weight[None]


def _first(matrix: Tensor) -> Tensor:
    return matrix[0]


def _last_axis(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1, 1, x.shape[-1])


def _name_of_bias(module: nn.Module) -> str | None:
    return "bias" if isinstance(module._parameters.get("bias"), nn.Parameter) else None


def _by_taps(conv: _ConvNd) -> Reader:
    """Columns are channels and taps: exact at padded borders too, since rows are what the kernel meets there."""
    groups, shape = conv.groups, conv.weight.shape
    kernel, stride, dilation = ((*(1,) * (2 - len(v)), *v) for v in (conv.kernel_size, conv.stride, conv.dilation))

    def rows(x: Tensor) -> Tensor:
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        padded = functional.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
        if padded.dim() == 3:
            padded = padded[:, :, None]
        unfolded = functional.unfold(padded, kernel, dilation, 0, stride)
        return unfolded.unflatten(1, (groups, -1)).permute(0, 3, 1, 2)

    return Reader(
        conv,
        "weight",
        _name_of_bias(conv),
        lambda weight: weight.reshape(groups, shape[0] // groups, -1),
        lambda matrix: matrix.reshape(shape),
        rows,
    )


def _channels(conv: _ConvNd) -> Callable[[Tensor], Tensor]:
    return lambda x: x.flatten(2).unflatten(1, (conv.groups, -1)).permute(0, 3, 1, 2)


def _by_channels(conv: _ConvNd) -> Reader:
    """Columns are channels alone, the same at every tap: a mixture of channels commutes with padding by zeros."""
    groups, shape = conv.groups, conv.weight.shape
    outputs, inputs = shape[0] // groups, shape[1]
    return Reader(
        conv,
        "weight",
        None,
        lambda weight: weight.reshape(groups, outputs, inputs, -1).mT.reshape(groups, -1, inputs),
        lambda matrix: matrix.reshape(groups, outputs, -1, inputs).mT.reshape(shape),
        _channels(conv),
    )


def _transposed(conv: _ConvTransposeNd) -> Reader:
    """Each input channel writes a patch: columns are input channels, outputs the channels and taps of the patch."""
    groups, shape = conv.groups, conv.weight.shape
    return Reader(
        conv,
        "weight",
        None,
        lambda weight: weight.reshape(groups, shape[0] // groups, -1).mT,
        lambda matrix: matrix.mT.reshape(shape),
        _channels(conv),
    )


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return what enters a layer; None where that is no dense tensor."""
    value = args[0] if args else kwargs.get("input")
    return value if isinstance(value, Tensor) and value.is_floating_point() else None


def sampled(reader: Reader, x: Tensor, most: int, name: str) -> Tensor:
    """Return (groups, samples * positions, columns) of what enters a layer, positions by chance.

    The same name takes the same positions, before and after the cut.
    """
    first = reader.rows(x[:1])
    chosen, each = slice(None), max(1, most // len(x))
    if first.shape[1] > each:
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        chosen = torch.randperm(first.shape[1], generator=generator)[:each].sort().values.to(x.device)
    # a convolution's rows are as many times its input as it has taps: never all samples at once
    pieces = x.split(max(1, _PIECE // max(first.numel(), 1)))
    return torch.cat([reader.rows(piece)[:, chosen] for piece in pieces]).flatten(0, 1).movedim(1, 0)


def source_of_nan(model: nn.Module) -> str:
    """Say where to look after something in a forward pass was NaN or infinite."""
    names = (name for name, tensor in masks.dense_names(model).items() if bool(torch.isnan(tensor).any()))
    name = next(names, None)
    if name is None:
        return "Look at the data"
    return f"{name} holds NaN itself: training diverged, or the checkpoint is broken"


def run_through(model: nn.Module, inputs: Run, see: Callable[[str, Reader, Tensor], None]) -> None:
    """Run the model once in eval mode and show what enters each reader before it computes."""
    handles: list[RemovableHandle] = []
    for path, module in model.named_modules():
        for reader in readers_of(module):
            name = f"{path}.{reader.weight}" if path else reader.weight

            def hook(
                _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name, reader: Reader = reader
            ) -> None:
                x = first_tensor(args, kwargs)
                if x is not None and x.numel():
                    see(name, reader, x)

            # before the mask's own hook, so that the layer computes with what the fit has written
            handles.append(module.register_forward_pre_hook(hook, prepend=True, with_kwargs=True))
    try:
        with as_evaluated(model), calling_projections(model):
            inputs(model)
    finally:
        for handle in handles:
            handle.remove()
