"""Attention by default: whole heads, or the width of the value where heads must stay."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compaction_cases import half_of
from graph_oracle import check_exact, randomised, sizes, slots
from torch import Tensor, nn

from lightning_prune.compaction import Compaction, compact
from lightning_prune.graph import channel_groups

X = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """Projections of their own for query, key and value; how heads are made is left to the kinds below."""

    def __init__(self, is_fused: bool = True, heads: int = 2, width: int = 4, value: int = 6) -> None:
        super().__init__()
        self.is_fused, self.heads, self.width, self.value = is_fused, heads, width, value
        self.q, self.k, self.v = nn.Linear(6, heads * width), nn.Linear(6, heads * width), nn.Linear(6, heads * value)
        self.out = nn.Linear(heads * value, 3)

    def split(self, x: Tensor, width: int) -> Tensor:
        raise NotImplementedError

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.is_fused:
            return F.scaled_dot_product_attention(q, k, v)
        return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.split(self.q(x), self.width), self.split(self.k(x), self.width)
        v = self.split(self.v(x), self.value)
        return self.out(self.attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2).flatten(2))


class Counted(Attention):
    """The number of heads is an attribute."""

    def split(self, x: Tensor, width: int) -> Tensor:
        return x.view(len(x), -1, self.heads, width)


class Fixed(Attention):
    """The number of heads is a constant in the code."""

    def split(self, x: Tensor, width: int) -> Tensor:
        return x.unflatten(-1, (2, -1))


@pytest.mark.parametrize("is_fused", [True, False])
def test_heads_come_first(is_fused: bool) -> None:
    groups = check_exact(Counted(is_fused), X)
    assert sizes(groups) == {"q": 2}
    assert ("v.weight", 0, "output") in slots(groups, "q")


@pytest.mark.parametrize("is_fused", [True, False])
def test_widths_go_equal_per_head_where_heads_must_stay(is_fused: bool) -> None:
    groups = check_exact(Fixed(is_fused), X)
    assert sizes(groups) == {"q": 4, "v": 6}
    assert slots(groups, "v") == {("v.weight", 0, "output"), ("v.bias", 0, "output"), ("out.weight", 1, "input")}
    for member in groups["v"].members:
        assert member.indices.tolist() == [[slot, slot + 6] for slot in range(6)]
    assert {("q.weight", 0, "output"), ("k.weight", 0, "output")} <= slots(groups, "q")


class Single(Attention):
    """One head, so no axis for heads."""

    def __init__(self) -> None:
        super().__init__(heads=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out((self.q(x) @ self.k(x).mT).softmax(-1) @ self.v(x))


def test_one_head_loses_width() -> None:
    assert sizes(check_exact(Single(), X)) == {"q": 4, "v": 6}


class Linear(Attention):
    """Keys times values first (linear attention)."""

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.q(x).softmax(-1), self.k(x).softmax(1)
        return self.out(q @ (k.mT @ self.v(x)))


def test_linear_attention_loses_value_width() -> None:
    assert sizes(check_exact(Linear(), X)) == {"v": 12}


class OwnWidth(Attention):
    """The width of the value is an attribute of its own, the number of heads a constant."""

    def forward(self, x: Tensor) -> Tensor:
        q, k = (f(x).view(len(x), -1, 2, self.width).transpose(1, 2) for f in (self.q, self.k))
        v = self.v(x).view(len(x), -1, 2, self.value).transpose(1, 2)
        return self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))


def test_a_width_of_its_own_follows() -> None:
    model: Any = randomised(OwnWidth())
    groups = channel_groups(model, X.double())
    assert groups.attributes == {"value": ("v.weight", 0), "width": ("q.weight", 0)}
    report = compact(model, Compaction.from_keep(groups, half_of(groups)), X.double())
    assert (model.value, model.width, report.put_back) == (3, 2, {})


class Quotient(Attention):
    """The width of a head is computed: a width over the number of heads."""

    def __init__(self, is_stored: bool) -> None:
        super().__init__(heads=3, width=4, value=4)
        self.total = 12
        self.enter, self.norm = nn.Linear(6, 12), nn.LayerNorm(12)
        self.q, self.k, self.v = (nn.Linear(12, 12) for _ in range(3))
        self.is_stored = is_stored

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.enter(x))
        total = self.total if self.is_stored else x.shape[-1]
        q, k, v = (f(x).view(len(x), -1, self.heads, total // self.heads) for f in (self.q, self.k, self.v))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))


def test_the_numerator_follows_the_heads_where_it_is_an_attribute() -> None:
    model: Any = randomised(Quotient(is_stored=True))
    groups = channel_groups(model, X.double())
    assert sizes(groups) == {"q": 3}
    report = compact(model, Compaction.from_keep(groups, {"q": [1]}), X.double())
    assert (model.heads, model.total, report.put_back) == (1, 4, {})


def test_heads_stay_where_the_numerator_is_a_normalised_width() -> None:
    assert sizes(channel_groups(Quotient(is_stored=False), X)) == {}


class Twofold(Quotient):
    """The numerator is also the size of what stays."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.norm(self.enter(x)).view(-1, 5, self.total).mean(-1, keepdim=True)


def test_heads_stay_where_the_numerator_also_sizes_what_stays() -> None:
    assert sizes(channel_groups(Twofold(is_stored=True), X)) == {}


def test_a_norm_over_the_width_of_a_head_lets_heads_go():
    class HeadNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 12), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x).unflatten(-1, (-1, 3))
            return self.b((x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)).flatten(1))

    assert sizes(check_exact(HeadNorm(), torch.randn(2, 4))) == {"a": 4}


def test_the_encoder_layer_loses_heads_and_hidden_units():
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    groups = check_exact(nn.Sequential(nn.Linear(4, 8), layer, nn.Linear(8, 2)), torch.randn(2, 3, 4))
    assert sizes(groups) == {"1.self_attn": 2, "1.linear1": 12}
    assert slots(groups, "1.self_attn") == {
        ("1.self_attn.in_proj_weight", 0, "output"),
        ("1.self_attn.in_proj_bias", 0, "output"),
        ("1.self_attn.out_proj.weight", 1, "input"),
    }
    assert torch.backends.mha.get_fastpath_enabled()
