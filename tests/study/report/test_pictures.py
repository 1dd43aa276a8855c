"""Figures as SVG: every kind is well-formed, nothing leaves its place, and no name covers another."""

import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_cases import figures

from lightning_prune.study.report._figures import Axis, Dot, Dots, HeatMap, Line, Plot
from lightning_prune.study.report._pictures import LETTER, draw, placed, span_of
from lightning_prune.tables import Table, cleaned

KINDS = sorted(figures())
FINITE = st.floats(allow_nan=False, allow_infinity=False)
NUMBER = re.compile(r"-?\d+(\.\d+)?$")


class TestLabels:
    @given(st.lists(st.tuples(st.integers(50, 300), st.integers(30, 180), st.text("ab", max_size=12)), max_size=8))
    def test_names_cover_neither_names_nor_points(self, points: list[tuple[int, int, str]]) -> None:
        boxes = []
        for (x, y, name), place in zip(points, placed(points, (0, 0, 340, 200)), strict=True):
            assert place is None or name
            boxes.append((x - 5, y - 5, x + 5, y + 5, "point"))
            if place is not None:
                left = place[0] if place[2] == "start" else place[0] - LETTER * len(name)
                boxes.append((left, place[1] - 10, left + LETTER * len(name), place[1] + 2, "name"))
        names = [box for box in boxes if box[4] == "name"]
        for name in names:
            assert 0 <= name[0] < name[2] <= 340
            others = [box for box in boxes if box is not name]
            assert all(o[2] <= name[0] or o[0] >= name[2] or o[3] <= name[1] or o[1] >= name[3] for o in others)

    def test_two_points_on_one_spot_at_the_edge_both_have_a_name(self) -> None:
        points = [(320, 40, "single weights"), (320, 38, "dense")]
        found = placed(points, (52, 14, 340, 182))
        assert None not in found

    def test_names_leave_the_figures_of_the_axis_alone(self) -> None:
        dots = Dots("models", (Dot(1, 1, "a long name of a model"), Dot(2, 2, "b")))
        plot = Plot("p", Axis("x"), Axis("y"), (dots,), Table((), ()))
        names = [e for e in draw(plot, "p").iter("text") if e.attrib["class"].startswith("name")]
        assert [e.text for e in names] == ["a long name of a model", "b"]
        for e in names:
            wide = LETTER * len(e.text or "") if e.attrib["class"] == "name end" else 0
            assert float(e.attrib["x"]) - wide >= 52

    def test_a_lone_point_has_its_name(self) -> None:
        assert placed([(100, 100, "compact")], (0, 0, 340, 200)) == [(108, 104, "start")]


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    def test_is_well_formed_and_finite(self, kind: str) -> None:
        root = ET.fromstring(ET.tostring(draw(figures()[kind], "f1")))
        assert root.tag == "svg"
        assert root.attrib["role"] == "img"
        title = root.find("title")
        assert title is not None
        assert root.attrib["aria-labelledby"] == title.attrib["id"]
        assert not {"script", "b"} & {element.tag for element in root.iter()}
        for element in root.iter():
            for key in {"x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height"} & element.attrib.keys():
                assert NUMBER.match(element.attrib[key]), (key, element.attrib[key])
            assert not re.search("nan|inf", element.attrib.get("d", ""))
            assert float(element.attrib.get("width", 0)) >= 0
            assert float(element.attrib.get("height", 0)) >= 0

    def test_every_row_and_mark_is_there(self, kind: str) -> None:
        figure = figures()[kind]
        said = "\n".join(draw(figure, "f1").itertext())
        if not isinstance(figure, Plot):
            assert all(cleaned(row if isinstance(row, str) else row[0]) in said for row in figure.rows)
        else:
            assert all(cleaned(mark.name) in said for mark in figure.marks)


@given(st.text())
def test_no_text_leaves_its_place(text: str) -> None:
    plot = Plot(text, Axis(text), Axis(text), (Line(text, ((0, 1), (1, 2))),), Table((), ()))
    root = ET.fromstring(ET.tostring(draw(plot, "f")))
    assert {e.tag for e in root.iter()} == {"svg", "title", "line", "text", "path"}
    assert root.findtext("path/title", "").replace("\r", "") == cleaned(text)


class TestPlaces:
    def test_values_keep_their_order_and_stay_inside(self) -> None:
        points = tuple((float(x), float(x) ** 3) for x in range(-5, 6))
        plot = Plot("p", Axis("x"), Axis("y"), (Line("l", points),), Table((), ()))
        path = next(e for e in draw(plot, "f").iter() if e.tag == "path").attrib["d"]
        found = [tuple(map(float, pair.split())) for pair in re.split("[ML]", path)[1:]]
        assert found == sorted(found)
        assert [y for _, y in found] == sorted((y for _, y in found), reverse=True)
        assert all(0 <= x <= 340 and 0 <= y <= 220 for x, y in found)

    @given(st.lists(st.tuples(FINITE, FINITE), max_size=5), st.booleans())
    def test_spans_are_never_empty(self, points: list[tuple[float, float]], is_log: bool) -> None:
        plot = Plot("p", Axis("x", is_log), Axis("y"), (Dots("d", tuple(Dot(*p) for p in points)),), Table((), ()))
        for axis in (0, 1):
            low, high = span_of(plot, axis)
            assert low < high
            assert low > 0 or not (is_log and axis == 0)

    def test_the_worst_cell_is_the_strongest(self) -> None:
        accuracy = HeatMap("h", ("a", "b"), ("1",), "level", ((0.9,), (0.1,)), "acc", is_low_strong=True)
        loss = HeatMap("h", ("a", "b"), ("1",), "level", ((0.9,), (0.1,)), "loss")
        assert accuracy.shade(0.1) == loss.shade(0.9) == 1
        assert accuracy.shade(0.9) == loss.shade(0.1) == 0
