"""Weights that load: into which shape and masks, in the middle of a fit too; files that are damaged or not there."""

import resource
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from packages import Callback, L, ModelCheckpoint, TorchCheckpointIO
from processes import alone
from support import AfterStep, LinearNet, MixedNet, Net, Resumable, loader, outputs, trainer, zeros
from torch.utils.data import DataLoader

from lightning_prune import Channel, Guard, LeastSquares, Linear, OneShot, PruningCallback, Recipe, Taylor, history
from lightning_prune.checkpoints import state as checkpoints
from lightning_prune.errors import CheckpointError
from lightning_prune.guard import Verdict

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),  # a Trainer without a ModelCheckpoint
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),  # torchdata 0.11 calls it
]
HALF = Recipe(schedule=OneShot(0.5, 5))
RISE = Linear(final_sparsity=0.5, begin_step=2, end_step=8, frequency=2)
ALL = 256
"""The weights of LinearNet that can be pruned."""


def fit(folder: Path, model: Any, recipe: Recipe, look: Callable[[Any, Any], object], **options: Any) -> Any:
    callback = PruningCallback(recipe, **options)
    trainer(folder, callback, AfterStep(look)).fit(model, loader())
    return callback


@pytest.mark.parametrize("criterion", [None, Taylor()])
@pytest.mark.parametrize("step", [3, 5, 6, 9])
def test_a_dense_state_loaded_by_hand_is_pruned_again(criterion: Any, step: int, tmp_path: Path) -> None:
    dense = {name: value.clone() for name, value in LinearNet().state_dict().items()}
    recipe = (
        Recipe(schedule=OneShot(0.5, 5)) if criterion is None else Recipe(schedule=HALF.schedule, criterion=criterion)
    )
    seen = []

    def look(run: Any, model: Any) -> None:
        seen.append(zeros(model))
        if run.global_step == step:
            model.load_state_dict(dense)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*weights that are pruned by now" if step >= 5 else "nothing")
        callback = fit(tmp_path, LinearNet(), recipe, look, finalize=False)
    assert [event.step for event in callback.events] == [5]
    assert seen == [0] * 4 + [ALL // 2] * 6
    assert callback.sparsity == 0.5


def test_the_next_event_of_a_rising_schedule_takes_its_value_of_that_moment(tmp_path: Path) -> None:
    states, seen = {}, {}

    def look(run: Any, model: Any) -> None:
        seen[run.global_step] = zeros(model) / ALL
        states[run.global_step] = {name: value.clone() for name, value in model.state_dict().items()}
        if run.global_step == 7:
            model.load_state_dict(states[5])  # of before the last event
            assert zeros(model) / ALL == seen[7]
            model.load_state_dict(states[4])

    with pytest.warns(UserWarning, match="weights that are pruned by now") as told:
        fit(tmp_path, LinearNet(), Recipe(schedule=RISE), look)
    assert sum("pruned by now" in str(one.message) for one in told) == 1
    assert seen[5] < seen[7] < seen[8] == seen[10] == 0.5


def test_the_same_masks_or_a_part_of_the_state_change_nothing(tmp_path: Path) -> None:
    seen = []

    def look(run: Any, model: Any) -> None:
        state = model.state_dict()
        model.load_state_dict(dict(state))
        model.load_state_dict({"second.bias": state["second.bias"]}, strict=False)
        seen.append(zeros(model))

    callback = fit(tmp_path, LinearNet(), HALF, look)
    assert [event.step for event in callback.events] == [5]
    assert seen == [0] * 4 + [ALL // 2] * 6


def test_another_shape_in_the_middle_of_a_fit_is_refused(tmp_path: Path) -> None:
    wider, told = Net(width=9).state_dict(), []

    def look(run: Any, model: Any) -> None:
        if run.global_step == 7:
            before = outputs(model)
            with pytest.raises(CheckpointError, match=r"conv1.weight has shape \(9, 1, 3, 3\) .* before the fit"):
                model.load_state_dict(wider)
            model.load_state_dict(model.state_dict())
            told.append(torch.equal(outputs(model), before))

    recipe = Recipe(schedule=RISE, granularity=Channel())
    callback = fit(tmp_path, Net(), recipe, look, compact_every_event=True)
    assert told == [True]
    assert [event.step for event in callback.events] == [4, 6, 8]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of a masked model, good.ckpt, and damaged ones."""
    folder = tmp_path_factory.mktemp("written")
    saving = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=7)
    trainer(folder, PruningCallback(HALF), saving).fit(Net(), Resumable())
    path = (folder / "step=7.ckpt").rename(folder / "good.ckpt")
    good = bytearray(path.read_bytes())
    (folder / "cut.ckpt").write_bytes(good[: len(good) // 2])
    (folder / "end.ckpt").write_bytes(good[:-1])
    (folder / "empty.ckpt").write_bytes(b"")
    (folder / "garbage.ckpt").write_bytes(bytes(range(256)) * 9)
    record = max(zipfile.ZipFile(path).infolist(), key=lambda record: record.file_size)
    place = good.index(zipfile.ZipFile(path).read(record)) + 10
    good[place] ^= 255
    (folder / "flipped.ckpt").write_bytes(good)
    torch.save(Net().state_dict(), folder / "weights.ckpt")
    return folder


@pytest.mark.parametrize("what", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("name", ["cut", "end", "empty", "garbage", "flipped", "weights"])
def test_an_error_names_the_file_and_nothing_has_changed(written: Path, name: str, what: str, tmp_path: Path) -> None:
    model = Net()
    before = outputs(model)
    run = trainer(tmp_path, PruningCallback(HALF))
    with pytest.raises(CheckpointError, match=rf"{name}\.ckpt (cannot be read|holds no checkpoint)"):
        getattr(run, what)(model, loader(), ckpt_path=written / f"{name}.ckpt")
    assert torch.equal(outputs(model), before)
    assert type(run.strategy.checkpoint_io) is TorchCheckpointIO
    run.fit(model, Resumable(), ckpt_path=written / "good.ckpt")
    assert int((model.conv2.weight == 0).sum()) > 0


def test_a_missing_file_is_told_by_lightning(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        trainer(tmp_path, PruningCallback(HALF)).fit(Net(), loader(), ckpt_path=tmp_path / "nowhere.ckpt")


def changed(path: Path, change: Any) -> Path:
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    other = path.with_name(f"{change.__name__}.ckpt")
    torch.save(checkpoint, other)
    return other


@pytest.mark.parametrize("what", ["fit", "test"])
@pytest.mark.parametrize("net", [Net, MixedNet])
def test_checkpoints_that_do_not_fit_are_refused_before_anything_changes(net: Any, what: str, written: Path) -> None:
    def cut(checkpoint: dict[str, Any]) -> None:
        found = checkpoint[checkpoints.KEY]["masks"]
        found["conv2.weight"] = found["conv2.weight"][1:]

    def age(checkpoint: dict[str, Any]) -> None:
        checkpoint[checkpoints.KEY]["version"] = 99

    path = written / "good.ckpt"
    for width, file, text in (
        (
            6,
            path,
            r"conv1.weight was built with shape \(8, 1, 3, 3\) in the checkpoint's model and with \(6, 1, 3, 3\)",
        ),
        (8, changed(path, cut), r"mask of conv2.weight has shape \(7, 8, 3, 3\) and its weight \(8, 8, 3, 3\)"),
        (8, changed(path, age), "lightning_prune version 99, this package reads up to 2"),
    ):
        model = net(width=width)
        before = outputs(model)
        with pytest.raises(CheckpointError, match=text):
            getattr(trainer(written, PruningCallback(HALF)), what)(model, loader(), ckpt_path=file)
        assert torch.equal(outputs(model), before)
        assert model.conv1.out_channels == width
        assert zeros(model) == 0


class Full(Callback):
    """From one step on this process cannot write files of more than a kilobyte, as on a full disk."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: object, batch_idx: int) -> None:
        if trainer.global_step == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


def run_out_of_disk(folder: str) -> None:
    torch.manual_seed(0)
    saving = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=1)
    callback, model = PruningCallback(HALF), LinearNet()
    run = trainer(Path(folder), Full(), callback, saving)
    with pytest.warns(UserWarning, match=r"step=7\.ckpt could not be written: .*File too large.* Training goes on"):
        run.fit(model, Resumable())
    assert run.global_step == 10
    assert callback.is_done
    assert history(model).checkpoint is None


def test_a_full_disk_leaves_the_last_checkpoint_as_it_was(tmp_path: Path) -> None:
    assert alone(run_out_of_disk, str(tmp_path)) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["step=6.ckpt"]
    assert torch.load(tmp_path / "step=6.ckpt", weights_only=True)["global_step"] == 6
    torch.manual_seed(0)
    whole, again = LinearNet(), LinearNet()
    trainer(tmp_path, PruningCallback(HALF)).fit(whole, Resumable())
    trainer(tmp_path, PruningCallback(HALF)).fit(again, Resumable(), ckpt_path=tmp_path / "step=6.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def stateful(**options: Any) -> Any:
    from torchdata.stateful_dataloader import StatefulDataLoader

    given = loader()
    assert isinstance(given, DataLoader)
    return StatefulDataLoader(given.dataset, 4, **options)


@pytest.mark.parametrize("step", [4, 5, 10])
def test_a_stateful_loader_resumes_at_the_end_of_an_epoch_too(step: int, tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole, seen = LinearNet(), []
    trainer(tmp_path, PruningCallback(HALF), saving, max_epochs=3).fit(whole, stateful())
    again = LinearNet()
    look = AfterStep(lambda run, _: seen.append(run.global_step))
    run = trainer(tmp_path, PruningCallback(HALF), look, max_epochs=3)
    run.fit(again, stateful(), ckpt_path=tmp_path / f"step={step}.ckpt")
    assert seen == list(range(step + 1, 16))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("step", [6, 7, 9, 10])
def test_a_run_resumed_at_the_end_of_an_epoch_can_be_resumed_again(step: int, tmp_path: Path) -> None:
    def run(model: LinearNet, folder: str, ckpt_path: Path | None = None) -> int:
        saving = ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        fit = trainer(tmp_path, PruningCallback(HALF), saving, max_epochs=3)
        fit.fit(model, Resumable(), ckpt_path=ckpt_path)
        return fit.global_step

    whole, once, twice = LinearNet(), LinearNet(), LinearNet()
    run(whole, "first")
    run(once, "second", tmp_path / "first" / "step=5.ckpt")
    assert run(twice, "third", tmp_path / "second" / f"step={step}.ckpt") == 15
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), twice.parameters(), strict=True))


@pytest.mark.parametrize("shrinks", [False, True])
def test_the_events_before_a_resume_come_back(tmp_path: Path, shrinks: bool) -> None:
    def fitted(folder: str, ckpt_path: Path | None = None) -> tuple[Any, PruningCallback]:
        torch.manual_seed(0)
        model = Net()
        recipe = Recipe(
            granularity=Channel(), schedule=Linear(0.75, 0, 9, 3), criterion=Taylor(), repair=LeastSquares(samples=64)
        )
        callback = PruningCallback(recipe, compact_every_event=shrinks)
        saving = ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=7, save_top_k=-1)
        run = trainer(tmp_path, callback, saving, max_epochs=3)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*(the event is not repaired|left with a single)")
            run.fit(model, Resumable(), ckpt_path=ckpt_path, weights_only=True)
        return model, callback

    whole, callback = fitted("whole")
    assert len(callback.events) > 2
    resumed, other = fitted("resumed", tmp_path / "whole" / "step=7.ckpt")
    assert other.events == callback.events == history(resumed).events == history(whole).events


def test_an_event_that_was_rolled_back_stays_out_of_a_resumed_record(tmp_path: Path) -> None:
    class Falling(Net):
        def validation_step(self, batch: list[Any], batch_idx: int) -> None:
            self.log("score", 1.0 if self.current_epoch < 2 else 0.1)

    def fitted(folder: str, ckpt_path: Path | None = None) -> PruningCallback:
        torch.manual_seed(0)
        recipe = Recipe(schedule=Linear(0.6, 0, 15, 5))
        callback = PruningCallback(recipe, guard=Guard(monitor="score", mode="max", max_drop=0.2))
        saving = ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        run = trainer(tmp_path, callback, saving, max_epochs=4)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="pruning stopped short|.*rolled back")
            run.fit(Falling(), Resumable(), loader(1), ckpt_path=ckpt_path, weights_only=True)
        return callback

    whole = fitted("whole")
    lost = [trial.step for trial in whole.trials if trial.outcome is Verdict.ROLL_BACK]
    assert lost
    assert whole.events
    for step in (lost[0] - 1, lost[0], lost[0] + 1):
        resumed = fitted(f"from {step}", tmp_path / "whole" / f"step={step}.ckpt")
        assert resumed.events == whole.events
        assert not {event.step for event in resumed.events} & set(lost)


def test_the_checkpoint_at_the_end_is_written_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saving = ModelCheckpoint(tmp_path, every_n_epochs=1)
    with caplog.at_level("INFO"):
        trainer(tmp_path, PruningCallback(HALF), saving).fit(LinearNet(), loader())
    assert (tmp_path / "pruned.ckpt").is_file()
    assert "weights_only" not in caplog.text
