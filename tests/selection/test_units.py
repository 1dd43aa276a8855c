"""Which units go: exact counts, sums over coupled channels against NumPy loops, masks of whole channels."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_prune.criteria import Magnitude, Observations, Scores
from lightning_prune.graph import ChannelGroup, ChannelGroups, channel_groups
from lightning_prune.model.masks import dense_parameters
from lightning_prune.selection import ChannelUnits, ElementUnits, Units, apportion, finite, keep_highest
from lightning_prune.selection.granularity import Block, Channel, Element, Granularity, NOfM
from lightning_prune.selection.targets import Target, Targets


@st.composite
def shares_and_counts(draw: st.DrawFn) -> tuple[dict[str, float], dict[str, int], dict[str, int]]:
    sizes = draw(st.lists(st.integers(0, 200), min_size=1, max_size=12))
    names = [f"n{i}" for i in range(len(sizes))]
    shares = {n: draw(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0]))) for n in names}
    removed = {
        n: draw(st.integers(0, size)) if draw(st.booleans()) else 0 for n, size in zip(names, sizes, strict=True)
    }
    return shares, dict(zip(names, sizes, strict=True)), removed


@given(case=shares_and_counts())
def test_apportion_is_exact_in_the_sum_and_in_bounds(
    case: tuple[dict[str, float], dict[str, int], dict[str, int]],
) -> None:
    shares, sizes, removed = case
    result = apportion(shares, sizes, removed)
    exact = sum(shares[name] * sizes[name] for name in sizes)
    assert sum(result.values()) == max(round(exact), sum(removed.values()))
    assert all(removed[name] <= result[name] <= sizes[name] for name in sizes)


@given(case=shares_and_counts())
def test_with_nothing_removed_each_gets_its_quota(
    case: tuple[dict[str, float], dict[str, int], dict[str, int]],
) -> None:
    shares, sizes, _ = case
    result = apportion(shares, sizes, dict.fromkeys(sizes, 0))
    assert all(abs(result[name] - shares[name] * sizes[name]) < 1 for name in sizes)


@given(sizes=st.lists(st.integers(1, 10**8), min_size=1, max_size=6), data=st.data())
def test_whole_counts_come_back_from_their_shares(sizes: list[int], data: st.DataObject) -> None:
    named = {f"n{i}": size for i, size in enumerate(sizes)}
    wanted = {name: data.draw(st.integers(0, size)) for name, size in named.items()}
    assert apportion({n: wanted[n] / named[n] for n in named}, named, dict.fromkeys(named, 0)) == wanted


def test_what_one_lost_beyond_its_share_the_others_keep() -> None:
    shares = {"a": 0.1, "b": 0.5, "c": 0.5}
    assert apportion(shares, dict.fromkeys(shares, 100), {"a": 50, "b": 0, "c": 0}) == {"a": 50, "b": 30, "c": 30}


def test_ties_in_the_remainder_go_to_the_first() -> None:
    assert apportion({"a": 0.5, "b": 0.5, "c": 0.5}, {"a": 1, "b": 1, "c": 2}, {"a": 0, "b": 0, "c": 0}) == {
        "a": 1,
        "b": 0,
        "c": 1,
    }


@pytest.mark.parametrize(
    ("shares", "text"),
    [
        ({"a": 0.5}, r"must return one share for each target; that is not so for \['b'\]"),
        ({"a": 0.5, "b": 0.5, "c": 0.1}, r"one share for each target; that is not so for \['c'\]"),
        ({"a": 0.5, "b": 1.5}, r"the allocation gave b the share 1.5; it must lie in \[0, 1\]"),
        ({"a": float("nan"), "b": 0.5}, "the allocation gave a the share nan"),
    ],
)
def test_allocations_that_return_something_else(shares: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        apportion(shares, {"a": 4, "b": 4}, {"a": 0, "b": 0})


def select(
    units: Units, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], **removed: int
) -> dict[str, Tensor]:
    scores = Scores(Magnitude(), weights, Observations(), masks)
    candidates = units.candidates(scores, masks)
    counts = {name: removed.get(name, 0) for name in units.sizes}
    return {name: mask.clone() for name, mask in units.masks(candidates, counts, scores)}


SHAPES = {"a": (4, 8), "b": (8, 4, 3)}
GRANULARITIES: tuple[Granularity, ...] = (Element(), NOfM(2, 4), Block((4, 1)))


def units_of(granularity: Granularity) -> ElementUnits:
    return ElementUnits(granularity, tuple(Target(name, shape) for name, shape in SHAPES.items()))


def all_true(shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> dict[str, Tensor]:
    return {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}


WEIGHTS = st.sampled_from(["normal", "equal", "quantized", "zeros"])


def weights_of(kind: str, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> dict[str, Tensor]:
    made = {name: torch.randn(shape) for name, shape in shapes.items()}
    if kind == "equal":
        return {name: torch.ones_like(weight) for name, weight in made.items()}
    if kind == "quantized":
        return {name: (2 * weight).round() / 2 for name, weight in made.items()}
    return {name: weight * (weight > 0) for name, weight in made.items()} if kind == "zeros" else made


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@given(kind=WEIGHTS, steps=st.lists(st.floats(0, 1), min_size=1, max_size=4).map(sorted))
def test_counts_are_exact_and_nested(granularity: Granularity, kind: str, steps: list[float]) -> None:
    units, weights, masks = units_of(granularity), weights_of(kind), all_true()
    for share in steps:
        counts = {name: round(share * size) for name, size in units.sizes.items()}
        new = select(units, weights, masks, **counts)
        for target in units.targets:
            assert int((~new[target.name]).sum()) == granularity.zeros(counts[target.name], target)
            assert not bool((new[target.name] & ~masks[target.name]).any())
        candidates = units.candidates(Scores(Magnitude(), weights, Observations(), new), new)
        assert dict(candidates.removed) == counts
        gone = sum(int((~mask).sum()) for mask in new.values())
        assert units.standing(new)[0] == pytest.approx(gone / sum(granularity.within(t) for t in units.targets))
        densities = units.densities(counts)
        assert all(densities[n] == pytest.approx(float(mask.float().mean())) for n, mask in new.items())
        masks = new


def test_single_weights_are_the_k_smallest() -> None:
    units, weights = units_of(Element()), weights_of("quantized")
    new = select(units, weights, all_true(), a=13, b=40)
    for name, k in (("a", 13), ("b", 40)):
        flat = weights[name].abs().numpy().flatten()
        gone = np.argsort(flat, kind="stable")[:k]
        np.testing.assert_array_equal(np.flatnonzero(~new[name].numpy().flatten()), np.sort(gone))


def test_element_scores_are_read_only_when_asked() -> None:
    read: list[str] = []

    def criterion(name: str, weight: Tensor) -> Tensor:
        read.append(name)
        return weight.abs()

    units = units_of(Element())
    candidates = units.candidates(Scores(criterion, weights_of("normal"), Observations(), all_true()), all_true())
    assert read == []
    keep_highest(candidates, "b", 3)
    assert set(read) == {"b"}


def test_the_sparsity_of_n_of_m_is_that_of_full_blocks() -> None:
    target = Target("w", (2, 7))
    units = ElementUnits(NOfM(2, 4), (target,))
    new = select(units, {"w": torch.randn(2, 7)}, all_true({"w": (2, 7)}), w=2)
    assert units.standing(new)[0] == 0.5
    assert bool(new["w"][:, 4:].all())


class Residual(nn.Module):
    """A residual block with batch norm, a depthwise convolution and a Linear behind a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.inner = nn.Conv2d(6, 5, 1)
        self.deep = nn.Conv2d(5, 5, 3, padding=1, groups=5)
        self.outer = nn.Conv2d(5, 6, 1, bias=False)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.outer(self.deep(self.inner(x)).relu())
        return self.head(nn.functional.max_pool2d(x, 2).flatten(1))


@pytest.fixture(scope="module")
def residual() -> tuple[Residual, tuple[ChannelGroup, ...]]:
    torch.manual_seed(1)
    model = Residual()
    return model, tuple(group for group in channel_groups(model, torch.zeros(1, 1, 4, 4)) if group.prunable)


def channel_units(
    model: nn.Module, groups: tuple[ChannelGroup, ...], granularity: Channel | None = None
) -> tuple[ChannelUnits, dict[str, Tensor]]:
    parameters = dense_parameters(model)
    names = dict.fromkeys(m.parameter for g in groups for m in g.members if m.parameter in parameters)
    shapes = {name: tuple(parameters[name].shape) for name in names}
    found = ChannelGroups(list(groups), shapes, frozenset(), ())
    return ChannelUnits(granularity or Channel(), groups, shapes, found), {n: parameters[n].detach() for n in names}


def sums_by_loops(group: ChannelGroup, weights: Mapping[str, Tensor]) -> np.ndarray:
    total = np.zeros(group.size)
    for member in group.members:
        if member.parameter in weights:
            weight = np.abs(weights[member.parameter].double().numpy())
            for unit in range(group.size):
                for index in member.indices[unit]:
                    total[unit] += np.take(weight, index, axis=member.axis).sum()
    return total


def test_a_channel_scores_the_sum_over_its_coupled_set(residual: tuple[Residual, tuple[ChannelGroup, ...]]) -> None:
    units, weights = channel_units(*residual)
    assert {group.size for group in units.groups} == {5, 6}
    masks = all_true(units.shapes)
    candidates = units.candidates(Scores(Magnitude(), weights, Observations(), masks), masks)
    for group in units.groups:
        np.testing.assert_allclose(candidates.scores[group.name].numpy(), sums_by_loops(group, weights), rtol=1e-5)
    assert set(candidates.shapes.values()) == {(6, 1, 3, 3), (5, 6, 1, 1)}


def test_a_removed_channel_is_masked_in_every_member_and_nothing_else(
    residual: tuple[Residual, tuple[ChannelGroup, ...]],
) -> None:
    units, weights = channel_units(*residual)
    masks = all_true(units.shapes)
    wide = next(group for group in units.groups if group.size == 6)
    new = select(units, weights, masks, **{wide.name: 2})
    gone = np.flatnonzero(units.gone(new)[wide.name].numpy())
    np.testing.assert_array_equal(gone, np.sort(np.argsort(sums_by_loops(wide, weights))[:2]))
    expected = {name: np.ones(shape, dtype=bool) for name, shape in units.shapes.items()}
    for member in wide.members:
        if member.parameter in expected:
            for index in member.indices[gone].flatten():
                np.moveaxis(expected[member.parameter], member.axis, 0)[index] = False
    for name, mask in new.items():
        np.testing.assert_array_equal(mask.numpy(), expected[name])
    assert units.standing(new)[0] == pytest.approx(2 / 11)
    assert {m.parameter for m in wide.members} >= {
        "stem.weight",
        "stem.bias",
        "norm.weight",
        "outer.weight",
        "head.weight",
    }


def test_channel_masks_nest_and_densities_foretell_them(residual: tuple[Residual, tuple[ChannelGroup, ...]]) -> None:
    units, weights = channel_units(*residual)
    masks, gone_before = all_true(units.shapes), defaultdict(set[int])
    for share in (0.2, 0.4, 0.7):
        counts = {group.name: round(share * group.size) for group in units.groups}
        masks = select(units, weights, masks, **counts)
        for name, gone in units.gone(masks).items():
            now = set(np.flatnonzero(gone.numpy()).tolist())
            assert now >= gone_before[name]
            assert len(now) == counts[name]
            gone_before[name] = now
        for name, density in units.densities(counts).items():
            assert density == pytest.approx(float(masks[name].float().mean()))


@pytest.mark.parametrize(
    ("granularity", "share", "kept"),
    [
        (Channel(), 0.5, {6: 3, 5: 2}),
        (Channel(min_channels=4), 0.9, {6: 4, 5: 4}),
        (Channel(round_to=2), 0.4, {6: 4, 5: 2}),
    ],
    ids=str,
)
def test_widths_are_the_allowed_ones(
    residual: tuple[Residual, tuple[ChannelGroup, ...]], granularity: Channel, share: float, kept: dict[int, int]
) -> None:
    units, weights = channel_units(*residual, granularity)
    masks = all_true(units.shapes)
    candidates = units.candidates(Scores(Magnitude(), weights, Observations(), masks), masks)
    removed = units.removed(dict.fromkeys(units.sizes, share), candidates)
    assert {group.size: group.size - removed[group.name] for group in units.groups} == kept
    widest = units.most_removable()
    assert all(removed[name] <= widest[name] for name in removed)


def test_a_width_never_grows_again(residual: tuple[Residual, tuple[ChannelGroup, ...]]) -> None:
    units, weights = channel_units(*residual)
    masks = select(units, weights, all_true(units.shapes), **{group.name: 3 for group in units.groups})
    candidates = units.candidates(Scores(Magnitude(), weights, Observations(), masks), masks)
    assert set(units.removed(dict.fromkeys(units.sizes, 0.1), candidates).values()) == {3}


def test_frozen_members_are_masked_but_do_not_score(residual: tuple[Residual, tuple[ChannelGroup, ...]]) -> None:
    units, weights = channel_units(*residual)
    some = {name: weight for name, weight in weights.items() if not name.startswith("norm")}
    masks = all_true(units.shapes)
    candidates = units.candidates(Scores(Magnitude(), some, Observations(), masks), masks)
    for group in units.groups:
        np.testing.assert_allclose(candidates.scores[group.name].numpy(), sums_by_loops(group, some), rtol=1e-5)
    assert "norm.weight" in select(units, some, masks)


def test_channels_of_half_precision_weights_do_not_overflow() -> None:
    model = nn.Sequential(nn.Linear(2000, 3), nn.ReLU(), nn.Linear(3, 2))
    groups = tuple(group for group in channel_groups(model, torch.zeros(1, 2000)) if group.prunable)
    units, weights = channel_units(model, groups)
    halves = {name: torch.full_like(weight, 100.0).half() for name, weight in weights.items()}
    masks = all_true(units.shapes)
    found = units.candidates(Scores(Magnitude(), halves, Observations(), masks), masks).scores[groups[0].name]
    np.testing.assert_allclose(found.numpy(), 100.0 * (2000 + 1 + 2))


def test_finite_only_replaces_what_is_pruned() -> None:
    scores: Any = torch.tensor([-torch.inf, -1.0, 0.0, 2.0])
    assert finite(scores).tolist() == [0.0, -1.0, 0.0, 2.0]


def test_targets_resolve_to_units() -> None:
    targets = Targets(("stem", "head")).resolve(Residual())
    assert ElementUnits(Element(), targets).sizes == {"stem.weight": 54, "head.weight": 72}
    assert ElementUnits(NOfM(2, 4), targets).sizes == {"stem.weight": 0, "head.weight": 18}
