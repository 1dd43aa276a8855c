"""Resuming with the same recipe, and with another one where that is wanted."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from packages import ModelCheckpoint
from run_cases import RISE, Loop, weights
from support import LinearNet, MixedNet, Net, Resumable, trainer, zeros
from torch import Tensor

from lightning_prune import (
    Channel,
    Linear,
    Mask,
    OneShot,
    PruningCallback,
    Recipe,
    Reset,
    Rewarm,
    RewindWeights,
    Targets,
    Taylor,
)
from lightning_prune.errors import CheckpointError
from lightning_prune.model import masks
from lightning_prune.run import resuming

STEPS = Linear(final_sparsity=0.6, begin_step=2, end_step=8, frequency=3)
SPARSE = Recipe(schedule=STEPS)
FIRST, SECOND = (
    Recipe(schedule=RISE, targets=Targets(("0",))),
    Recipe(schedule=OneShot(0.5, 9), targets=Targets(("3",))),
)


def every_step(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)


def fitted(folder: Path, model: Any, callback: PruningCallback, step: int | None = None, **options: Any) -> Any:
    saving = every_step(folder if step is None else folder / "again")
    path = None if step is None else folder / f"step={step}.ckpt"
    trainer(folder, callback, saving, **options).fit(model, Resumable(), ckpt_path=path, weights_only=bool(path))
    return model


def largest(name: str, weight: Tensor) -> Tensor:
    return weight.abs()


def test_a_recipe_describes_itself_alike_in_every_process() -> None:
    recipe = Recipe(schedule=lambda step: 0.5, criterion=largest, optimizer_policy=[Rewarm(3), Mask()])
    told = recipe.describe()
    assert not any(re.search("0x[0-9a-f]", text) for text in told.values())
    assert told["criterion"] == "<function largest>"
    assert told == Recipe(schedule=recipe.schedule, criterion=largest, optimizer_policy=(Mask(), Rewarm(3))).describe()
    assert resuming.differences([told], [recipe]) == []
    assert Recipe(schedule=STEPS).describe()["optimizer_policy"] == "[Mask()]"


def test_differences_are_told_field_by_field() -> None:
    other = Recipe(schedule=STEPS, criterion=Taylor(), count="params")
    assert resuming.differences([SPARSE.describe()], [other]) == [
        "criterion was None, is Taylor()",
        "count was None, is 'params'",
    ]
    assert resuming.differences([SPARSE.describe(), FIRST.describe()], [SPARSE, SECOND])[0].startswith("recipe 1: sch")
    assert resuming.differences([SPARSE.describe()], [FIRST, SECOND]) == ["recipes: it has 1, this run has 2"]


def test_recipes_are_paired_with_those_of_the_checkpoint() -> None:
    saved = [FIRST.describe(), SECOND.describe()]
    assert resuming.paired(saved, [FIRST, SECOND]) == [0, 1]
    assert resuming.paired(saved, [SECOND, FIRST]) == [1, 0]
    assert resuming.paired(saved, [SECOND]) == [1]
    assert resuming.paired(saved, [SPARSE, FIRST]) == [None, 0]
    assert resuming.paired(saved, [SPARSE, SPARSE]) == [0, 1]
    assert resuming.paired([], [FIRST]) == [None]


@pytest.mark.parametrize("net", [Net, MixedNet])
@pytest.mark.parametrize("step", [6, 10])
def test_another_recipe_is_refused_and_nothing_is_loaded(net: Any, step: int, tmp_path: Path) -> None:
    fitted(tmp_path, net(), PruningCallback(SPARSE))
    model = net()
    before = {name: p.clone() for name, p in model.named_parameters()}
    other = PruningCallback(Recipe(schedule=STEPS, granularity=Channel()))
    with pytest.raises(
        CheckpointError,
        match=r"another recipe:\ngranularity was Element\(\), is Channel\(.*\)\nresume .*resume_with_other_recipe=True",
    ):
        fitted(tmp_path, model, other, step)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.values(), strict=True))
    assert zeros(model) == 0


def test_a_finished_run_is_refused_to_another_recipe_and_pruned_further_when_told(tmp_path: Path) -> None:
    run = trainer(tmp_path, PruningCallback(SPARSE))
    run.fit(Net(), Resumable())
    run.save_checkpoint(tmp_path / "done.ckpt")
    half = Recipe(schedule=OneShot(0.75, 3))
    for told in (False, True):
        callback, model = PruningCallback(half, resume_with_other_recipe=told), Net()
        later = trainer(tmp_path, callback, max_epochs=3)
        if told:
            later.fit(model, Resumable(), ckpt_path=tmp_path / "done.ckpt")
            assert [event.step for event in callback.events] == [3]
            assert callback.sparsity == 0.75
        else:
            with pytest.raises(CheckpointError, match=r"schedule was Linear.* is OneShot"):
                later.fit(model, Resumable(), ckpt_path=tmp_path / "done.ckpt")


OTHERS: dict[str, Recipe] = {
    "higher": Recipe(schedule=Linear(0.8, 2, 8, 3)),
    "over by now": Recipe(schedule=OneShot(0.8, 3)),
    "taylor": Recipe(schedule=Linear(0.8, 2, 8, 3), criterion=Taylor()),
    "channels": Recipe(schedule=Linear(0.5, 2, 8, 3), granularity=Channel(), criterion=Taylor()),
    "fewer targets": Recipe(schedule=Linear(0.8, 2, 8, 3), targets=Targets(("conv*",))),
    "reset": Recipe(schedule=Linear(0.8, 2, 8, 3), optimizer_policy=Reset()),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("step", [3, 6, 9])
def test_another_recipe_goes_on_when_told(name: str, step: int, tmp_path: Path) -> None:
    first = fitted(tmp_path, Net(), PruningCallback(SPARSE))
    del first
    saved = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)["lightning_prune"]["masks"]
    callback = PruningCallback(OTHERS[name], finalize=False, resume_with_other_recipe=True)
    model = fitted(tmp_path, Net(), callback, step)
    waits = step == 3 and name != "over by now"  # the schedule has asked for nothing yet
    later = [event.step for event in callback.events if event.step > step]
    assert later[0] == step + (2 if waits else 1)
    assert callback.sparsity == pytest.approx(OTHERS[name].schedule.final_sparsity, abs=0.02)  # type: ignore[union-attr]
    for target, mask in masks.read(model).items():  # what was pruned stays so
        if target in saved:
            assert not bool((mask & ~saved[target]).any())


def test_what_is_asked_for_already_is_no_event(tmp_path: Path) -> None:
    fitted(tmp_path, LinearNet(), PruningCallback(SPARSE))
    lower = PruningCallback(Recipe(schedule=OneShot(0.25, 3)), resume_with_other_recipe=True)
    model = fitted(tmp_path, LinearNet(), lower, 6)
    assert [event.step for event in lower.events] == [5]  # of the run before
    assert int((model.first.weight == 0).sum() + (model.second.weight == 0).sum()) == round(0.3 * 256)


def test_recipes_in_another_order_go_on_to_the_last_bit() -> None:
    whole = Loop([FIRST, SECOND], "AdamW").start().train(24)
    first = Loop([FIRST, SECOND], "AdamW").start().train(10)
    again = Loop([SECOND, FIRST], "AdamW")
    with pytest.raises(CheckpointError, match="recipe 0: schedule was"):
        again.load(first.save(), 10)
    state = first.run.state_dict(first.model)
    again.model.load_state_dict(first.model.state_dict())
    for one, other in zip(again.optimizers, first.optimizers, strict=True):
        one.load_state_dict(other.state_dict())
    again.run.load_state_dict(state, again.model, other_recipes=True)
    again.steps = 10
    assert weights(again.start().train(24)) == weights(whole)


def test_policies_keep_what_is_theirs() -> None:
    rewinding = Recipe(schedule=RISE, optimizer_policy=RewindWeights(3))
    saved = Loop(rewinding).start().train(9).run.state_dict()
    later = Loop(Recipe(schedule=Linear(0.8, 4, 20, 4), optimizer_policy=RewindWeights(3)))
    later.run.load_state_dict(saved, later.model, other_recipes=True)
    assert later.run.state_dict()["policies"] == saved["policies"]
    plain = Loop(Recipe(schedule=RISE))
    with pytest.warns(UserWarning, match="what the optimizer_policy of the checkpoint's recipe had kept is dropped"):
        plain.run.load_state_dict(saved, plain.model, other_recipes=True)
    back = Loop(Recipe(schedule=RISE, optimizer_policy=RewindWeights(2)))
    with pytest.raises(CheckpointError, match=r"RewindWeights\(step=2\) goes back to step 2, .* from step 9"):
        back.run.load_state_dict(saved, back.model, other_recipes=True)


def test_shares_of_the_run_stay_the_steps_that_they_were(tmp_path: Path) -> None:
    recipe = Recipe(schedule=Linear(0.6, begin_step=0.2, end_step=0.8, frequency=3))
    whole = PruningCallback(recipe)
    fitted(tmp_path, LinearNet(), whole)
    assert [event.step for event in whole.events] == [5, 8]
    longer = PruningCallback(recipe)
    fitted(tmp_path, LinearNet(), longer, 4, max_epochs=4)
    assert longer.events == whole.events
    shorter = PruningCallback(recipe)
    with pytest.raises(ValueError, match="ends at step 8, but this run has only 7 optimizer steps"):
        fitted(tmp_path, LinearNet(), shorter, 4, max_epochs=-1, max_steps=7)
