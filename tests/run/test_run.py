"""A pruning run in a plain torch loop: weights stay zero, events fall when due."""

import copy
import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from run_cases import EXAMPLE, OPTIMIZERS, RECIPES, RISE, Loop, network, weights
from torch import nn
from torch.optim import SGD

from lightning_prune.criteria import Magnitude, Taylor
from lightning_prune.errors import NonFiniteError, PruningError
from lightning_prune.model import masks
from lightning_prune.optimizer.policies import LRRewind, Reset, Rewarm, RewindWeights
from lightning_prune.recipe import Recipe
from lightning_prune.run.run import PruningRun
from lightning_prune.schedules import Linear, OneShot
from lightning_prune.selection.granularity import Channel, NOfM
from lightning_prune.selection.targets import Targets


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_pruned_stays_exactly_zero(recipe: str, optimizer: str) -> None:
    loop = Loop(RECIPES[recipe](), optimizer).start().train(12)
    before = {name: mask.clone() for name, mask in masks.read(loop.model).items()}
    loop.train(26)
    assert [event.step for event in loop.events] == [8, 12, 16, 20]
    assert loop.run.step == 26
    assert not loop.run.unfinished
    assert all(not bool((mask & ~before[name]).any()) for name, mask in masks.read(loop.model).items())


def test_two_recipes_at_their_own_times() -> None:
    a = Recipe(schedule=Linear(0.8, 2, 10, 4), targets=Targets(("0",)))
    b = Recipe(schedule=OneShot(0.5, 5), granularity=NOfM(2, 4), targets=Targets(("3",)))
    loop = Loop([a, b]).start().train(12)
    assert [(event.step, event.asked) for event in loop.events] == [(5, 0.5), (6, 0.4), (10, 0.8)]
    assert loop.run.last_step == 10
    live = masks.read(loop.model)
    assert int((~live["0.weight"]).sum()) == round(0.8 * 96)
    assert int((~live["3.weight"]).sum()) == 96
    gone = sum(int((~mask).sum()) for mask in live.values())
    assert loop.run.sparsity == pytest.approx(gone / sum(mask.numel() for mask in live.values()))


def test_the_last_event_that_was_missed_is_run_when_looked() -> None:
    loop = Loop(Recipe(schedule=Linear(0.8, 0, 20, 3))).start().train(20, every=7)
    schedule = Linear(0.8, 0, 20, 3)
    assert [(event.step, event.asked) for event in loop.events] == [(7, schedule(6)), (14, schedule(12))]
    assert len(loop.run.unfinished) == 1
    loop.train(21, every=7)
    assert (loop.events[-1].step, loop.events[-1].asked) == (21, 0.8)
    assert loop.run.unfinished == []


def test_asking_twice_at_one_step_prunes_once() -> None:
    loop = Loop(Recipe(schedule=OneShot(0.5, 2))).start().train(2)
    assert len(loop.events) == 1
    assert loop.run.prune_if_due(loop.model) == []


def test_an_event_before_the_first_step() -> None:
    loop = Loop(Recipe(schedule=OneShot(0.5))).start()
    assert [event.step for event in loop.events] == [0]
    assert loop.run.sparsity == 0.5
    assert loop.train(3).run.sparsity == 0.5


def test_a_schedule_of_ones_own() -> None:
    loop = Loop(Recipe(schedule=lambda step: float(np.clip(step // 3 * 0.25, 0, 0.75)))).start().train(15)
    assert [(event.step, event.asked) for event in loop.events] == [(3, 0.25), (6, 0.5), (9, 0.75)]
    assert loop.run.last_step is None
    loop = Loop(Recipe(schedule=lambda step: np.float64(0.5))).start()  # type: ignore[arg-type, return-value]
    assert [event.step for event in loop.events] == [0]
    torch.load(io.BytesIO(loop.save()), weights_only=True)


def test_shares_of_the_run() -> None:
    loop = Loop(Recipe(schedule=Linear(0.5, begin_step=0.1, end_step=0.5, frequency=100)), total_steps=20).start()
    assert [event.step for event in loop.train(12).events] == [10]


def test_steps_are_those_of_optimizers_that_own_a_target() -> None:
    recipe = Recipe(schedule=OneShot(0.5, 3), targets=Targets(("3",)))
    loop = Loop(recipe, "Muon").start().train(4)
    assert [event.step for event in loop.events] == [3]
    assert loop.run.step == 4


def test_taylor_sees_every_step_since_the_last_event() -> None:
    loop = Loop(Recipe(schedule=Linear(0.5, 3, 9, 6), criterion=Taylor())).start()
    for until, seen in ((2, 2), (3, 3), (5, 5), (9, 0), (11, 0)):
        loop.train(until)
        steps = set(loop.run.pruners[0].observed.steps.values())
        assert steps == ({seen} if seen else set())


def test_a_masked_optimizer_moves_nothing_but_survivors() -> None:
    loop = Loop(Recipe(schedule=OneShot(0.5, 2)), "Adam").start().train(2)
    for parameter, mask in masks.masks_by_parameter(loop.model).items():
        state = loop.optimizers[0].state[parameter]
        assert bool((state["exp_avg"][~mask] == 0).all())
        assert bool((state["exp_avg_sq"][~mask] == 0).all())
        assert bool((state["exp_avg"][mask] != 0).any())
        assert float(state["step"]) == 2


def test_after_stop_the_run_counts_no_steps() -> None:
    loop = Loop(Recipe(schedule=OneShot(0.5, 2), optimizer_policy=Rewarm(4))).start().train(1)
    loop.run.stop()
    hooks = [len(o._optimizer_step_post_hooks) + len(o._optimizer_step_pre_hooks) for o in loop.optimizers]
    assert hooks == [0]
    loop.train(4)
    assert loop.run.step == 1


def test_starting_again_leaves_one_set_of_hooks() -> None:
    loop = Loop(Recipe(schedule=OneShot(0.5, 2))).start().start().train(3)
    assert loop.run.step == 3
    assert [event.step for event in loop.events] == [2]


def test_a_run_holds_no_model() -> None:
    loop = Loop(Recipe(schedule=OneShot(0.5, 2)), "Adam").start().train(3)
    loop.run.stop()
    assert not any(isinstance(value, nn.Module) for value in vars(loop.run).values())


def test_a_broken_weight_stops_the_event_with_nothing_changed() -> None:
    loop = Loop(Recipe(schedule=OneShot(0.5, 3)), "Adam").start().train(2)
    with torch.no_grad():
        masks.dense_parameters(loop.model)["3.weight"][0, 0] = float("nan")
    before, state = weights(loop), copy.deepcopy(loop.optimizers[0].state_dict())
    loop.run.step = 3
    with pytest.raises(NonFiniteError, match=r"3.weight has 1 weights that are NaN or infinite"):
        loop.run.prune_if_due(loop.model)
    assert weights(loop) == before
    for index, held in loop.optimizers[0].state_dict()["state"].items():
        assert all(torch.equal(held[key], state["state"][index][key]) for key in held)


def test_rebind_takes_the_shapes_of_a_smaller_model() -> None:
    recipe = Recipe(schedule=RISE, granularity=Channel())
    loop = Loop(recipe)
    loop.run.pruners[0].progress.asked = 0.3
    masks.fold(loop.model)
    small = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 12), nn.ReLU(), nn.Linear(12, 3))
    same = loop.run.pruners[0]
    loop.run.rebind(loop.model, EXAMPLE)
    assert loop.run.pruners[0] is same
    loop.run.rebind(small, EXAMPLE)
    assert sorted(loop.run.pruners[0].units.sizes.values()) == [9, 12]
    assert loop.run.pruners[0].asked == 0.3
    loop.run.attach(small)
    assert masks.is_masked(small)


def test_a_rehearsal_is_one_event_at_the_final_sparsity() -> None:
    policies = (Reset(), LRRewind(7), RewindWeights(9), Rewarm(3))
    recipe = Recipe(schedule=RISE, criterion=Taylor(), optimizer_policy=policies)
    expected = (Reset(), LRRewind(0), RewindWeights(0), Rewarm(3))
    assert recipe.rehearsed() == Recipe(
        schedule=OneShot(0.75, begin_step=1), criterion=Taylor(), optimizer_policy=expected
    )


def bind(*recipes: Recipe) -> PruningRun:
    return PruningRun(recipes, network(), EXAMPLE, 100)


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    return model


HALF = OneShot(0.5, 2)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (
            lambda: bind(Recipe(schedule=HALF), Recipe(schedule=HALF, targets=Targets(("3",)))),
            r"target 3.weight is given twice, by recipe 0 and recipe 1; let their targets differ with Targets\(",
        ),
        (
            lambda: PruningRun(
                [Recipe(schedule=HALF, targets=Targets((name,))) for name in ("0", "1")], tied(), EXAMPLE, None
            ),
            "target 0.weight is given twice, by recipe 0 and recipe 1",
        ),
        (lambda: bind(Recipe(schedule=HALF, targets=Targets(("conv*",)))), r"target pattern 'conv\*' matches no"),
    ],
)
def test_recipes_that_do_not_fit(build: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        build()


def test_a_refused_recipe_leaves_the_model_alone() -> None:
    model = network()
    with pytest.raises(ValueError, match="conv"):
        PruningRun(
            [Recipe(schedule=HALF, targets=Targets(("0",))), Recipe(schedule=HALF, targets=Targets(("conv",)))],
            model,
            EXAMPLE,
            10,
        )
    assert not masks.is_masked(model)


def test_optimizers_without_a_target() -> None:
    loop = Loop(Recipe(schedule=HALF, targets=Targets(("3",))))
    with pytest.raises(ValueError, match="no optimizer holds any of the pruned parameters; let configure_optimizers"):
        loop.run.start([SGD(loop.model[0].parameters(), lr=0.1)], [], loop.model)


def test_a_module_replaced_after_setup() -> None:
    loop = Loop(Recipe(schedule=HALF))
    loop.model[3] = nn.Linear(16, 12)
    with pytest.raises(
        PruningError, match=r"3.weight had a mask of shape \(12, 16\) .* now has none: its module was replaced"
    ):
        loop.start()
    loop = Loop(Recipe(schedule=HALF))
    del loop.model[3]
    with pytest.raises(PruningError, match=r"3.weight had a mask of shape \(12, 16\) .* now has none"):
        loop.start()


def test_a_snapshot_after_the_first_event() -> None:
    with pytest.raises(
        ValueError, match=r"RewindWeights\(step=5\) goes back to step 5, which comes after the first event"
    ):
        Loop(Recipe(schedule=HALF, optimizer_policy=RewindWeights(5))).start()


def test_magnitude_is_watched_by_nobody() -> None:
    loop = Loop(Recipe(schedule=RISE, criterion=Magnitude())).start().train(2)
    assert loop.run.pruners[0].observed.sums == {}
