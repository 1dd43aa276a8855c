import pickle
from pathlib import Path

import pytest
import torch
from packages import Trainer
from support import AfterStep, Net, loader, trainer

from lightning_prune import Channel, Element, Linear, OneShot, PruningCallback, Recipe, summarize
from lightning_prune.checkpoints.files import read_checkpoint
from lightning_prune.checkpoints.state import KEY, describe
from lightning_prune.checkpoints.summary import summarize_checkpoint
from lightning_prune.errors import CheckpointError
from lightning_prune.model import masks
from lightning_prune.model.summary import Summary


def trained(recipe: Recipe, path: Path, save_at: int | None = None) -> tuple[Net, Summary]:
    """Train for ten steps; the checkpoint is written after some of them, or at the end."""
    model = Net()

    def save(trainer: Trainer, module: Net) -> None:
        if trainer.global_step == save_at:
            trainer.save_checkpoint(path)
            kept.append(summarize(module))

    kept: list[Summary] = []
    fit = trainer(path.parent, PruningCallback(recipe), AfterStep(save))
    fit.fit(model, loader())
    if save_at is None:
        fit.save_checkpoint(path)
    return model, kept[0] if kept else summarize(model)


class Explosive:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code of the file runs",))


def test_masks_count_as_zeros(tmp_path: Path):
    model = Net()
    names = [name for name, p in model.named_parameters() if p.dim() > 1]
    masks.attach(model, names)
    masks.write(model, [(name, torch.rand_like(mask.float()) > 0.7) for name, mask in masks.read(model).items()])
    torch.save({"state_dict": model.state_dict(), KEY: describe(model)}, tmp_path / "a.ckpt")
    found = {one.name: one for one in summarize_checkpoint(tmp_path / "a.ckpt").tensors}
    told = {name: mask.numel() - int(mask.sum()) for name, mask in masks.read(model).items()}
    assert {name: found[name].zeros for name in told} == told
    assert all(found[name].is_masked for name in told)
    assert found.keys() == {name for name, _ in [*Net().named_parameters(), *Net().named_buffers()]}


def test_a_run_that_is_under_way(tmp_path: Path):
    recipe = Recipe(granularity=Element(), schedule=Linear(final_sparsity=0.5, begin_step=0, end_step=8, frequency=1))
    summary = trained(recipe, tmp_path / "a.ckpt", save_at=4)[1]
    found = summarize_checkpoint(tmp_path / "a.ckpt")
    assert (found.facts["step"], found.facts["pruning"]) == ("4", "under way at step 4")
    assert "schedule: Linear(" in found.facts["recipe"]
    assert found.facts["removed"] == "no channels"
    parameters = [one for one in found.tensors if one.name in dict(Net().named_parameters())]
    assert sum(one.elements for one in parameters) == summary.parameters
    assert sum(one.zeros for one in parameters) == summary.zeros > 0


def test_removed_channels(tmp_path: Path):
    recipe = Recipe(granularity=Channel(), schedule=OneShot(0.5, begin_step=2))
    summary = trained(recipe, tmp_path / "a.ckpt")[1]
    found = summarize_checkpoint(tmp_path / "a.ckpt")
    assert found.facts["pruning"] == "finished"
    assert "→" in found.facts["removed"]
    assert found.facts["removed"] in str(found)
    left = {one.name: one.left for one in found.tensors}
    layers = {layer.name: layer.left for layer in summary.layers}
    conv = next(one for one in found.tensors if one.name == "conv2.weight")
    assert left["conv2.weight"] == conv.elements / (8 * 8 * 9) < 1
    assert layers["conv1"] == left["conv1.weight"]
    assert (
        sum(one.elements for one in found.tensors if one.name in dict(Net().named_parameters())) == summary.parameters
    )


def test_text(tmp_path: Path):
    torch.save({"weight": torch.tensor([[0.0, 1.0], [2.0, 0.0]]), "bias": torch.zeros(1000)}, tmp_path / "a.pt")
    lines = str(summarize_checkpoint(tmp_path / "a.pt")).splitlines()
    assert lines[0] == str(tmp_path / "a.pt")
    assert lines[1].split() == ["pruning", "none", "recorded", "in", "the", "file"]
    assert [line.split() for line in lines[-5:]] == [
        [lines[-5].split()[0]],
        ["weight", "2x2", "4", "50.0%"],
        ["bias", "1000", "1,000", "100.0%"],
        [lines[-2].split()[0]],
        ["in", "all", "1,004", "99.8%"],
    ]


class TestBadFiles:
    def test_pickled_objects_are_named_and_not_read(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        torch.save({"state_dict": {"a": torch.zeros(2)}, "x": Explosive()}, tmp_path / "a.ckpt")
        with pytest.raises(CheckpointError, match=r"a.ckpt holds a pickled .*print.*it was not read.*--trust"):
            summarize_checkpoint(tmp_path / "a.ckpt")
        assert capsys.readouterr().out == ""
        assert summarize_checkpoint(tmp_path / "a.ckpt", is_trusted=True).elements == 2

    @pytest.mark.parametrize("data", [b"", b"x", b"PK\x03\x04" + bytes(99), pickle.dumps([1]), pickle.dumps({"a": 1})])
    def test_something_else(self, tmp_path: Path, data: bytes):
        (tmp_path / "a.ckpt").write_bytes(data)
        with pytest.raises(CheckpointError, match=r"a.ckpt "):
            summarize_checkpoint(tmp_path / "a.ckpt")

    def test_cut_off(self, tmp_path: Path):
        torch.save({"a": torch.zeros(1000)}, tmp_path / "a.ckpt")
        data = (tmp_path / "a.ckpt").read_bytes()
        for end in range(1, len(data), len(data) // 7):
            (tmp_path / "a.ckpt").write_bytes(data[:end])
            with pytest.raises(CheckpointError, match=r"a.ckpt "):
                read_checkpoint(tmp_path / "a.ckpt")

    def test_mask_of_another_shape(self, tmp_path: Path):
        torch.save({"w_orig": torch.zeros(3), "w_mask": torch.ones(2, dtype=torch.bool)}, tmp_path / "a.ckpt")
        with pytest.raises(CheckpointError, match=r"the mask of w has shape \(2,\), its weight \(3,\)"):
            summarize_checkpoint(tmp_path / "a.ckpt")

    def test_a_folder_and_nothing(self, tmp_path: Path):
        with pytest.raises(CheckpointError, match="is a folder: name the checkpoint file in it"):
            summarize_checkpoint(tmp_path)
        (tmp_path / ".metadata").touch()
        with pytest.raises(CheckpointError, match="is the folder of a sharded checkpoint: consolidate it"):
            summarize_checkpoint(tmp_path)
        with pytest.raises(FileNotFoundError, match="no checkpoint at"):
            summarize_checkpoint(tmp_path / "a.ckpt")
