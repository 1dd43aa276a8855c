"""Units of removal against NumPy loops over the weight."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_prune.selection.granularity import Block, Channel, Element, Granularity, NOfM
from lightning_prune.selection.targets import Target


def bad(value: Any) -> Any:
    """A value of a wrong type, which a type checker would not let through."""
    return value


CASES: tuple[tuple[Granularity, Target], ...] = (
    (Element(), Target("w", (3, 5))),
    (NOfM(2, 4), Target("w", (3, 8))),
    (NOfM(2, 4), Target("w", (3, 11, 2, 2))),
    (NOfM(1, 3), Target("w", (4, 7, 2))),
    (NOfM(2, 4), Target("w", (9, 3, 2, 2), input_axis=0)),
    (NOfM(2, 4), Target("w", (5, 3))),
    (Block((4, 1)), Target("w", (8, 3))),
    (Block((2, 3)), Target("w", (4, 6, 3, 3))),
    (Block((1, 1, 3, 3)), Target("w", (4, 2, 3, 3))),
    (Block((2,)), Target("w", (6, 2))),
)
IDS = [f"{granularity}-{target.shape}-{target.input_axis}" for granularity, target in CASES]


def positions(granularity: Granularity, target: Target) -> list[list[tuple[int, ...]]]:
    """The elements of each unit, by plain loops, in the row-major order of the units."""
    everywhere = list(itertools.product(*map(range, target.shape)))
    if isinstance(granularity, Element):
        return [[place] for place in everywhere]
    if isinstance(granularity, NOfM):
        m, axis = granularity.m, target.input_axis
        full = target.shape[axis] // m
        others = itertools.product(*(range(size) for a, size in enumerate(target.shape) if a != axis))
        return [
            [(*other[:axis], block * m + i, *other[axis:]) for i in range(m)]
            for other in others
            for block in range(full)
        ]
    assert isinstance(granularity, Block)
    sizes = (*granularity.shape, *(1,) * (len(target.shape) - len(granularity.shape)))
    corners = itertools.product(*(range(0, size, step) for size, step in zip(target.shape, sizes, strict=True)))
    return [
        [tuple(c + o for c, o in zip(corner, offset, strict=True)) for offset in itertools.product(*map(range, sizes))]
        for corner in corners
    ]


def cost(granularity: Granularity, values: np.ndarray) -> float:
    return np.sort(values)[: granularity.m - granularity.n].sum() if isinstance(granularity, NOfM) else values.sum()


@pytest.mark.parametrize(("granularity", "target"), CASES, ids=IDS)
def test_a_unit_scores_what_its_removal_costs(granularity: Granularity, target: Target) -> None:
    granularity.check(target)
    scores = torch.rand(target.shape, dtype=torch.float64)
    units = granularity.units(scores, target).flatten()
    expected = [
        cost(granularity, np.array([scores[place] for place in unit])) for unit in positions(granularity, target)
    ]
    np.testing.assert_allclose(units.numpy(), expected)
    empty = granularity.units(torch.empty(target.shape, device="meta"), target)
    assert empty.numel() == len(expected)
    assert granularity.within(target) == sum(map(len, positions(granularity, target)))


@pytest.mark.parametrize(("granularity", "target"), CASES, ids=IDS)
def test_removed_units_become_elements_and_back(granularity: Granularity, target: Target) -> None:
    scores = torch.rand(target.shape)
    units = granularity.units(scores, target)
    for share in (0.0, 0.4, 1.0):
        keep = torch.rand(units.shape) >= share
        mask = granularity.elements(keep, scores, target)
        assert mask.dtype == torch.bool
        assert mask.shape == target.shape
        assert torch.equal(granularity.removed(mask, target), ~keep)
        gone = int((~keep).sum())
        assert int((~mask).sum()) == granularity.zeros(gone, target)
        assert int((~mask).sum()) == round(
            gone * (granularity.within(target) * granularity.full_sparsity) / max(1, units.numel())
        )
        for kept, unit in zip(keep.flatten().tolist(), positions(granularity, target), strict=True):
            held = [place for place in unit if mask[place]]
            assert kept is (len(held) == len(unit))
            if isinstance(granularity, NOfM) and not kept:
                best = sorted(unit, key=lambda place: float(scores[place]))[granularity.m - granularity.n :]
                assert set(held) == set(best)
        inside = set(itertools.chain(*positions(granularity, target)))
        assert all(mask[place] for place in itertools.product(*map(range, target.shape)) if place not in inside)


@given(n=st.integers(1, 3), extra=st.integers(1, 4), inputs=st.integers(1, 12), transposed=st.booleans())
def test_exactly_n_of_each_m_with_ties_and_a_dense_tail(n: int, extra: int, inputs: int, transposed: bool) -> None:
    m = n + extra
    target = Target("w", (inputs, 2, 3) if transposed else (2, inputs, 3), input_axis=0 if transposed else 1)
    granularity = NOfM(n, m)
    scores = torch.randint(0, 3, target.shape).float()
    units = granularity.units(scores, target)
    mask = granularity.elements(torch.zeros(units.shape, dtype=torch.bool), scores, target)
    along = mask.movedim(target.input_axis, -1).reshape(6, inputs)
    full = inputs // m
    assert torch.equal(along[:, : full * m].unflatten(1, (full, m)).sum(-1), torch.full((6, full), n))
    assert bool(along[:, full * m :].all())


def test_ties_in_a_block_go_to_the_later_ones() -> None:
    mask = NOfM(2, 4).elements(torch.zeros(1, 1, dtype=torch.bool), torch.ones(1, 4), Target("w", (1, 4)))
    assert mask.tolist() == [[False, False, True, True]]


def test_blocks_that_lost_something_elsewhere_keep_at_most_n() -> None:
    mask = torch.tensor([[True, False, False, False, True, True, True, False]])
    assert NOfM(2, 4).removed(mask, Target("w", (1, 8))).tolist() == [[True, False]]


def test_half_precision_scores_of_another_layout() -> None:
    target = Target("w", (4, 8, 3, 3))
    scores = torch.rand(target.shape).to(memory_format=torch.channels_last)
    for granularity in (NOfM(2, 4), Block((2, 2))):
        other = granularity.units(scores.contiguous(), target)
        assert torch.equal(granularity.units(scores, target), other)
        keep = torch.rand(other.shape) > 0.5
        assert torch.equal(
            granularity.elements(keep, scores, target), granularity.elements(keep, scores.contiguous(), target)
        )


@given(size=st.integers(1, 80), least=st.integers(1, 90), multiple=st.integers(1, 20))
def test_widths(size: int, least: int, multiple: int) -> None:
    widths = Channel(min_channels=least, round_to=multiple).widths(size)
    expected = [w for w in range(1, size) if w >= least and w % multiple == 0]
    assert widths == (size, *reversed(expected))


def test_granularities_are_values() -> None:
    assert Block(bad([4, 1])) == Block((4, 1))
    assert len({Element(), Element(), NOfM(2, 4), NOfM(2, 4), Channel(), Block((4, 1)), Block(bad([4, 1]))}) == 4
    assert (Element().full_sparsity, NOfM(2, 4).full_sparsity, NOfM(1, 4).full_sparsity) == (1.0, 0.5, 0.75)


class Rows(Granularity):
    """A granularity of a user's own: the abstract methods are all that it needs."""

    def units(self, scores: Tensor, target: Target) -> Tensor:
        return scores.flatten(1).sum(dim=1)

    def elements(self, keep: Tensor, scores: Tensor, target: Target) -> Tensor:
        return keep.view(-1, *(1,) * (scores.dim() - 1)).expand(target.shape)

    def removed(self, mask: Tensor, target: Target) -> Tensor:
        return ~mask.flatten(1).any(dim=1)

    def zeros(self, removed: int, target: Target) -> int:
        return removed * math.prod(target.shape[1:])


def test_a_granularity_of_ones_own() -> None:
    target = Target("w", (3, 2, 2))
    Rows().check(target)
    mask = Rows().elements(torch.tensor([True, False, True]), torch.rand(3, 2, 2), target)
    assert int((~mask).sum()) == Rows().zeros(1, target)
    assert Rows().removed(mask, target).tolist() == [False, True, False]
    assert Rows().within(target) == 12


@pytest.mark.parametrize(
    ("build", "error", "text"),
    [
        (lambda: NOfM(5, 4), ValueError, r"NOfM keeps n of m with 1 <= n < m, got n = 5, m = 4; e.g. NOfM\(2, 4\)"),
        (lambda: NOfM(4, 4), ValueError, "got n = 4, m = 4"),
        (lambda: NOfM(0, 4), ValueError, "got n = 0, m = 4"),
        (lambda: NOfM(bad(2.0), 4), TypeError, "NOfM.n must be an int, got 2.0"),
        (lambda: NOfM(bad(True), 4), TypeError, "NOfM.n must be an int"),
        (lambda: Block(()), ValueError, r"Block.shape takes positive whole numbers, got \(\); e.g. Block\(\(4, 1\)\)"),
        (lambda: Block((4, 0)), ValueError, r"Block.shape takes positive whole numbers, got \(4, 0\)"),
        (lambda: Block(bad((2.0, 1))), ValueError, "Block.shape takes positive whole numbers"),
        (lambda: Block(bad(4)), ValueError, "Block.shape takes positive whole numbers, got 4"),
        (lambda: Block((1, 1)), ValueError, r"Block.shape = \(1, 1\) is a single weight; use Element\(\)"),
        (
            lambda: Channel(min_channels=0),
            ValueError,
            "Channel.min_channels must be at least 1, got 0",
        ),
        (
            lambda: Channel(round_to=bad(8.0)),
            TypeError,
            "Channel.round_to must be an int, a number of channels, got 8.0",
        ),
        (lambda: Channel(min_channels=True), TypeError, "Channel.min_channels must be an int"),
        (
            lambda: Channel(min_share=1.0),
            ValueError,
            "Channel.min_share must be a number at least 0 and below 1, got 1.0",
        ),
        (lambda: Channel(min_share=-0.1), ValueError, "Channel.min_share must be a number at least 0 and below 1, got"),
        (lambda: Channel(min_share=float("nan")), ValueError, "Channel.min_share must be a number at least 0"),
        (
            lambda: Channel(min_share=bad("half")),
            TypeError,
            "Channel.min_share must be a number at least 0 and below 1",
        ),
    ],
)
def test_bad_arguments(build: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        build()


def test_the_share_that_groups_keep_shows_where_it_is_set() -> None:
    assert repr(Channel()) == "Channel(min_channels=1, round_to=1, allow_inexact=False)"
    assert repr(Channel(min_share=0.0)) == "Channel(min_channels=1, round_to=1, allow_inexact=False, min_share=0.0)"


@pytest.mark.parametrize(
    ("granularity", "shape", "text"),
    [
        (
            Block((4, 1)),
            (6, 3),
            r"Block\(\(4, 1\)\) does not divide conv.weight of shape \(6, 3\); choose a block that",
        ),
        (Block((1, 1, 3)), (4, 4), r"Block\(\(1, 1, 3\)\) does not divide conv.weight of shape \(4, 4\)"),
        (NOfM(2, 4), (8,), r"conv.weight has shape \(8,\) and no input axis, which NOfM\(n=2, m=4\) needs; exclude it"),
        (Element(), (0, 4), r"conv.weight has shape \(0, 4\) and no elements to prune; exclude it"),
        (NOfM(2, 4), (4, 0), "no elements to prune"),
        (Block((4, 1)), (0, 4), "no elements to prune"),
    ],
)
def test_targets_that_cannot_be_cut(granularity: Granularity, shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        granularity.check(Target("conv.weight", shape))
