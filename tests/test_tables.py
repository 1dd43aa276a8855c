"""Tables of words and figures, and how a notebook and a page show them."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from report_cases import HOSTILE
from support import MixedNet, Net
from torch import nn

from lightning_prune import channel_groups, summarize
from lightning_prune.deploy import Timing, Timings
from lightning_prune.study import Comparison, Row, Sensitivity
from lightning_prune.study.training import Outcome
from lightning_prune.tables import Table, Tabular, aligned, cleaned


class Reader(HTMLParser):
    """What a browser makes of an element: its tags, and the text of each cell by row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip("\n") and data


def test_words_are_flush_left_and_figures_flush_right() -> None:
    text = aligned([("layer", "type", "size"), ("a", "Linear", "8"), ("long.name", "Conv2d", "1,024")], words=2)
    assert text.splitlines() == [
        "layer      type     size",
        "------------------------",
        "a          Linear      8",
        "long.name  Conv2d  1,024",
    ]


def test_remarks_and_a_total() -> None:
    rows = [("tensor", "zeros", ""), ("a", "10", "masked"), ("in all", "10", "")]
    assert aligned(rows, remarks=1, has_total=True).splitlines() == [
        "tensor  zeros",
        "---------------------",
        "a          10  masked",
        "---------------------",
        "in all     10",
    ]


def test_a_cell_of_several_lines_takes_as_many() -> None:
    rows = [("group", "members", "size"), ("a", "conv1\nbn1", "8"), ("b", "conv2", "16")]
    assert aligned(rows, words=2).splitlines() == [
        "group  members  size",
        "--------------------",
        "a      conv1       8",
        "       bn1",
        "b      conv2      16",
    ]


@given(st.text())
def test_a_cleaned_text_can_be_written(text: str) -> None:
    cleaned(text).encode()
    assert len(cleaned(text)) == len(text)
    assert cleaned(cleaned(text)) == cleaned(text)


def test_marks_of_direction_do_not_turn_the_page() -> None:
    assert not set(cleaned(HOSTILE)) & set("\x00\u202e\ud800")


@given(st.text())
def test_no_text_leaves_its_cell(text: str) -> None:
    table = Table((text, text), ((text, text),), note=text or "a")
    plain = Table(("a", "b"), (("c", "d"),), note="e")
    assert Reader(table.to_html()).tags == Reader(plain.to_html()).tags


def test_columns_of_figures_are_flush_right() -> None:
    html = Table(("layer", "MACs", "verdict"), (("conv1", "1,024", "3 kept"), ("conv2", "-", "none"))).to_html()
    assert '<th scope="col" class="flush">MACs</th>' in html
    assert '<td class="number flush">1,024</td>' in html
    assert '<td class="flush">-</td>' in html
    assert '<td class="number">3 kept</td>' in html
    assert "<td>none</td>" in html


def tabular(kind: str) -> Tabular:
    if kind == "summary":
        return summarize(nn.ModuleDict({"<b>conv": nn.Linear(4, 3)}))
    if kind == "channel groups":
        return channel_groups(Net(), torch.zeros(2, 1, 6, 6))
    if kind == "comparison":
        runs = tuple(Outcome("<b>taylor", seed, 0.9, 10, 10, 10, 10, 1.0) for seed in (0, 1))
        return Comparison((Row("<b>taylor", False, 10, 0, 1, runs),), "macs", "acc", True, 5)
    if kind == "sensitivity":
        return Sensitivity(0.9, (0.5,), {"<b>conv": (0.8,)}, {"<b>conv": 8}, True, "Element()", "Magnitude()", "acc")
    return Timings((Timing("<b>dense", 1.0, 0.1, 1.0, 3, 5),), 1)


@pytest.mark.parametrize("kind", ["summary", "channel groups", "comparison", "sensitivity", "latencies"])
def test_a_notebook_shows_what_is_printed(kind: str) -> None:
    value: Any = tabular(kind)
    read = Reader(value._repr_html_())
    assert "b" not in read.tags
    assert read.rows == [list(value.table().head), *map(list, value.table().rows)]
    printed = str(value)
    assert all(line in printed for row in read.rows for cell in row for line in cell.split("\n"))


@pytest.mark.slow
def test_a_notebook_shows_an_artifact(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    artifact: Any = MixedNet().to_executorch(tmp_path / "net.pte")
    rows = dict(Reader(artifact._repr_html_()).rows)
    assert rows["file"] == str(tmp_path / "net.pte")
    assert rows["sha256"] == artifact.sha256
    assert str(artifact).startswith(f"{tmp_path / 'net.pte'}\n  backend  ")


def test_controls_in_a_table_are_escaped() -> None:
    shown = aligned([("layer", "size"), ("conv\x1b[2J\r\u202e1", "8")])
    assert shown.split("\n")[2] == r"conv\x1b[2J\r\u202e1     8"
