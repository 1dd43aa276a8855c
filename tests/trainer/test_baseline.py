"""What a guard measures from: when there is a baseline, what makes it a poor one, and which metrics are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from guard_cases import Brittle, zeros
from support import Net, Resumable, loader, trainer
from torch import Tensor

from lightning_prune import Guard, OneShot, PruningCallback, Recipe
from lightning_prune.errors import PruningError


class Late(Net):
    """Its metric is no number in the first validations."""

    def __init__(self, until: int) -> None:
        super().__init__()
        self.until = until

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_acc", torch.tensor(float("nan") if self.trainer.global_step < self.until else 0.9))


def test_an_event_waits_for_a_baseline(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard(monitor="val_acc", mode="max", max_drop=0.1, patience=1)
    callback, model = PruningCallback(Recipe(schedule=OneShot(0.5, begin_step=4)), guard=guard), Late(until=6)
    trainer(tmp_path, callback, num_sanity_val_steps=0, max_epochs=4).fit(model, Resumable(), loader(1))
    assert [event.step for event in callback.events] == [11]  # the validation after step 10 is the first with a value
    assert [trial.outcome.value for trial in callback.trials] == ["commit"]
    assert caplog.text.count("step 4: the event waits until a validation gives a finite val_acc") == 1


def test_without_any_baseline_the_fit_ends_unpruned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    callback = PruningCallback(
        Recipe(schedule=OneShot(0.5, begin_step=4)), guard=Guard("val_acc", "max", 0.1, patience=1)
    )
    model = Late(until=1000)
    trainer(tmp_path, callback, num_sanity_val_steps=0).fit(model, Resumable(), loader(1))
    assert (callback.events, zeros(model)) == ([], 0)
    assert "asked 0.50, kept 0.00: no validation of the dense model gave a finite val_acc" in caplog.text


@pytest.mark.parametrize(("drop", "is_told"), [(0.02, True), (0.05, False), (0.0, False)])
def test_a_drop_of_less_than_a_sample_is_told_once(
    drop: float, is_told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = PruningCallback(Recipe(schedule=OneShot(0.5, begin_step=4)), guard=Guard("val_acc", "max", drop))
    trainer(tmp_path, callback, max_epochs=4).fit(Late(until=0), Resumable(), loader(batches=5, batch_size=4))
    assert caplog.text.count("one of the 20 validation samples is worth, 0.05 of val_acc") == is_told


class Told(Net):
    """Its accuracies are told beforehand, one for each validation."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = iter(values)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        if batch_idx == 0:
            self.log("val_acc", torch.tensor(next(self.values)))


@pytest.mark.parametrize(
    ("values", "how", "told"),
    [
        ([0.9, 0.5, 0.5, 0.5], {}, "val_acc was 0.9 before it came to 0.5, which is the baseline"),
        ([0.2, 0.3, 0.6, 0.7], {}, "val_acc 0.6 is better than the baseline 0.3 by more than Guard(max_drop=0.1)"),
        ([0.9, 0.9, 0.9, 0.9], {"max_drop": 2.0}, "max_drop=2 lets all of val_acc go, which is 0.9"),
        ([0.9, 0.9, 0.9, 0.9], {"mode": "min"}, 'mode="min" takes a lower val_acc for better'),
        ([0.5, 0.9, 0.88, 0.95], {}, ""),
    ],
)
def test_a_baseline_that_measures_nothing_is_told(
    values: list[float], how: dict[str, Any], told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    guard = Guard(**{"monitor": "val_acc", "mode": "max", "max_drop": 0.1, "patience": 1, **how})
    callback = PruningCallback(Recipe(schedule=OneShot(0.5, begin_step=12)), guard=guard)
    run = trainer(tmp_path, callback, max_epochs=4, num_sanity_val_steps=0)
    run.fit(Told(values), loader(5), loader(batches=5, batch_size=40))
    warned = [record.getMessage() for record in caplog.records if "lightning_prune" in record.name]
    assert [told in text for text in warned if "roll back" not in text] == ([True] if told else [])


def test_a_monitor_that_the_sanity_check_does_not_log_is_told_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = PruningCallback(Recipe(schedule=OneShot(0.5, begin_step=4)), guard=Guard("val_acuracy", "max", 0.1))
    with pytest.raises(PruningError, match="finds no such metric after validation"):
        trainer(tmp_path, callback, num_sanity_val_steps=1).fit(Told([0.5] * 9), loader(5), loader(5))
    assert "Guard(monitor='val_acuracy'): the sanity check logged no such metric, but val_acc" in caplog.text


class Both(Brittle):
    """Logs one metric in training, and one in either."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("val_acc", 0.0)
        return loss


@pytest.mark.parametrize("key", ["train_loss", "train_loss_step"])
@pytest.mark.parametrize("begin", [2, 7])
def test_a_metric_of_the_training_is_no_monitor(tmp_path: Path, key: str, begin: int) -> None:
    callback = PruningCallback(Recipe(schedule=OneShot(0.5, begin_step=begin)), guard=Guard(key, "min", 10.0))
    with pytest.raises(PruningError, match=rf"'{key}'.* judges by validation, and the last one did not log it"):
        trainer(tmp_path, callback, num_sanity_val_steps=0).fit(Both(), Resumable(), loader(1))


def test_a_metric_of_both_is_a_monitor(tmp_path: Path) -> None:
    callback = PruningCallback(Recipe(schedule=OneShot(0.5, begin_step=2)), guard=Guard("val_acc", "max", 10.0))
    trainer(tmp_path, callback, num_sanity_val_steps=0).fit(Both(), Resumable(), loader(1))
    assert [trial.outcome.value for trial in callback.trials] == ["commit"]


def test_a_monitor_that_nothing_logs(tmp_path: Path) -> None:
    callback = PruningCallback(
        Recipe(schedule=OneShot(0.5, begin_step=4)), guard=Guard(monitor="accuracy", mode="max", max_drop=0.1)
    )
    with pytest.raises(PruningError, match=r"'accuracy'.* finds no such metric .*: .*val_acc"):
        trainer(tmp_path, callback, max_epochs=8).fit(Brittle(), loader(), loader(1))


def test_a_guard_without_validation_is_refused(tmp_path: Path) -> None:
    callback = PruningCallback(
        Recipe(schedule=OneShot(0.5, begin_step=4)), guard=Guard(monitor="val_acc", mode="max", max_drop=0.1)
    )
    with pytest.raises(PruningError, match="judges by validation, and this fit has none"):
        trainer(tmp_path, callback, max_epochs=8).fit(Brittle(), loader())
