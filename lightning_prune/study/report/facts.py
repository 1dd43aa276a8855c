"""The few figures that come first on the page."""

from collections.abc import Iterator, Sequence

from lightning_prune.guard import Verdict
from lightning_prune.study.report.history import History
from lightning_prune.study.report.numbers import brief, share
from lightning_prune.study.report.variants import Variant

Fact = tuple[str, str, str]
"""What it is, the figure, and a word on it."""


def facts(history: History, found: Sequence[Variant], metric: str) -> list[Fact]:
    """Return what to know first, of what is known."""
    return [*_of_events(history), *_of_layers(history), *_of_metrics(history), *_of_variants(found, metric)]


def _of_events(history: History) -> Iterator[Fact]:
    if history.events:
        last = history.events[-1]
        yield "sparsity", share(last.sparsity), f"asked {share(last.asked)}, {len(history.events)} events"
    failed = sum(trial.outcome is Verdict.ROLL_BACK for trial in history.trials)
    if history.trials:
        kept = sum(trial.outcome is Verdict.COMMIT for trial in history.trials)
        yield "judged by the guard", f"{kept} kept", f"{failed} rolled back"


def _of_layers(history: History) -> Iterator[Fact]:
    before, after = history.before, history.after
    if before is None or after is None:
        return
    pairs = {
        "parameters that are not zero": (before.parameters - before.zeros, after.parameters - after.zeros),
        "multiply-accumulates": (before.effective_macs, after.effective_macs),
    }
    for name, (whole, left) in pairs.items():
        if whole and left is not None:
            yield name, f"{brief(left)}", f"{share(left / whole)} of {brief(whole)}"


def _of_metrics(history: History) -> Iterator[Fact]:
    for name, points in list(history.metrics.items())[:2]:
        yield name, brief(points[-1][1]), f"after step {points[-1][0]:,}"


def _of_variants(found: Sequence[Variant], metric: str) -> Iterator[Fact]:
    first, last = (found[0], found[-1]) if len(found) > 1 else (None, None)
    if first and last:
        if first.milliseconds and last.milliseconds:
            note = f"{brief(first.milliseconds)} ms {first.name}"
            yield f"latency, {last.name}", f"{brief(last.milliseconds)} ms", note
        if first.file_bytes and last.file_bytes:
            yield f"file, {last.name}", f"{brief(last.file_bytes)}B", f"{brief(first.file_bytes)}B {first.name}"
        if first.quality is not None and last.quality is not None:
            yield f"{metric}, {last.name}", brief(last.quality), f"{brief(first.quality)} {first.name}"
