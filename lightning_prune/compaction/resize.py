"""Give parameters and buffers another length along their axes, and layers the sizes that follow from them.

Every change is written down in an *undo log* before it is made; run backwards, the log restores the model byte for
byte: old tensors are kept by reference and never written into.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.compaction.entries import Entries
from lightning_prune.errors import CompactionError
from lightning_prune.model.masks import (
    dense_names,
    dense_parameters,
    locate,
    mask_of,
    masked_places,
    original_of,
    refresh,
)
from lightning_prune.optimizer.surgery import take

Undo = list[Callable[[], object]]
Attributes = Mapping[str, tuple[str, int]]
"""Path of a module's attribute -> (dense name, axis) to whose length it is proportional."""

_Change = Callable[[Tensor], Tensor]
_Changes = dict[int, tuple[Tensor, _Change]]


@contextmanager
def all_or_nothing() -> Iterator[Undo]:
    """Give an empty undo log; when the block raises, whatever it is, run the log backwards."""
    undo: Undo = []
    try:
        yield undo
    except BaseException:
        while undo:
            undo[-1]()
            undo.pop()
        raise


def cut(model: nn.Module, keep: Entries, attributes: Attributes, undo: Undo) -> None:
    """Keep the given indices of each axis, by dense name.

    Changes:
        ``data`` and ``grad`` of parameters (the objects stay), buffers, masks, size attributes; the log.
    """
    named = dense_names(model)
    changes: _Changes = {}
    for name, axes in keep.items():
        tensor = named[name]
        indices = {axis: torch.tensor(kept, device=tensor.device) for axis, kept in axes.items()}
        changes[id(tensor)] = (tensor, partial(take, keep=indices))
    _change(model, changes, attributes, undo)


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
        undo.append(partial(_set_tensor, tensor, tensor.data, tensor.grad))
        _set_tensor(tensor, zeroed, tensor.grad)
    _refresh(model, undo)


def reshape_like(model: nn.Module, state_dict: Mapping[str, Tensor], attributes: Attributes | None = None) -> nn.Module:
    """Let every parameter and buffer take the shape that it has in a state dict, larger or smaller; returns the model.

    For use before weights are loaded: what changes its shape is zero afterwards, a mask on it all True, its gradient
    gone. Names that the state dict lacks, and tensors with another number of axes, are left to the loading to judge.

    Args:
        model: dense, masked or compact.
        state_dict: dense names, or ``weight_orig`` for ``weight``.
        attributes: module attributes that follow a length in proportion, see :attr:`Compaction.attributes`.

    Changes:
        shapes, masks and size attributes of the model. On an error the model is as it was.
    """
    changes: _Changes = {}
    for name, tensor in dense_names(model).items():
        wanted = state_dict.get(name, state_dict.get(f"{name}_orig"))
        if wanted is not None and wanted.dim() == tensor.dim() and wanted.shape != tensor.shape:
            changes[id(tensor)] = (tensor, partial(_blank, shape=wanted.shape))
    with all_or_nothing() as undo:
        _change(model, changes, attributes or {}, undo)
    return model


def _blank(tensor: Tensor, shape: torch.Size) -> Tensor:
    return tensor.new_ones(shape) if tensor.dtype is torch.bool else tensor.new_zeros(shape)


def _change(model: nn.Module, changes: _Changes, attributes: Attributes, undo: Undo) -> None:
    proportions = {path: _length(model, *follows) for path, follows in attributes.items()}
    new = {key: change(tensor.detach()) for key, (tensor, change) in changes.items()}
    grads = {key: change(t.grad) for key, (t, change) in changes.items() if t.grad is not None}
    masks = [
        (module._buffers, f"{name}_mask", changes[id(original)][1](mask_of(module, name)))
        for _, module, name, _ in masked_places(model)
        if id(original := original_of(module, name)) in changes
    ]
    for key, (tensor, _) in changes.items():
        undo.append(partial(_set_tensor, tensor, tensor.data, tensor.grad))
        _set_tensor(tensor, new[key], grads.get(key))
    for buffers, name, mask in masks:
        undo.append(partial(buffers.__setitem__, name, buffers[name]))
        buffers[name] = mask
    if masks:
        _refresh(model, undo)
    for path, before in proportions.items():
        _follow(model, path, before, _length(model, *attributes[path]), undo)
    for module in model.modules():
        if any(id(tensor) in changes for _, tensor in _own_tensors(module)):
            plain = {name: size for name, size in sizes_of(module).items() if name in module.__dict__}
            _set_attributes(module, plain, undo)


def _set_tensor(tensor: Tensor, data: Tensor, grad: Tensor | None) -> None:
    """Set data and gradient.

    A graph that is still alive, of a loss or a masked weight, holds the gradient accumulator with its old shape, and
    autograd drops it only when the type changes: hence the step over another one.
    """
    tensor.grad = None
    if tensor.requires_grad:
        tensor.data = data.new_empty(0, dtype=torch.float32 if data.dtype is torch.float64 else torch.float64)
    tensor.data = data
    tensor.grad = grad


def _refresh(model: nn.Module, undo: Undo) -> None:
    for _, module, name, _ in masked_places(model):
        undo.append(partial(module.__dict__.__setitem__, name, module.__dict__[name]))
    refresh(model)


def _length(model: nn.Module, dense_name: str, axis: int) -> int:
    return dense_names(model)[dense_name].shape[axis]


def _follow(model: nn.Module, path: str, before: int, after: int, undo: Undo) -> None:
    module, name = locate(model, path)
    held = module.__dict__.get(name)
    value = held[0] if isinstance(held, tuple) and len(held) == 1 else held
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
        undo.append(partial(module.__dict__.__setitem__, name, module.__dict__[name]))
        module.__dict__[name] = value


def _own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The module's parameters and buffers; those of its parametrizations count as its own."""
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    inner = module._modules.get("parametrizations")
    return own if inner is None else [*own, *inner.named_parameters(), *inner.named_buffers()]


def _conv(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> dict[str, Any]:
    made, read = module.weight.shape[:2]
    return {"out_channels": made, "in_channels": read * module.groups}


def _conv_transpose(module: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d) -> dict[str, Any]:
    read, made = module.weight.shape[:2]
    return {"out_channels": made * module.groups, "in_channels": read}


def _linear(module: nn.Linear) -> dict[str, Any]:
    made, read = module.weight.shape
    return {"out_features": made, "in_features": read}


def _bilinear(module: nn.Bilinear) -> dict[str, Any]:
    made, left, right = module.weight.shape
    return {"out_features": made, "in1_features": left, "in2_features": right}


def _feature_norm(module: nn.BatchNorm1d | nn.InstanceNorm1d) -> dict[str, Any]:
    held = module.weight if module.affine else module.running_mean
    return {} if held is None else {"num_features": held.shape[0]}


def _shape_norm(module: nn.LayerNorm | nn.RMSNorm) -> dict[str, Any]:
    return {"normalized_shape": tuple(module.weight.shape)} if module.elementwise_affine else {}


def _group_norm(module: nn.GroupNorm) -> dict[str, Any]:
    return {"num_channels": module.weight.shape[0]} if module.affine else {}


def _embedding(module: nn.Embedding | nn.EmbeddingBag) -> dict[str, Any]:
    rows, width = module.weight.shape
    return {"num_embeddings": rows, "embedding_dim": width}


def _prelu(module: nn.PReLU) -> dict[str, Any]:
    return {"num_parameters": module.weight.shape[0]}


def _recurrent(module: nn.RNNBase) -> dict[str, Any]:
    reads, carries = (getattr(module, name) for name in ("weight_ih_l0", "weight_hh_l0"))
    is_projected = module.proj_size > 0
    return {"input_size": reads.shape[1], **({} if is_projected else {"hidden_size": carries.shape[1]})}


_LAYERS: tuple[tuple[tuple[type[nn.Module], ...], Callable[[Any], dict[str, Any]]], ...] = (
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _conv_transpose),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), _conv),
    ((nn.Linear,), _linear),
    ((nn.Bilinear,), _bilinear),
    ((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), _feature_norm),
    ((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _feature_norm),
    ((nn.LayerNorm, nn.RMSNorm), _shape_norm),
    ((nn.GroupNorm,), _group_norm),
    ((nn.Embedding, nn.EmbeddingBag), _embedding),
    ((nn.PReLU,), _prelu),
    ((nn.RNNBase,), _recurrent),
)
"""Layer types, subclasses included, and the attributes that follow from the shapes of their tensors."""


def sizes_of(module: nn.Module) -> dict[str, Any]:
    """Return the size attributes that a layer's tensors imply, by attribute name; empty for an unknown type."""
    return next((sizes(module) for types, sizes in _LAYERS if isinstance(module, types)), {})
