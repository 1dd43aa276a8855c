"""A resumed run is the same run, to the last bit, through a checkpoint without pickled objects."""

import pytest
import torch
from run_cases import RECIPES, RISE, Loop, weights

from lightning_prune.criteria import Taylor
from lightning_prune.errors import CheckpointError
from lightning_prune.optimizer.policies import LRRewind, Rewarm, RewindWeights
from lightning_prune.recipe import Recipe
from lightning_prune.schedules import Linear, OneShot
from lightning_prune.selection.targets import Targets


@pytest.mark.parametrize("stop", [0, 3, 12, 19])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_resumed_run_is_the_same_run_to_the_last_bit(recipe: str, stop: int) -> None:
    torch.manual_seed(1)
    whole = Loop(RECIPES[recipe](), "AdamW").start().train(24)
    first = Loop(RECIPES[recipe](), "AdamW").start().train(stop)
    second = Loop(RECIPES[recipe](), "AdamW").load(first.save(), stop).train(24)
    assert weights(second) == weights(whole)
    assert [*first.events, *second.events] == whole.events
    assert second.run.sparsity == whole.run.sparsity


@pytest.mark.parametrize("start_first", [False, True])
def test_learning_rates_resume_too(start_first: bool) -> None:
    recipe = Recipe(schedule=RISE, optimizer_policy=(LRRewind(2), RewindWeights(2), Rewarm(3)))
    whole = Loop(recipe, "SGD", with_scheduler=True).start().train(24)
    first = Loop(recipe, "SGD", with_scheduler=True).start().train(9)
    second = Loop(recipe, "SGD", with_scheduler=True).load(first.save(), 9, start_first).train(24)
    assert weights(second) == weights(whole)
    assert [o.param_groups[0]["lr"] for o in second.optimizers] == [o.param_groups[0]["lr"] for o in whole.optimizers]


def test_everything_that_was_observed_comes_back() -> None:
    loop = Loop(RECIPES["taylor"](), "AdamW").start().train(11)
    observed = loop.run.pruners[0].observed
    restored = Loop(RECIPES["taylor"](), "AdamW").load(loop.save(), 11).run
    assert restored.pruners[0].observed.steps == observed.steps == dict.fromkeys(observed.sums, 3)
    assert all(torch.equal(restored.pruners[0].observed.sums[name], total) for name, total in observed.sums.items())
    assert (restored.step, restored.pruners[0].asked) == (11, loop.events[-1].asked)


def test_two_recipes_resume() -> None:
    a = Recipe(schedule=Linear(0.8, 2, 10, 4), targets=Targets(("0",)), criterion=Taylor())
    b = Recipe(schedule=OneShot(0.5, 5), targets=Targets(("3",)), optimizer_policy=RewindWeights(1))
    whole = Loop([a, b], "Adam").start().train(14)
    for stop in (1, 4, 5, 7):
        first = Loop([a, b], "Adam").start().train(stop)
        assert weights(Loop([a, b], "Adam").load(first.save(), stop).train(14)) == weights(whole)


def test_a_state_of_other_recipes() -> None:
    saved = Loop(Recipe(schedule=RISE)).start().run.state_dict()
    a, b = (Recipe(schedule=RISE, targets=Targets((name,))) for name in ("0", "3"))
    loop = Loop([a, b])
    with pytest.raises(CheckpointError, match="recipe:\nrecipes: it has 1, this run has 2\nresume"):
        loop.run.load_state_dict(saved, loop.model)
