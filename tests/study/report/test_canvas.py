"""The pictures on a matplotlib canvas: the same marks, names and colours as on the page."""

import warnings

import pytest
from report_cases import figures

from lightning_prune.study.report._canvas import picture
from lightning_prune.study.report._figures import Axis, Bars, Dot, Dots, Figure, Line, Plot, Tone
from lightning_prune.study.report._pictures import framed
from lightning_prune.tables import Table

pytest.importorskip("matplotlib")


def pixels(figure: Figure) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(picture(figure))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        canvas.draw()
    return bytes(canvas.buffer_rgba())


@pytest.mark.parametrize("kind", sorted(figures()))
def test_every_kind_is_painted(kind: str) -> None:
    assert len(set(pixels(figures()[kind]))) > 1


@pytest.mark.parametrize("kind", sorted(figures()))
def test_every_text_and_shape_of_the_page_is_there(kind: str) -> None:
    figure = figures()[kind]
    (axes,) = picture(figure).axes
    elements = list(framed(figure, "").iter())
    assert [text.get_text() for text in axes.texts] == [e.text for e in elements if e.tag == "text"]
    shapes = [e for e in elements if e.tag in ("rect", "circle", "line") or (e.tag == "path" and e.get("d"))]
    assert len(axes.patches) == len(shapes)


def test_title_and_legend_stand_above() -> None:
    from matplotlib.colors import to_hex
    from matplotlib.patches import Circle

    dots = Dots("kept", (Dot(1, 1),), Tone.GOOD, "ring")
    plot = Plot("title of $1 and $2", Axis("x"), Axis("y"), (Line("l", ((0, 0), (2, 2))), dots), Table((), ()))
    (axes,) = picture(plot).axes
    above = {text.get_text(): text for text in axes.texts if text.get_position()[1] < 0}
    assert set(above) == {"title of $1 and $2", "l", "kept"}
    (ring,) = (one for one in axes.patches if isinstance(one, Circle) and one.center[1] < 0)
    assert to_hex(ring.get_edgecolor()) == "#2b8a57"
    assert not above["title of $1 and $2"].get_parse_math()


def test_a_picture_of_a_thousand_layers_can_be_painted() -> None:
    bars = Bars("layers", "channels", ("before", "after"), tuple((f"layer{i}", (64.0, 8.0)) for i in range(1000)))
    assert picture(bars).get_figheight() <= 150
