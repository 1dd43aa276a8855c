"""Histories, reports and runs for the tests of the report."""

from pathlib import Path
from typing import Any

import torch
from packages import L
from support import MixedNet, Resumable, loader, trainer
from torch import Tensor

from lightning_prune import Channel, Linear, PruningCallback, Recipe, Taylor
from lightning_prune.guard import Trial, Verdict
from lightning_prune.model.summary import LayerSummary, Summary
from lightning_prune.run.pruner import Event
from lightning_prune.study import Advice, Finding
from lightning_prune.study.report import History, Recorder, Report
from lightning_prune.study.report._figures import (
    Axis,
    Bars,
    Columns,
    Dot,
    Dots,
    Figure,
    HeatMap,
    Line,
    Plot,
    Rule,
    Tone,
)
from lightning_prune.study.report.history import Scores
from lightning_prune.tables import Table

HOSTILE = '</title><script>alert("x")</script>&amp;\x00\u202e<b>\ud800'
LONG = "encoder.layers.11.attention.self.output.dense.with_a_name_that_has_no_end_" + "x" * 300
NAMES = ("conv1", "blocks.0.conv2", HOSTILE, LONG, "слой.七.🙂")


class Judged(MixedNet):
    """Logs an accuracy that never changes, so that a guard's verdicts are known beforehand."""

    accuracy = 0.9

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_acc", torch.tensor(self.accuracy))
        self.log("val_loss", torch.tensor(1.0))


def recipe(**chosen: Any) -> Recipe:
    schedule = Linear(0.5, begin_step=2, end_step=8, frequency=2)
    return Recipe(**({"schedule": schedule, "granularity": Channel(), "criterion": Taylor()} | chosen))


def fit(
    folder: Path, *callbacks: L.Callback, model: L.LightningModule | None = None, ckpt: Any = None, **options: Any
) -> tuple[L.LightningModule, L.Trainer]:
    torch.manual_seed(0)
    net = Judged() if model is None else model
    found = trainer(folder, *callbacks, **options)
    found.fit(net, Resumable(), loader(2), ckpt_path=ckpt, weights_only=True if ckpt else None)
    return net, found


def recorded(folder: Path, one: Recipe | None = None, **options: Any) -> History:
    recorder = Recorder(figures=False)
    fit(folder, recorder, PruningCallback(recipe() if one is None else one), **options)
    return recorder.history


def history() -> History:
    """One of everything, with names that no page should trust."""
    events = tuple(Event(step, 0.1 * step, 0.1 * step, {n: 0.1 for n in NAMES}, 900, 9_000) for step in (1, 3))
    trials = (
        Trial(1, {0: 0.0}, {0: 0.1}, 0, Verdict.COMMIT, 0.95, f"no worse {HOSTILE}"),
        Trial(5, {0: 0.3}, {0: 0.5}, 2, Verdict.ROLL_BACK, 0.5, "fell"),
    )
    return History(
        metrics={"val_acc": ((0, 0.9), (2, 0.95), (4, float("nan")), (6, 0.5)), HOSTILE: ((6, float("inf")),)},
        sparsity=((1, 0.1), (3, 0.3), (5, 0.5), (6, 0.3)),
        events=events,
        trials=trials,
        scores=tuple(Scores(n, 3, (1e-9, 1e-3, 1.0), (0, 12), (3, 1), True, 1e-3, 4, 2) for n in NAMES),
        before=summary(64, 64),
        after=summary(8, 64),
        model=HOSTILE,
    )


def summary(width: int, inputs: int) -> Summary:
    layers = (
        LayerSummary(
            n, "Conv2d", (width, inputs, 3, 3), width * inputs * 9, 7, width * 10**6, width * 10**5, width * 64
        )
        for n in NAMES
    )
    return Summary(tuple(layers), width * 5 * 10**6)


def figures() -> dict[str, Figure]:
    """Every kind of mark, with values at the edge of what a picture can show."""
    nan, inf = float("nan"), float("inf")
    table = Table(("a", "b"), (("1", "2"),))
    lines = (
        Line("gap", ((0, 1.0), (1, nan), (2, inf), (3, 2.0)), is_stepped=True),
        Line("none", (), is_dashed=True),
        Dots("dots", (Dot(0, 1, HOSTILE), Dot(nan, 1, "lost"), Dot(0, 1, LONG, "note", 0.5)), Tone.BAD, "cross"),
    )
    small = Axis("x", is_log=True), Axis("y")
    columns = (Columns("c", (1e-12, 1e-6, 1e12), (0, 3), (4, 0)), Rule("cut", 1e-6))
    return {
        "lines": Plot(HOSTILE, Axis("steps"), Axis("share", is_share=True, span=(0, 1)), lines, table, HOSTILE),
        "columns": Plot("small", *small, columns, table, is_small=True),
        "empty": Plot("empty", Axis("x"), Axis("y"), (), table),
        "empty log": Plot("empty log", *small, (), table),
        "one point": Plot("one", Axis("x"), Axis("y"), (Dots("p", (Dot(5, -3),)),), table),
        "huge": Plot("huge", Axis("x"), Axis("y"), (Line("l", ((0, -1e300), (1e15, 1e300))),), table),
        "bars": Bars("bars", "channels", ("before", "after"), tuple((n, (64.0, 0.0)) for n in NAMES)),
        "many bars": Bars("many", "s", tuple("abcdef"), (("row", (1, 2, 3, nan, inf, 6)),), is_share=True),
        "no bars": Bars("no bars", "s", ("a",), ()),
        "map": HeatMap(
            "map", NAMES, ("10 %", "90 %"), "level", ((0.9, 0.1), (None, nan), (1, 1), (0, -inf), (5, 5)), "m"
        ),
        "flat map": HeatMap("flat", ("a",), ("1",), "level", ((0.5,),), "m", is_low_strong=True),
        "no map": HeatMap("no map", (), (), "level", (), "m"),
    }


def full() -> Report:
    """Return a report with every section."""
    models = {"dense": summary(64, 64), "compact": summary(8, 64), HOSTILE: summary(32, 64)}
    quality = {"dense": 0.98, "compact": 0.97, HOSTILE: float("nan"), "only a figure": 0.5}
    text = "90 % of the weights at zero: latency 0.98×, file 1.00×; single weights are no reason to prune on this one"
    advice = Advice(True, (Finding(True, text), Finding(None, HOSTILE)), (text,), {})
    return Report(history=history(), models=models, quality=quality, metric="val_acc", advice=advice)
