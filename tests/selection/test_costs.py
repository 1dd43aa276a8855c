"""What a network costs at widths, and the widths that are chosen."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_prune import Channel, Global, MACs, OneShot, Params, Recipe, Size, compact, summarize
from lightning_prune.compaction import Compaction
from lightning_prune.run.binding import bind
from lightning_prune.selection import ChannelUnits
from lightning_prune.selection.allocation import Candidates
from lightning_prune.selection.costs import widths_within
from lightning_prune.selection.needs import Bound, Need


class Residual(nn.Module):
    """Convolutions with a residual sum and a concatenation, so that parameters lie in several groups at once."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 6, 3, padding=1)
        self.outer = nn.Conv2d(6, 8, 1)
        self.side = nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        y = torch.relu(y + self.outer(torch.relu(self.inner(y))))
        return self.head(torch.cat([y, self.side(x)], 1).mean((2, 3)))


EXAMPLE = torch.zeros(1, 3, 6, 6)


def bound(need: Need | tuple[Need, ...]):
    """Return the units and the needs of the network."""
    recipe = Recipe(granularity=Channel(min_share=0.0), need=need, schedule=OneShot())
    pruner = bind(recipe, Residual(), EXAMPLE)
    assert isinstance(pruner.units, ChannelUnits)
    return pruner.units, pruner.needs


@pytest.mark.parametrize("need", [Params(0.5), MACs(0.5), Size(900)], ids=repr)
def test_terms_and_what_is_left_are_those_of_the_compact_network(need: Need):
    units, (one,) = bound(need)
    random = np.random.default_rng(0)
    widths = {name: list(range(1, size + 1)) for name, size in units.sizes.items()}
    constant, terms = one.cost.terms(widths, 100.0)
    for _ in range(5):
        kept = {name: int(random.integers(1, size + 1)) for name, size in units.sizes.items()}
        model = Residual()
        removed = {name: size - kept[name] for name, size in units.sizes.items()}
        narrower = {name: range(width) for name, width in kept.items() if removed[name]}
        compact(model, Compaction.from_keep(units.found, narrower))
        summary = summarize(model, EXAMPLE)
        size = {"Params": summary.parameters, "MACs": summary.macs, "Size": 4 * summary.parameters}
        assert one.cost.left(removed) == pytest.approx(size[type(need).__name__])
        chosen = sum(table[tuple(kept[name] - 1 for name in key)] for key, table in terms)
        assert constant + chosen == pytest.approx(one.cost.left(removed))


def candidates(units: ChannelUnits, seed: int = 0) -> Candidates:
    """Return made-up scores of the channels."""
    torch.manual_seed(seed)
    scores = {name: torch.rand(size, dtype=torch.float64) for name, size in units.sizes.items()}
    return Candidates(scores, {}, units.sizes, dict.fromkeys(units.sizes, 0), torch.float64)


def worth(scores: torch.Tensor, left: int) -> float:
    """Return what so many of the best scores of a group are worth: lost parts count by l + l²."""
    ranked = scores.sort(descending=True).values
    part = float(ranked[left:].sum() / ranked.sum())
    return float(ranked.sum()) * (1 - (part + part**2) / 2)


@pytest.mark.parametrize("seed", range(3))
def test_the_widths_keep_as_much_as_any_within_the_need(seed: int):
    units, needs = bound(MACs(0.4))
    own = candidates(units, seed)
    removed, gap = widths_within(units, own, needs, 1.0)
    assert needs[0].cost.left(removed) <= needs[0].limit * (1 + 1e-9)

    def kept(gone: dict[str, int]) -> float:
        return sum(worth(own.scores[n], s - gone[n]) for n, s in units.sizes.items())

    each = itertools.product(*(range(size) for size in units.sizes.values()))
    all_of_them = (dict(zip(units.sizes, choice, strict=True)) for choice in each)
    best = max(kept(gone) for gone in all_of_them if needs[0].cost.left(gone) <= needs[0].limit)
    assert gap == 0
    assert kept(removed) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_wide_groups_keep_no_less_than_a_ranking_by_cost(seed: int, share: float):
    wide = nn.Sequential(nn.Conv2d(3, 130, 3), nn.ReLU(), nn.Conv2d(130, 70, 3), nn.Flatten(), nn.Linear(70 * 4, 5))
    recipe = Recipe(granularity=Channel(min_share=0.0), need=MACs(share), schedule=OneShot())
    pruner = bind(recipe, wide, torch.zeros(1, 3, 6, 6))
    units, (need,) = pruner.units, pruner.needs
    assert isinstance(units, ChannelUnits)
    made_up = candidates(units, seed)
    own = replace(made_up, scores={name: score**8 for name, score in made_up.scores.items()})  # few channels matter
    saved = {name: need.cost.total - need.cost.left({**dict.fromkeys(units.sizes, 0), name: 1}) for name in units.sizes}
    cuts = [units.removed(Global(cost=saved)(cut / 200, own), own) for cut in range(200)]
    ranked = next(gone for gone in cuts if need.cost.left(gone) <= need.limit)
    equal = Bound(MACs(round(need.cost.left(ranked))), need.cost)
    removed, _ = widths_within(units, own, [equal], 1.0)

    def kept(gone: dict[str, int]) -> float:
        return sum(worth(own.scores[n], s - gone[n]) for n, s in units.sizes.items())

    assert need.cost.left(removed) <= equal.limit * (1 + 1e-9)
    assert kept(removed) >= kept(ranked) * (1 - 1e-9)


def test_of_groups_alike_both_lose_where_one_by_one_it_would_not_matter():
    """Scores of each channel are the same, so that their sum does not tell 2 of one group from 1 of both."""
    alike = nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)
    )
    recipe = Recipe(granularity=Channel(min_share=0.0), need=Params(0.7), schedule=OneShot())
    pruner = bind(recipe, alike, torch.zeros(1, 4))
    units, needs = pruner.units, pruner.needs
    assert isinstance(units, ChannelUnits)
    scores = {name: torch.ones(size, dtype=torch.float64) for name, size in units.sizes.items()}
    own = Candidates(scores, {}, units.sizes, dict.fromkeys(units.sizes, 0), torch.float64)
    removed, _ = widths_within(units, own, needs, 1.0)
    assert sorted(units.sizes.values()) == [4, 8, 8]
    wide = [removed[name] for name, size in units.sizes.items() if size == 8]
    assert abs(wide[0] - wide[1]) <= 1
    assert min(wide) >= 1


def test_several_needs_hold_at_once():
    units, needs = bound((MACs(0.45), Params(0.5)))
    removed, _ = widths_within(units, candidates(units), needs, 1.0)
    for one in needs:
        assert one.cost.left(removed) <= one.limit * (1 + 1e-9)


def test_channels_that_are_gone_do_not_come_back():
    units, needs = bound(Params(0.6))
    own = candidates(units)
    gone = {name: size // 3 for name, size in units.sizes.items()}
    for name, count in gone.items():
        own.scores[name][:count] = -torch.inf
    own = Candidates(own.scores, {}, units.sizes, gone, torch.float64)
    removed, _ = widths_within(units, own, needs, 0.9)
    assert all(removed[name] >= count for name, count in gone.items())
