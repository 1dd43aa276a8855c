"""What came of pruning a model stays with the model."""

import copy
from pathlib import Path

import pytest
from packages import SAFELY, ModelCheckpoint
from support import MixedNet, Net, loader, trainer

from lightning_prune import Channel, OneShot, PruningCallback, PruningError, Recipe, history

RECIPE = Recipe(granularity=Channel(), schedule=OneShot(0.5, begin_step=3))


def test_a_copied_callback_leaves_its_record_with_the_model(tmp_path: Path) -> None:
    model, mine = Net(), PruningCallback(RECIPE)
    trainer(tmp_path, copy.deepcopy(mine)).fit(model, loader())
    assert mine.events == []
    record = history(model)
    assert [event.step for event in record.events] == [3]
    assert record.sparsity == pytest.approx(0.5)
    assert record.is_done
    assert record.checkpoint is None


def test_the_small_model_is_on_disk(tmp_path: Path) -> None:
    model = MixedNet()
    saving = ModelCheckpoint(tmp_path / "kept")
    trainer(tmp_path, PruningCallback(RECIPE), saving).fit(model, loader())
    path = history(model).checkpoint
    assert path is not None
    assert path == tmp_path / "kept" / "pruned.ckpt"
    loaded = MixedNet.load_from_checkpoint(path, **SAFELY)
    shapes = [parameter.shape for parameter in model.parameters()]
    assert [parameter.shape for parameter in loaded.parameters()] == shapes
    assert shapes != [parameter.shape for parameter in MixedNet().parameters()]


def test_a_model_that_no_fit_has_pruned() -> None:
    with pytest.raises(PruningError, match="no fit has pruned this Net"):
        history(Net())
