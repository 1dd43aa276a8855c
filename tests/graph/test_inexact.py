"""Channels under a normalisation: refused, or let go where that is allowed, with the same slots of every norm group."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graph_oracle import check_exact, masked, pick, randomised, relative_error, sizes, smaller
from torch import Tensor, nn

from lightning_prune.graph import channel_groups

X = torch.randn(2, 5, 6, 6, generator=torch.Generator().manual_seed(0))


class LayerByHand(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return self.weight * centred / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5)


class OwnShape(nn.Module):
    """Holds its shape as a tuple and has no weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shape = (width,)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.shape)


class Along(nn.Module):
    """A producer, a norm over the last axis, and a consumer; a second layer adds to the normalised width."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(6, 8), norm(8), nn.Linear(8, 12)
        self.c, self.last = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.last(x + self.c(torch.relu(self.b(self.norm(x)))))


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layer": nn.LayerNorm,
    "layer without weight": lambda width: nn.LayerNorm(width, elementwise_affine=False),
    "layer by hand": LayerByHand,
    "own shape": OwnShape,
}


@pytest.mark.parametrize("norm", NORMS)
def test_a_normalised_width_goes_only_when_that_is_allowed(norm: str) -> None:
    model = randomised(Along(NORMS[norm]))
    x = X.double()
    exact, loose = channel_groups(model, x), channel_groups(model, x, allow_inexact=True)
    assert sizes(exact) == {"b": 12}
    assert (exact["a"].inexact, exact["a"].reason != "") == ("", True)
    assert sizes(loose) == {"a": 8, "b": 12}
    assert loose["a"].inexact == exact["a"].reason
    assert loose["b"].inexact == ""
    assert {(m.parameter, m.axis) for m in loose["b"].members} == {(m.parameter, m.axis) for m in exact["b"].members}
    removed = pick(loose, 0, 0.5)
    one, other = masked(model, removed), smaller(model, removed, loose)
    change = relative_error(one, other, (x,), {})
    assert 1e-6 < change < 10


class GroupNormed(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(5, 12, 3, padding=1), nn.GroupNorm(groups, 12)
        self.b, self.last = nn.Conv2d(12, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.b(torch.relu(self.norm(self.a(x))))))


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_group_norm_loses_the_same_slot_of_every_norm_group_where_that_is_allowed(groups: int) -> None:
    model = GroupNormed(groups)
    found = channel_groups(model, X, allow_inexact=True)
    assert sizes(found) == {"a": 12 // groups, "b": 6}
    assert found["a"].inexact == "group_norm at norm normalises it"
    for member in found["a"].members:
        np.testing.assert_array_equal(member.indices, np.arange(12).reshape(groups, -1).T)


@pytest.mark.parametrize("groups", [2, 3, 12])
def test_whole_norm_groups_go_exactly(groups: int) -> None:
    found = check_exact(GroupNormed(groups), X)
    assert sizes(found) == {"a": groups, "b": 6}
    assert found.attributes == {"norm.num_groups": ("a.weight", 0)}
    for member in found["a"].members:
        np.testing.assert_array_equal(member.indices, np.arange(12).reshape(groups, -1))


def test_norm_groups_stay_where_there_is_one_or_their_number_is_in_the_code() -> None:
    class Functional(GroupNormed):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.b(F.group_norm(self.a(x), 3))))

    for model, where in ((GroupNormed(1), "at norm"), (Functional(3), "in the model's own forward")):
        groups = channel_groups(model, X)
        assert (sizes(groups), groups["a"].reason) == ({"b": 6}, f"group_norm {where} normalises it")


def test_the_table_says_what_is_inexact() -> None:
    first = str(channel_groups(GroupNormed(2), X, allow_inexact=True)).splitlines()[2]
    assert first.endswith("group_norm at norm normalises it")
    assert first.split()[:2] == ["a", "6"]
    assert " inexact " in first


NOT_NORMS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.softmax(-1),
    lambda x: x.cumsum(-1),
    lambda x: x.amax(-1, keepdim=True) * x,
    lambda x: x.mean(-1)[..., None] * x,
    lambda x: x[..., :4].repeat(1, 1, 1, 2),
    lambda x: torch.stack(x.unbind(-1), -1),
]


@pytest.mark.parametrize("number", range(len(NOT_NORMS)))
def test_what_is_no_normalisation_stays_all_the_same(number: int) -> None:
    class Apply(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return NOT_NORMS[number](x)

    model = Along(lambda _: Apply())
    assert str(channel_groups(model, X, allow_inexact=True)) == str(channel_groups(model, X))


def test_a_network_without_norms_has_the_same_groups() -> None:
    model = nn.Sequential(nn.Conv2d(5, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    assert str(channel_groups(model, X, allow_inexact=True)) == str(channel_groups(model, X))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.heads = nn.Linear(6, 8), nn.LayerNorm(8), 4
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        y = self.norm(x)
        q, k, v = (f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.last(x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))


def test_the_width_of_query_and_key_never_goes() -> None:
    groups = channel_groups(Attention(), X[0], allow_inexact=True)
    assert sizes(groups) == {"enter": 8, "q": 4}
    assert groups["q"].inexact == ""
    assert groups["q"].members[0].indices.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
