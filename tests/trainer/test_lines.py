"""What a fit prints: a line for each event and a table at the end, past any progress bar, on the first process."""

import io
import logging
import re
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import packages
import pytest
import torch
from packages import L, TQDMProgressBar
from support import AfterStep, LinearNet, Net, Resumable, loader, trainer, zeros
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_prune import Channel, Element, Guard, Linear, OneShot, PruningCallback, Recipe, Targets, history
from lightning_prune.trainer.internals import say

STEPS = Linear(final_sparsity=0.5, begin_step=2, end_step=6, frequency=2)
CHANNELS = Recipe(schedule=STEPS, granularity=Channel())


def told(printed: str) -> list[str]:
    """The lines, also those between the states of a bar."""
    return [line.strip() for line in re.split(r"[\r\n]", printed) if line.strip()]


def row(lines: list[str], name: str) -> list[str]:
    return next(line.split()[1:] for line in lines if line.startswith(f"{name} "))


class Rising(Net):
    """Logs a metric that tells how often it was validated."""

    validations = 0

    def on_validation_start(self) -> None:
        self.validations += 1

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", cross_entropy(self(batch[0]), batch[1]))
        self.log("val_count", float(self.validations))


def test_events_and_the_end_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, callback = Net(), PruningCallback(CHANNELS)
    dense = sum(p.numel() for p in model.parameters())
    trainer(tmp_path, callback).fit(model, loader())
    lines, events = told(capsys.readouterr().out), callback.events
    assert [line.partition(":")[0] for line in lines[: len(events)]] == [f"step {event.step}" for event in events]
    for line, event in zip(lines, events, strict=False):
        assert f"sparsity {event.sparsity:.4f} (asked {event.asked:.4f})" in line
        assert f"{event.params:,} parameters ({event.params / dense:.0%}), {event.macs:,} MACs" in line
        assert "; most from conv" in line
    left = sum(p.numel() for p in model.parameters())
    assert lines[len(events)] == "after 10 steps: sparsity 0.5000 of the channels (asked 0.5000)"
    assert row(lines, "parameters") == [f"{dense:,}", f"{left:,}", f"{left / dense:.0%}"]
    assert row(lines, "MACs")[1] == f"{events[-1].macs:,}"
    held = [*model.parameters(), *model.buffers()]
    assert row(lines, "bytes")[1] == f"{sum(t.numel() * t.element_size() for t in held):,}"
    assert lines[-1] == "the pruned model is in memory alone: no checkpoint of it was written"


@pytest.mark.parametrize("package", [packages.NAME, packages.OTHER])
@pytest.mark.parametrize("bar", ["TQDMProgressBar", "RichProgressBar"])
@pytest.mark.parametrize("begin", [0, 2])
def test_no_line_is_lost_or_torn_by_a_bar(
    bar: str, package: str, begin: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(package)
    lightning: Any = import_module(package)
    if bar == "RichProgressBar":
        pytest.importorskip("rich")

    class Plain(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = LinearNet().first

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return self.net(batch[0].flatten(1)[:, :12]).square().mean()

        def configure_optimizers(self) -> Any:
            return LinearNet().make_optimizer(self.parameters())

    callback = PruningCallback(Recipe(schedule=OneShot(0.5, begin_step=begin)))
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    callbacks = [callback, getattr(lightning.callbacks, bar)()]
    lightning.Trainer(max_epochs=2, default_root_dir=tmp_path, callbacks=callbacks, **quiet).fit(Plain(), loader())
    lines = told(capsys.readouterr().out)
    assert sum(line.startswith(f"step {begin}: sparsity 0.5000") for line in lines) == 1
    assert "after 10 steps: sparsity 0.5000 of the weights (asked 0.5000)" in lines
    assert row(lines, "parameters") == ["208", "112", "54%"]
    assert "96 zeros stay in their places" in lines


def test_a_bar_of_your_own_prints_its_way(tmp_path: Path) -> None:
    printed: list[str] = []

    class Own(TQDMProgressBar):
        def print(self, *args: Any, **kwargs: Any) -> None:
            printed.extend(args)

    trainer(tmp_path, PruningCallback(CHANNELS), Own(), enable_progress_bar=True).fit(Net(), loader())
    assert [line.partition(":")[0] for line in printed] == ["step 4", "step 6"]


def test_the_switch_leaves_the_lines_to_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "lightning_prune"):
        trainer(tmp_path, PruningCallback(CHANNELS, verbose=False)).fit(Net(), loader())
    assert capsys.readouterr().out == ""
    assert "step 6: sparsity 0.5000" in caplog.text
    assert "after 10 steps: sparsity 0.5000 of the channels" in caplog.text
    with pytest.raises(TypeError, match=r"PruningCallback\.verbose must be True or False, got 'no'"):
        PruningCallback(CHANNELS, verbose="no")  # type: ignore[arg-type]


def test_other_processes_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for is_first in (True, False):
        say(SimpleNamespace(is_global_zero=is_first, progress_bar_callback=None), f"first: {is_first}")  # type: ignore[arg-type]
    assert capsys.readouterr().out == "first: True\n"


class Failing(Net):
    """Its metric falls at the first event."""

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_acc", torch.tensor(0.1 if zeros(self) else 0.9))


def on_screen(written: str) -> list[str]:
    """The lines as a terminal shows them: a carriage return goes back to the start of the line, ESC [A a line up."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[A|\r|\n|[^\r\n\x1b]+", written):
        if part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        elif part == "\x1b[A":
            row -= 1
        else:
            line = lines[row].ljust(column)
            lines[row] = line[:column] + part + line[column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines]


def test_a_warning_of_a_rollback_has_a_line_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    handler, log = logging.StreamHandler(terminal), logging.getLogger("lightning_prune")
    log.addHandler(handler)
    try:
        guard = Guard(monitor="val_acc", mode="max", max_drop=0.1, patience=1, on_fail="stop")
        callback = PruningCallback(Recipe(schedule=OneShot(0.5, begin_step=4)), guard=guard)
        bar = TQDMProgressBar()
        trainer(tmp_path, callback, bar, enable_progress_bar=True).fit(Failing(), loader(), loader(1))
    finally:
        log.removeHandler(handler)
    lines = on_screen(terminal.getvalue())
    assert [line for line in lines if "roll back the event of step 4" in line] == [
        line for line in lines if line.startswith("step 5: roll back the event of step 4: val_acc fell to 0.1")
    ]
    assert sum("roll back" in line for line in lines) == 1


def test_the_end_compares_the_metric_and_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, callback = Rising(), PruningCallback(Recipe(schedule=OneShot(0.5, begin_step=7), granularity=Channel()))
    trainer(tmp_path, callback, enable_checkpointing=True, num_sanity_val_steps=0).fit(model, loader(), loader(1))
    lines = told(capsys.readouterr().out)
    assert row(lines, "val_count") == ["1", "2"]
    assert lines[-1] == f"the pruned model is in {history(model).checkpoint}"


def test_what_the_guard_watches_is_the_metric(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = PruningCallback(CHANNELS, guard=Guard("val_count", "max", 100.0, patience=1))
    trainer(tmp_path, callback, num_sanity_val_steps=0).fit(Rising(), loader(), loader(1))
    lines = told(capsys.readouterr().out)
    assert row(lines, "val_count")[0] == "1"  # the dense model's, for which the guard has asked
    assert any(line.startswith("step 5: keep the event of step 4: val_count") for line in lines)
    assert not any("rolled back" in line for line in lines)
    assert not any(line.startswith("val_loss") for line in lines)


def test_what_the_guard_rolled_back_stands_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = PruningCallback(CHANNELS, guard=Guard("val_count", "min", 0.0, patience=1, on_fail="stop"))
    trainer(tmp_path, callback, num_sanity_val_steps=0).fit(Rising(), loader(), loader(1))
    lines = told(capsys.readouterr().out)
    assert "the guard rolled back 1 of 1 events: val_count rose to 2, 1 above the baseline 1, allowed 0" in lines
    assert row(lines, "parameters")[2] == "100%"


def test_masks_that_stay_are_told_with_the_call_that_folds_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(tmp_path, PruningCallback(CHANNELS, finalize=False)).fit(Net(), loader())
    assert "the masks stay on: lightning_prune.finalize(model)" in told(capsys.readouterr().out)[-1]


def test_several_recipes_end_in_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    thin = Recipe(schedule=STEPS, granularity=Channel(), targets=Targets(include=("conv2",)))
    sparse = Recipe(schedule=STEPS, granularity=Element(), targets=Targets(include=("head",)))
    trainer(tmp_path, PruningCallback([thin, sparse])).fit(Net(), loader())
    lines = told(capsys.readouterr().out)
    assert (
        sum("sparsity 0.5000 of the channels (asked 0.5000); sparsity 0.5000 of the weights" in x for x in lines) == 1
    )
    assert "16 zeros stay in their places" in lines
    assert "1 channel group stays: no target (conv1)" in lines


@pytest.mark.parametrize("shrinks", [False, True])
def test_a_resumed_run_compares_with_the_dense_network(
    shrinks: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stop(Exception):
        pass

    def stop(run: L.Trainer, _: Any) -> None:
        if run.global_step == 5:
            run.save_checkpoint(tmp_path / "half.ckpt")
            raise Stop

    def callback() -> PruningCallback:
        return PruningCallback(CHANNELS, compact_every_event=shrinks)

    dense = sum(p.numel() for p in Net().parameters())
    with pytest.raises(Stop):
        trainer(tmp_path, callback(), AfterStep(stop)).fit(Net(), Resumable())
    capsys.readouterr()

    def resumed() -> list[str]:
        trainer(tmp_path, callback()).fit(Net(), Resumable(), ckpt_path=tmp_path / "half.ckpt")
        return told(capsys.readouterr().out)

    lines = resumed()
    assert lines[0].startswith("step 6: ")
    assert re.search(r"most from conv2 \((?!0%)\d+% -> ", lines[0])
    assert row(lines, "parameters")[0] == f"{dense:,}"
    checkpoint = torch.load(tmp_path / "half.ckpt", weights_only=True)
    del checkpoint["lightning_prune"]["run"]["events"]
    torch.save(checkpoint, tmp_path / "half.ckpt")
    lines = resumed()
    assert lines[0].startswith("step 6: ")
    assert "most from" not in lines[0]  # of earlier events nothing is known
    assert row(lines, "parameters")[0] == f"{dense:,}"
