"""Give parameters and buffers another length along their axes, and layers the sizes that follow from them.

Every change is written down in an *undo log* before it is made; run backwards, the log restores the model byte for
byte: old tensors are kept by reference and never written into.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from lightning_prune.compaction._entries import Entries
from lightning_prune.errors import CompactionError
from lightning_prune.model.attention import set_class, settled_class
from lightning_prune.model.computed import recompute
from lightning_prune.model.counting import KERNEL, MEAN
from lightning_prune.model.masks import (
    dense_names,
    dense_parameters,
    locate,
    mask_of,
    masked_places,
    parameter_of,
    set_mask,
    zero_pruned,
)
from lightning_prune.optimizer.surgery import take

Undo = list[Callable[[], object]]
Attributes = Mapping[str, tuple[str, int]]
"""Path of a module's attribute -> (dense name, axis) to whose length it is proportional, or a float one over it."""
Factors = Sequence[tuple[float, float]]
"""Each (factor, offset): a parameter p becomes (p + offset) * factor - offset."""

_Change = Callable[[Tensor], Tensor]
_Changes = dict[int, tuple[Tensor, _Change]]


@contextmanager
def all_or_nothing() -> Iterator[Undo]:
    """Give an empty undo log; when the block raises, whatever it is, run the log backwards."""
    undo: Undo = []
    records_gradients = torch.is_grad_enabled()
    try:
        yield undo
    except BaseException:
        # an interrupt between the last line of a no_grad block and its exit leaves gradients off
        torch.set_grad_enabled(records_gradients)
        while undo:
            undo[-1]()
            undo.pop()
        raise


def product(factors: Factors) -> float:
    """Return what all factors are together."""
    return math.prod(factor for factor, _ in factors)


def cut(
    model: nn.Module,
    keep: Entries,
    attributes: Attributes,
    undo: Undo,
    factors: Mapping[str, Factors] | None = None,
) -> None:
    """Keep the given indices of each axis, by dense name, and multiply the parameters that take up another width.

    Changes:
        ``data`` and ``grad`` of parameters (the objects stay), buffers, masks, size attributes; the log.
    """
    named = dense_names(model)
    changes: _Changes = {}
    for name, axes in keep.items():
        tensor = named[name]
        indices = {axis: torch.tensor(kept, device=tensor.device) for axis, kept in axes.items()}
        changes[id(tensor)] = (tensor, partial(take, keep=indices))
    factors = factors or {}
    for name in factors.keys() - keep.keys():
        changes[id(named[name])] = (named[name], torch.clone)
    _change(model, changes, attributes, undo, {id(named[name]): several for name, several in factors.items()})


def zero(model: nn.Module, entries: Entries, undo: Undo) -> None:
    """Set the given indices of each axis of the parameters to zero.

    Changes:
        ``data`` of parameters (the objects stay); the log.
    """
    parameters = dense_parameters(model)
    for name in entries.keys() & parameters.keys():
        tensor = parameters[name]
        zeroed = tensor.detach().clone()
        for axis, gone in entries[name].items():
            zeroed.index_fill_(axis, torch.tensor(gone, device=tensor.device), 0)
        undo.append(partial(set_tensor, tensor, tensor.data, tensor.grad))
        set_tensor(tensor, zeroed, tensor.grad)
    _refresh(model, undo)


def reshape_like(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    attributes: Attributes | None = None,
    undo: Undo | None = None,
) -> nn.Module:
    """Let every parameter and buffer take the shape that it has in a state dict, larger or smaller; returns the model.

    For use before weights are loaded: what changes its shape is zero afterwards, a mask on it all True, its gradient
    gone. Names that the state dict lacks, and tensors with another number of axes, are left to the loading to judge.

    Args:
        model: dense, masked or compact.
        state_dict: by dense names.
        attributes: module attributes that follow a length, see :attr:`Compaction.attributes`.
        undo: log of a larger change that this is a part of; None: it is none.

    Changes:
        shapes, masks and size attributes of the model; the log. On an error the model is as it was.
    """
    changes: _Changes = {}
    for name, tensor in dense_names(model).items():
        wanted = state_dict.get(name)
        if wanted is not None and wanted.dim() == tensor.dim() and wanted.shape != tensor.shape:
            changes[id(tensor)] = (tensor, partial(_blank, shape=wanted.shape))
    with all_or_nothing() as own:
        _change(model, changes, attributes or {}, own)
    if undo is not None:
        undo.extend(own)
    return model


def _blank(tensor: Tensor, shape: torch.Size) -> Tensor:
    return tensor.new_ones(shape) if tensor.dtype is torch.bool else tensor.new_zeros(shape)


def _change(
    model: nn.Module,
    changes: _Changes,
    attributes: Attributes,
    undo: Undo,
    factors: Mapping[int, Factors] | None = None,
) -> None:
    proportions = {path: _length(model, *follows) for path, follows in attributes.items()}
    new = {key: change(tensor.detach()) for key, (tensor, change) in changes.items()}
    grads = {key: change(t.grad) for key, (t, change) in changes.items() if t.grad is not None}
    for key, several in (factors or {}).items():
        for factor, offset in several:
            new[key] = (new[key] + offset) * factor - offset
        if key in grads:
            grads[key] = grads[key] / product(several)
    masks = [
        (module, name, changes[id(parameter)][1](mask_of(module, name)))
        for _, module, name, _ in masked_places(model)
        if id(parameter := parameter_of(module, name)) in changes
    ]
    for key, (tensor, _) in changes.items():
        undo.append(partial(set_tensor, tensor, tensor.data, tensor.grad))
        set_tensor(tensor, new[key], grads.get(key))
    for module, name, mask in masks:
        undo.append(partial(set_mask, module, name, mask_of(module, name)))
        set_mask(module, name, mask)
    if masks:
        _refresh(model, undo)
    for path, before in proportions.items():
        _follow(model, path, before, _length(model, *attributes[path]), undo)
    for module in model.modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        if (inner := module._modules.get("parametrizations")) is not None:
            own += [*inner.named_parameters(), *inner.named_buffers()]
        if any(id(tensor) in changes for _, tensor in own):
            for name, tensor in recompute(module).items():
                _set_attributes(module, {name: tensor}, undo)
            plain = {name: size for name, size in sizes_of(module).items() if name in module.__dict__}
            _set_attributes(module, plain, undo)
        if (kind := settled_class(module)) is not type(module):
            undo.append(partial(set_class, module, type(module)))
            set_class(module, kind)


def set_tensor(tensor: Tensor, data: Tensor, grad: Tensor | None) -> None:
    """Set data and gradient of a parameter or buffer, of any shape.

    A graph that is still alive, of a loss or a masked weight, holds the gradient accumulator with its old shape, and
    autograd drops it only when the type changes: hence the step over another one.

    Changes:
        the tensor's ``data`` and ``grad``.
    """
    tensor.grad = None
    if tensor.requires_grad:
        tensor.data = data.new_empty(0, dtype=torch.float32 if data.dtype is torch.float64 else torch.float64)
    tensor.data = data
    tensor.grad = grad


def _refresh(model: nn.Module, undo: Undo) -> None:
    for _, module, name, _ in masked_places(model):
        if name in module.__dict__:  # as torch's own methods show it
            undo.append(partial(module.__dict__.__setitem__, name, module.__dict__[name]))
    zero_pruned(model)


def _length(model: nn.Module, dense_name: str, axis: int) -> int:
    return dense_names(model)[dense_name].shape[axis]


def _follow(model: nn.Module, path: str, before: int, after: int, undo: Undo) -> None:
    module, name = locate(model, path)
    held = module.__dict__.get(name, 1.0 if name in (KERNEL, MEAN) else None)
    value = held[0] if isinstance(held, tuple) and len(held) == 1 else held
    if isinstance(value, float) or (value is None and name in module.__dict__):
        # Without a stated eps torch takes that of the type; half precision is computed in float32.
        dtypes = [tensor.dtype for tensor in module.parameters() if tensor.is_floating_point()]
        is_double = any(dtype is torch.float64 for dtype in dtypes)
        eps = torch.finfo(torch.float64 if is_double else torch.float32).eps if value is None else value
        # 14 digits: what comes back to its old width has its old eps.
        _set_attributes(module, {name: float(f"{eps * before / after:.14g}")}, undo)
        return
    if not isinstance(value, int):
        raise CompactionError(f"{path} follows a length of the model but is {held!r}, not an int; make a new plan")
    if value * after % before:
        raise CompactionError(
            f"{path} = {value} follows a length that goes from {before} to {after}, which would make it"
            f" {value * after / before:g}: remove whole multiples of {before // value}"
        )
    new = value * after // before
    _set_attributes(module, {name: (new,) if isinstance(held, tuple) else new}, undo)


def _set_attributes(module: nn.Module, values: Mapping[str, Any], undo: Undo) -> None:
    for name, value in values.items():
        is_there = name in module.__dict__
        put, take_away = module.__dict__.__setitem__, module.__dict__.pop
        undo.append(partial(put, name, module.__dict__[name]) if is_there else partial(take_away, name))
        module.__dict__[name] = value


def sizes_of(module: nn.Module) -> dict[str, Any]:
    """Return the size attributes that a layer's tensors imply, by attribute name; empty for an unknown type."""
    weight = getattr(module, "weight", None)
    shape = weight.shape if isinstance(weight, Tensor) else torch.Size()
    match module:
        # Subclasses count; a layer without affine parameters has no tensor that could tell.
        case nn.ConvTranspose1d() | nn.ConvTranspose2d() | nn.ConvTranspose3d():
            return {"out_channels": shape[1] * module.groups, "in_channels": shape[0]}
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            return {"out_channels": shape[0], "in_channels": shape[1] * module.groups}
        case nn.Linear():
            return {"out_features": shape[0], "in_features": shape[1]}
        case nn.Bilinear():
            return dict(zip(("out_features", "in1_features", "in2_features"), shape, strict=True))
        case nn.Embedding() | nn.EmbeddingBag():
            return {"num_embeddings": shape[0], "embedding_dim": shape[1]}
        case nn.PReLU():
            return {"num_parameters": shape[0]}
        case nn.MultiheadAttention():
            packed = module.in_proj_weight
            weights = (
                [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight] if packed is None else [packed] * 3
            )
            return {name: own.shape[1] for name, own in zip(("embed_dim", "kdim", "vdim"), weights, strict=True)}
        case nn.RNNBase():
            reads, carries = (getattr(module, name).shape[1] for name in ("weight_ih_l0", "weight_hh_l0"))
            return {"input_size": reads, **({} if module.proj_size > 0 else {"hidden_size": carries})}
        case nn.RNNCellBase():
            return {"input_size": module.weight_ih.shape[1], "hidden_size": module.weight_hh.shape[1]}
        case nn.LayerNorm() | nn.RMSNorm() if shape:
            return {"normalized_shape": tuple(shape)}
        case nn.GroupNorm() if shape:
            return {"num_channels": shape[0]}
        case _BatchNorm() | _InstanceNorm() if shape:
            return {"num_features": shape[0]}
        case _BatchNorm() | _InstanceNorm() if module.running_mean is not None:
            return {"num_features": len(module.running_mean)}
    return {}
