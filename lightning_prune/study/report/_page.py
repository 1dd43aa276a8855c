"""The page: sections of figures as one HTML file that loads nothing, and the few figures that come first on it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lightning_prune._version import __version__
from lightning_prune.guard import Verdict
from lightning_prune.study.report._figures import Section
from lightning_prune.study.report._numbers import brief, share
from lightning_prune.study.report._pictures import draw
from lightning_prune.study.report._variants import Variant
from lightning_prune.study.report.history import History
from lightning_prune.tables import cleaned

Fact = tuple[str, str, str]
"""What it is, the figure, and a word on it."""


def page(title: str, facts: Sequence[Fact], sections: Sequence[Section]) -> str:
    """Return the whole page as HTML, with every text escaped, whatever it holds.

    Args:
        title: heading.
        facts: what to know first.
        sections: in order; may be empty.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else cleaned(value),
    )
    environment.filters["tabled"] = lambda table: Markup(table.to_html())
    environment.filters["drawn"] = lambda figure, name: Markup(
        ElementTree.tostring(draw(figure, name), encoding="unicode")
    )
    template = environment.get_template("page.html")
    return template.render(title=title, facts=facts, sections=sections, version=__version__)


def facts(history: History, known: Sequence[Variant], metric: str) -> Iterator[Fact]:
    """Yield what to know first, of what is known.

    Args:
        history: of the fit.
        known: the versions of the model, from which the first and the last are taken.
        metric: what their quality is called.
    """
    if history.events:
        last = history.events[-1]
        yield "sparsity", share(last.sparsity), f"asked {share(last.asked)}, {len(history.events)} events"
    if history.trials:
        outcomes = [trial.outcome for trial in history.trials]
        failed = f"{outcomes.count(Verdict.ROLL_BACK)} rolled back"
        yield "judged by the guard", f"{outcomes.count(Verdict.COMMIT)} kept", failed
    before, after = history.before, history.after
    if before is not None and after is not None:
        for name, whole, left in (
            ("parameters that are not zero", before.parameters - before.zeros, after.parameters - after.zeros),
            ("multiply-accumulates", before.effective_macs, after.effective_macs),
        ):
            if whole and left is not None:
                yield name, brief(left), f"{share(left / whole)} of {brief(whole)}"
    for name, points in list(history.metrics.items())[:2]:
        first = history.at_first(name)
        note = "" if first is None else f", {brief(first)} before"
        yield name, brief(points[-1][1]), f"after step {points[-1][0]:,}{note}"
    if len(known) > 1:
        first, final = known[0], known[-1]
        if first.milliseconds and final.milliseconds:
            note = f"{brief(first.milliseconds)} ms {first.name}"
            yield f"latency, {final.name}", f"{brief(final.milliseconds)} ms", note
        if first.file_bytes and final.file_bytes:
            yield f"file, {final.name}", f"{brief(final.file_bytes)}B", f"{brief(first.file_bytes)}B {first.name}"
        of_fit = history.metrics.get(metric)
        is_told = of_fit is not None and of_fit[-1][1] == final.quality and metric in list(history.metrics)[:2]
        if first.quality is not None and final.quality is not None and not is_told:
            yield f"{metric}, {final.name}", brief(final.quality), f"{brief(first.quality)} {first.name}"
