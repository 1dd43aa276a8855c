"""What a browser makes of the page: contrast, sizes, what lies over what, the keyboard."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import EXECUTABLE, Page, running
from report_cases import HOSTILE, NAMES, figures, full

from lightning_prune.study.report._figures import Section
from lightning_prune.study.report._page import page

needs_browser = pytest.mark.skipif(EXECUTABLE is None, reason="needs Chromium or Chrome on the PATH")


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with running(tmp_path_factory.mktemp("profile")) as browser:
        yield Page(browser)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report on a fit, and a page with every kind of figure."""
    folder = tmp_path_factory.mktemp("pages")
    every = page(HOSTILE, [("a", "1", HOSTILE)], [Section(name, "", [one]) for name, one in figures().items()])
    (folder / "every.html").write_text(every, encoding="utf-8")
    return {"report": full().save(folder / "report.html"), "every": folder / "every.html"}


LUMINANCE = """
const channel = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = c => {const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map(channel);
                    return 0.2126 * r + 0.7152 * g + 0.0722 * b};
const contrast = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
"""
CONTRASTS = f"""(() => {{ {LUMINANCE}
const card = getComputedStyle(document.querySelector("figure")).backgroundColor;
return [...document.querySelectorAll("figure text, figcaption p, figure h3, summary, th, td")].map(e => {{
  const style = getComputedStyle(e);
  return e.classList.contains("on") ? 21 : contrast(e instanceof SVGElement ? style.fill : style.color, card)}});
}})()"""
LOST = """[...document.querySelectorAll("svg")].flatMap(svg => {
  const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text, rect, circle")].filter(e => {
    const own = e.getBoundingClientRect();
    return own.width && (own.left < box.left - 2 || own.right > box.right + 2 || own.top < box.top - 2
                         || own.bottom > box.bottom + 2)}).map(e => svg.id + " " + e.outerHTML.slice(0, 200))})"""
# 3 pixels above and below the letters belong to a line of text
OVERLAPS = """[...document.querySelectorAll("svg")].flatMap(svg => {
  const boxes = [...svg.querySelectorAll("text")].map(e => [e.textContent, e.getBoundingClientRect()]);
  return boxes.flatMap(([t, a], i) => boxes.slice(i + 1).filter(([u, b]) => a.left < b.right + 1 && b.left < a.right + 1
    && a.top < b.bottom - 3 && b.top < a.bottom - 3).map(([u, b]) => [t, u]))})"""
HEIGHTS = """[...document.querySelectorAll(".facts > div")].map(e => Math.round(e.getBoundingClientRect().height))"""
LETTERS = """Math.min(...[...document.querySelectorAll("svg text")].map(e => {
  const svg = e.ownerSVGElement;
  return parseFloat(getComputedStyle(e).fontSize) * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width}))"""


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("which", ["report", "every"])
class TestBrowser:
    def test_is_quiet_and_fits(self, tab: Page, files: dict[str, Path], which: str, scheme: str, width: int) -> None:
        shown = tab.show(files[which], width, scheme)
        assert shown.complaints == []
        assert shown.requests == [files[which].as_uri()]
        assert shown.evaluate("document.scrollingElement.scrollWidth") <= width
        assert shown.evaluate("document.compatMode") == "CSS1Compat"
        assert shown.evaluate(LOST) == []
        assert shown.evaluate(OVERLAPS) == []
        assert len(set(shown.evaluate(HEIGHTS))) == 1
        assert shown.evaluate(LETTERS) >= (8 if width < 390 else 9.5)
        assert min(shown.evaluate(CONTRASTS)) >= 4.5
        ground = shown.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == {"light": "rgb(246, 247, 249)", "dark": "rgb(18, 22, 28)"}[scheme]


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_advice_is_read_without_scrolling_sideways(tab: Page, files: dict[str, Path], width: int) -> None:
    shown = tab.show(files["report"], width, "light")
    table = "document.querySelector('section > .table')"
    assert shown.evaluate(f"{table}.getAttribute('aria-label')") == "Advice"
    assert shown.evaluate(f"{table}.scrollWidth - {table}.clientWidth") <= 0


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_table_that_goes_on_has_a_shadow_at_that_edge(
    tab: Page, files: dict[str, Path], scheme: str, tmp_path: Path
) -> None:
    image = pytest.importorskip("matplotlib.image")
    shown = tab.show(files["report"], 390, scheme)
    table = "[...document.querySelectorAll('section > .table')].find(e => e.scrollWidth > e.clientWidth)"
    box = shown.evaluate(f"(() => {{const b = {table}.getBoundingClientRect(); return [b.left, b.right, b.top]}})()")
    left, right, row = round(box[0]) + 3, round(box[1]) - 4, round(box[2]) + 5

    def edges() -> tuple[float, float]:
        shown.picture(tmp_path / "page.png")
        pixels = image.imread(tmp_path / "page.png")[row, :, :3].mean(1)
        return float(pixels[left]), float(pixels[right])

    begin = edges()
    shown.evaluate(f"{table}.scrollLeft = 9999")
    end = edges()
    assert begin[1] < begin[0] - 0.03
    assert end[0] < end[1] - 0.03
    assert begin[0] == pytest.approx(end[1], abs=0.02)


@needs_browser
@pytest.mark.slow
def test_hostile_names_are_shown_as_text(tab: Page, files: dict[str, Path]) -> None:
    shown = tab.show(files["report"], 1280, "light")
    text = shown.evaluate("document.body.textContent")
    assert '</title><script>alert("x")</script>&amp;' in text
    assert shown.evaluate("document.querySelectorAll('script, b').length") == 0
    assert all(name in text for name in NAMES if name != HOSTILE)


@needs_browser
@pytest.mark.slow
def test_the_keyboard_reaches_what_scrolls(tab: Page, files: dict[str, Path]) -> None:
    shown = tab.show(files["report"], 390, "light")
    stuck = """[...document.querySelectorAll("*")].filter(e => e.tabIndex < 0 && e.scrollWidth > e.clientWidth + 1
      && ["auto", "scroll"].includes(getComputedStyle(e).overflowX)).length"""
    assert shown.evaluate(stuck) == 0
