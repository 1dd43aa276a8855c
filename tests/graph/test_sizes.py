"""Sizes that the code states: where they come from decides whether an axis may shrink."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from compaction_cases import half_of
from graph_oracle import check_exact, randomised, sizes
from torch import Tensor, nn

from lightning_prune.compaction import Compaction, compact
from lightning_prune.graph import channel_groups
from lightning_prune.graph._sizes import END, Recorder, Size, are_origins_known, bounds, own_attributes

X = torch.randn(2, 5, 6)


class Heads(nn.Module):
    """Attention with stored sizes, written in the way of a test."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.inner = heads, width // heads, width
        self.enter, self.norm = nn.Linear(6, width), nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, 2)

    def split_heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1, self.num_heads, self.head_dim).transpose(1, 2)

    def merge(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1, self.inner)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.enter(x))
        q, k, v = (self.split_heads(layer(x)) for layer in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-2, -1) / self.head_dim**0.5).softmax(-1)
        return self.out(self.merge((weights @ v).transpose(1, 2)))


class Product(Heads):
    def merge(self, x: Tensor) -> Tensor:
        return x.reshape(x.size(0), x.size(1), self.num_heads * self.head_dim)


class Flatten(Heads):
    def merge(self, x: Tensor) -> Tensor:
        return x.flatten(2)


class FromShape(Heads):
    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, x.shape[-1] // 3 if self.training else -1)).transpose(1, 2)


def rearrange(t: Tensor, pattern: str, h: int) -> Tensor:
    """Two patterns of einops, with its arithmetic on lengths."""
    if pattern == "b n (h d) -> b h n d":
        b, n, c = t.shape
        return t.reshape(b, n, h, c // h).permute(0, 2, 1, 3)
    b, _, n, d = t.shape
    return t.permute(0, 2, 1, 3).reshape(b, n, h * d)


class Rearranged(nn.Module):
    def __init__(self, heads: int = 4, head_dim: int = 2, rearrange: Callable[..., Tensor] = rearrange) -> None:
        super().__init__()
        self.heads, self.scale, self.rearrange = heads, head_dim**-0.5, rearrange
        self.qkv, self.out = nn.Linear(6, 3 * heads * head_dim, bias=False), nn.Linear(heads * head_dim, 6)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (self.rearrange(part, "b n (h d) -> b h n d", h=self.heads) for part in parts)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        return self.out(self.rearrange(weights @ v, "b h n d -> b n (h d)", h=self.heads))


def check_rearranged(function: Callable[..., Tensor]) -> None:
    model = nn.Sequential(Rearranged(rearrange=function), nn.ReLU(), Rearranged(rearrange=function)).double()
    x = X.double()
    model(x)
    groups = channel_groups(model, x)
    assert sizes(groups) == {"0.qkv": 4, "0.out": 6, "2.qkv": 4}
    plan = Compaction.from_keep(groups, {"0.qkv": [0, 3], "2.qkv": [1, 2]})
    masked = copy.deepcopy(model)
    plan.mask(masked)
    assert compact(model, plan, x).put_back == {}
    assert [module.heads for module in model if isinstance(module, Rearranged)] == [2, 2]
    assert torch.allclose(model(x), masked(x), rtol=0, atol=1e-14)


def test_a_length_over_the_number_of_heads_is_what_is_left_of_its_own_axis() -> None:
    check_exact(Rearranged(), X)
    check_rearranged(rearrange)


def test_heads_go_where_einops_rearranges() -> None:
    einops = pytest.importorskip("einops", reason="einops is not installed")
    check_rearranged(einops.rearrange)


class WidthOfTheInput(Rearranged):
    """The width of a head is computed from another tensor than the one that is cut into heads."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = (part.reshape(b, n, self.heads, c // self.heads).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return self.out(((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_heads_stay_where_the_length_is_that_of_another_tensor() -> None:
    groups = channel_groups(WidthOfTheInput(heads=3), X)
    assert sizes(groups) == {}
    assert groups["qkv"].reason.endswith("computes its size as one over the number of others")


@pytest.mark.parametrize("kind", [Heads, Product, Flatten, FromShape])
def test_heads_go_and_the_attributes_that_count_them_follow(kind: type[Heads]) -> None:
    groups = check_exact(kind(), X)
    assert sizes(groups) == {"q": 3}
    assert set(groups.attributes) <= {"num_heads", "inner"}
    assert "num_heads" in groups.attributes
    model = randomised(kind())
    report = compact(model, Compaction.from_keep(groups, {"q": [1]}), X.double())
    assert (model.num_heads, model.head_dim, report.put_back) == (1, 4, {})


def test_a_plan_knows_the_attributes_that_it_changes() -> None:
    groups = channel_groups(Heads(), X)
    plan = Compaction.from_json(Compaction.from_keep(groups, {"q": [0, 2]}).to_json())
    fresh = plan.rebuild(Heads())
    assert (fresh.num_heads, fresh.inner) == (2, 8)
    assert fresh(X).shape == (2, 5, 2)


class Parts(nn.Module):
    """Cuts a layer's channels into parts whose sizes are attributes."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.a, self.b = nn.Linear(6, first + second), nn.Linear(first, 2)
        self.c = nn.Linear(second, 2)

    def forward(self, x: Tensor) -> Tensor:
        x, y = torch.split(self.a(x), [self.first, self.second], dim=-1)
        return self.b(x) + self.c(torch.tanh(y))


@pytest.mark.parametrize(("first", "second", "expected"), [(4, 6, {"a": 4, "a#2": 6}), (4, 4, {"a": 4})])
def test_parts_with_an_attribute_each(first: int, second: int, expected: dict[str, int]) -> None:
    groups = check_exact(Parts(first, second), X)
    assert sizes(groups) == expected
    model = randomised(Parts(first, second))
    report = compact(model, Compaction.from_keep(groups, half_of(groups)), X.double())
    assert (model.first, model.second, report.put_back) == (first // 2, second // 2, {})


class Sliced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.width = 4
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(torch.cat([x[..., self.width :], torch.tanh(x[..., : self.width])], -1))


def test_slices_bounded_by_an_attribute() -> None:
    groups = check_exact(Sliced(), X)
    assert sizes(groups) == {"a": 4}
    assert groups.attributes == {"width": ("a.weight", 0)}


class Bound(nn.Module):
    """One attribute is the width of a layer that could shrink, and of the model's output."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 6
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x)).reshape(-1, self.width)
        return self.b(x).reshape(-1, self.width)


def test_an_attribute_that_also_sizes_what_stays_keeps_both() -> None:
    groups = channel_groups(Bound(), X)
    assert sizes(groups) == {}
    assert groups["a"].reason == "model output"


class AlsoOfInput(Bound):
    """The attribute is the size of the input, too."""

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x.reshape(-1, self.width))).reshape(-1, self.width)).mean(0)


def test_an_attribute_that_also_sizes_the_input_keeps_the_channels() -> None:
    groups = channel_groups(AlsoOfInput(), X)
    assert sizes(groups) == {}
    assert groups["a"].reason == "width is also the size of what stays: input of the model"


def test_the_model_keeps_plain_ints() -> None:
    model = Heads()
    recorder = Recorder()
    with recorder.watch(model):
        assert isinstance(model.num_heads, Size)
        model(X)
    assert [type(value) for value in (model.num_heads, model.head_dim, model.inner)] == [int] * 3
    assert not model._forward_hooks
    assert ("", (2, -1, 3, 4)) in recorder.sizes


def test_sizes_compute_like_ints_and_know_what_they_are_proportional_to() -> None:
    four, length = Size.of(4, {"heads": 4}), Size.of(12, {})
    assert [3 * four, four // 2, four + 1, length - four, -four] == [12, 2, 5, 8, -4]
    assert (four * 3).attributes == (four // 2).attributes == {"heads": 4}
    assert isinstance(3 * four, Size)
    assert (four * length).attributes == {"heads": 4}
    assert (length // four).under == {"heads": 4}
    assert not isinstance(length // four, Size)
    assert not isinstance(length // 5, Size)
    assert not isinstance(length - four, Size)
    assert isinstance(length - length // 2, Size)
    assert type(pickle.loads(pickle.dumps(four))) is int
    assert copy.deepcopy(four) is four
    with pytest.raises(TypeError):
        _ = four * object()
    assert four * 0.5 == 2.0


def test_bounds_and_origins() -> None:
    four = Size.of(4, {"heads": 4})
    assert bounds(None, four) == (0, 4)
    assert bounds(four, None) == (4, END)
    assert bounds(torch.tensor(1), None) == ()
    assert are_origins_known((0, four))
    assert not are_origins_known((2, four))
    assert not are_origins_known(())
    other = Size.of(2, {"other": 2})
    kinds = [frozenset(["heads"]), frozenset(["other"])]
    assert own_attributes((four, other)) == kinds
    # queries by one number of heads, keys and values by another, all of one width
    wide = [size * Size.of(3, {"width": 3}) for size in (four, other, other)]
    assert own_attributes(tuple(wide)) == [kind | {"width"} for kind in (kinds[0], kinds[1], kinds[1])]
    assert own_attributes((four, four)) == [kinds[0]] * 2
    assert own_attributes((four, wide[0])) == own_attributes((four, Size.of(2, {}))) == []


def test_a_model_that_minds_such_ints_is_traced_without_them() -> None:
    class Strict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width = 8
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            if type(self.width) is not int:
                raise TypeError("only ints")
            return self.b(torch.relu(self.a(x)).view(2, -1, 8))

    assert sizes(channel_groups(Strict(), X)) == {"a": 8}
