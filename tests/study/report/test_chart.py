"""Figures by themselves: as SVG, as files, and what a browser makes of them."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from browser import EXECUTABLE, Page, running
from report_cases import HOSTILE, figures, history, summary
from torch import nn

from lightning_prune.study.report import Chart, Report, widths

SVG = "{http://www.w3.org/2000/svg}"


def test_the_widths_before_and_after() -> None:
    before = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    after = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    shown: Any = widths(before, after)
    root = ElementTree.fromstring(shown._repr_svg_())
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert texts == ["0", "8", "5", "2", "2", "2", "Output channels per layer", "before", "after"]
    with pytest.raises(ValueError, match="nothing to show"):
        widths(before, before)


def test_a_report_gives_its_figures() -> None:
    report = Report(history=history(), models={"a": summary(8, 8), "b": summary(4, 8)}, quality={"a": 1, "b": 2})
    titles = [figure.title for section in report.sections() for figure in section.figures]
    assert list(report.charts()) == list(dict.fromkeys(titles))
    assert "quality against MACs" in titles


def test_a_file_is_whole_and_ends_in_svg(tmp_path: Path) -> None:
    picture = widths(nn.Linear(4, 8), nn.Linear(4, 6))
    path = picture.save(tmp_path / "widths.svg")
    assert path.read_text(encoding="utf-8") == picture.to_svg() + "\n"
    with pytest.raises(ValueError, match=r"must end in \.svg, as in '.*widths\.svg'"):
        picture.save(tmp_path / "widths.png")


@pytest.mark.parametrize("kind", sorted(figures()))
def test_every_kind_is_a_document_that_loads_nothing(kind: str) -> None:
    text = Chart("", figures()[kind]).to_svg()
    root = ElementTree.fromstring(text)
    assert not {element.tag.removeprefix(SVG) for element in root.iter()} & {"script", "image", "use", "a", "b"}
    assert "url(" not in text
    assert "@import" not in text
    assert HOSTILE not in text


@pytest.mark.skipif(EXECUTABLE is None, reason="needs Chromium or Chrome on the PATH")
@pytest.mark.slow
def test_a_browser_shows_it_in_its_frame_light_and_dark(tmp_path: Path) -> None:
    with running(tmp_path / "profile") as browser:
        tab = Page(browser)
        for kind, figure in figures().items():
            path = Chart(kind, figure).save(tmp_path / f"{kind}.svg".replace(" ", "-"))
            for scheme, card in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(27, 33, 41)")):
                shown = tab.show(path, 800, scheme)
                assert shown.complaints == []
                assert shown.requests == [path.as_uri()]
                assert shown.evaluate("getComputedStyle(document.querySelector('.card')).fill") == card
                assert shown.evaluate(OUTSIDE) == []


OUTSIDE = """(() => {const box = document.querySelector(".card").getBoundingClientRect();
return [...document.querySelectorAll("text, circle, rect")].filter(e => {const own = e.getBoundingClientRect();
  return own.width && (own.left < box.left - 2 || own.right > box.right + 2 || own.top < box.top - 2
                       || own.bottom > box.bottom + 2)}).map(e => e.outerHTML)})()"""
