"""A residual network, recipes bound to it, and what its widths cost by closed formulas."""

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_prune.criteria import Scores
from lightning_prune.model import masks
from lightning_prune.recipe import Recipe
from lightning_prune.run.binding import bind
from lightning_prune.run.progress import Progress
from lightning_prune.run.pruner import Pruner
from lightning_prune.selection import ChannelUnits

X = (torch.zeros(1, 1, 8, 8),)


class Net(nn.Module):
    """Convolutions with batch norm, a residual add, a depthwise convolution and a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.inner = nn.Conv2d(16, 24, 1)
        self.deep = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.outer = nn.Conv2d(24, 16, 1)
        self.fc = nn.Linear(16 * 4, 12)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.outer(self.deep(self.inner(x)).relu())
        x = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return self.head(self.fc(x).relu())


def network(kind: str = "normal", dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(0)
    model = Net().to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if kind == "equal":
                parameter.fill_(0.25)
            elif kind == "quantized":
                parameter.copy_((parameter * 16).round() / 16)
            elif kind == "half zero":
                parameter.mul_(parameter > 0)
    return model


@functools.cache
def bound(recipe: Recipe) -> Pruner:
    return bind(recipe, network(), X)


def ready(recipe: Recipe, model: nn.Module) -> Pruner:
    """Bind to a network of these shapes, which traces it only once for each recipe, and attach the masks."""
    pruner = replace(bound(recipe), progress=Progress())
    pruner.attach(model)
    return pruner


def scores_of(pruner: Pruner, model: nn.Module) -> Scores:
    weights = {name: masks.dense_parameters(model)[name] for name in pruner.units.shapes}
    return Scores(pruner.criterion_for(weights), weights, pruner.observed, masks.read(model))


def zeros(model: nn.Module, names: Any) -> int:
    return sum(int((masks.dense_parameters(model)[name] == 0).sum()) for name in names)


def pruned(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: ~mask.numpy().copy() for name, mask in masks.read(model).items()}


def bytes_of(model: nn.Module) -> dict[str, bytes]:
    return {name: value.detach().numpy().tobytes() for name, value in model.state_dict().items()}


def costs(stem: int, inner: int, fc: int) -> dict[str, int]:
    """Channels, parameters and multiply-accumulates of Net with these widths, written out."""
    return {
        "channels": stem + inner + fc,
        "params": 12 * stem + 2 * stem * inner + 11 * inner + stem + (4 * stem + 1) * fc + 10 * fc + 10,
        "macs": 64 * 9 * stem + 2 * 64 * stem * inner + 64 * 9 * inner + 4 * stem * fc + 10 * fc,
    }


def widths_of(pruner: Pruner, removed: Mapping[str, int]) -> tuple[int, int, int]:
    """Widths of the groups of 16, 24 and 12 channels."""
    by_size = {size: size - removed[name] for name, size in pruner.units.sizes.items()}
    return by_size[16], by_size[24], by_size[12]


def removed_in(pruner: Pruner, model: nn.Module) -> dict[str, int]:
    assert isinstance(pruner.units, ChannelUnits)
    return {name: int(gone.sum()) for name, gone in pruner.units.gone(masks.read(model)).items()}
