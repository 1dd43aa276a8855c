"""The page: what it holds, and that it is written whole or not at all."""

import html
import html.parser
import math
import os
import re
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from report_cases import HOSTILE, figures, fit, full, history, recipe, summary
from support import MixedNet, Net, loader
from torch import nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy

from lightning_prune import Guard, PruningCallback, PruningError, summarize
from lightning_prune.deploy import benchmark
from lightning_prune.study import Advice, Attempt, Comparison, Finding, Row, Tried, sensitivity, significance
from lightning_prune.study.report import History, Recorder, Report
from lightning_prune.study.report._figures import Dots, HeatMap, Section
from lightning_prune.study.report._page import page
from lightning_prune.study.training import Outcome
from lightning_prune.tables import Table, cleaned

VOID = {"meta", "link", "line", "rect", "path", "circle"}


class Reader(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "link"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


class TestPage:
    def test_loads_nothing_and_runs_nothing(self) -> None:
        text = full().to_html()
        tags = read(text).tags
        assert not {tag for tag, _ in tags} & {"script", "img", "iframe", "object", "embed", "b"}
        links = [value for _, attributes in tags for key, value in attributes.items() if key in ("href", "src")]
        assert all(link is not None and link.startswith(("#", "data:,")) for link in links)
        assert not re.search(r"https?:|url\(|@import|@font-face", text)
        assert "default-src 'none'" in html.unescape(text)

    def test_ids_are_unique_and_links_lead_somewhere(self) -> None:
        tags = read(full().to_html()).tags
        ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        links = {attributes["href"] for tag, attributes in tags if tag == "a"}
        assert links <= {f"#{name}" for name in ids}
        named = {attributes["aria-labelledby"] for tag, attributes in tags if tag == "svg"}
        assert named <= set(ids)

    def test_a_section_for_what_was_given(self) -> None:
        def titles(report: Report) -> list[str]:
            return [section.title for section in report.sections()]

        assert titles(Report()) == []
        two = {"a": summary(8, 8), "b": summary(4, 8)}
        assert titles(Report(models=two)) == ["The models beside each other"]
        assert titles(Report(models={"a": summary(8, 8)}, quality={"a": 1})) == ["The models beside each other"]
        assert titles(Report(models=two, quality={"a": 1, "b": 2}))[1:] == ["Quality against cost"]
        assert titles(Report(history=History(metrics={"m": ((1, 0.5),)}))) == ["Over the run"]
        assert titles(Report(history=History(origin={"date": "today"}))) == ["How it was made"]
        assert len(titles(full())) == 6

    def test_the_table_tells_what_the_summaries_hold(self) -> None:
        net = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        with torch.no_grad():
            next(net.parameters())[0, 0] = 0
        table = Report(models={"net": net}, quality={"net": 0.25}, metric="acc").sections()[0].table
        assert table is not None
        assert dict(zip(table.head, table.rows[0], strict=True)) == {
            "model": "net", "acc": "0.2500", "parameters": "15", "not zero": "14", "memory (bytes)": "60",
        }  # fmt: skip

    def test_what_it_cost_is_answered(self) -> None:
        known = Report(history=replace(history(), metrics={"acc": ((0, 0.9), (6, 0.8))}), metric="acc")
        section = next(one for one in known.sections() if one.title == "The models beside each other")
        assert section.table is not None
        values = {row[0]: row[1] for row in section.table.rows}
        assert values == {"before": "0.9000", "masked": "0.8000", "after": "0.8000"}
        assert "0.8000 to 0.9000 in acc" in section.text
        assert "0.9 before" in known.to_html()
        late = replace(known, history=replace(known.history, metrics={"acc": ((6, 0.8),)}))
        assert "What “before” reached is not known" in late.to_html()

    def test_how_far_a_quality_may_lie_off_is_told_and_drawn(self) -> None:
        models = {"a": summary(8, 8), "b": summary(4, 8)}
        sections = Report(models=models, quality={"a": 0.9, "b": 0.8}, quality_spread={"a": 0.05}).sections()
        assert sections[0].table is not None
        assert [row[1] for row in sections[0].table.rows] == ["0.9000 ± 0.05", "0.8000"]
        dots = [dot for mark in sections[1].figures[0].marks if isinstance(mark, Dots) for dot in mark.dots]  # type: ignore[union-attr]
        assert {dot.label: dot.spread for dot in dots} == {"a": 0.05, "b": 0.0}

    def test_the_front_has_none_that_is_beaten(self) -> None:
        models = {f"m{width}": summary(width, 8) for width in (4, 8, 16, 32)}
        quality = {"m4": 0.5, "m8": 0.9, "m16": 0.8, "m32": 0.95}
        for mode, best in (("max", {"m4", "m8", "m32"}), ("min", {"m4"})):
            section = Report(models=models, quality=quality, mode=mode).sections()[1]  # type: ignore[arg-type]
            plot = section.figures[0]
            front = next(mark for mark in plot.marks if mark.name == "none better and cheaper")  # type: ignore[union-attr]
            assert {dot.label for dot in front.dots} == best  # type: ignore[union-attr]

    @given(st.text())
    @settings(deadline=None, max_examples=30)
    def test_no_text_leaves_its_place(self, text: str) -> None:
        table = Table((text, text), ((text, text),))
        written = page(text, [(text, text, f"a{text}")], [Section(text, text, table=table)] * 2)
        plain = page("t", [("a", "b", "c")], [Section("s", "p", table=Table(("h", "i"), (("r", "c"),)))] * 2)
        assert [tag for tag, _ in read(written).tags] == [tag for tag, _ in read(plain).tags]
        assert html.unescape(written).count(cleaned(text)) >= 10

    def test_markup_is_not_escaped_twice(self) -> None:
        written = page("<b>", [], [Section("&lt;", "", list(figures().values()))])
        assert "<h1>&lt;b&gt;</h1>" in written
        assert "<h2>&amp;lt;</h2>" in written
        assert written.count("<svg ") == len(figures())

    def test_a_notebook_shows_the_page_in_a_frame(self) -> None:
        shown: Any = full()
        (tag, attributes), *others = read(shown._repr_html_()).tags
        assert (tag, attributes["srcdoc"], others) == ("iframe", shown.to_html(), [])
        assert repr(shown).startswith("<Report: Advice, Over the run, Layers before and after")

    def test_the_same_values_make_the_same_page(self) -> None:
        assert full().to_html() == full().to_html()


class TestStudies:
    """Values of the study stage, made by it."""

    def test_sensitivity_and_significance(self) -> None:
        net, batches = Net(), list(loader(2))
        curve = sensitivity(net, batches, metric=MulticlassAccuracy(4), levels=(0.5, 0.9))
        found = significance(net, batches, loss=lambda m, b: cross_entropy(m(b[0]), b[1]), validate=4)
        sections = Report(sensitivity=curve, significance=found).sections()
        assert [section.title for section in sections] == ["Sensitivity", "Can the scores be believed?"]
        heat = sections[0].figures[0]
        assert isinstance(heat, HeatMap)
        assert heat.rows == tuple(curve.metrics)
        assert heat.values == tuple(map(tuple, curve.metrics.values()))
        assert [figure.title for figure in sections[1].figures] == list(found.tables)
        assert all(len(figure.table.rows) == 4 for figure in sections[1].figures)

    def test_comparison_and_advice(self) -> None:
        def outcome(name: str, seed: int, metric: float, macs: int) -> Outcome:
            return Outcome(name, seed, metric, macs, macs, macs, macs, 1.0)

        sides = (("taylor", False, 10, 1, 0.9), ("small dense 10%", True, 10, 2, 0.8), ("dense", True, 100, 1, 0.95))
        rows = tuple(
            Row(
                name, is_control, cost, cost // 100, rank, tuple(outcome(name, s, mean + s / 100, cost) for s in (0, 1))
            )
            for name, is_control, cost, rank, mean in sides
        )
        advice = Advice(False, (Finding(False, f"too small {HOSTILE}"),), (), {})
        report = Report(comparison=Comparison(rows, "macs", "acc", True, 5), advice=advice)
        assert [section.title for section in report.sections()] == ["Advice", "Recipes beside each other"]
        table = report.sections()[1].table
        assert table is not None
        assert [row[:2] for row in table.rows] == [("taylor", "1"), ("small dense 10%", "2"), ("dense", "1")]
        read(report.to_html())

    def test_what_was_tried(self) -> None:
        attempts = (
            Attempt(1.0, 0.9, 100, 1_000, 0.5, False, "fell"),
            Attempt(0.5, 0.45, 550, 5_500, 0.9, True, "no worse", 2.0),
            Attempt(0.75, 0.675, 325, 3_250, math.nan, False, "was nan"),
        )
        tried = Tried(f"MACs{HOSTILE}", "acc", 0.91, 0.02, True, 1_000, 10_000, 4.0, attempts)
        (section,) = Report(tried=tried).sections()
        assert section.title == "What was tried"
        assert section.table == tried.table()
        assert [figure.title for figure in section.figures] == ["acc against latency (ms)", "acc against MACs"]
        times, costs = (figure.table.rows for figure in section.figures)
        assert times == (("55.0%, chosen", "0.9000", "2"), ("dense", "0.9100", "4"))
        assert [row[0] for row in costs] == ["10.0%", "55.0%, chosen", "dense"]
        read(Report(tried=tried).to_html())

    def test_figures_stay_on_their_line_and_words_wrap(self) -> None:
        figures = ("0.0152 ± 0.00083", "± 0.036", "19.55 % of 828.7 k", "−3", "0", "+1.2")
        words = ("90 % of the weights at zero: latency 0.98×, file 1.00×", "half of 828,736 MACs", "–", "")
        section = Section("s", "", table=Table(("", "cell"), tuple(("row", cell) for cell in (*figures, *words))))
        cells = [(cell, kind) for kind, cell in re.findall(r"<td([^>]*)>([^<]*)</td>", page("t", [], [section]))]
        assert [cell for cell, kind in cells if "number" in kind] == list(figures)

    @pytest.mark.slow
    def test_artifacts_and_latencies(self, tmp_path: Path) -> None:
        pytest.importorskip("executorch")
        nets = {"dense": MixedNet(16), "compact": MixedNet(4)}
        files = {name: net.to_executorch(tmp_path / f"{name}.pte") for name, net in nets.items()}
        times = benchmark({name: file.path for name, file in files.items()}, torch.zeros(2, 1, 6, 6), rounds=2)
        report = Report(models=nets, artifacts=files, latencies=times, quality={"dense": 0.9, "compact": 0.8})
        table = report.sections()[0].table
        assert table is not None
        sizes = [row[table.head.index(".pte (bytes)")] for row in table.rows]
        assert sizes == [f"{file.size_bytes:,}" for file in files.values()]
        titles = [figure.title for figure in report.sections()[1].figures]
        assert titles == ["quality against latency (ms)", "quality against .pte (bytes)", "quality against MACs"]
        with pytest.raises(TypeError, match=r"Report\.artifacts\['dense'\] takes an Artifact, got PosixPath"):
            Report(artifacts={"dense": files["dense"].path})  # type: ignore[dict-item]


class TestSave:
    def test_whole_or_not_at_all(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "report.html"
        assert full().save(path) == path
        before = path.read_bytes()
        assert before.decode() == full().to_html()
        assert stat.S_IMODE(path.stat().st_mode) & 0o400

        def fail(*_: object) -> None:
            raise OSError("no space left on device")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="no space left"):
            Report(models={"a": summary(1, 1)}).save(path)
        assert path.read_bytes() == before
        assert [one.name for one in tmp_path.iterdir()] == ["report.html"]

    def test_bad_input(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"must end in \.html, as in '.*report\.html'"):
            full().save(tmp_path / "report.pdf")
        with pytest.raises(FileNotFoundError, match="make it first"):
            full().save(tmp_path / "none" / "report.html")
        with pytest.raises(PruningError, match="nothing to report on"):
            Report().save(tmp_path / "report.html")
        assert list(tmp_path.iterdir()) == []

    def test_arguments_of_another_kind(self) -> None:
        with pytest.raises(TypeError, match=r"models\['a'\] takes a model or summarize\(model\), got str"):
            Report(models={"a": "net.pte"})  # type: ignore[dict-item]
        with pytest.raises(TypeError, match="takes the history of a Recorder"):
            Report(history=Recorder())  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"Report\.quality takes a mapping"):
            Report(quality=0.9)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"Report\.models takes a mapping"):
            Report(models=nn.Linear(1, 1))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"Report\.tried takes .* pruned\.tried, got list"):
            Report(tried=[])  # type: ignore[arg-type]
        with pytest.raises(ValueError, match='"max" or "min"'):
            Report(mode="up")  # type: ignore[arg-type]

    def test_of_a_trainer(self, tmp_path: Path) -> None:
        callback, recorder = PruningCallback(recipe(), guard=Guard("val_acc", "max", 0.5)), Recorder(figures=False)
        model, trainer = fit(tmp_path, recorder, callback, max_epochs=4)
        report = Report.of(trainer, models={"compact": model})
        assert report.history is recorder.history
        assert (report.metric, report.mode) == ("val_acc", "max")
        assert report.models == {"compact": summarize(model)}
        trainer.callbacks.remove(recorder)  # type: ignore[attr-defined]
        alone = Report.of(trainer)
        own = Report(history=recorder.history, metric="val_acc").to_html()
        assert own.count("val_acc, after") == 0, "the tile of the fit tells it"
        other = Report(history=recorder.history, metric="val_acc", quality={"before": 0.9, "after": 0.123}).to_html()
        assert other.count("val_acc, after") == 1
        assert (alone.history.events, alone.history.trials) == (tuple(callback.events), tuple(callback.trials))
        trainer.callbacks.clear()  # type: ignore[attr-defined]
        with pytest.raises(PruningError, match="neither a Recorder nor a PruningCallback"):
            Report.of(trainer)
