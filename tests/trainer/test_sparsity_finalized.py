"""The best model of a SparsityCheckpoint finalized beside the masked one, and files from before."""

from pathlib import Path
from typing import Any

import pytest
import torch
from packages import SAFELY, ModelCheckpoint
from sparsity_cases import QUALITY, RECIPE, STEPS, Brisk, Scored, Thinned, fit, keeping
from support import Resumable, loader, outputs, trainer

from lightning_prune import Channel, PruningCallback, Recipe, history, summarize
from lightning_prune.model import masks
from lightning_prune.trainer.sparsity_checkpoint import Point


@pytest.mark.parametrize("shrinks", [False, True])
@pytest.mark.parametrize("kind", [Thinned, Brisk])
def test_the_best_model_is_on_disk_without_its_masks(tmp_path: Path, shrinks: bool, kind: Any) -> None:
    saving, model = keeping(tmp_path / "kept", target=0.4), kind()
    recipe = Recipe(schedule=STEPS, granularity=Channel())
    run = trainer(tmp_path, PruningCallback(recipe, compact_every_event=shrinks), saving, max_epochs=6)
    run.fit(model, Resumable(), loader(1))
    path = Path(saving.best_pruned_path)
    assert path.name == f"{Path(saving.best_model_path).stem}-pruned.ckpt"
    assert history(model).best_checkpoint == path
    content = torch.load(path, weights_only=True)
    assert not content["lightning_prune"]["masks"]
    assert content["lightning_prune"]["run"]["is_done"]
    assert "optimizer_states" not in content
    small, best = kind.load_from_checkpoint(path, **SAFELY), kind.load_from_checkpoint(saving.best_model_path, **SAFELY)
    # an earlier one than the last, with more channels left
    assert summarize(model).parameters < summarize(small).parameters < summarize(Thinned()).parameters
    torch.testing.assert_close(outputs(small), outputs(best), rtol=0, atol=1e-6)
    assert masks.is_masked(best)


def test_the_best_model_of_single_weights_is_folded(tmp_path: Path) -> None:
    saving = keeping(tmp_path / "kept")
    fit(tmp_path, Scored(QUALITY), saving)
    best, folded = (torch.load(path, weights_only=True) for path in (saving.best_model_path, saving.best_pruned_path))
    assert all(torch.equal(folded["state_dict"][name], tensor) for name, tensor in best["state_dict"].items())
    assert not folded["lightning_prune"]["masks"]


def test_no_finalized_best_where_none_is_asked_for_or_known(tmp_path: Path) -> None:
    saving = keeping(tmp_path / "masked")
    trainer(tmp_path, PruningCallback(RECIPE, finalize=False), saving, max_epochs=6).fit(
        Scored(QUALITY), Resumable(), loader(1)
    )
    assert saving.best_model_path
    assert saving.best_pruned_path == ""
    bare = keeping(tmp_path / "bare", save_weights_only=True)
    fit(tmp_path, Scored(QUALITY), bare)
    assert bare.best_model_path
    assert bare.best_pruned_path == ""


def test_a_fit_does_not_end_with_an_error_where_the_best_cannot_be_finalized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def restore(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("Missing key(s) in state_dict")

    monkeypatch.setattr("lightning_prune.checkpoints.state.restore", restore)
    saving = keeping(tmp_path / "kept")
    with pytest.warns(UserWarning, match=r"could not be finalized: Missing key\(s\)"):
        fit(tmp_path, Scored(QUALITY), saving)
    assert saving.best_pruned_path == ""


def test_points_from_before_macs_were_of_one_sample_are_counted_anew(tmp_path: Path) -> None:
    recipe = Recipe(granularity=Channel(), schedule=STEPS, count="macs")

    def fitted(ckpt_path: Path | None = None) -> dict[str, Point]:
        torch.manual_seed(0)
        saving = keeping(tmp_path / "kept", against="macs")
        others = ModelCheckpoint(tmp_path / "all", "{epoch}", save_top_k=-1)
        run = trainer(tmp_path, PruningCallback(recipe), saving, others, max_epochs=6)
        run.fit(Brisk(), Resumable(), loader(1), ckpt_path=ckpt_path, weights_only=True)
        return saving.points

    whole, path = fitted(), tmp_path / "all" / "epoch=1.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    (key,) = (key for key in checkpoint["callbacks"] if key.startswith("SparsityCheckpoint"))
    state = checkpoint["callbacks"][key]
    del state["is_former"], checkpoint["lightning_prune"]["example"]["is_learnt"]
    state["points"] = {name: [quality, 2 * thrift, *rest] for name, (quality, thrift, *rest) in state["points"].items()}
    torch.save(checkpoint, path)
    assert sorted(fitted(path).values()) == sorted(whole.values())
