"""Exact counts of zeros and budgets of the whole network that are met from below."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from pruner_cases import X, costs, network, pruned, ready, removed_in, scores_of, widths_of, zeros

from lightning_prune.model import masks
from lightning_prune.model.summary import measure_macs, summarize
from lightning_prune.recipe import Recipe
from lightning_prune.run.pruner import prune_step
from lightning_prune.schedules import Linear, OneShot
from lightning_prune.selection.allocation import ERK, Candidates, Global, Uniform
from lightning_prune.selection.granularity import Block, Channel, Element, NOfM
from lightning_prune.selection.targets import Targets

RISE = (0.1, 0.37, 0.37, 0.8, 0.95)


@pytest.mark.parametrize("kind", ["normal", "equal", "quantized", "half zero"])
@pytest.mark.parametrize("allocation", [Uniform(), ERK(), Global()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_count_is_exact_and_what_is_pruned_stays_pruned(allocation: Any, kind: str, dtype: torch.dtype) -> None:
    model = network(kind, dtype)
    pruner = ready(Recipe(schedule=OneShot(0.95), allocation=allocation), model)
    total = sum(math.prod(shape) for shape in pruner.units.shapes.values())
    before = pruned(model)
    for sparsity in RISE:
        event = prune_step(pruner, model, sparsity)
        now = pruned(model)
        assert sum(int(gone.sum()) for gone in now.values()) == round(sparsity * total)
        assert all(not (before[name] & ~now[name]).any() for name in now)
        assert zeros(model, pruner.units.shapes) >= round(sparsity * total)
        if kind in ("normal", "equal"):
            assert zeros(model, pruner.units.shapes) == round(sparsity * total)
        assert event.sparsity == pytest.approx(round(sparsity * total) / total, abs=1e-12)
        before = now


@pytest.mark.parametrize("kind", ["normal", "quantized"])
def test_global_takes_the_smallest_weights_of_all(kind: str) -> None:
    model = network(kind)
    pruner = ready(Recipe(schedule=OneShot(0.6)), model)
    flat = np.concatenate([p.detach().abs().numpy().flatten() for p in masks.masks_by_parameter(model)])
    prune_step(pruner, model, 0.6)
    gone = np.concatenate([gone.flatten() for gone in pruned(model).values()])
    expected = np.zeros_like(gone)
    expected[np.argsort(flat, kind="stable")[: round(0.6 * flat.size)]] = True
    np.testing.assert_array_equal(gone, expected)


def test_uniform_takes_the_smallest_of_each_layer() -> None:
    model = network()
    pruner = ready(Recipe(schedule=OneShot(0.5), allocation=Uniform()), model)
    before = {name: p.detach().abs().numpy().flatten() for name, p in masks.dense_parameters(model).items()}
    prune_step(pruner, model, 0.5)
    for name, gone in pruned(model).items():
        k = int(gone.sum())
        assert abs(k - 0.5 * gone.size) < 1
        np.testing.assert_array_equal(np.sort(np.argsort(before[name], kind="stable")[:k]), np.flatnonzero(gone))


def test_an_allocation_of_ones_own_that_changes_its_mind() -> None:
    turn = iter([{"fc.weight": 0.9, "head.weight": 0.0}, {"fc.weight": 0.1, "head.weight": 1.0}])
    shares: dict[str, float] = {}

    def allocation(share: float, candidates: Candidates) -> Mapping[str, float]:
        assert list(candidates.sizes) == ["fc.weight", "head.weight"]
        return shares

    model = network()
    recipe = Recipe(schedule=OneShot(0.9), allocation=allocation, targets=Targets(("fc", "head")))
    pruner = ready(recipe, model)
    for expected in ([691, 0], [691, 0]):
        shares.update(next(turn))
        prune_step(pruner, model, 0.8)
        assert [int(gone.sum()) for gone in pruned(model).values()] == expected


@pytest.mark.parametrize("allocation", [Uniform(), ERK(), Global()], ids=str)
@pytest.mark.parametrize("kind", ["normal", "equal"])
def test_n_of_m_rises_by_blocks_to_n_of_each_m(allocation: Any, kind: str) -> None:
    model = network(kind)
    pruner = ready(Recipe(schedule=Linear(0.5, 1, 9), granularity=NOfM(2, 4), allocation=allocation), model)
    done = -1
    for sparsity in (0.1, 0.3, 0.5):
        event = prune_step(pruner, model, sparsity)
        assert event.sparsity == pytest.approx(sparsity, abs=2e-3)
        blocks = []
        for name, gone in pruned(model).items():
            along = np.moveaxis(gone, 1, -1)
            full = along.shape[-1] // 4 * 4
            blocks.append(along[..., :full].reshape(-1, 4).sum(-1))
            assert not along[..., full:].any(), name
        counts = np.concatenate(blocks)
        assert set(counts.tolist()) <= {0, 2}
        assert (counts == 2).sum() == round(2 * sparsity * counts.size)
        assert (counts == 2).mean() > done
        done = (counts == 2).mean()
    assert bool((counts == 2).all())
    assert not pruned(model)["stem.weight"].any()


def test_blocks_go_as_a_whole() -> None:
    model = network()
    recipe = Recipe(schedule=OneShot(0.7), granularity=Block((4, 1)), targets=Targets(("stem", "inner", "fc")))
    pruner = ready(recipe, model)
    for sparsity in (0.3, 0.7):
        prune_step(pruner, model, sparsity)
        counts = np.concatenate([g.reshape(g.shape[0] // 4, 4, -1).sum(1).flatten() for g in pruned(model).values()])
        assert set(counts.tolist()) == {0, 4}
        assert (counts == 4).sum() == round(sparsity * counts.size)


def test_the_formulas_are_right() -> None:
    model = network()
    assert costs(16, 24, 12)["params"] == sum(p.numel() for p in model.parameters())
    assert costs(16, 24, 12)["macs"] == measure_macs(model, X).total


@pytest.mark.parametrize("kind", ["normal", "equal"])
@pytest.mark.parametrize("granularity", [Channel(), Channel(min_channels=3, round_to=4)], ids=str)
@pytest.mark.parametrize("allocation", [Uniform(), ERK(), Global()], ids=str)
@pytest.mark.parametrize("count", ["channels", "params", "macs"])
def test_a_budget_is_met_from_below_and_one_unit_fewer_would_miss_it(
    count: Any, allocation: Any, granularity: Channel, kind: str
) -> None:
    model = network(kind)
    recipe = Recipe(schedule=OneShot(0.7), granularity=granularity, allocation=allocation, count=count)
    pruner = ready(recipe, model)
    dense = costs(16, 24, 12)[count]
    for sparsity in (0.2, 0.45, 0.7):
        candidates = pruner.units.candidates(scores_of(pruner, model), masks.read(model))
        before = removed_in(pruner, model)
        event = prune_step(pruner, model, sparsity)
        removed = removed_in(pruner, model)
        left = costs(*widths_of(pruner, removed))
        limit = dense - round(dense * sparsity) if count == "channels" else dense * (1 - sparsity)
        assert left[count] <= limit + 1e-6
        assert (left["params"], left["macs"]) == (event.params, event.macs)
        assert event.sparsity == pytest.approx(1 - left[count] / dense)
        assert all(removed[name] >= before[name] for name in removed)
        assert all(s - removed[n] in granularity.widths(s) for n, s in pruner.units.sizes.items())
        for k in range(sum(removed.values())):
            fewer = pruner.units.removed(allocation(k / 52, candidates), candidates)
            if sum(fewer.values()) < sum(removed.values()):
                assert costs(*widths_of(pruner, fewer))[count] > limit


def test_channels_are_counted_exactly() -> None:
    dense = network()
    pruner = ready(Recipe(schedule=OneShot(0.94), granularity=Channel()), dense)
    for share in np.linspace(0.01, 0.94, 60):
        model = copy.deepcopy(dense)
        event = prune_step(pruner, model, float(share))
        assert sum(removed_in(pruner, model).values()) == round(52 * share)
        assert event.sparsity == pytest.approx(round(52 * share) / 52)


@pytest.mark.parametrize("granularity", [Element(), NOfM(2, 4), Block((4, 1))], ids=str)
@pytest.mark.parametrize("count", ["params", "macs"])
def test_single_weights_can_be_counted_in_the_whole_network(count: Any, granularity: Any) -> None:
    model = network()
    targets = Targets(("inner", "outer", "fc"))
    pruner = ready(Recipe(schedule=OneShot(0.3), granularity=granularity, count=count, targets=targets), model)
    dense = costs(16, 24, 12)[count]
    event = prune_step(pruner, model, 0.3)
    assert event.sparsity == pytest.approx(0.3, abs=0.01)
    summary = summarize(model, X)
    left = dense - zeros(model, pruner.units.shapes) if count == "params" else summary.effective_macs
    assert left is not None
    unit = {"Element": 1, "NOfM": 2, "Block": 4}[type(granularity).__name__] * (64 if count == "macs" else 1)
    assert dense * 0.7 - unit < left <= dense * 0.7 + 1


def test_the_most_that_can_be_reached_is_reached() -> None:
    model = network()
    recipe = Recipe(schedule=OneShot(49 / 52), granularity=Channel())
    event = prune_step(ready(recipe, model), model, 49 / 52)
    assert event.sparsity == pytest.approx(49 / 52)
    assert sorted(
        int((~mask.flatten(1).any(1)).sum()) for n, mask in masks.read(model).items() if n == "stem.weight"
    ) == [15]
