"""The recorder: it changes nothing, sees everything, and survives a resume."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from packages import ModelCheckpoint
from report_cases import Judged, fit, history, recipe, recorded
from support import AfterStep, Resumable, loader, outputs, trainer

from lightning_prune import (
    ERK,
    Channel,
    Element,
    Global,
    Guard,
    Magnitude,
    OneShot,
    PruningCallback,
    PruningError,
    Targets,
    summarize,
)
from lightning_prune.guard import Verdict
from lightning_prune.study.report import History, Recorder

RECIPES = {
    "channels": lambda: recipe(),
    "channels by cost": lambda: recipe(count="macs", allocation=Global(cost="macs"), criterion=Magnitude()),
    "elements": lambda: recipe(granularity=Element()),
    "elements, ERK": lambda: recipe(granularity=Element(), allocation=ERK(), criterion=Magnitude(), count="params"),
    "at once": lambda: recipe(schedule=OneShot(0.5, begin_step=0), criterion=Magnitude()),
}
each = pytest.mark.parametrize("kind", RECIPES)


class TestWatching:
    @each
    def test_the_run_is_the_same_with_and_without(self, kind: str, tmp_path: Path) -> None:
        found = []
        for others in ((), (Recorder(),)):
            callback = PruningCallback(RECIPES[kind]())
            first = fit(tmp_path, *others, callback)[0]
            later = fit(tmp_path, PruningCallback(RECIPES[kind]()), *others)[0]
            found += [outputs(first), outputs(later)]
            assert [pruner.recipe for pruner in callback.run.pruners] == [RECIPES[kind]()]  # type: ignore[union-attr]
        assert all(torch.equal(found[0], other) for other in found[1:])

    @each
    def test_both_places_in_the_list_see_the_same(self, kind: str, tmp_path: Path) -> None:
        first, last = Recorder(), Recorder()
        fit(tmp_path, first, PruningCallback(RECIPES[kind]()))
        fit(tmp_path, PruningCallback(RECIPES[kind]()), last)
        assert first.history == last.history

    @each
    def test_scores_count_every_unit(self, kind: str, tmp_path: Path) -> None:
        callback, recorder = PruningCallback(RECIPES[kind](), finalize=False), Recorder()
        fit(tmp_path, callback, recorder)
        pruner = callback.run.pruners[0]  # type: ignore[union-attr]
        latest = {one.name: one for one in recorder.history.scores}
        assert latest.keys() == pruner.units.sizes.keys()
        for name, one in latest.items():
            assert sum(one.kept) + sum(one.lost) + one.gone == pruner.units.sizes[name]
            assert sum(one.lost) == one.removed
            assert one.step in {event.step for event in recorder.history.events}
            assert one.removed > 0 or one.gone == 0
            assert list(one.edges) == sorted(one.edges)
            if one.cut is not None:
                lost = [low for low, count in zip(one.edges, one.lost, strict=False) if count]
                kept = [low for low, count in zip(one.edges, one.kept, strict=False) if count]
                assert all(low <= one.cut for low in lost)
                assert all(low >= one.cut for low in kept)  # no bin lies on both sides
        if kind.startswith("channels"):
            gone = sum(one.removed + one.gone for one in latest.values())
            assert gone / sum(pruner.units.sizes.values()) >= 0.25

    def test_sparsity_is_that_of_the_events(self, tmp_path: Path) -> None:
        found = recorded(tmp_path)
        assert found.sparsity == ((0, 0.0), *((event.step, event.sparsity) for event in found.events))

    def test_the_model_before_and_after(self, tmp_path: Path) -> None:
        recorder = Recorder()
        net, _ = fit(tmp_path, recorder, PruningCallback(recipe()))
        assert recorder.history.before == summarize(Judged())
        assert recorder.history.after == summarize(net)
        assert recorder.history.model == "Judged"

    def test_a_large_layer_is_sampled(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        whole = recorded(tmp_path, recipe(granularity=Element(), criterion=Magnitude()))
        monkeypatch.setattr("lightning_prune.study.report._ranked.SAMPLE", 64)
        sampled = recorded(tmp_path, recipe(granularity=Element(), criterion=Magnitude()))
        assert [one.removed for one in sampled.scores] == [one.removed for one in whole.scores]
        for one, other in zip(sampled.scores, whole.scores, strict=True):
            size = sum(other.kept) + sum(other.lost)
            assert abs(sum(one.kept) + sum(one.lost) - size) <= 0.15 * size + 10


class TestGuard:
    def test_rollbacks_are_seen(self, tmp_path: Path) -> None:
        class Falls(Judged):
            def validation_step(self, batch: Any, batch_idx: int) -> None:
                self.log("val_acc", torch.tensor(0.9 if self.trainer.global_step <= 5 else 0.1))

        recorder = Recorder()
        callback = PruningCallback(recipe(), guard=Guard("val_acc", "max", 0.1, patience=1, on_fail="stop"))
        fit(tmp_path, callback, recorder, model=Falls(), max_epochs=4)
        found = recorder.history
        assert [trial.outcome for trial in found.trials] == [Verdict.COMMIT, Verdict.ROLL_BACK]
        assert found.trials == tuple(callback.trials)
        assert found.events == tuple(callback.events)
        assert found.sparsity[-1][1] == found.events[-1].sparsity
        assert {one.step for one in found.scores} == {found.events[-1].step}
        assert found.metrics.keys() == {"val_acc"}


class TestMetrics:
    def test_what_is_followed(self, tmp_path: Path) -> None:
        assert recorded(tmp_path).metrics.keys() == {"val_acc", "val_loss"}
        for monitor in ("val_acc", ["val_acc"]):
            recorder = Recorder(monitor)
            fit(tmp_path, recorder, PruningCallback(recipe()))
            assert recorder.history.metrics == {"val_acc": ((5, pytest.approx(0.9)), (10, pytest.approx(0.9)))}

    def test_the_metric_before_is_known(self, tmp_path: Path) -> None:
        before = Recorder(figures=False)
        net, runner = Judged(), trainer(tmp_path, before)
        runner.validate(net, loader(2), verbose=False)
        net.accuracy = 0.8
        runner.fit(net, Resumable(), loader(2))
        assert before.history.metrics["val_acc"][0] == (0, pytest.approx(0.9))
        assert before.history.at_first("val_acc") == pytest.approx(0.9)
        seen = before.history
        runner.validate(net, loader(2), verbose=False)
        assert before.history == seen
        assert replace(history(), metrics={"m": ((1, 0.5), (3, 0.4))}).at_first("m") is None
        assert replace(history(), events=(), trials=(), metrics={"m": ((1, 0.5), (3, 0.4))}).at_first("m") == 0.4
        assert replace(history(), metrics={"m": ((0, 0.5), (3, 0.4))}).at_first("m") == 0.5
        assert history().at_first("unheard of") is None

    def test_how_it_was_made_is_told(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        command = ["/usr/bin/python", "train.py", "--api-key", "hush", "--token=quiet now", "--epochs", "3"]
        monkeypatch.setattr(sys, "orig_argv", command)
        recorder = Recorder(figures=False)
        fit(tmp_path, recorder, PruningCallback(recipe(), guard=Guard("val_acc", "max", 0.5)))
        made = recorder.history.origin
        assert made["recipe"].splitlines()[1:] == [f"granularity={Channel()!r}", "criterion=Taylor()"]
        assert made["guard"].startswith("Guard(monitor='val_acc'")
        assert made["training data"] == "Resumable, 5 batches"
        assert made["validation data"] == "TensorDataset, 8 samples in batches of 4"
        assert torch.__version__ in made["versions"]
        assert made["command"] == "python train.py --api-key … --token=… --epochs 3"
        assert History.from_json(replace(history(), origin=made).to_json()).origin == made

    def test_without_pruning(self, tmp_path: Path) -> None:
        recorder = Recorder()
        fit(tmp_path, recorder)
        assert recorder.history.metrics["val_loss"] == ((5, 1.0), (10, 1.0))
        assert recorder.history.events == recorder.history.sparsity == ()

    def test_unknown_metric(self, tmp_path: Path) -> None:
        with pytest.raises(PruningError, match=r"Recorder\(monitor='acc'\) finds no such metric.*logged: .*val_acc"):
            fit(tmp_path, Recorder("acc"), PruningCallback(recipe()))

    @pytest.mark.parametrize("monitor", ["", [], [1], ["a", ""]])
    def test_bad_monitor(self, monitor: Any) -> None:
        with pytest.raises(ValueError, match=r"Recorder\.monitor must be the key of a metric"):
            Recorder(monitor)


class TestResume:
    @pytest.mark.parametrize("every", [3, 5, 7])
    def test_the_history_is_that_of_one_run(self, every: int, tmp_path: Path) -> None:
        def run(folder: Path, ckpt: Any = None) -> Recorder:
            recorder = Recorder()
            saver = ModelCheckpoint(folder, "{step}", every_n_train_steps=every, save_top_k=-1)
            fit(folder, recorder, PruningCallback(recipe(), compact_every_event=every == 5), saver, ckpt=ckpt)
            return recorder

        whole = run(tmp_path / "whole")
        again = run(tmp_path / "again", tmp_path / "whole" / f"step={every}.ckpt")
        if every == 5:  # Lightning leaves out the validation that a checkpoint of an epoch's last batch comes before
            assert again.history.metrics["val_acc"] == whole.history.metrics["val_acc"][1:]
            again.history = replace(again.history, metrics=whole.history.metrics)
        assert again.history == whole.history

    def test_two_fits_follow_each_other(self, tmp_path: Path) -> None:
        recorder, callback = Recorder(), PruningCallback(recipe())
        net, _ = fit(tmp_path, recorder, callback)
        first = recorder.history
        fit(tmp_path, recorder, callback, model=net)
        assert [step for step, _ in recorder.history.metrics["val_acc"]] == [5, 10, 15, 20]
        assert (recorder.history.events, recorder.history.before) == (first.events, first.before)

    def test_another_model_begins_anew(self, tmp_path: Path) -> None:
        recorder = Recorder()
        fit(tmp_path, recorder, PruningCallback(recipe()))
        fit(tmp_path, recorder)
        assert recorder.history.events == ()


class TestHistory:
    def test_json_and_back(self, tmp_path: Path) -> None:
        found = recorded(tmp_path)
        assert History.from_json(found.to_json()) == found
        assert History.from_document(json.loads(json.dumps(found.document()))) == found

    def test_names_and_figures_of_any_kind(self) -> None:
        assert repr(History.from_json(history().to_json())) == repr(history())

    def test_what_is_no_history(self) -> None:
        for text in ("", "[]", '{"format": "x"}'):
            with pytest.raises(ValueError, match=r"is no (JSON text|history)"):
                History.from_json(text)
        newer = json.dumps({"format": "lightning_prune.history", "version": 2})
        with pytest.raises(ValueError, match="of version 2, this package reads 1; upgrade"):
            History.from_json(newer)
        document = json.loads(history().to_json())
        for change in (
            *({"metrics": value} for value in (3, {"a": 3}, {"a": [[1, "x"]]}, {"a": [[1]]})),
            *({"events": value} for value in (3, [3], [{"step": "x"}], [{"more": 1}])),
            *({"before": value} for value in (3, {"layers": 3, "macs": None}, {"layers": [{"name": 3}], "macs": 1})),
            *({"scores": [{**document["scores"][0], "edges": value}]} for value in (3, [], ["a"])),
            *({"model": 3}, {"origin": {"date": 3}}, {"sparsity": "ab"}),
        ):
            with pytest.raises(ValueError, match="the history of a fit is malformed"):
                History.from_json(json.dumps({**document, **change}))
        with pytest.raises(ValueError, match="the history of a fit is malformed: KeyError"):
            History.from_document({"metrics": {}})


def test_an_error_leaves_the_next_fit_whole(tmp_path: Path) -> None:
    def stop(trainer: Any, module: Any) -> None:
        if trainer.global_step == 4:
            raise RuntimeError("stop")

    recorder, callback = Recorder(), PruningCallback(recipe(targets=Targets(exclude=("conv3",))))
    with pytest.raises(RuntimeError, match="stop"):
        fit(tmp_path, recorder, callback, AfterStep(stop))
    net = Judged()
    fit(tmp_path, recorder, callback, model=net)
    assert recorder.history.after == summarize(net)
    assert len(recorder.history.events) == len(callback.events) > 0
