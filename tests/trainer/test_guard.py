"""The guard in real fits: what fails goes back bit for bit, what holds stays, and the end is the sparsest that held."""

import io
import logging
import random
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from guard_cases import Brittle, gone, zeros
from packages import VERSION, Callback, EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from processes import alone, on_ranks
from support import Net, Resumable, loader, trainer
from torch import Tensor

from lightning_prune import Channel, Guard, LeastSquares, Linear, OneShot, Params, PruningCallback, Recipe, Taylor
from lightning_prune.errors import PruningError
from lightning_prune.model import masks
from lightning_prune.trainer.internals import averages_of

RISE = Linear(final_sparsity=0.9, begin_step=2, end_step=20, frequency=3)
RECIPES = {
    "element": Recipe(schedule=RISE),
    "channel": Recipe(schedule=RISE, granularity=Channel(), criterion=Taylor()),
    "needed": Recipe(
        schedule=Linear(begin_step=2, end_step=20, frequency=3),
        granularity=Channel(),
        criterion=Taylor(),
        need=Params(0.1),
    ),
    "repaired": Recipe(schedule=RISE, granularity=Channel(), criterion=Taylor(), repair=LeastSquares(samples=24)),
}


def adamw(parameters: Any) -> Any:
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)},
    }


def guarded(folder: Path, recipe: str, *others: Any, shrinks: bool = False, model: Any = None, **how: Any) -> Any:
    guard = Guard(monitor="val_acc", mode="max", max_drop=0.01, patience=1, min_step=0.02)
    callback = PruningCallback(RECIPES[recipe], guard=guard, compact_every_event=shrinks)
    model = Brittle(make_optimizer=adamw) if model is None else model
    how = {"max_epochs": 8, "val_check_interval": 2, "num_sanity_val_steps": 0} | how
    checkpoint = how.pop("ckpt_path", None)
    fit = trainer(folder, callback, *others, **how)
    fit.fit(model, Resumable(), loader(1), ckpt_path=checkpoint)
    return model, callback, fit


def test_a_guard_that_is_left_out_on_resume_is_told(tmp_path: Path) -> None:
    guarded(tmp_path, "element", ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1))
    plain = trainer(tmp_path, PruningCallback(RECIPES["element"]), ModelCheckpoint(tmp_path), max_epochs=8)
    with pytest.warns(UserWarning, match=r"of a run with a guard, and this one has none|a guard had an event on trial"):
        plain.fit(Brittle(make_optimizer=adamw), Resumable(), loader(1), ckpt_path=str(tmp_path / "epoch=1.ckpt"))


@pytest.mark.parametrize("shrinks", [False, True])
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_end_is_the_sparsest_model_that_kept_the_quality(
    recipe: str, shrinks: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if recipe == "element" and shrinks:
        pytest.skip("only channels can leave at an event")
    with caplog.at_level(logging.INFO, "lightning_prune"):
        model, callback, _ = guarded(tmp_path, recipe, shrinks=shrinks)
    final = zeros(model) if recipe == "element" else gone(model)
    assert Brittle.limit - 0.15 < final <= Brittle.limit + 0.01 + 1e-6
    history = callback.trials
    assert {trial.outcome.value for trial in history} == {"commit", "roll back"}
    kept = max(t.after[0] for t in history if t.outcome.value == "commit")
    assert abs(callback.sparsity - kept) < (0.001 if recipe == "element" else 0.05)
    assert [e.step for e in callback.events] == [t.step for t in history if t.outcome.value == "commit"]
    assert not masks.is_masked(model)
    assert "asked 0.90, kept 0." in caplog.text
    assert "roll back the event of step" in caplog.text


def everything(fit: Any, model: Any, callback: Any) -> dict[str, Any]:
    """All that an event may change, as bytes and plain values."""
    buffer = io.BytesIO()
    torch.save([o.state_dict() for o in fit.optimizers], buffer)
    run = callback.run.state_dict()
    return {
        "model": {name: tensor.detach().numpy().tobytes() for name, tensor in model.state_dict().items()},
        "buffers": {name: tensor.numpy().tobytes() for name, tensor in model.named_buffers()},
        "optimizers": buffer.getvalue(),
        "schedulers": [str(config.scheduler.state_dict()) for config in fit.lr_scheduler_configs],
        "random": (random.getstate(), str(np.random.get_state()), torch.get_rng_state().numpy().tobytes()),
        "run": str(run["pruners"]) + str(run["policies"]) + str(run["looked_at"]) + str(run["stay"]),
        "averages": [c._average_model.state_dict().__str__() for c in fit.callbacks if hasattr(c, "_average_model")],
    }


class Before(Callback):
    """Notes everything left of each event, and after each validation; stands around the pruning callback."""

    def __init__(self) -> None:
        self.left: dict[str, Any] = {}
        self.restored = 0

    def watch(self, callback: PruningCallback) -> "Before":
        self.callback = callback
        return self

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: object, batch: object, batch_idx: int) -> None:
        if not self.callback.is_on_trial:
            self.left = everything(trainer, pl_module, self.callback)


class After(Callback):
    """Compares after each validation that rolled back."""

    def __init__(self, before: Before) -> None:
        self.before, self.seen = before, 0

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        failed = [t for t in self.before.callback.trials if t.outcome.value == "roll back"]
        if len(failed) > self.seen:
            self.seen = len(failed)
            now = everything(trainer, pl_module, self.before.callback)
            for part, expected in self.before.left.items():
                assert now[part] == expected, part


@pytest.mark.parametrize("shrinks", [False, True])
@pytest.mark.parametrize(("average", "recipe"), [(False, "channel"), (True, "channel"), (False, "repaired")])
def test_what_is_rolled_back_is_restored_bit_for_bit(shrinks: bool, average: bool, recipe: str, tmp_path: Path) -> None:
    guard = Guard(monitor="val_acc", mode="max", max_drop=0.01, patience=2, min_step=0.01, retries=5)
    callback = PruningCallback(RECIPES[recipe], guard=guard, compact_every_event=shrinks)
    before = Before().watch(callback)
    after = After(before)
    averages = [EMAWeightAveraging(decay=0.9)] if average else []
    fit = trainer(
        tmp_path, *averages, before, callback, after, max_epochs=10, val_check_interval=1, num_sanity_val_steps=0
    )
    fit.fit(Brittle(make_optimizer=adamw), Resumable(), loader(1))
    assert after.seen >= 2


@pytest.mark.skipif(VERSION < (2, 5), reason="Lightning 2.4 validates at other steps after a resume")
@pytest.mark.parametrize("shrinks", [False, True])
def test_a_run_stopped_on_trial_ends_as_one_never_stopped(shrinks: bool, tmp_path: Path) -> None:
    def saving(folder: Path) -> ModelCheckpoint:
        return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)

    torch.manual_seed(0)
    whole, callback, _ = guarded(tmp_path, "channel", saving(tmp_path), shrinks=shrinks, max_epochs=5)
    on_trial = [s for t in callback.trials for s in (t.step, t.step + 1)]
    for step in (*on_trial[:5], 17, 21):
        torch.manual_seed(step)
        path = tmp_path / f"step={step}.ckpt"
        again, resumed, _ = guarded(
            tmp_path, "channel", saving(tmp_path / "again"), shrinks=shrinks, max_epochs=5, ckpt_path=path
        )
        assert resumed.trials == callback.trials
        for (name, a), b in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
            assert torch.equal(a, b), (step, name)


class Counting(Callback):
    """Counts the validations, and the events before the first."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.steps.append(trainer.global_step)


def test_without_a_baseline_the_dense_model_is_validated_first(tmp_path: Path) -> None:
    for given, expected in ((None, [4, 5, 10]), (0.9, [5, 10])):
        counting = Counting()
        guard = Guard(monitor="val_acc", mode="max", max_drop=0.5, baseline=given)
        callback = PruningCallback(Recipe(schedule=OneShot(0.5, begin_step=4)), guard=guard)
        trainer(tmp_path, callback, counting, num_sanity_val_steps=0).fit(Brittle(), Resumable(), loader(1))
        assert counting.steps == expected
        assert [t.outcome.value for t in callback.trials] == ["commit"]
        assert callback.sparsity == 0.5


def test_an_event_still_on_trial_at_the_end_goes_back(tmp_path: Path) -> None:
    guard = Guard(monitor="val_acc", mode="max", max_drop=0.01, patience=3)
    callback = PruningCallback(Recipe(schedule=OneShot(0.9, begin_step=4)), guard=guard)
    model = Brittle()
    trainer(tmp_path, callback, num_sanity_val_steps=0).fit(model, Resumable(), loader(1))
    assert callback.sparsity == 0.0
    assert callback.events == []
    assert "the fit ended on trial" in callback.trials[-1].reason
    assert zeros(model) == 0


class NaN(Net):
    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_acc", torch.tensor(float("nan") if masks.is_masked(self) and gone(self) > 0 else 0.9))


def test_a_metric_that_is_no_number_counts_as_failed(tmp_path: Path) -> None:
    guard = Guard(monitor="val_acc", mode="max", max_drop=0.5, patience=1, on_fail="stop")
    callback = PruningCallback(Recipe(schedule=OneShot(0.5, begin_step=4)), guard=guard)
    trainer(tmp_path, callback, num_sanity_val_steps=0).fit(NaN(), Resumable(), loader(1))
    assert callback.sparsity == 0.0
    assert "nan" in callback.trials[0].reason


def disk_full(folder: str) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    guard = Guard(monitor="val_acc", mode="max", max_drop=0.5, snapshot="disk")
    callback = PruningCallback(Recipe(schedule=OneShot(0.5, begin_step=4)), guard=guard)
    fit = trainer(Path(folder), callback, num_sanity_val_steps=0)
    fit.fit(Brittle(), Resumable(), loader(1))
    assert fit.global_step == 10
    assert callback.sparsity == 0.0
    assert callback.trials == []


def test_with_a_full_disk_training_goes_on_without_the_event(tmp_path: Path) -> None:
    assert alone(disk_full, str(tmp_path)) == 0


def ranks_fit(folder: str, shrinks: bool) -> Any:
    torch.manual_seed(0)
    model, callback, _ = guarded(
        Path(folder), "channel", shrinks=shrinks, strategy="ddp", devices=2, use_distributed_sampler=False
    )
    return (
        callback.trials,
        {name: tensor.detach().numpy() for name, tensor in model.named_parameters()},
        model.conv2.out_channels,
    )


@pytest.mark.parametrize("shrinks", [False, True])
def test_ranks_judge_alike(shrinks: bool, tmp_path: Path) -> None:
    (trials, weights, width), (others, other, other_width) = on_ranks(ranks_fit, 2, str(tmp_path), shrinks)
    assert trials == others
    assert {trial.outcome.value for trial in trials} == {"commit", "roll back"}
    assert all((weights[name] == other[name]).all() for name in weights)
    assert width == other_width < 8


def test_pruning_goes_on_in_smaller_steps_after_the_last_event_of_the_schedule(tmp_path: Path) -> None:
    guard = Guard(monitor="val_acc", mode="max", max_drop=0.01, patience=1, min_step=0.02)
    callback = PruningCallback(Recipe(schedule=OneShot(0.9, begin_step=4)), guard=guard)
    trainer(tmp_path, callback, max_epochs=10, num_sanity_val_steps=0).fit(Brittle(), Resumable(), loader(1))
    assert [trial.outcome.value for trial in callback.trials][:3] == ["roll back", "commit", "roll back"]
    assert 0.5 < callback.sparsity <= Brittle.limit + 0.02


def test_the_baseline_validation_writes_no_checkpoint_and_stops_nothing(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, save_on_train_epoch_end=False)
    guard = Guard(monitor="val_acc", mode="max", max_drop=0.9)
    callback = PruningCallback(Recipe(schedule=OneShot(0.5, begin_step=3)), guard=guard)
    trainer(tmp_path, callback, saving, num_sanity_val_steps=0).fit(Brittle(), Resumable(), loader(1))
    assert sorted(path.name for path in tmp_path.glob("step=*.ckpt")) == ["step=10.ckpt", "step=5.ckpt"]
    assert callback.sparsity == 0.5


@pytest.mark.parametrize("first", [False, True])
def test_a_rollback_at_the_end_leaves_the_averaged_weights(first: bool, tmp_path: Path) -> None:
    guard = Guard(monitor="val_acc", mode="max", max_drop=0.01, patience=3)
    callback = PruningCallback(Recipe(schedule=OneShot(0.9, begin_step=4)), guard=guard)
    average, model = EMAWeightAveraging(decay=0.8), Brittle()
    callbacks = [average, callback] if first else [callback, average]
    run = trainer(tmp_path, *callbacks, num_sanity_val_steps=0)
    run.fit(model, Resumable(), loader(1))
    (averages,) = averages_of(run)
    assert callback.trials[-1].outcome.value == "roll back"
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), averages.parameters(), strict=True))


def test_the_last_checkpoint_of_a_run_is_finalized(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, save_last=True, save_on_train_epoch_end=True)
    recipe = Recipe(schedule=OneShot(0.5, begin_step=4), granularity=Channel())
    whole, again = Brittle(), Brittle()
    trainer(tmp_path, PruningCallback(recipe), saving, num_sanity_val_steps=0).fit(whole, Resumable(), loader(1))
    callback = PruningCallback(recipe)
    last = ModelCheckpoint(tmp_path / "x", save_last=True, save_on_train_epoch_end=True)
    trainer(tmp_path, callback, last, num_sanity_val_steps=0).fit(
        again, Resumable(), loader(1), ckpt_path=tmp_path / "last.ckpt"
    )
    assert callback.is_done
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


class Break(Callback):
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: object, batch_idx: int) -> None:
        if trainer.global_step == 6:
            raise RuntimeError("broken")


def test_what_an_interrupted_fit_left_on_trial_goes_back_before_the_next(tmp_path: Path) -> None:
    guard = Guard(monitor="val_acc", mode="max", max_drop=0.01, patience=3)
    callback = PruningCallback(Recipe(schedule=OneShot(0.9, begin_step=4)), guard=guard)
    model = Brittle()
    with pytest.raises(RuntimeError, match="broken"):
        trainer(tmp_path, callback, Break(), num_sanity_val_steps=0).fit(model, Resumable(), loader(1))
    assert callback.is_on_trial
    model.make_optimizer = adamw  # another optimizer than that of the snapshot
    trainer(tmp_path, callback, num_sanity_val_steps=0).fit(model, Resumable(), loader(1))
    assert callback.trials[0].outcome.value == "roll back"
    assert not callback.is_on_trial
    assert callback.sparsity == 0.0


def test_stochastic_weight_averaging_beside_a_guard_is_refused(tmp_path: Path) -> None:
    guard = Guard(monitor="val_acc", mode="max", max_drop=0.01)
    callback = PruningCallback(Recipe(schedule=OneShot(0.9, begin_step=4)), guard=guard)
    swa = StochasticWeightAveraging(swa_lrs=0.01)
    with pytest.raises(PruningError, match="beside StochasticWeightAveraging"):
        trainer(tmp_path, callback, swa).fit(Brittle(), Resumable(), loader(1))
