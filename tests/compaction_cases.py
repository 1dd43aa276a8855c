"""Models, plans and a fingerprint, shared by the tests of compaction."""

import copy
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_prune.compaction import Compaction, applied_plan
from lightning_prune.graph import ChannelGroup, ChannelGroups, Member, channel_groups
from lightning_prune.model import masks


class Residual(nn.Module):
    """Convolutions with batch norm, a residual add, a depthwise and a grouped convolution, a concatenation, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.back = nn.Conv2d(6, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 12, 1, groups=4)
        self.head = nn.Linear(20 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.back(self.inner(x)))
        x = torch.cat([torch.relu(self.grouped(x)), self.depthwise(x)], dim=1)
        return self.head(x.flatten(1))


class Mlp(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(5, 8), nn.PReLU(8), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 2))


def trained(model: nn.Module, seed: int = 0) -> Any:
    """Weights and batch norm statistics that are not at their start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator).to(tensor)
                tensor.copy_(noise.abs() + 0.5 if name.endswith("running_var") else 0.5 * noise)
    return model


RESIDUAL_INPUT = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(1))
MLP_INPUT = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))


def half_of(groups: ChannelGroups, seed: int = 0) -> dict[str, list[int]]:
    """A random half of every prunable channel group."""
    rng = np.random.default_rng(seed)
    return {g.name: sorted(rng.permutation(g.size)[: (g.size + 1) // 2].tolist()) for g in groups if g.prunable}


@cache
def groups_of(kind: type[nn.Module]) -> ChannelGroups:
    """The channel groups of a fresh model of this kind; tracing takes a second."""
    return channel_groups(kind(), RESIDUAL_INPUT if kind is Residual else MLP_INPUT)


def half_plan(model: nn.Module, example: Any, seed: int = 0) -> Compaction:
    fresh = type(model) in (Residual, Mlp) and applied_plan(model) is None
    groups = groups_of(type(model)) if fresh else channel_groups(model, example)
    return Compaction.from_keep(groups, half_of(groups, seed))


def hand_made_group(model: nn.Module, name: str, size: int, axes: dict[str, int]) -> ChannelGroups:
    """One channel group of one entry per channel, right or wrong."""
    shapes = {name: tuple(tensor.shape) for name, tensor in masks.dense_names(model).items()}
    members = tuple(Member(parameter, axis, np.arange(size)[:, None], "output") for parameter, axis in axes.items())
    return ChannelGroups([ChannelGroup(name, size, members, prunable=True, reason="")], shapes)


def masked_residual(keep: dict[str, list[int]] | None = None) -> tuple[nn.Module, ChannelGroups, dict[str, list[int]]]:
    """A model whose parameters carry the masks of a random half of its channels."""
    model = trained(Residual())
    groups = groups_of(Residual)
    keep = half_of(groups) if keep is None else keep
    masks.attach(model, [n for n in masks.dense_parameters(model) if not n.startswith("head.b")], is_structured=True)
    new = {name: torch.ones_like(mask) for name, mask in masks.read(model).items()}
    for name, removed in Compaction.from_keep(groups, keep).removed.items():
        for axis, gone in removed.items():
            if name in new:
                new[name].index_fill_(axis, torch.tensor(gone), False)
    masks.write(model, new.items())
    return model, groups, keep


def outputs(model: nn.Module, example: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).double().eval()(example.double())


def everything(model: nn.Module, *optimizers: torch.optim.Optimizer) -> Any:
    """Identity, address and bytes of all that compaction touches."""

    def of(value: Any) -> Any:
        if isinstance(value, Tensor):
            raw = value.detach().contiguous().view(torch.uint8).numpy().tobytes() if value.dim() else value.item()
            grad = of(value.grad) if value.is_leaf and value.grad is not None else None
            return id(value), value.data_ptr(), value.shape, raw, grad
        if isinstance(value, dict):
            return {key: of(item) for key, item in value.items()}
        return id(value) if isinstance(value, nn.Module) else repr(value)

    plain = {path: {k: v for k, v in m.__dict__.items() if k[0] != "_"} for path, m in model.named_modules()}
    tensors = {path: of({**m._parameters, **m._buffers}) for path, m in model.named_modules()}
    weights = {path: {k: of(v) for k, v in d.items()} for path, d in plain.items()}
    states = [{id(p): of(s) for p, s in optimizer.state.items()} for optimizer in optimizers]
    return tensors, weights, states, applied_plan(model)
