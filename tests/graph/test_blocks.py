"""Parts of newer transformers on a stream under RMS norms: what goes of each, exactly."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graph_oracle import check_exact, randomised, sizes
from torch import Tensor, nn

X = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0)).double()


class Around(nn.Module):
    """A part that adds to a stream of eight, between an entrance and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.head = nn.Linear(6, 8), nn.RMSNorm(8, 1e-2), nn.Linear(8, 3)

    def part(self, x: Tensor, entered: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.head(x + self.part(self.norm(x), x))


class PackedGate(Around):
    """Gate and up projection in one layer (Phi 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.down = nn.Linear(8, 20), nn.Linear(10, 8)

    def part(self, x: Tensor, entered: Tensor) -> Tensor:
        gate, up = self.both(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class Experts(Around):
    """Every expert runs, weighed by the router: the hidden width of each goes by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 3)
        self.ups = nn.ModuleList(nn.Linear(8, 10) for _ in range(3))
        self.downs = nn.ModuleList(nn.Linear(10, 8) for _ in range(3))

    def part(self, x: Tensor, entered: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        made = [down(F.gelu(up(x))) for up, down in zip(self.ups, self.downs, strict=True)]
        return sum((weights[..., at, None] * one for at, one in enumerate(made)), torch.zeros_like(x))


class LayerScale(Around):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.gamma = nn.Linear(8, 10), nn.Linear(10, 8), nn.Parameter(torch.ones(8))

    def part(self, x: Tensor, entered: Tensor) -> Tensor:
        return self.gamma * self.down(F.gelu(self.up(x)))


class Modulated(Around):
    """Shift, scale and gate are made from the mean over places (adaLN, DiT)."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation, self.up, self.down = nn.Linear(8, 24), nn.Linear(8, 10), nn.Linear(10, 8)

    def part(self, x: Tensor, entered: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(F.silu(entered.mean(1))).unsqueeze(1).chunk(3, -1)
        return gate * self.down(F.gelu(self.up(x * (1 + scale) + shift)))


class Crossed(Around):
    """Queries of a stream, keys and values of a memory."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.memory = 2, nn.Linear(6, 12)
        self.q, self.k, self.v, self.out = nn.Linear(8, 8), nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(8, 8)

    def part(self, x: Tensor, entered: Tensor) -> Tensor:
        memory: Any = self.memory(self.seen)
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (self.q(x), self.k(memory), self.v(memory))
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return super().forward(x)


PARTS: dict[type[Around], dict[str, int]] = {
    PackedGate: {"enter": 8, "both": 10},
    Experts: {"enter": 8, "ups.0": 10, "ups.1": 10, "ups.2": 10},
    LayerScale: {"enter": 8, "up": 10},
    Modulated: {"enter": 8, "up": 10},
    Crossed: {"enter": 8, "memory": 12, "q": 2},
}


@pytest.mark.parametrize("part", PARTS)
def test_all_widths_of_a_part_go(part: type[Around]) -> None:
    assert sizes(check_exact(randomised(part()), X)) == PARTS[part]
