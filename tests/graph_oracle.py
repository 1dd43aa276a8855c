"""An oracle of its own for channel groups: remove random channels by index_select and compare with zeroed ones."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_prune.graph import ChannelGroups, channel_groups
from lightning_prune.model.attention import ResizableAttention, set_class
from lightning_prune.model.counting import KERNEL, MEAN, settled

Removed = dict[tuple[str, int], np.ndarray]


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return the model at float64 in eval mode, with no parameter or statistic at a special value."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(noise / max(1, parameter[0].numel() if parameter.dim() > 1 else 1) ** 0.5 + 0.1)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(torch.rand(buffer.shape, generator=generator, dtype=torch.float64) + 0.5)
    return model


def pick(groups: ChannelGroups, seed: int, share: float) -> Removed:
    """Choose units of every prunable group, never all; return the entries that go, by (parameter, axis)."""
    rng = np.random.default_rng(seed)
    gone: dict[tuple[str, int], list[np.ndarray]] = {}
    for group in groups:
        if group.prunable and group.size > 1:
            count = min(group.size - 1, max(1, round(share * group.size)))
            units = rng.permutation(group.size)[:count]
            for member in group.members:
                gone.setdefault((member.parameter, member.axis), []).append(member.indices[units].ravel())
    return {slot: np.unique(np.concatenate(indices)) for slot, indices in gone.items()}


def masked(model: nn.Module, removed: Removed) -> nn.Module:
    """Zero what goes, in parameters only: torch.nn.utils.prune does not reach buffers."""
    model = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for (name, axis), indices in removed.items():
            if name in parameters:
                parameters[name].index_fill_(axis, torch.from_numpy(indices), 0.0)
    return model


def smaller(model: nn.Module, removed: Removed, groups: ChannelGroups) -> nn.Module:
    """Cut what goes out of parameters and buffers; grouped convolutions lose groups where the groups say so."""
    model = copy.deepcopy(model)
    before = {name: tensor.shape for name, tensor in _tensors(model).items()}
    for (name, axis), indices in removed.items():
        tensor = _tensors(model)[name]
        kept = np.setdiff1d(np.arange(before[name][axis]), indices)
        tensor.data = tensor.data.index_select(axis, torch.from_numpy(kept)).clone()
    for name in groups.conv_groups:
        module: Any = model.get_submodule(name.rpartition(".")[0])
        module.groups = module.groups * module.weight.shape[0] // before[name][0]
    after = {name: tensor.shape for name, tensor in _tensors(model).items()}
    for path, (name, axis) in groups.attributes.items():
        holder, _, attribute = path.rpartition(".")
        module = model.get_submodule(holder)
        held: Any = getattr(module, attribute, 1.0 if attribute in (KERNEL, MEAN) else None)
        if held is None or isinstance(held, float):  # an eps; without one torch takes that of the type
            eps = torch.finfo(torch.float64).eps if held is None else held
            setattr(module, attribute, eps * before[name][axis] / after[name][axis])
            continue
        size = (held[0] if isinstance(held, tuple) else held) * after[name][axis] // before[name][axis]
        setattr(module, attribute, (size,) if isinstance(held, tuple) else size)
    for group in groups:
        first = group.members[0]
        gone = np.isin(first.indices[:, 0], removed.get((first.parameter, first.axis), ())).sum()
        for name, scale in group.scales.items():
            tensor, factor = _tensors(model)[name], ((group.size - gone) / group.size) ** scale.power
            tensor.data = (tensor.data + scale.offset) * factor - scale.offset
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.RMSNorm) and module.elementwise_affine:
            module.normalized_shape = tuple(module.weight.shape)
        if isinstance(module, nn.RNNBase):
            shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
            module.input_size, module.hidden_size = shapes["weight_ih_l0"][1], shapes["weight_hh_l0"][1]
        if isinstance(module, nn.MultiheadAttention) and module.out_proj.weight.shape[1] < module.embed_dim:
            set_class(module, ResizableAttention)  # torch's own forward knows no other size
        if isinstance(module, nn.Conv2d):
            module.out_channels = module.weight.shape[0]
        counted: Any = module
        counted.__class__ = settled(module)
    return model


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def relative_error(one: nn.Module, other: nn.Module, inputs: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    """Largest difference between the outputs of two models, over the largest output."""
    with torch.no_grad():
        a, b = (pytree.tree_leaves(model(*inputs, **kwargs)) for model in (one, other))
    assert [tensor.shape for tensor in a] == [tensor.shape for tensor in b]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in a)
    return max(float((x - y).abs().max() / x.abs().max().clamp(min=1e-30)) for x, y in zip(a, b, strict=True))


@contextmanager
def one_thread() -> Iterator[None]:
    """Small tensors on a shared machine: threads that wait for each other cost more than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def check_exact(model: nn.Module, *inputs: Any, kwargs: Mapping[str, Any] | None = None) -> ChannelGroups:
    """Assert masked equals compact for random choices of channels, and return the channel groups."""
    model, kwargs = randomised(model), kwargs or {}
    inputs = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    groups = channel_groups(model, inputs, kwargs)
    for seed, share in enumerate((0.3, 0.5, 0.99)):
        removed = pick(groups, seed, share)
        assert removed, f"nothing can be pruned:\n{groups}"
        one, other = masked(model, removed), smaller(model, removed, groups)
        assert relative_error(one, other, inputs, kwargs) <= 1e-9
        assert relative_error(one, model, inputs, kwargs) > 1e-6, "the mask changes nothing"
    return groups


def sizes(groups: ChannelGroups) -> dict[str, int]:
    """Name and size of every prunable channel group."""
    return {group.name: group.size for group in groups if group.prunable}


def slots(groups: ChannelGroups, name: str) -> set[tuple[str, int, str]]:
    """Members of a channel group as (parameter, axis, role)."""
    return {(member.parameter, member.axis, member.role) for member in groups[name].members}
