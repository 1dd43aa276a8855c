"""Figures of the report: numbers, ticks, labels, SVG and matplotlib."""

import math
import re
import warnings
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_cases import HOSTILE, figures

from lightning_prune.study.report.figures import Axis, Dot, Dots, HeatMap, Line, Plot, Table
from lightning_prune.study.report.labels import LETTER, placed
from lightning_prune.study.report.markup import Markup, escaped, shortened, tag
from lightning_prune.study.report.numbers import brief, log_ticks, share, ticks
from lightning_prune.study.report.spans import span_of
from lightning_prune.study.report.svg import draw

KINDS = sorted(figures())
FINITE = st.floats(allow_nan=False, allow_infinity=False)
DRAWN = st.floats(-1e150, 1e150)
NUMBER = re.compile(r"-?\d+(\.\d+)?$")


class TestNumbers:
    @given(st.floats())
    def test_any_number_is_brief(self, value: float) -> None:
        assert 0 < len(brief(value)) <= 10

    @given(st.floats(1e-3, 1e14))
    def test_three_digits_stay(self, value: float) -> None:
        text = brief(value)
        number, _, unit = text.replace(",", "").partition(" ")
        assert float(number) * 1000.0 ** " kMGT".index(unit or " ") == pytest.approx(value, rel=1e-3)
        assert brief(-value) == f"−{text}"

    def test_shares(self) -> None:
        assert [share(v) for v in (0, 0.5, 0.905, 0.99999, 1)] == ["0 %", "50 %", "90.5 %", "100 %", "100 %"]
        assert share(math.nan) == "NaN"

    @given(DRAWN, DRAWN, st.integers(2, 10))
    def test_ticks_lie_inside_and_rise(self, one: float, other: float, count: int) -> None:
        low, high = min(one, other), max(one, other)
        found = ticks(low, high, count)
        room = 1e-6 * max(abs(low), abs(high)) + 1e-12
        assert found == sorted(set(found))
        assert 1 <= len(found) <= count + 1
        assert all(low - room <= tick <= high + room for tick in found)

    @given(st.floats(1e-300, 1e300), st.floats(1, 1e12))
    def test_log_ticks_lie_inside_and_rise(self, low: float, ratio: float) -> None:
        high = min(low * ratio, 1e305)
        found = log_ticks(low, high)
        assert found == sorted(set(found))
        assert 1 <= len(found) <= 14
        assert all(low * (1 - 1e-6) <= tick <= high * (1 + 1e-6) for tick in found)


class TestMarkup:
    @given(st.text())
    def test_no_text_leaves_its_place(self, text: str) -> None:
        markup = tag("p", text, title=text)
        element = ET.fromstring(markup)
        assert (element.text or "").replace("\r", "") == "".join(escaped(text)) or "&" in escaped(text)
        assert len(element) == 0
        assert element.attrib.keys() == {"title"}
        markup.encode()

    def test_markup_is_not_escaped_twice(self) -> None:
        assert tag("p", tag("b", "<")) == "<p><b>&lt;</b></p>"
        assert isinstance(escaped("a"), Markup)

    def test_marks_of_direction_do_not_turn_the_page(self) -> None:
        assert not set(escaped(HOSTILE)) & set("\x00\u202e\ud800")

    @given(st.text(), st.integers(3, 40))
    def test_shortened_is_short(self, text: str, most: int) -> None:
        assert len(shortened(text, most)) <= max(most, 3)
        assert shortened(text, len(text)) == text

    def test_names_of_a_deep_model_stay_different(self) -> None:
        names = [f"encoder.layers.{i}.attention.output.{part}" for i in range(12) for part in ("dense", "norm")]
        assert len({shortened(name, 18) for name in names}) == len(names)


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
        places = re.findall(r'<text x="([\d.]+)" y="[\d.]+" class="name( end)?">([^<]*)', draw(plot, "p"))
        assert [name for _, _, name in places] == ["a long name of a model", "b"]
        assert all(float(x) - (LETTER * len(name) if end else 0) >= 52 for x, end, name in places)

    def test_a_lone_point_has_its_name(self) -> None:
        assert placed([(100, 100, "compact")], (0, 0, 340, 200)) == [(108, 104, "start")]


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    def test_is_well_formed_and_finite(self, kind: str) -> None:
        drawn = draw(figures()[kind], "f1")
        root = ET.fromstring(drawn)
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
        figure, drawn = figures()[kind], draw(figures()[kind], "f1")
        if not isinstance(figure, Plot):
            assert all(escaped(row if isinstance(row, str) else row[0]) in drawn for row in figure.rows)
        else:
            assert all(escaped(mark.name) in drawn for mark in figure.marks)

    def test_is_drawn_by_matplotlib(self, kind: str) -> None:
        pytest.importorskip("matplotlib")
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        from lightning_prune.study.report.pictures import picture

        canvas = FigureCanvasAgg(picture(figures()[kind]))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            canvas.draw()
        assert len(set(canvas.buffer_rgba().tobytes())) > 1


class TestPlaces:
    def test_values_keep_their_order_and_stay_inside(self) -> None:
        points = tuple((float(x), float(x) ** 3) for x in range(-5, 6))
        plot = Plot("p", Axis("x"), Axis("y"), (Line("l", points),), Table((), ()))
        path = next(e for e in ET.fromstring(draw(plot, "f")).iter() if e.tag == "path").attrib["d"]
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
