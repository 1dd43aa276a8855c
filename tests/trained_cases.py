"""A network in which half of the units can be made by the others, and data for it."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_prune import Channel, NoRepair, OneShot, Recipe, Uniform

HALF = Recipe(granularity=Channel(), schedule=OneShot(0.5), allocation=Uniform())
UNREPAIRED = replace(HALF, repair=NoRepair())


def redundant(width: int = 16) -> nn.Sequential:
    """A network whose second half of hidden units are mixtures of the first half."""
    net = nn.Sequential(nn.Linear(8, width), nn.Identity(), nn.Linear(width, 4))
    first = net[0]
    assert isinstance(first, nn.Linear)
    with torch.no_grad():
        half = width // 2
        mixture = torch.randn(half, half) / half
        first.weight[half:] = mixture @ first.weight[:half]
        first.bias[half:] = mixture @ first.bias[:half]
    return net


def batches(count: int = 4, size: int = 32) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(size, 8), torch.randint(0, 4, (size,))) for _ in range(count)]
