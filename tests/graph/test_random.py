"""Random networks out of the supported operators compact exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graph_oracle import randomised
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_prune.compaction import Compaction, compact
from lightning_prune.graph import channel_groups

WIDTH = 8


class Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Add(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Gate(Add):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.body(x).mean((2, 3), keepdim=True))


class Cat(nn.Module):
    """Both branches beside each other, and a layer that brings back the width."""

    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right, self.merge = left, right, nn.Conv2d(2 * WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(torch.cat([self.left(x), self.right(x)], 1))


class Split(nn.Module):
    """One half is left as it is; the code knows its size by an attribute, a shape or a number of parts."""

    def __init__(self, how: int, body: nn.Module) -> None:
        super().__init__()
        self.how, self.part, self.body = how, WIDTH // 2, body
        self.enter, self.leave = nn.Conv2d(WIDTH // 2, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH // 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == 0:
            a, b = x.split(self.part, 1)
        elif self.how == 1:
            a, b = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]
        else:
            a, b = x.chunk(2, 1)
        return torch.cat([self.leave(self.body(self.enter(a))), b], 1)


class Heads(nn.Module):
    """Attention over the places of an image."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.heads, self.head_dim, self.fused = 4, 2, fused
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(2).transpose(1, 2)
        q, k, v = (
            layer(y).view(len(y), -1, self.heads, self.head_dim).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        z = F.scaled_dot_product_attention(q, k, v) if self.fused else (q @ k.mT).softmax(-1) @ v
        return self.out(z.transpose(1, 2).flatten(2)).transpose(1, 2).unflatten(2, x.shape[2:])


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(self.norm(x.permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.rnn, self.out = kind(WIDTH, 6, batch_first=True), nn.Linear(6, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x.flatten(2).transpose(1, 2))[0]).transpose(1, 2).unflatten(2, x.shape[2:])


def conv(groups: int = 1, kernel: int = 3) -> nn.Module:
    return nn.Conv2d(WIDTH, WIDTH, kernel, padding=kernel // 2, groups=groups)


def shuffle(x: Tensor) -> Tensor:
    return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


FUNCTIONS: list[Callable[[Tensor], Tensor]] = [
    *(torch.relu, torch.sigmoid, F.gelu, F.hardswish, torch.tanh, F.softplus, shuffle),
    lambda x: x * 2 + 1,
    lambda x: F.max_pool2d(x, 3, 1, 1),
    lambda x: F.interpolate(F.avg_pool2d(x, 2), scale_factor=2),
    lambda x: x - x.mean((2, 3), keepdim=True),
    lambda x: x.roll(1, 2).flip(3),
    lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2),
    lambda x: torch.stack([x, x * x], 1).sum(1),
    lambda x: torch.einsum("bchw,bchw->bchw", x, torch.sigmoid(x)),
    lambda x: x / (1 + x.abs()),
]

LEAVES: list[Callable[[], nn.Module]] = [
    conv,
    lambda: conv(WIDTH),
    lambda: conv(2),
    lambda: conv(4, 1),
    lambda: nn.ConvTranspose2d(WIDTH, WIDTH, 3, padding=1),
    lambda: nn.BatchNorm2d(WIDTH),
    lambda: nn.PReLU(WIDTH),
    lambda: nn.GroupNorm(2, WIDTH),
    lambda: nn.Sequential(nn.Conv2d(WIDTH, 2 * WIDTH, 1), nn.GLU(1)),
    lambda: nn.Sequential(nn.Conv2d(WIDTH, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, WIDTH, 1)),
    Normed,
    lambda: Heads(True),
    lambda: Heads(False),
    lambda: Recurrent(nn.LSTM),
    lambda: Recurrent(nn.GRU),
    *((lambda function=function: Apply(function)) for function in FUNCTIONS),
]


def _grown(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    chain = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        st.tuples(st.just("chain"), chain),
        st.tuples(st.just("add"), inner),
        st.tuples(st.just("gate"), inner),
        st.tuples(st.just("cat"), inner, inner),
        st.tuples(st.sampled_from(["split0", "split1", "split2"]), inner),
    )


RECIPES = st.lists(st.recursive(st.integers(0, len(LEAVES) - 1), _grown, max_leaves=5), min_size=1, max_size=12)


def built(recipe: Any) -> nn.Module:
    if isinstance(recipe, int):
        return LEAVES[recipe]()
    kind, *inner = recipe
    if kind == "chain":
        return nn.Sequential(*map(built, inner[0]))
    parts = list(map(built, inner))
    if kind == "cat":
        return Cat(parts[0], parts[1])
    return {"add": Add, "gate": Gate}[kind](parts[0]) if kind in ("add", "gate") else Split(int(kind[-1]), parts[0])


def check(recipe: list[Any], seed: int) -> None:
    torch.manual_seed(seed)
    layers = [built(part) for part in recipe]
    model = randomised(nn.Sequential(nn.Conv2d(3, WIDTH, 1), *layers, conv(), nn.ReLU(), nn.Conv2d(WIDTH, 3, 1)))
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    groups = channel_groups(model, x)
    assert groups.unknown == ()
    rng = np.random.default_rng(seed)
    keep = {g.name: rng.permutation(g.size)[: rng.integers(1, g.size + 1)] for g in groups if g.prunable}
    assert keep
    report = compact(
        model, Compaction.from_keep(groups, {name: np.sort(kept).tolist() for name, kept in keep.items()}), x
    )
    assert report.put_back == {}
    assert all(error <= 1e-9 for error in report.errors.values())


@settings(max_examples=25)
@given(RECIPES, st.integers(0, 99))
def test_random_networks_compact_exactly(recipe: list[Any], seed: int) -> None:
    check(recipe, seed)


@pytest.mark.slow
@settings(max_examples=500)
@given(RECIPES, st.integers(100, 9999))
def test_many_random_networks_compact_exactly(recipe: list[Any], seed: int) -> None:
    check(recipe, seed)
