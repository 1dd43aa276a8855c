"""What an event leaves as a bottleneck is told, by name and once."""

import pytest
import torch
from torch import nn

from lightning_prune.criteria import Magnitude
from lightning_prune.recipe import Recipe
from lightning_prune.run.binding import bind
from lightning_prune.run.pruner import Pruner, prune_step
from lightning_prune.schedules import OneShot
from lightning_prune.selection.allocation import Global, Uniform
from lightning_prune.selection.granularity import Channel, Element, Granularity, NOfM

X = (torch.zeros(1, 32),)


def stack(small: float = 1.0) -> nn.Sequential:
    """Three layers; the weights of the one in the middle are smaller."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4))
    with torch.no_grad():
        list(model.parameters())[2].mul_(small)
    return model


def starving(share: float, candidates: object) -> dict[str, float]:
    """The second group of channels goes first."""
    return {"0": max(share / 8, 2 * share - 1), "2": min(1.0, 3 * share)}


def attached(recipe: Recipe, model: nn.Module) -> Pruner:
    pruner = bind(recipe, model, X)
    pruner.attach(model)
    return pruner


def told(pruner: Pruner, model: nn.Module, *steps: float) -> list[tuple[str, ...]]:
    return [prune_step(pruner, model, sparsity).thin for sparsity in steps]


def test_a_layer_that_loses_nearly_all_is_told_once() -> None:
    model = stack(small=0.01)
    found = told(
        attached(Recipe(schedule=OneShot(0.6), criterion=Magnitude(), allocation=Global()), model), model, 0.2, 0.4, 0.6
    )
    assert [len(texts) for texts in found] == [0, 1, 0]
    assert found[1][0].startswith(
        "2.weight: left with less than 5.0% of the weights where sparsity 0.4 was asked for, which is likely to hold"
    )
    assert "Targets(exclude=…)" in found[1][0]


@pytest.mark.parametrize(
    ("sparsity", "granularity", "allocation"),
    [(0.98, Element(), Uniform()), (0.9, Element(), Uniform()), (0.5, NOfM(2, 4), Uniform())],
    ids=str,
)
def test_what_was_asked_for_is_not_told(
    sparsity: float, granularity: Granularity, allocation: Uniform | Global
) -> None:
    model = stack()
    recipe = Recipe(schedule=OneShot(sparsity), granularity=granularity, allocation=allocation)
    assert told(attached(recipe, model), model, sparsity / 2, sparsity) == [(), ()]


def test_a_group_with_one_channel_left_is_told_once() -> None:
    model = stack()
    recipe = Recipe(schedule=OneShot(0.55), granularity=Channel(min_share=0), allocation=starving)
    found = told(attached(recipe, model), model, 0.3, 0.5, 0.55)
    assert [len(texts) for texts in found] == [0, 1, 0]
    assert found[1][0].startswith("2: left with a single channel where sparsity 0.5 was asked for")
    assert "min_share" in found[1][0]


def test_by_itself_no_group_comes_to_that() -> None:
    model = stack()
    recipe = Recipe(schedule=OneShot(0.55), granularity=Channel(), allocation=starving)
    assert told(attached(recipe, model), model, 0.3, 0.5, 0.55) == [(), (), ()]
