"""The best model at the target, the Pareto set, and the callbacks that would choose something else."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import SingleDeviceStrategy
from packages import Callback, EarlyStopping, L, ModelCheckpoint
from processes import file_limit
from sparsity_cases import QUALITY, RECIPE, STEPS, Scored, Thinned, fit, keeping, names
from support import Net, Resumable, loader, outputs, trainer

from lightning_prune import Channel, OneShot, PruningCallback, Recipe, Targets, summarize
from lightning_prune.errors import CheckpointError, PruningError
from lightning_prune.guard import Guard, Verdict
from lightning_prune.trainer._files import CheckpointFiles
from lightning_prune.trainer._preconditions import selection_warnings
from lightning_prune.trainer.callback import pruning_callback_of
from lightning_prune.trainer.sparsity_checkpoint import Point


@pytest.mark.parametrize("mode", ["max", "min"])
def test_best_at_the_target_and_the_pareto_set(tmp_path: Path, mode: Any) -> None:
    saving, folder = keeping(tmp_path / "kept", mode=mode), tmp_path / "kept"
    sign = 1 if mode == "max" else -1
    fit(tmp_path, Scored([sign * score for score in QUALITY]), saving)
    # dense never: each epoch ends with its event; the metric is measured at 0.15, 0.3, 0.45, 0.6, 0.6, 0.6
    expected = [(0.9, 0.15), (0.85, 0.45), (0.7, 0.6)]
    found = sorted((point.quality, point.thrift) for point in saving.points.values())
    assert found == [(pytest.approx(q), pytest.approx(s, abs=0.01)) for q, s in sorted(expected)]
    assert saving.pareto == saving.points
    assert names(folder) == sorted(
        f"sparsity={s:.4f}-val_score={sign * q:.4f}.ckpt"
        for q, s in ((0.9, 38 / 256), (0.85, 115 / 256), (0.7, 154 / 256))
    )
    assert Path(saving.best_model_path).name == f"sparsity={154 / 256:.4f}-val_score={sign * 0.7:.4f}.ckpt"
    assert float(saving.best_model_score) == pytest.approx(sign * 0.7)  # type: ignore[arg-type]
    state = torch.load(saving.best_model_path, weights_only=True)
    assert sum(int((~mask).sum()) for mask in state["lightning_prune"]["masks"].values()) == 154


def test_the_best_of_equals_is_the_smaller_and_a_dominated_best_stays(tmp_path: Path) -> None:
    saving = keeping(tmp_path / "kept", target=0.3)
    fit(tmp_path, Scored([0.9, 0.7, 0.7, 0.7, 0.7, 0.7]), saving)
    assert "sparsity=0.6016" in saving.best_model_path
    assert names(tmp_path / "kept") == [
        "sparsity=0.1484-val_score=0.9000.ckpt",
        "sparsity=0.6016-val_score=0.7000.ckpt",
    ]


@pytest.mark.parametrize("against", ["params", "macs", "bytes"])
def test_against_what_is_left(tmp_path: Path, against: Any) -> None:
    recipe = Recipe(schedule=STEPS, granularity=Channel())
    saving = keeping(tmp_path / "kept", against=against)
    model = Thinned()
    fit(tmp_path, model, saving, recipe=recipe)
    assert len(saving.points) >= 2
    size = summarize(model).parameters
    finals = {"params": size, "macs": summarize(model).macs, "bytes": 4 * size}
    best = saving.points[saving.best_model_path]
    # what counted while channels were masked is what is left once they are removed
    assert -best.thrift == finals[against]
    assert f"{against}={finals[against]}" in saving.best_model_path


def test_several_recipes_are_at_the_target_when_all_are(tmp_path: Path) -> None:
    early = Recipe(schedule=OneShot(0.5, 5), targets=Targets(("first",)))
    late = Recipe(schedule=OneShot(0.25, 15), targets=Targets(("second",)))
    for target, is_at in ((None, [3, 4]), (0.2, [3, 4]), (0.5, [3, 4])):
        saving = keeping(tmp_path / f"{target}", target=target)
        seen: list[int] = []

        class Look(Callback):
            def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
                if saving._is_at_target(pruning_callback_of(trainer)):  # noqa: B023
                    seen.append(trainer.current_epoch + 1)  # noqa: B023

        fit(tmp_path, Scored(QUALITY), saving, Look(), recipe=[early, late], max_epochs=4)
        assert seen == is_at


def test_rounding_of_the_number_of_weights_does_not_hide_the_target(tmp_path: Path) -> None:
    recipe = Recipe(schedule=OneShot(0.601, 5))  # 153.856 of 256 weights, reached with 154; and 153 for 0.599
    saving = keeping(tmp_path / "kept")
    fit(tmp_path, Scored(QUALITY), saving, recipe=recipe, max_epochs=2)
    assert saving.best_model_path
    saving = keeping(tmp_path / "less")
    fit(tmp_path, Scored(QUALITY), saving, recipe=Recipe(schedule=OneShot(0.599, 5)), max_epochs=2)
    assert 0.59 < saving.points[saving.best_model_path].thrift < 0.599


# Lightning 2.4 says so of every step before the first validation
@pytest.mark.filterwarnings("ignore:.+could not find the monitored key:UserWarning")
def test_a_metric_from_before_an_event_names_no_model_after_it(tmp_path: Path) -> None:
    saving = keeping(tmp_path / "kept", every_n_train_steps=1)
    recipe = Recipe(schedule=OneShot(0.5, 7))
    fit(tmp_path, Scored([0.9, 0.1, 0.1]), saving, recipe=recipe, max_epochs=3)
    # 0.9 was measured after epoch 0 on the dense model; steps 7 to 9 are of the pruned one
    assert sorted((p.quality, p.thrift) for p in saving.points.values()) == [
        (pytest.approx(0.1), 0.5),
        (pytest.approx(0.9), 0.0),
    ]


def test_a_metric_of_what_was_rolled_back_names_no_model(tmp_path: Path) -> None:
    saving = keeping(tmp_path / "kept")
    guard = Guard("val/score", "max", max_drop=0.1, patience=1, baseline=0.9)
    callback = PruningCallback(RECIPE, guard=guard)
    run = trainer(tmp_path, callback, saving, max_epochs=6)
    with pytest.warns(UserWarning, match="no checkpoint at the target|stopped short"):
        run.fit(Scored([0.1, 0.9, 0.9, 0.9, 0.9, 0.9]), Resumable(), loader(1))
    assert [trial.outcome for trial in callback.trials][:2] == [Verdict.ROLL_BACK, Verdict.COMMIT]
    assert {round(point.quality, 3) for point in saving.points.values()} == {0.9}


def test_metrics_that_are_not_finite_are_never_kept(tmp_path: Path) -> None:
    saving = keeping(tmp_path / "kept")
    with pytest.warns(UserWarning, match="no checkpoint at the target sparsity; the Pareto set holds none"):
        fit(tmp_path, Scored([float("nan"), float("inf")]), saving)
    assert names(tmp_path / "kept") == []


def test_stopped_short_says_so(tmp_path: Path) -> None:
    saving = keeping(tmp_path / "kept")
    with (
        pytest.warns(UserWarning, match=r"the Pareto set holds .+sparsity=0\.1484.+: pass one as ckpt_path"),
        pytest.warns(UserWarning, match="pruning stopped short"),
    ):
        run = fit(tmp_path, Scored(QUALITY), saving, max_epochs=2, recipe=Recipe(schedule=Late()))
    assert saving.best_model_path == ""
    assert run.current_epoch == 2


class Late:
    """A schedule that does not say when it ends."""

    final_sparsity = 0.6

    def __call__(self, step: int) -> float:
        return STEPS(step)

    def due(self, step: int) -> bool:
        return step % 5 == 0


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_resume_goes_on_with_the_same_files(tmp_path: Path) -> None:
    whole = keeping(tmp_path / "whole")
    fit(tmp_path, Scored(QUALITY), whole)
    first = keeping(tmp_path / "kept")
    every = ModelCheckpoint(str(tmp_path / "steps"), "{step}", every_n_train_steps=1, save_top_k=-1)
    fit(tmp_path, Scored(QUALITY), first, every)
    path = sorted((tmp_path / "kept").glob("*0.4492*"))[0]
    for name in names(tmp_path / "kept"):
        if "0.6016" in name:
            (tmp_path / "kept" / name).unlink()
    again = keeping(tmp_path / "kept")
    run = trainer(tmp_path, PruningCallback(RECIPE), again, max_epochs=6)
    run.fit(Scored(QUALITY), Resumable(), loader(1), ckpt_path=path, weights_only=True)
    assert names(tmp_path / "kept") == names(tmp_path / "whole")
    assert [p.name for p in map(Path, again.points)] == [p.name for p in map(Path, whole.points)]
    assert Path(again.best_model_path).name == Path(whole.best_model_path).name


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_best_is_what_the_trainer_tests(tmp_path: Path) -> None:
    saving = keeping(tmp_path / "kept", monitor="val_loss", mode="min")
    model = Net()
    run = fit(tmp_path, model, saving)
    run.test(model, loader(), ckpt_path="best", verbose=False, weights_only=True)
    state = torch.load(saving.best_model_path, weights_only=True)["lightning_prune"]
    fresh = Net()
    trainer(tmp_path, PruningCallback(RECIPE)).validate(
        fresh, loader(), ckpt_path=saving.best_model_path, verbose=False, weights_only=True
    )
    assert torch.equal(outputs(model), outputs(fresh))
    assert not all(bool(mask.all()) for mask in state["masks"].values())


def test_two_of_them_keep_their_states_apart() -> None:
    keys = {keeping(Path("x"), **o).state_key for o in ({}, {"against": "macs"}, {"target": 0.5}, {"mode": "min"})}
    assert len(keys) == 4


def test_full_disk_leaves_training_and_the_kept_files_alone(tmp_path: Path) -> None:
    class Filling(Callback):
        """The disk is full from the second epoch on."""

        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if trainer.current_epoch == 1:
                self.limit = file_limit(2048)
                self.limit.__enter__()

        def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.limit.__exit__(None, None, None)

    assert signal.getsignal(signal.SIGXFSZ) is signal.SIG_IGN
    saving = keeping(tmp_path / "kept")
    with (
        pytest.warns(UserWarning, match=r"could not be written: .+Training goes on"),
        pytest.warns(UserWarning, match="no checkpoint at the target sparsity"),
    ):
        run = fit(tmp_path, Scored(QUALITY), saving, Filling())
    assert run.current_epoch == 6
    assert (
        [Path(path).name for path in saving.points]
        == names(tmp_path / "kept")
        == ["sparsity=0.1484-val_score=0.9000.ckpt"]
    )


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"against": "flops"}, 'against must be "sparsity", "params", "macs" or "bytes", got \'flops\''),
            ({"target": 0.0}, "target must be a number above 0 and below 1, got 0.0"),
            ({"target": 90}, "target must be a number"),
            ({"save_top_k": 3}, "leave save_top_k out"),
        ],
    )
    def test_arguments(self, tmp_path: Path, options: dict[str, Any], match: str) -> None:
        with pytest.raises(ValueError, match=match):
            keeping(tmp_path, **options)

    def test_mode_is_judged_by_lightning(self, tmp_path: Path) -> None:
        with pytest.raises(MisconfigurationException, match="mode"):
            keeping(tmp_path, mode="best")

    def test_target_above_the_schedule(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"target 0.9 lies above the sparsity 0.6 at which the schedule ends"):
            fit(tmp_path, Scored(QUALITY), keeping(tmp_path, target=0.9))

    def test_no_pruning(self, tmp_path: Path) -> None:
        with pytest.raises(PruningError, match="needs a PruningCallback in the same Trainer"):
            trainer(tmp_path, keeping(tmp_path)).fit(Scored(QUALITY), loader(), loader(1))

    def test_macs_without_an_example(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"needs an example input: set Scored\.example_input_array"):
            fit(tmp_path, Scored(QUALITY), keeping(tmp_path, against="macs"))

    def test_unknown_monitor(self, tmp_path: Path) -> None:
        with pytest.raises(MisconfigurationException, match=r"could not find the monitored key.+val/score"):
            fit(tmp_path, Scored(QUALITY), keeping(tmp_path, monitor="val_scor"))


class TestWarnings:
    def at_start(self, tmp_path: Path, *callbacks: Callback, **options: Any) -> list[str]:
        found: list[list[str]] = []

        class Ask(Callback):
            def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
                callback = pruning_callback_of(trainer)
                run = None if callback is None else callback.run
                found.append([] if run is None else selection_warnings(trainer, run.last_step))

        run = trainer(tmp_path, *callbacks, Ask(), **({"max_epochs": 6} | options))
        run.fit(Scored(QUALITY), Resumable(), loader(1))
        return found[0]

    def test_plain_checkpoint_with_a_monitor(self, tmp_path: Path) -> None:
        plain = ModelCheckpoint(str(tmp_path / "a"), monitor="val/score", mode="max", filename="{epoch}")
        with pytest.warns(UserWarning, match="keeps the best of the whole run"):  # the callback says so itself
            (text,) = self.at_start(tmp_path, PruningCallback(RECIPE), plain)
        assert "write SparsityCheckpoint(monitor='val/score', mode='max') instead" in text
        assert "epoch=0" in plain.best_model_path  # the state from before the target that the warning is about

    def test_early_stopping(self, tmp_path: Path) -> None:
        def stopping() -> EarlyStopping:
            return EarlyStopping("val/score", mode="max", patience=1)

        with (
            pytest.warns(UserWarning, match="pruning stopped short"),
            pytest.warns(UserWarning, match="may end the fit before step 20"),
        ):
            (text,) = self.at_start(tmp_path, PruningCallback(RECIPE), stopping())
        assert "EarlyStopping(monitor='val/score') may end the fit before step 20" in text
        assert "write Trainer(min_steps=N) with N above 20" in text
        callback = PruningCallback(RECIPE)
        assert self.at_start(tmp_path, callback, stopping(), min_steps=25) == []
        assert callback.events[-1].asked == 0.6  # the line to write instead does reach the target

    def test_nothing_to_say(self, tmp_path: Path) -> None:
        last = ModelCheckpoint(str(tmp_path / "b"), every_n_train_steps=10)
        assert self.at_start(tmp_path, PruningCallback(RECIPE), last, keeping(tmp_path / "c")) == []
        assert self.at_start(tmp_path, EarlyStopping("val/score", patience=9)) == []


def test_point_covers() -> None:
    assert Point(1.0, 0.5, False).covers(Point(1.0, 0.5, True))
    assert not Point(1.0, 0.4, True).covers(Point(0.9, 0.5, True))


class TestAHostileCheckpoint:
    """Its state of this callback is plain: it is read without trust, and names files."""

    def resumed(self, folder: Path, **state: object) -> None:
        path = folder / "a.ckpt"
        first = keeping(folder / "kept")
        saving = ModelCheckpoint(str(folder), "a", every_n_train_steps=12, save_top_k=1)
        fit(folder, Scored(QUALITY), first, saving)
        content = torch.load(path, weights_only=True)
        content["callbacks"][first.state_key] |= state
        torch.save(content, path)
        run = trainer(folder, PruningCallback(RECIPE), keeping(folder / "kept"), max_epochs=6)
        run.fit(Scored(QUALITY), Resumable(), loader(1), ckpt_path=path, weights_only=True)

    @pytest.mark.filterwarnings("ignore::UserWarning")
    @pytest.mark.parametrize("key", ["points", "best_k_models"])
    def test_deletes_no_file_elsewhere(self, tmp_path: Path, key: str) -> None:
        thesis = str(tmp_path / "kept" / ".." / "thesis.tex")
        (tmp_path / "kept").mkdir()
        Path(thesis).touch()
        points = {thesis: [-1.0, 0.0, True]} if key == "points" else {thesis: torch.tensor(1.0)}
        with pytest.raises(CheckpointError, match=r"names '.*thesis.tex', which lies outside of its folder"):
            self.resumed(tmp_path, **{key: points})
        assert Path(thesis).exists()

    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_runs_no_code_of_a_file_that_it_names(self, tmp_path: Path) -> None:
        files = CheckpointFiles(SingleDeviceStrategy())
        own = tmp_path / "own.ckpt"
        files.save_checkpoint({"state_dict": {}, "made": Planted(str(tmp_path / "ran"))}, own)
        with pytest.raises(CheckpointError, match="holds a pickled"):
            CheckpointFiles(SingleDeviceStrategy()).load_own(own)
        assert not (tmp_path / "ran").exists()
        files.load_own(own)  # what a fit has written itself
        assert (tmp_path / "ran").exists()


class Planted:
    """Unpickled it makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")
