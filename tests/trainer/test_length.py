"""The length of a run is known when it really starts."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
from packages import Tuner
from support import LinearNet, Net, loader, momentum_sgd, trainer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_prune import Channel, Linear, OneShot, PruningCallback, Recipe, Targets

HALF = Recipe(schedule=Linear(0.5, begin_step=0, end_step=0.8, frequency=2))


def test_a_share_follows_the_steps_after_a_tuner(tmp_path: Path) -> None:
    model, callback = LinearNet(), PruningCallback(HALF)
    model.batch_size = 2  # type: ignore[assignment]
    data = loader(20)
    model.train_dataloader = lambda: DataLoader(data.dataset, batch_size=model.batch_size)  # type: ignore[method-assign]
    fitting = trainer(tmp_path, callback, max_epochs=2)
    Tuner(fitting).scale_batch_size(model, max_trials=2, steps_per_trial=1, init_val=2)
    fitting.fit(model)
    total = fitting.global_step
    assert callback.sparsity == pytest.approx(0.5, abs=0.01)
    assert max(event.step for event in callback.events) == round(0.8 * total)


class Endless(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    """Data without a length."""

    def __iter__(self):
        while True:
            yield torch.rand(1, 6, 6), torch.tensor(0)


class ByHand(LinearNet):
    """Optimizes by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


@pytest.mark.parametrize(
    ("model", "options", "data", "reason"),
    [
        (ByHand, {}, loader(), r"ByHand optimizes by hand, and Lightning cannot tell how often it will step"),
        (
            LinearNet,
            {"max_epochs": -1, "max_time": timedelta(seconds=5)},
            loader(),
            r"only max_time or a callback ends it",
        ),
        (LinearNet, {}, DataLoader(Endless(), 4), r"the training data have no length \(iterable data\)"),
    ],
)
def test_a_share_of_an_unknown_length(
    tmp_path: Path, model: type[LinearNet], options: dict[str, object], data: object, reason: str
) -> None:
    with pytest.raises(ValueError, match=rf"Linear\.end_step = 0\.8 is a share of the run, .* unknown: {reason}"):
        trainer(tmp_path, PruningCallback(HALF), **options).fit(model(), data)


@pytest.mark.filterwarnings("ignore:Total length of")
@pytest.mark.parametrize(
    ("options", "data"),
    [
        ({}, DataLoader(TensorDataset(torch.rand(0, 1, 6, 6), torch.zeros(0)), 4)),
        ({}, DataLoader(TensorDataset(torch.rand(3, 1, 6, 6), torch.zeros(3)), 4, drop_last=True)),
        ({"limit_train_batches": 0}, loader()),
    ],
    ids=["empty", "drop_last", "limit"],
)
def test_a_run_without_a_batch(tmp_path: Path, options: dict[str, object], data: object) -> None:
    with pytest.raises(ValueError, match=r"unknown: there is no batch to train on: the loader is empty, drop_last"):
        trainer(tmp_path, PruningCallback(HALF), **options).fit(LinearNet(), data)


class Frozen(Net):
    """Keeps one batch norm in eval mode while it trains."""

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        self.norm1.eval()
        self.norm2.momentum = 0.0


def test_statistics_that_stand_still_are_named_once(tmp_path: Path) -> None:
    recipe = Recipe(granularity=Channel(), schedule=Linear(0.5, begin_step=0, end_step=6, frequency=2))
    with pytest.warns(UserWarning, match=r"norm1, norm2 do not update their statistics.*recalibrate") as seen:
        trainer(tmp_path, PruningCallback(recipe)).fit(Frozen(), loader())
    assert sum("do not update their statistics" in str(one.message) for one in seen) == 1


def test_a_tuned_schedule_with_steps_stays(tmp_path: Path) -> None:
    recipe = Recipe(schedule=OneShot(0.5, begin_step=3), targets=Targets(include=("first",)))
    callback = PruningCallback(recipe)
    model = LinearNet(momentum_sgd)
    trainer(tmp_path, callback).fit(model, loader())
    assert [event.step for event in callback.events] == [3]
    assert isinstance(model.first, nn.Linear)
