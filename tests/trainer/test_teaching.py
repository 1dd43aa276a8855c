"""A distilled run that is stopped, and one on several ranks, trains as one that is neither."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distillation_cases import (
    SPARSE,
    TAUGHT,
    THIN,
    WEIGHT,
    ByHand,
    Manual,
    ManualByHand,
    T,
    seeded,
    weights,
)
from packages import SAFELY, DDPStrategy, ModelCheckpoint
from processes import on_ranks
from support import Net, Resumable, loader, trainer

from lightning_prune import Distillation, PruningCallback
from lightning_prune.checkpoints import state as checkpoints
from lightning_prune.errors import CheckpointError


class Explosive:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code of the file runs",))


class TestResuming:
    @staticmethod
    def run(folder: Path, model: Any, callback: PruningCallback, step: int | None = None, **options: Any) -> Any:
        saving = ModelCheckpoint(
            folder if step is None else folder / "again", filename="{step}", every_n_train_steps=1, save_top_k=-1
        )
        path = None if step is None else folder / f"step={step}.ckpt"
        fit = trainer(folder, callback, saving, **options)
        fit.fit(model, Resumable(), ckpt_path=path, weights_only=bool(path))
        return model

    @pytest.mark.parametrize("shrinks", [False, True])
    @pytest.mark.parametrize("step", [1, 5, 9, 10])
    def test_is_as_if_never_stopped(self, step: int, shrinks: bool, tmp_path: Path) -> None:
        def callback() -> PruningCallback:
            chosen = Distillation(temperature=T, weight=WEIGHT, features=0.5)
            return PruningCallback(THIN, distillation=chosen, compact_every_event=shrinks)

        whole = weights(self.run(tmp_path, seeded(Net), callback()))
        torch.manual_seed(5)
        again = weights(self.run(tmp_path, Net(), callback(), step))
        assert whole.keys() == again.keys()
        assert all(np.array_equal(again[name], value) for name, value in whole.items())
        assert len(list(tmp_path.glob("teacher-*.ckpt"))) == 1
        if step < 10:
            names = [{path.name for path in folder.glob("teacher-*")} for folder in (tmp_path, tmp_path / "again")]
            assert names[0] == names[1]

    def test_of_a_finished_run_goes_on_with_its_teacher(self, tmp_path: Path) -> None:
        def callback() -> PruningCallback:
            return PruningCallback(THIN, distillation=Distillation(features=0.5))

        saving = ModelCheckpoint(tmp_path, filename="last", save_last=True, save_on_train_epoch_end=True)
        first = callback()
        trainer(tmp_path, first, saving).fit(seeded(Net), Resumable())
        torch.manual_seed(5)
        again = callback()
        saving = ModelCheckpoint(tmp_path / "again", filename="last", save_last=True, save_on_train_epoch_end=True)
        fit = trainer(tmp_path, again, saving, max_epochs=4)
        fit.fit(Net(), Resumable(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
        assert first._course is not None
        assert again._course is not None
        assert first._course.distilling is not None
        assert again._course.distilling is not None
        assert first._course.distilling.state_dict() == again._course.distilling.state_dict()

    def test_checkpoint_holds_no_teacher(self, tmp_path: Path) -> None:
        taught, plain = tmp_path / "taught", tmp_path / "plain"
        self.run(taught, Net(), PruningCallback(SPARSE, distillation=TAUGHT))
        self.run(plain, Net(), PruningCallback(SPARSE))
        read = [torch.load(folder / "step=4.ckpt", weights_only=True) for folder in (taught, plain)]
        assert read[0]["state_dict"].keys() == read[1]["state_dict"].keys()
        said = read[0][checkpoints.KEY]["distillation"]
        assert set(said) == {"settings", "digest", "file", "pairs"}
        assert read[1][checkpoints.KEY]["distillation"] is None

    def test_teacher_is_a_checkpoint_of_the_dense_model(self, tmp_path: Path) -> None:
        dense = weights(seeded(Net))
        self.run(tmp_path, seeded(Net), PruningCallback(SPARSE, distillation=TAUGHT))
        (file,) = tmp_path.glob("teacher-*.ckpt")
        model = Net()
        model.load_state_dict(torch.load(file, weights_only=True)["state_dict"])
        assert all(np.array_equal(weights(model)[name], value) for name, value in dense.items())

    def test_without_the_file_is_refused_and_a_given_one_will_do(self, tmp_path: Path) -> None:
        whole = weights(self.run(tmp_path, seeded(Net), PruningCallback(SPARSE, distillation=TAUGHT)))
        (file,) = tmp_path.glob("teacher-*.ckpt")
        file.unlink()
        with pytest.raises(CheckpointError, match=f"{file.name} is not there: bring that file along, or give"):
            self.run(tmp_path, Net(), PruningCallback(SPARSE, distillation=TAUGHT), 4)
        given = Distillation(temperature=T, weight=WEIGHT, teacher=seeded(Net))
        again = weights(self.run(tmp_path, Net(), PruningCallback(SPARSE, distillation=given), 4))
        assert all(np.array_equal(again[name], value) for name, value in whole.items())

    def test_with_a_damaged_file_is_refused(self, tmp_path: Path) -> None:
        self.run(tmp_path, seeded(Net), PruningCallback(SPARSE, distillation=TAUGHT))
        (file,) = tmp_path.glob("teacher-*.ckpt")
        held = torch.load(file, weights_only=True)
        held["state_dict"]["head.bias"][0] += 1e-3
        torch.save(held, file)
        with pytest.raises(CheckpointError, match=r"another teacher than .*, or damaged"):
            self.run(tmp_path, Net(), PruningCallback(SPARSE, distillation=TAUGHT), 4)
        file.write_bytes(file.read_bytes()[:1000])
        with pytest.raises(CheckpointError, match=f"{file.name} cannot be read"):
            self.run(tmp_path, Net(), PruningCallback(SPARSE, distillation=TAUGHT), 4)

    @pytest.mark.parametrize("name", ["../teacher.ckpt", "/etc/passwd", "other.ckpt", 3])
    def test_a_file_of_another_name_is_not_read(self, tmp_path: Path, name: object) -> None:
        self.run(tmp_path, seeded(Net), PruningCallback(SPARSE, distillation=TAUGHT))
        held = torch.load(tmp_path / "step=4.ckpt", weights_only=True)
        held[checkpoints.KEY]["distillation"]["file"] = name
        torch.save(held, tmp_path / "step=4.ckpt")
        with pytest.raises(CheckpointError, match="as the file of its teacher, which none is called"):
            self.run(tmp_path, Net(), PruningCallback(SPARSE, distillation=TAUGHT), 4)

    @pytest.mark.skipif(not SAFELY, reason="Lightning before 2.6 reads all that is pickled")
    def test_no_code_of_the_file_runs(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.run(tmp_path, seeded(Net), PruningCallback(SPARSE, distillation=TAUGHT))
        (file,) = tmp_path.glob("teacher-*.ckpt")
        torch.save(torch.load(file, weights_only=True) | {"x": Explosive()}, file)
        with pytest.raises(CheckpointError, match=f"{file.name} holds a pickled .*print"):
            self.run(tmp_path, Net(), PruningCallback(SPARSE, distillation=TAUGHT), 4)
        assert "code of the file runs" not in capsys.readouterr().out

    def test_with_another_distillation_is_refused(self, tmp_path: Path) -> None:
        self.run(tmp_path, seeded(Net), PruningCallback(SPARSE, distillation=TAUGHT))
        other = Distillation(temperature=2.0, weight=WEIGHT)
        with pytest.raises(CheckpointError, match=r"temperature was 3\.0, is 2\.0\nresume with"):
            self.run(tmp_path, Net(), PruningCallback(SPARSE, distillation=other), 4)
        with pytest.raises(CheckpointError, match=r"weight was 0\.7, is None"):
            self.run(tmp_path, Net(), PruningCallback(SPARSE), 4)
        other = Distillation(temperature=T, weight=WEIGHT, teacher=Net())
        with pytest.raises(CheckpointError, match="another one than taught the run"):
            self.run(tmp_path, Net(), PruningCallback(SPARSE, distillation=other), 4)
        allowed = PruningCallback(SPARSE, distillation=other, resume_with_other_recipe=True)
        self.run(tmp_path, Net(), allowed, 4)

    def test_of_a_run_without_one_needs_a_teacher(self, tmp_path: Path) -> None:
        self.run(tmp_path, seeded(Net), PruningCallback(SPARSE))
        callback = PruningCallback(SPARSE, distillation=TAUGHT, resume_with_other_recipe=True)
        with pytest.raises(CheckpointError, match="its dense model is not known"):
            self.run(tmp_path, Net(), callback, 4)


def distilled_on_ranks(folder: str, name: str, manual: bool) -> dict[str, Any]:
    """Fit on other batches on each of two ranks, seeded differently before DDP makes the weights one."""
    torch.manual_seed(int(os.environ["RANK"]))
    kinds: Any = {"hooks": (Net, Manual), "by hand": (ByHand, ManualByHand), "features": (Net, Manual)}[name]
    features = 0.01 if name == "features" else 0.0
    chosen = None if name == "by hand" else Distillation(temperature=T, weight=WEIGHT, features=features)
    callback = PruningCallback(THIN, distillation=chosen, compact_every_event=not manual)
    strategy = DDPStrategy(process_group_backend="gloo", find_unused_parameters=manual)
    model = kinds[manual]()
    fit = trainer(Path(folder), callback, strategy=strategy, devices=2, precision="64-true", max_epochs=4)
    fit.fit(model, loader(10))
    return weights(model)


class TestRanks:
    @pytest.mark.parametrize("manual", [False, pytest.param(True, marks=pytest.mark.slow)])
    def test_under_ddp_it_is_what_it_would_be_by_hand(self, manual: bool, tmp_path: Path) -> None:
        ours = on_ranks(distilled_on_ranks, 2, str(tmp_path), "hooks", manual)
        theirs = on_ranks(distilled_on_ranks, 2, str(tmp_path), "by hand", manual)
        for name, value in ours[0].items():
            if "running" not in name and "tracked" not in name:  # DDP keeps those of each rank until the next forward
                assert np.array_equal(value, ours[1][name]), name
            assert np.allclose(value, theirs[0][name], rtol=1e-10, atol=1e-12), name

    @pytest.mark.slow
    def test_features_under_ddp(self, tmp_path: Path) -> None:
        ours = on_ranks(distilled_on_ranks, 2, str(tmp_path), "features", False)
        assert all(np.array_equal(ours[0][n], ours[1][n]) for n in ours[0] if n.endswith(("weight", "bias")))
