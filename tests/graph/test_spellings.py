"""What transformers are written with, each in a small net of its own: which channels go, exactly, and which stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graph_oracle import masked, pick, randomised, relative_error, sizes, smaller
from torch import Tensor, nn

from lightning_prune.graph import ChannelGroups, channel_groups

X = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
STREAM, HEADS, WIDTH = 8, 4, 6


class Rms(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), 1e-2

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


class Block(nn.Module):
    """A residual stream under RMS norms, with one thing in it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.enter, self.norm, self.inner = nn.Linear(6, STREAM), Rms(STREAM), inner
        self.last, self.head = Rms(STREAM), nn.Linear(STREAM, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.head(self.last(x + self.inner(self.norm(x))))


class Attention(nn.Module):
    """Separate projections; what is done to the heads differs."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = HEADS, WIDTH
        self.q, self.k, self.v = (nn.Linear(STREAM, HEADS * WIDTH) for _ in range(3))
        self.out = nn.Linear(HEADS * WIDTH, STREAM)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.width)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(layer(x)) for layer in (self.q, self.k, self.v))
        return self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class Complex(Attention):
    """Rotary pairs as complex numbers, as in Llama's own code, the table a buffer; half as many heads of keys."""

    def __init__(self) -> None:
        super().__init__()
        self.own = HEADS // 2
        self.k, self.v = (nn.Linear(STREAM, self.own * WIDTH) for _ in range(2))
        angles = torch.outer(torch.arange(16.0), 10.0 ** -torch.arange(0, 1, 2 / WIDTH))
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles), persistent=False)

    def turned(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        turns: Any = self.turns
        return torch.view_as_real(pairs * turns[: x.shape[1], None]).flatten(3)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.q(x).view(b, t, self.heads, self.width)
        k, v = (layer(x).view(b, t, self.own, self.width) for layer in (self.k, self.v))
        q, k = self.turned(q), self.turned(k)
        k, v = (
            y[:, :, :, None]
            .expand(b, t, self.own, self.heads // self.own, self.width)
            .reshape(b, t, self.heads, self.width)
            for y in (k, v)
        )
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        scores = (q @ k.transpose(2, 3)) / self.width**0.5
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, -1))


class Window(Attention):
    """A sliding window whose mask is a buffer of all places."""

    def __init__(self) -> None:
        super().__init__()
        apart = torch.arange(16)[:, None] - torch.arange(16)
        self.register_buffer("seen", (apart >= 0) & (apart < 3))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen: Any = self.seen
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen[: q.shape[2], : q.shape[2]])


class Slopes(Attention):
    """ALiBi: each head has a slope of its own, in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("slopes", 2.0 ** -torch.arange(1.0, HEADS + 1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        places, slopes = torch.arange(q.shape[2]), self.get_buffer("slopes")
        apart = -(places[:, None] - places).abs().to(q.dtype)
        scores = q @ k.mT * self.width**-0.5 + slopes[:, None, None] * apart
        return scores.softmax(-1) @ v


class Table(Attention):
    """A learned bias for each distance and head, as T5 and Swin have."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(9, HEADS))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        places = torch.arange(5)
        bias = self.table[(places[:, None] - places + 4).view(-1)].view(5, 5, -1).permute(2, 0, 1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


class Crossed(Attention):
    """Queries of the stream, keys and values of something else, from a projection for both."""

    def __init__(self) -> None:
        super().__init__()
        self.context, self.kv = nn.Parameter(torch.randn(1, 3, 7)), nn.Linear(7, 2 * HEADS * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.kv(self.context.expand(len(x), -1, -1)).chunk(2, -1)
        q, k, v = (self.split(y) for y in (self.q(x), k, v))
        return self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))


class Sliced(nn.Module):
    """Phi 3: one layer makes queries and fewer keys and values, which slices take apart."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.own, self.width = HEADS, HEADS // 2, WIDTH
        self.qkv, self.out = nn.Linear(STREAM, (HEADS + 2 * self.own) * WIDTH), nn.Linear(HEADS * WIDTH, STREAM)

    def forward(self, x: Tensor) -> Tensor:
        q_size, kv_size = self.heads * self.width, self.own * self.width
        q, k, v = self.qkv(x).split([q_size, kv_size, kv_size], dim=-1)
        q, k, v = (y.unflatten(-1, (-1, self.width)).transpose(1, 2) for y in (q, k, v))
        return self.out(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))


class Doubled(nn.Module):
    """Parts of two sizes from one attribute: the short one goes with both halves of the long one."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 5
        self.up, self.down = nn.Linear(STREAM, 3 * 5), nn.Linear(2 * 5, STREAM)

    def forward(self, x: Tensor) -> Tensor:
        both, gate = self.up(x).split([2 * self.width, self.width], dim=-1)
        return self.down(both * torch.cat([gate, gate], -1))


class SwiGlu(nn.Module):
    """Gate and value by one layer, as in Phi 3, or by two, as in Llama."""

    def __init__(self, is_packed: bool) -> None:
        super().__init__()
        self.up = nn.Linear(STREAM, 24 if is_packed else 12)
        self.gate = None if is_packed else nn.Linear(STREAM, 12)
        self.down = nn.Linear(12, STREAM)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, -1) if self.gate is None else (self.gate(x), self.up(x))
        return self.down(F.silu(gate) * value)


class LayerScaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.gamma = nn.Linear(STREAM, 12), nn.Linear(12, STREAM), nn.Parameter(torch.ones(STREAM))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * self.down(F.gelu(self.up(x)))


class Adaptive(nn.Module):
    """adaLN of diffusion transformers: shift, scale and gate of each channel are computed of a condition."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norm, self.up, self.down = norm(STREAM), nn.Linear(STREAM, 12), nn.Linear(12, STREAM)
        self.condition, self.first, self.six = (
            nn.Parameter(torch.randn(1, 5)),
            nn.Linear(5, 7),
            nn.Linear(7, 3 * STREAM),
        )

    def forward(self, x: Tensor) -> Tensor:
        shift, scale, gate = self.six(F.silu(self.first(self.condition))).chunk(3, -1)
        return gate * self.down(F.gelu(self.up(self.norm(x) * (1 + scale) + shift)))


class Positions(nn.Module):
    """Places that are added, learned or kept in a buffer."""

    def __init__(self, is_learned: bool) -> None:
        super().__init__()
        places = torch.randn(1, 16, STREAM)
        self.enter = nn.Linear(6, STREAM)
        self.places = nn.Parameter(places) if is_learned else nn.Buffer(places)
        self.norm, self.up, self.down, self.head = (
            Rms(STREAM),
            nn.Linear(STREAM, 12),
            nn.Linear(12, STREAM),
            nn.Linear(STREAM, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x) + self.places[:, : x.shape[1]]
        return self.head(self.norm(x + self.down(F.gelu(self.up(x)))))


class Merged(nn.Module):
    """Patch merging of Swin: four neighbours side by side, a norm, a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.reduction = (
            nn.Conv2d(3, STREAM, 1),
            Rms(4 * STREAM),
            nn.Linear(4 * STREAM, 10, bias=False),
        )
        self.last, self.head = Rms(10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).permute(0, 2, 3, 1)
        x = torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], -1)
        return self.head(self.last(self.reduction(self.norm(x))))


ATTENTION, WIDTHS = {"enter": STREAM, "inner.q": HEADS}, {"enter": STREAM, "inner.q": WIDTH}
MLP = {"enter": STREAM, "inner.up": 12}
GATED, MODULATED = {"enter": STREAM, "inner.gate": 12}, {**MLP, "inner": 5, "inner.first": 7}
GOES: dict[str, tuple[Callable[[], nn.Module], dict[str, int], dict[str, int]]] = {
    "rotary pairs as complex numbers": (Complex, {"enter": STREAM, "inner.q": 2}, {"enter": STREAM, "inner.q": 3}),
    "sliding window": (Window, ATTENTION, WIDTHS),
    "slopes of ALiBi": (Slopes, ATTENTION, WIDTHS),
    "relative table": (Table, ATTENTION, WIDTHS),
    "cross attention": (
        Crossed,
        {"enter": STREAM, "inner": 7, "inner.kv": HEADS},
        {"enter": STREAM, "inner": 7, "inner.kv": WIDTH},
    ),
    "fused qkv by sizes": (Sliced, {"enter": STREAM, "inner.qkv": 2}, {"enter": STREAM, "inner.qkv": WIDTH}),
    "parts of two sizes": (Doubled, {"enter": STREAM, "inner.up": 5}, {"enter": STREAM, "inner.up": 5}),
    "SwiGLU packed": (lambda: SwiGlu(True), MLP, MLP),
    "SwiGLU": (lambda: SwiGlu(False), GATED, GATED),
    "layer scale": (LayerScaled, MLP, MLP),
    "adaptive RMS norm": (lambda: Adaptive(Rms), MODULATED, MODULATED),
}


def exact(model: nn.Module, x: Tensor, attention: Any = "heads") -> ChannelGroups:
    model, x = randomised(model), x.double()
    groups = channel_groups(model, x, attention=attention)
    assert groups.unknown == ()
    for seed in range(2):
        removed = pick(groups, seed, 0.5)
        assert relative_error(masked(model, removed), smaller(model, removed, groups), (x,), {}) < 1e-12
    return groups


@pytest.mark.parametrize("attention", ["heads", "width"])
@pytest.mark.parametrize("name", GOES)
def test_what_goes_of_a_transformer(name: str, attention: Any) -> None:
    make, heads, widths = GOES[name]
    groups = exact(Block(make()), X, attention)
    assert sizes(groups) == (heads if attention == "heads" else widths)


def test_places_that_are_learned_go_with_the_stream_and_places_in_a_buffer_hold_it() -> None:
    assert sizes(exact(Positions(is_learned=True), X)) == {"enter": STREAM, "up": 12}
    held = exact(Positions(is_learned=False), X)
    assert sizes(held) == {"up": 12}


def test_four_neighbours_of_a_merged_patch_go_together() -> None:
    assert sizes(exact(Merged(), torch.randn(2, 3, 4, 4))) == {"enter": STREAM, "reduction": 10}
