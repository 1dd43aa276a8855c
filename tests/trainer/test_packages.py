"""Lightning under both names: what is loaded counts, and nothing else is imported."""

import copy
import pickle
import subprocess
import sys
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from packages import NAME, OTHER, Callback, EarlyStopping, L, ModelCheckpoint
from support import LinearNet, Net, Resumable, loader, trainer, zeros

from lightning_prune import (
    Channel,
    OneShot,
    PruningCallback,
    PruningMixin,
    QuantizationAware,
    Recipe,
    Recorder,
    SparsityCheckpoint,
)
from lightning_prune.errors import PruningError
from lightning_prune.trainer.packages import is_lightning_module, kinds, overrides, trainer_class_for

RECIPE = Recipe(schedule=OneShot(0.5, begin_step=3))


def test_all_callbacks_are_callbacks_of_the_package() -> None:
    saving = SparsityCheckpoint(monitor="val_loss", mode="min")
    for callback in (PruningCallback(RECIPE), QuantizationAware(), Recorder(), saving):
        assert isinstance(callback, Callback)
        assert isinstance(copy.deepcopy(callback), Callback)
        assert isinstance(pickle.loads(pickle.dumps(callback)), Callback)
    assert isinstance(saving, ModelCheckpoint)


def test_a_bare_callback_is_taken(tmp_path: Path) -> None:
    model = Net()
    run = L.Trainer(
        callbacks=PruningCallback(RECIPE),  # and no list of them
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    run.fit(model, loader())
    assert sum(int((p == 0).sum()) for p in model.parameters() if p.dim() > 1) > 0


def test_the_checkpoint_of_the_trainer_is_ours(tmp_path: Path) -> None:
    saving = SparsityCheckpoint(str(tmp_path), monitor="val_loss", mode="min")
    run = trainer(tmp_path, PruningCallback(RECIPE), saving)
    run.fit(Net(), Resumable(), loader(1))
    assert run.checkpoint_callback is saving
    assert run.checkpoint_callbacks == [saving]
    assert Path(saving.best_model_path).exists()


def test_warnings_name_the_callbacks_of_the_package(tmp_path: Path) -> None:
    stopping = EarlyStopping("val_loss", patience=9)
    plain = ModelCheckpoint(str(tmp_path), monitor="val_loss")
    with (
        pytest.warns(UserWarning, match="EarlyStopping"),
        pytest.warns(UserWarning, match="write SparsityCheckpoint"),
    ):
        trainer(tmp_path, PruningCallback(RECIPE), stopping, plain).fit(Net(), loader(), loader(1))


def test_the_mixin_stands_first() -> None:
    with pytest.raises(TypeError, match="PruningMixin must stand first"):

        class Behind(L.LightningModule, PruningMixin):  # pyright: ignore
            pass


def test_channels_are_removed_at_each_event(tmp_path: Path) -> None:
    callback, model = (
        PruningCallback(Recipe(schedule=RECIPE.schedule, granularity=Channel()), compact_every_event=True),
        Net(),
    )
    trainer(tmp_path, callback).fit(model, loader())
    assert model.conv1.out_channels < 8
    assert zeros(model) == 0


def test_modules_and_trainers_go_together() -> None:
    assert is_lightning_module(LinearNet())
    assert not is_lightning_module(LinearNet().first)
    assert issubclass(trainer_class_for(LinearNet()), L.Trainer)
    assert overrides(LinearNet(), "training_step")
    assert not overrides(LinearNet(), "configure_model")
    assert L.Trainer in kinds("Trainer")
    assert kinds("callbacks.NoSuchCallback") == ()


def test_a_module_of_the_other_package_is_told_from_the_trainer(tmp_path: Path) -> None:
    other: Any = import_module(OTHER)

    class Foreign(other.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = LinearNet().first

    assert is_lightning_module(Foreign())
    assert trainer_class_for(Foreign()) is other.Trainer  # type: ignore[arg-type]
    with pytest.raises((TypeError, ValueError), match=r"LightningModule|not supported|mixed"):
        trainer(tmp_path, PruningCallback(RECIPE)).fit(Foreign(), loader())  # type: ignore[arg-type]


def in_fresh_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pytorch_lightning_is_not_imported_unasked() -> None:
    assert "False" in in_fresh_process("""
        import sys
        from lightning_prune import OneShot, PruningCallback, Recipe, SparsityCheckpoint
        PruningCallback(Recipe(schedule=OneShot(0.5, begin_step=3)))
        print("pytorch_lightning" in sys.modules)
    """)


def test_callbacks_made_before_the_other_package_is_imported() -> None:
    text = in_fresh_process("""
        from lightning_prune import OneShot, PruningCallback, Recipe, SparsityCheckpoint
        early = PruningCallback(Recipe(schedule=OneShot(0.5, begin_step=3)))
        import pytorch_lightning as pl
        print(isinstance(early, pl.Callback))
        late = PruningCallback(Recipe(schedule=OneShot(0.5, begin_step=3)))
        print(isinstance(early, pl.Callback), isinstance(late, pl.Callback))
        class Own(PruningCallback, pl.Callback): pass
        print(isinstance(Own(late.recipes), pl.Callback))
    """)
    assert text.split() == ["False", "True", "True", "True"]


@pytest.mark.skipif(NAME != "lightning.pytorch", reason="the same in either run")
def test_a_checkpoint_made_before_the_import_is_refused_by_name(tmp_path: Path) -> None:
    saving = SparsityCheckpoint(str(tmp_path), monitor="val_loss", mode="min")
    run = trainer(tmp_path, PruningCallback(RECIPE))
    with pytest.raises(PruningError, match=r"was made before pytorch_lightning was imported.+make it after"):
        saving.setup(run, Net(), "fit")
