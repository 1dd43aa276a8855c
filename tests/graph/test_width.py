"""Width of query, key and value within the heads: exact whatever divides the scores; or why it stays."""

import math
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from graph_oracle import masked, pick, randomised, relative_error, sizes, smaller
from torch import Tensor, nn

from lightning_prune import Channel, NoRepair, OneShot, Recipe, prune
from lightning_prune.compaction import Compaction, compact
from lightning_prune.compaction.finalization import finalize
from lightning_prune.graph import ChannelGroups, Scale, channel_groups
from lightning_prune.model import masks

X = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0)).double()


class Attention(nn.Module):
    """Heads and their width are attributes; what multiplies query and key differs."""

    def __init__(self, kv: int | None = None) -> None:
        super().__init__()
        self.heads, self.kv, self.width, self.factor = 4, kv, 6, 6**-0.5
        made = 6 * (kv or 4)
        self.q, self.k, self.v = nn.Linear(6, 24), nn.Linear(6, made), nn.Linear(6, made)
        self.out = nn.Linear(24, 3)

    def split(self, x: Tensor, heads: int) -> Tensor:
        return x.view(x.shape[0], x.shape[1], heads, self.width).transpose(1, 2)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        kv = self.kv or self.heads
        return self.split(self.q(x), self.heads), self.split(self.k(x), kv), self.split(self.v(x), kv)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.attend(*self.parts(x)).transpose(1, 2).flatten(2))


class Stated(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, scale=self.factor)


class StatedByWidth(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, scale=self.width**-0.5)


class ByHand(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) * self.factor).softmax(-1) @ v


class ByHandAndShape(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))).softmax(-1) @ v


class ByHandAndAttribute(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ((q / self.width**0.5) @ k.transpose(-2, -1)).softmax(-1) @ v


class ByEinsum(Attention):
    """Places before heads, as einsum lets them stand."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in self.parts(x))
        scores = torch.einsum("b i h d, b j h d -> b h i j", q, k) / math.sqrt(q.size(-1))
        return self.out(torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).flatten(2))


class FusedByEinsum(ByEinsum):
    """Query and value out of one layer, with more heads than slots."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width, self.qkv = 6, 4, nn.Linear(6, 72)
        del self.q, self.k, self.v

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.split(part, self.heads) for part in self.qkv(x).chunk(3, -1))


class ManyHeads(ByHandAndShape):
    """More heads than each has slots."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 6, 4


class Grouped(Attention):
    def __init__(self) -> None:
        super().__init__(2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


class Rotary(Grouped):
    """Pairs (i, i + 3) turn together; cosines and sines are cached."""

    def __init__(self) -> None:
        super().__init__()
        angles = torch.outer(torch.arange(9.0), 10 ** (-torch.arange(3.0) / 3))
        self.register_buffer("cos", angles.cos().double())
        self.register_buffer("sin", angles.sin().double())

    def turn(self, x: Tensor) -> Tensor:
        cos: Any = self.cos
        sin: Any = self.sin
        cos, sin = cos[: x.shape[2]], sin[: x.shape[2]]
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().attend(self.turn(q), self.turn(k), v)


class Interleaved(Rotary):
    """Pairs (2i, 2i + 1) turn together (GPT-J, RoFormer)."""

    def turn(self, x: Tensor) -> Tensor:
        cos: Any = self.cos
        sin: Any = self.sin
        cos, sin = cos[: x.shape[2]], sin[: x.shape[2]]
        a, b = x[..., ::2], x[..., 1::2]
        return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)


class Repeated(Rotary):
    """As Hugging Face writes Llama: frequencies twice in a row, the half turned, keys repeated for their queries."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", (10 ** (-torch.arange(3.0) / 3)).double())

    def turn(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[2]).to(x)[:, None] * self.get_buffer("frequencies")[None]
        angles = torch.cat([angles, angles], -1)
        half = x.shape[-1] // 2
        turned = torch.cat([-x[..., half:], x[..., :half]], -1)
        return x * angles.cos() + turned * angles.sin()

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        many = q.shape[1] // k.shape[1]
        k, v = (x[:, :, None].expand(-1, -1, many, -1, -1).flatten(1, 2) for x in (self.turn(k), v))
        scores = self.turn(q) @ k.transpose(2, 3) / math.sqrt(self.width)
        return scores.softmax(-1) @ v


class Banded(Attention):
    """Places farther away than two are not seen, and nearer ones count more (ALiBi)."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        places = torch.arange(q.shape[2])
        distance = (places[:, None] - places[None]).abs().to(q)
        scores = q @ k.mT / math.sqrt(self.width) - 0.3 * distance
        return scores.masked_fill(distance > 2, float("-inf")).softmax(-1) @ v


class Normed(Attention):
    """Query and key are normalised in each head (Qwen 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.of_q, self.of_k = nn.RMSNorm(6, eps=1e-2), nn.RMSNorm(6, eps=1e-2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().attend(self.of_q(q), self.of_k(k), v)


class Fused(Attention):
    """One layer makes query, key and value, as in timm."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 72)
        del self.q, self.k, self.v

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        batch, places, _ = x.shape
        return self.qkv(x).reshape(batch, places, 3, self.heads, self.width).permute(2, 0, 3, 1, 4).unbind(0)


HALF = Scale(0.5)
WIDTHS: dict[str, tuple[type[Attention], int, dict[str, Scale]]] = {
    "default": (Attention, 6, {"q.weight": HALF, "q.bias": HALF}),
    "stated": (Stated, 6, {}),
    "stated by width": (StatedByWidth, 6, {"q.weight": HALF, "q.bias": HALF}),
    "by hand": (ByHand, 6, {}),
    "by hand and shape": (ByHandAndShape, 6, {"q.weight": HALF, "q.bias": HALF}),
    "by hand and attribute": (ByHandAndAttribute, 6, {"q.weight": HALF, "q.bias": HALF}),
    "einsum": (ByEinsum, 6, {"q.weight": HALF, "q.bias": HALF}),
    "einsum, fused": (
        FusedByEinsum,
        4,
        {"qkv.weight": Scale(0.25), "qkv.bias": Scale(0.25), "out.weight": Scale(-0.25)},
    ),
    "many heads": (ManyHeads, 4, {"q.weight": HALF, "q.bias": HALF}),
    "grouped": (Grouped, 6, {"q.weight": HALF, "q.bias": HALF}),
    "rotary": (Rotary, 3, {"q.weight": HALF, "q.bias": HALF}),
    "interleaved": (Interleaved, 3, {"q.weight": HALF, "q.bias": HALF}),
    "repeated": (Repeated, 3, {"q.weight": HALF, "q.bias": HALF}),
    "banded": (Banded, 6, {"q.weight": HALF, "q.bias": HALF}),
    "normed": (Normed, 6, {"of_k.weight": Scale(-0.5)}),
    "fused": (Fused, 6, {"qkv.weight": Scale(0.25), "qkv.bias": Scale(0.25), "out.weight": Scale(-0.25)}),
}


def exact(model: nn.Module, attention: Any) -> ChannelGroups:
    groups = channel_groups(model, X, attention=attention)
    for seed in range(2):
        removed = pick(groups, seed, 0.5)
        assert relative_error(masked(model, removed), smaller(model, removed, groups), (X,), {}) < 1e-12
    return groups


@pytest.mark.parametrize("name", WIDTHS)
def test_the_width_of_query_and_key_goes_exactly(name: str) -> None:
    make, expected, scales = WIDTHS[name]
    groups = exact(randomised(make()), "width")
    # one attribute is the width of query, key and value: they go together
    assert list(sizes(groups).values()) == [expected]
    assert next(group.scales for group in groups if group.prunable) == scales


@pytest.mark.parametrize("name", WIDTHS)
def test_heads_go_where_nothing_is_said(name: str) -> None:
    make, _, _ = WIDTHS[name]
    groups = exact(randomised(make()), "heads")
    heads = 6 if make in (ManyHeads, FusedByEinsum) else 2 if issubclass(make, Grouped) else 4
    assert set(sizes(groups).values()) == {heads}
    assert not any(group.scales for group in groups)


class Split(Attention):
    """The widths of query and key, and of the value, are what is left of the layers."""

    def split(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def test_query_and_key_go_by_themselves_where_no_attribute_is_the_width_of_all() -> None:
    groups = exact(randomised(Split()), "width")
    assert sizes(groups) == {"q": 6, "v": 6}


def test_heads_and_then_width() -> None:
    model: Any = randomised(Split())
    for attention, expected in (("heads", {"q": 4}), ("width", {"q": 6, "v": 6})):
        groups = channel_groups(model, X, attention=cast(Any, attention))
        assert sizes(groups) == expected
        plan = Compaction.from_keep(groups, {g.name: range(g.size // 2) for g in groups if g.prunable})
        assert compact(model, plan, X).errors["float64"] < 1e-12
    assert (model.q.weight.shape, model.out.weight.shape) == ((6, 6), (3, 6))


def test_masks_of_a_width_are_known_again() -> None:
    model: Any = randomised(Split())
    plan = Compaction.from_keep(channel_groups(model, X, attention="width"), {"q": [0, 3], "v": [1, 2, 5]})
    names = [name for name in plan.masked if name != "out.bias"]
    masks.attach(model, names, is_structured=True)
    new = {name: torch.ones_like(mask) for name, mask in masks.read(model).items()}
    for name, axes in plan.masked.items():
        for axis, gone in axes.items():
            new[name].index_fill_(axis, torch.tensor(gone), False)
    masks.write(model, list(new.items()))
    with torch.no_grad():
        before = model(X)
        after = finalize(model, X)(X)
    assert (model.q.out_features, model.v.out_features, model.heads) == (8, 12, 4)
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)


def test_a_recipe_says_what_goes_of_an_attention() -> None:
    with pytest.raises(ValueError, match=r"Channel.attention must be 'heads' or 'width', got 'both'"):
        Channel(attention=cast(Any, "both"))
    model: Any = randomised(Split()).float()
    recipe = Recipe(granularity=Channel(attention="width"), schedule=OneShot(0.4), repair=NoRepair())
    prune(model, recipe, [X.float()], progress=False)
    assert model.q.out_features < 24
    assert model.q.out_features % 4 == 0


class Positive(Split):
    """A feature map that is one where a query is zero."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ((F.elu(q) + 1) @ (F.elu(k) + 1).mT) @ v


class Layered(Split):
    """A layer norm of the query takes the mean over its width."""

    def __init__(self) -> None:
        super().__init__()
        self.of_q = nn.LayerNorm(6)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().attend(self.of_q(q), k, v)


@pytest.mark.parametrize("make", [Positive, Layered])
def test_a_width_stays_where_its_removal_would_change_scores(make: type[Attention]) -> None:
    assert sizes(exact(randomised(make()), "width")) == {"v": 6}


def test_another_word_than_heads_or_width_is_refused() -> None:
    with pytest.raises(ValueError, match="attention must be 'heads' or 'width', got 'depth'"):
        channel_groups(Attention(), X.float(), attention=cast(Any, "depth"))


def test_a_letter_that_einsum_broadcasts_keeps_what_it_sums_over() -> None:
    class Broadcast(ByEinsum):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (part.transpose(1, 2) for part in self.parts(x))
            scores = torch.einsum("bihd,bjhd->bhij", q, k[..., :1])
            return self.out(torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).flatten(2))

    groups = exact(randomised(Broadcast()), "width")
    assert not any(group.prunable and group.size == 6 for group in groups)


def test_the_width_goes_where_attention_weights_are_read() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.out = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y, weights = self.attention(x, x, x, average_attn_weights=False)
            return self.out(y), weights

    groups = exact(randomised(Read()), "heads")
    assert sizes(groups)["attention"] == 3
