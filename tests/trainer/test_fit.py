"""What a fit leaves behind: its record, a callback that can be copied, and nothing on model, strategy or optimizers."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packages import L
from support import AfterStep, Net, Resumable, loader, outputs, trainer, zeros

from lightning_prune import Channel, Distillation, Guard, Linear, OneShot, PruningCallback, Recipe
from lightning_prune.run.run import PruningRun

RECIPE = Recipe(schedule=Linear(final_sparsity=0.5, begin_step=1, end_step=9, frequency=2))
LATE = Recipe(schedule=OneShot(0.5, begin_step=4))
KINDS: dict[str, Callable[[], PruningCallback]] = {
    "element": lambda: PruningCallback(RECIPE),
    "channel": lambda: PruningCallback(Recipe(schedule=RECIPE.schedule, granularity=Channel())),
    "removing": lambda: PruningCallback(
        Recipe(schedule=RECIPE.schedule, granularity=Channel()), compact_every_event=True
    ),
    "guarded": lambda: PruningCallback(LATE, guard=Guard("val_loss", "min", 10.0, patience=1)),
    "taught": lambda: PruningCallback(RECIPE, distillation=Distillation(temperature=2.0, weight=0.5)),
    "kept": lambda: PruningCallback(RECIPE, finalize=False),
}
COPIES: dict[str, Callable[[Any], Any]] = {
    "deep": copy.deepcopy,
    "pickled": lambda thing: pickle.loads(pickle.dumps(thing)),
}


def fit(folder: Path, callback: PruningCallback, model: L.LightningModule, **options: Any) -> L.Trainer:
    run = trainer(folder, callback, **options)
    run.fit(model, loader(), loader(1))
    return run


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_has_the_arguments_and_what_came_of_them(tmp_path: Path, kind: str, copied: Any) -> None:
    callback, model = KINDS[kind](), Net()
    fit(tmp_path, callback, model)
    again = copied(callback)
    assert again.recipes == callback.recipes
    assert (again.guard, again.finalize) == (callback.guard, callback.finalize)
    assert len(again.events) > 0
    assert (again.events, again.sparsity, again.trials) == (callback.events, callback.sparsity, callback.trials)
    assert again.is_done is callback.is_done is callback.finalize
    assert isinstance(callback.run, PruningRun)
    assert again.run is None  # nor does it hold the model
    other = Net()
    fit(tmp_path, again, other)
    assert [event.step for event in again.events] == [event.step for event in callback.events]
    assert again.is_done is again.finalize


def test_a_trainer_with_the_callback_is_copied_before_its_fit(tmp_path: Path) -> None:
    given = {"callbacks": [PruningCallback(RECIPE)], "max_epochs": 2}  # as darts does with its trainer's arguments
    ours = copy.deepcopy(given)["callbacks"][0]
    fit(tmp_path, ours, Net())
    assert len(ours.events) > 0
    assert given["callbacks"][0].events == []


def test_a_copy_in_the_middle_of_a_fit_leaves_the_fit_alone(tmp_path: Path) -> None:
    callback, copies = PruningCallback(RECIPE), []
    look = AfterStep(lambda *_: copies.append((copy.deepcopy(callback), callback.sparsity, len(callback.events))))
    trainer(tmp_path, callback, look).fit(Net(), loader())
    assert [one.sparsity for one, _, _ in copies] == [sparsity for _, sparsity, _ in copies]
    assert [len(one.events) for one, _, _ in copies] == [count for _, _, count in copies]
    assert callback.is_done


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_stays_on_model_strategy_and_optimizers(tmp_path: Path, fails: bool) -> None:
    def boom(run: L.Trainer, _: Any) -> None:
        if fails and run.global_step == 7:
            raise RuntimeError("as a user's code may")

    callback, model = KINDS["taught"](), Net()
    run = trainer(tmp_path, callback, AfterStep(boom))
    files = run.strategy.checkpoint_io
    if fails:
        with pytest.raises(RuntimeError, match="as a user's code may"):
            run.fit(model, Resumable())
    else:
        run.fit(model, Resumable())
    assert run.strategy.checkpoint_io is files
    assert not model._load_state_dict_pre_hooks
    assert not model._load_state_dict_post_hooks
    assert not {"training_step", "backward"} & set(vars(run.strategy))
    assert not run.optimizers[0]._optimizer_step_post_hooks
    assert zeros(model) > 0 if fails else outputs(model).isfinite().all()


def test_the_next_fit_goes_on_with_an_interrupted_one_and_another_model_begins_anew(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(run: L.Trainer, _: Any) -> None:
        if run.global_step == 4:
            raise Stop

    callback, model = PruningCallback(RECIPE), Net()
    with pytest.raises(Stop):
        trainer(tmp_path, callback, AfterStep(stop)).fit(model, loader())
    assert not callback.is_done
    assert [event.step for event in callback.events] == [3]
    assert callback.sparsity == pytest.approx(callback.events[-1].sparsity)
    run = callback.run
    assert run is not None
    fit(tmp_path, callback, model)
    assert callback.run is run
    assert run.step == 14
    assert [event.step for event in callback.events] == [3, 5, 7, 9]
    fit(tmp_path, callback, Net())
    assert callback.run is not run
    assert [event.step for event in callback.events] == [3, 5, 7, 9]
    assert callback.run is not None
    assert callback.run.step == 10
