"""What a recipe takes where it names neither criterion nor allocation: that which the run can see."""

from typing import Any

import pytest
import torch
from pruner_cases import Net, network, pruned, ready
from run_cases import RISE, Loop, weights
from torch import nn

from lightning_prune.criteria import Fisher, Magnitude
from lightning_prune.errors import CheckpointError
from lightning_prune.model import masks
from lightning_prune.recipe import Recipe
from lightning_prune.run.binding import bind
from lightning_prune.run.pruner import Pruner, prune_step
from lightning_prune.schedules import OneShot
from lightning_prune.selection.allocation import Global, Uniform
from lightning_prune.selection.granularity import Channel, Element

FINAL = 0.5


def recipe(granularity: Any, count: Any = None, **options: Any) -> Recipe:
    return Recipe(schedule=OneShot(FINAL, begin_step=1), granularity=granularity, count=count, **options)


def show(pruner: Pruner, model: Net, *unseen: str) -> None:
    """Two steps' gradients, but for the parameters that are not seen."""
    torch.manual_seed(3)
    for _ in range(2):
        model.zero_grad()
        model(torch.randn(8, 1, 8, 8)).square().mean().backward()
        pruner.observe({name: p for name, p in masks.dense_parameters(model).items() if name not in unseen})


def masked(chosen: Recipe, *unseen: str, sees: bool = True) -> dict[str, Any]:
    model = network()
    pruner = ready(chosen, model)
    if sees:
        show(pruner, model, *unseen)
    prune_step(pruner, model, FINAL)
    return {name: mask.tolist() for name, mask in pruned(model).items()}


@pytest.mark.parametrize(
    ("granularity", "count", "allocation"),
    [
        (Element(), None, Global()),
        (Element(), "macs", Global()),
        (Channel(), None, Global()),
        (Channel(), "channels", Global()),
        (Channel(), "params", Global(cost="params")),
        (Channel(), "macs", Global(cost="macs")),
    ],
)
def test_gradients_that_were_seen_decide(granularity: Any, count: Any, allocation: Any) -> None:
    named = recipe(granularity, count, criterion=Fisher(), allocation=allocation)
    assert masked(recipe(granularity, count)) == masked(named)


@pytest.mark.parametrize(("granularity", "allocation"), [(Element(), Global()), (Channel(), Uniform())], ids=str)
def test_without_gradients_weights_decide(granularity: Any, allocation: Any) -> None:
    named = recipe(granularity, criterion=Magnitude(), allocation=allocation)
    assert masked(recipe(granularity), sees=False) == masked(named)


@pytest.mark.parametrize("granularity", [Element(), Channel()], ids=str)
def test_a_parameter_without_a_gradient_lets_weights_decide(granularity: Any) -> None:
    assert masked(recipe(granularity), "fc.weight") == masked(recipe(granularity), sees=False)


@pytest.mark.parametrize("stop", [0, 3, 12])
def test_a_fit_sees_gradients_and_resumes(stop: int) -> None:
    whole = Loop(Recipe(schedule=RISE), "AdamW").start().train(24)
    named = Loop(Recipe(schedule=RISE, criterion=Fisher(), allocation=Global()), "AdamW").start().train(24)
    first = Loop(Recipe(schedule=RISE), "AdamW").start().train(stop)
    second = Loop(Recipe(schedule=RISE), "AdamW").load(first.save(), stop).train(24)
    assert weights(second) == weights(whole) == weights(named)


def test_a_run_of_the_former_defaults_goes_on_with_them() -> None:
    former = Recipe(schedule=RISE, criterion=Magnitude(), allocation=Global())
    whole = Loop(former, "AdamW").start().train(24)
    first = Loop(former, "AdamW").start().train(9)
    second = Loop(Recipe(schedule=RISE), "AdamW").load(first.save(), 9)
    assert second.run.pruners[0].recipe == former
    second.train(24)
    assert weights(second) == weights(whole)


def test_another_criterion_is_another_recipe() -> None:
    saved = Loop(Recipe(schedule=RISE, criterion=Magnitude(2))).start().run.state_dict()
    loop = Loop(Recipe(schedule=RISE))
    with pytest.raises(CheckpointError, match=r"criterion was Magnitude\(norm=2\), is None"):
        loop.run.load_state_dict(saved, loop.model)


def test_the_first_event_may_come_before_the_first_step() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    pruner = bind(Recipe(schedule=OneShot(FINAL)), model, None)
    pruner.attach(model)
    assert prune_step(pruner, model, FINAL).sparsity == pytest.approx(FINAL, abs=0.02)
