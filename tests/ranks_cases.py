"""A small network, recipes and events for tests that run on several ranks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_prune import Channel, OneShot, Random, Recipe, Taylor
from lightning_prune.model import masks
from lightning_prune.run.binding import bind
from lightning_prune.run.pruner import Event, Pruner, prune_step

SPARSITY = 0.5


@contextmanager
def process_group(seconds: float = 60) -> Iterator[int]:
    """Join the ranks of this test and leave them again; yields the own rank."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=seconds))
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def network() -> nn.Sequential:
    """Return the same network on each rank; two pairs of layers share scores, so that ties are met."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    with torch.no_grad():
        for layer in (net[0], net[2]):
            assert isinstance(layer, nn.Linear)
            layer.weight.copy_((layer.weight * 20).round() / 20)
    return net


def by_data(name: str, weight: Tensor) -> Tensor:
    """Score by what only this rank has seen."""
    generator = torch.Generator().manual_seed(dist.get_rank())
    return weight.abs() * torch.rand(weight.shape, generator=generator)


def breaks_on_one(name: str, weight: Tensor) -> Tensor:
    if dist.get_rank() == 1 and name == "2.weight":
        raise OSError("no such statistics")
    return weight.abs()


RECIPES: dict[str, Callable[[], Recipe]] = {
    "magnitude": lambda: Recipe(schedule=OneShot(SPARSITY)),
    "random": lambda: Recipe(schedule=OneShot(SPARSITY), criterion=Random(3)),
    "taylor": lambda: Recipe(schedule=OneShot(SPARSITY, begin_step=1), criterion=Taylor()),
    "by data": lambda: Recipe(schedule=OneShot(SPARSITY), criterion=by_data),
    "channels": lambda: Recipe(schedule=OneShot(SPARSITY), granularity=Channel()),
}


def bound(recipe: Recipe, net: nn.Module) -> Pruner:
    """Return the recipe bound to the network, which carries all-True masks then."""
    pruner = bind(recipe, net, (torch.zeros(2, 8),))
    pruner.attach(net)
    return pruner


def show_gradients(pruner: Pruner, net: nn.Module, seed: int) -> None:
    """Let a gradient criterion see the gradients of one batch."""
    generator = torch.Generator().manual_seed(seed)
    net.zero_grad()
    net(torch.randn(16, 8, generator=generator)).square().mean().backward()
    pruner.observe(masks.dense_parameters(net))


def read(net: nn.Module) -> dict[str, Any]:
    """Return the masks as NumPy arrays, which travel between processes."""
    return {name: mask.numpy().copy() for name, mask in masks.read(net).items()}


def event(pruner: Pruner, net: nn.Module, sparsity: float = SPARSITY) -> Event:
    return prune_step(pruner, net, sparsity)


def by_shape(name: str, weight: Tensor) -> Tensor:
    """Score by the whole weight and by a plain tensor: what a function may do that was written for one process."""
    return weight.abs() / weight.norm() * torch.arange(1, weight.shape[-1] + 1)
