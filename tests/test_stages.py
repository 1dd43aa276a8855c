"""validate, test and predict with ckpt_path: the model takes the shape of the checkpoint, whatever both have been."""

from pathlib import Path
from typing import Any

import pytest
import torch
from packages import ModelCheckpoint
from support import MixedNet, Net, loader, outputs, trainer
from torch import Tensor

from lightning_prune import Channel, Linear, PruningCallback, Recipe, Targets, Taylor
from lightning_prune.compaction import applied_plan
from lightning_prune.model import masks

RISE = Linear(final_sparsity=0.5, begin_step=2, end_step=8, frequency=3)
THIN = Recipe(schedule=RISE, granularity=Channel(), criterion=Taylor())
SPARSE = Recipe(schedule=RISE, targets=Targets(("head", "conv3")))
STATES = ("dense", "masked", "sparse", "half-way", "compact", "halves removed")
ASKS = ("validate", "test", "predict")


class Worse(Net):
    """Its val_loss, which the checkpoint callback watches, rises from epoch to epoch: the best is the first."""

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", float(self.current_epoch))


class MixedWorse(Worse, MixedNet):
    """The same with the mixin."""


class Seen:
    """Writes checkpoints of one kind of model in all states, and knows what each computes."""

    def __init__(self, folder: Path, net: Any) -> None:
        self.folder, self.net = folder, net
        self.expected: dict[str, Tensor] = {}
        self.shapes: dict[str, Any] = {}
        self.fit("dense")
        self.fit("masked", THIN, finalize=False)
        self.fit("sparse", SPARSE, finalize=False)
        self.fit("compact", THIN)
        self.fit("halves removed", THIN, compact_every_event=True)
        self.fit("half-way", THIN, compact_every_event=True, finalize=False)

    def fit(self, name: str, recipe: Recipe | None = None, **options: Any) -> Any:
        torch.manual_seed(0)
        model = self.net()
        run = trainer(self.folder, *([PruningCallback(recipe, **options)] if recipe else []))
        run.fit(model, loader())
        run.save_checkpoint(self.path(name), weights_only=False)
        self.expected[name], self.shapes[name] = outputs(model), form(model)
        return model

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.ckpt"


def form(model: Any) -> Any:
    return [(name, tensor.shape) for name, tensor in model.state_dict().items()], model.conv1.out_channels


def ask(run: Any, what: str, model: Any, path: Any) -> None:
    more: dict[str, Any] = {} if what == "predict" else {"verbose": False}
    getattr(run, what)(model, loader(2), ckpt_path=path, **more)


def check(run: Any, what: str, model: Any, seen: Seen, name: str) -> None:
    ask(run, what, model, seen.path(name))
    assert form(model) == seen.shapes[name], name
    assert torch.equal(outputs(model), seen.expected[name]), name


@pytest.fixture(scope="module", params=[Net, MixedNet])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return Seen(tmp_path_factory.mktemp("states"), request.param)


@pytest.mark.parametrize("first", STATES)
def test_a_model_of_any_shape_takes_the_shape_of_any_checkpoint(seen: Seen, first: str, tmp_path: Path) -> None:
    model, run = seen.net(), trainer(tmp_path, PruningCallback(THIN))
    for index, name in enumerate(STATES):
        check(run, "test", model, seen, first)
        check(run, ASKS[index % 3], model, seen, name)


def test_with_the_mixin_no_callback_is_needed(seen: Seen, tmp_path: Path) -> None:
    model, run = seen.net(), trainer(tmp_path)
    for index, name in enumerate((*STATES, *reversed(STATES))):
        # masks stand beside the weights in a checkpoint, not among them: only smaller shapes need the mixin
        if seen.net is MixedNet or name in ("dense", "masked", "sparse"):
            check(run, ASKS[index % 3], model, seen, name)
        else:
            with pytest.raises(RuntimeError, match=r"size mismatch for conv1\.weight"):
                ask(run, ASKS[index % 3], model, seen.path(name))


@pytest.mark.parametrize("name", STATES)
def test_right_after_a_fit(seen: Seen, name: str, tmp_path: Path) -> None:
    ways: tuple[dict[str, Any], ...] = ({}, {"finalize": False, "compact_every_event": True})
    for options in ways:
        model, run = seen.net(), trainer(tmp_path, PruningCallback(THIN, **options))
        run.fit(model, loader())
        for what in ASKS:
            check(run, what, model, seen, name)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`", "ignore:ModelCheckpoint.monitor=.val_loss")
@pytest.mark.parametrize("net", [Worse, MixedWorse])
@pytest.mark.parametrize("shrinks", [False, True])
def test_best_and_last(net: Any, shrinks: bool, tmp_path: Path) -> None:
    at: dict[str, Tensor] = {}

    class Saving(ModelCheckpoint):
        def _save_checkpoint(self, trainer: Any, filepath: str) -> None:
            super()._save_checkpoint(trainer, filepath)
            at[filepath] = outputs(trainer.lightning_module)

    torch.manual_seed(0)
    model, callback = net(), PruningCallback(THIN, compact_every_event=shrinks)
    saving = Saving(tmp_path, monitor="val_loss", save_top_k=1, save_last=True)
    run = trainer(tmp_path, callback, saving)
    run.fit(model, loader(), loader(2))
    compact, done = form(model), outputs(model)
    assert callback.events[0].step == 5
    for what in ASKS:
        ask(run, what, model, "best")
        assert torch.equal(outputs(model), at[saving.best_model_path])
        assert masks.is_masked(model)
        assert (applied_plan(model) is not None) == shrinks
        ask(run, what, model, "last")
        assert torch.equal(outputs(model), at[saving.last_model_path])
    run.save_checkpoint(tmp_path / "again.ckpt", weights_only=False)
    other = net()
    later = trainer(tmp_path, PruningCallback(THIN, compact_every_event=shrinks))
    ask(later, "test", other, tmp_path / "again.ckpt")
    assert torch.equal(outputs(other), at[saving.last_model_path])
    ask(later, "test", other, saving.best_model_path)
    assert torch.equal(outputs(other), at[saving.best_model_path])
    assert callback.is_done
    assert (len(compact[0]), done.shape) == (len(form(net())[0]), (3, 4))
