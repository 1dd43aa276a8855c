"""From values to sections: what each figure of the report shows."""

import math
from collections.abc import Iterator, Sequence

from lightning_prune.guard import Trial, Verdict
from lightning_prune.model.summary import LayerSummary, Summary
from lightning_prune.study.report.figures import (
    SERIES,
    Axis,
    Bars,
    Columns,
    Dot,
    Dots,
    Figure,
    Line,
    Mark,
    Plot,
    Rule,
    Section,
    Shape,
    Table,
    Tone,
)
from lightning_prune.study.report.history import History, Scores
from lightning_prune.study.report.numbers import brief, share, whole

_STEPS = Axis("completed optimizer steps")


def fit_sections(history: History) -> list[Section]:
    """Return the sections on a fit: what it was like over its steps, its layers, its scores; each where known."""
    return [*over_steps(history), *layers(history), *scores(history)]


def over_steps(history: History) -> Iterator[Section]:
    """Yield sparsity and metrics over the steps, with commits and rollbacks marked."""
    figures: list[Figure] = []
    curve = _sparsity(history)
    if curve:
        marks = (Line("sparsity", curve, Tone.MAIN, is_stepped=True), *_events(history))
        axis = Axis("sparsity", is_share=True, span=(0.0, 1.0))
        figures.append(Plot("Sparsity over steps", _wide(history), axis, marks, _event_table(history)))
    for index, (name, points) in enumerate(history.metrics.items()):
        line = Line(name, points, SERIES[(index + 1) % len(SERIES)])
        table = Table(("step", name), tuple((whole(step), _exact(value)) for step, value in points))
        marks = (line, *_verdicts(history, name, points))
        figures.append(Plot(f"{name} over steps", _wide(history), Axis(name), marks, table))
    if figures:
        text = "How much was pruned when, and what quality did meanwhile."
        if history.trials:
            text += " A ring is an event that the guard kept, a cross one that it rolled back."
        yield Section("Over the run", text, figures)


def _wide(history: History) -> Axis:
    return Axis(_STEPS.label, span=(0.0, float(max(history.last_step, 1))))


def _sparsity(history: History) -> tuple[tuple[float, float], ...]:
    found = history.sparsity or tuple((event.step, event.sparsity) for event in history.events)
    if not found:
        return ()
    start = () if found[0][0] == 0 else ((0.0, 0.0),)
    return (*start, *found, (float(max(history.last_step, found[-1][0])), found[-1][1]))


def _events(history: History) -> Iterator[Mark]:
    judged = {trial.step for trial in history.trials}
    free = [event for event in history.events if event.step not in judged]
    if free:
        dots = tuple(
            Dot(e.step, e.sparsity, "", f"step {e.step:,}: asked {share(e.asked)}, reached {share(e.sparsity)}")
            for e in free
        )
        yield Dots("event", dots, Tone.MAIN)
    reached = {event.step: event.sparsity for event in history.events}
    for name, verdict, tone, shape in _KINDS:
        dots = tuple(
            Dot(trial.step, reached.get(trial.step, max(trial.after.values())), "", _told(trial))
            for trial in history.trials
            if trial.outcome is verdict
        )
        if dots:
            yield Dots(name, dots, tone, shape)


_KINDS: tuple[tuple[str, Verdict, Tone, Shape], ...] = (
    ("kept by the guard", Verdict.COMMIT, Tone.GOOD, "ring"),
    ("rolled back", Verdict.ROLL_BACK, Tone.BAD, "cross"),
)


def _told(trial: Trial) -> str:
    asked = ", ".join(map(share, trial.after.values()))
    return f"step {trial.step:,}: asked {asked}, {trial.outcome.value}: {trial.reason or 'no reason given'}"


def _verdicts(history: History, name: str, points: Sequence[tuple[int, float]]) -> Iterator[Mark]:
    """Mark where a metric decided: the first validation at or after the trial's event that has its value."""
    for kind, verdict, tone, shape in _KINDS:
        dots = []
        for trial in history.trials:
            at = next((s for s, v in points if s >= trial.step and v == trial.value), None)
            if trial.outcome is verdict and trial.value is not None and at is not None:
                dots.append(Dot(at, trial.value, "", _told(trial)))
        if dots:
            yield Dots(kind, tuple(dots), tone, shape)


def _event_table(history: History) -> Table:
    head = ("step", "asked", "sparsity", "parameters left", "MACs left", "verdict")
    verdicts = {trial.step: trial for trial in history.trials}
    rows = {
        event.step: (
            whole(event.step),
            share(event.asked),
            share(event.sparsity),
            whole(event.params),
            whole(event.macs),
            _verdict(verdicts.get(event.step)),
        )
        for event in history.events
    }
    for step, trial in verdicts.items():
        asked = ", ".join(map(share, trial.after.values()))
        rows.setdefault(step, (whole(step), asked, "–", "–", "–", _verdict(trial)))
    return Table(head, tuple(rows[step] for step in sorted(rows)))


def _verdict(trial: Trial | None) -> str:
    return "–" if trial is None else f"{trial.outcome.value}: {trial.reason}"


def _exact(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else brief(value)


def layers(history: History) -> Iterator[Section]:
    """Yield the channels and the weights of each layer before and after."""
    if history.before is None or history.after is None:
        return
    pairs = list(_pairs(history.before, history.after))
    figures: list[Figure] = []
    if any(before.shape != after.shape for before, after in pairs):
        rows = tuple((b.name or "(root)", (_width(b), _width(a))) for b, a in pairs)
        figures.append(Bars("Output channels per layer", "channels", ("before", "after"), rows))
    rows = tuple((b.name or "(root)", (_left(b, a),)) for b, a in pairs)
    if rows:
        note = "Weights that are not zero, in percent of those that the layer had before."
        figures.append(Bars("Weights left per layer", "of the layer", ("left",), rows, note, is_share=True))
    if figures:
        yield Section("Layers before and after", "Which layers shrank, and by how much.", figures)


def _pairs(before: Summary, after: Summary) -> Iterator[tuple[LayerSummary, LayerSummary]]:
    held = {layer.name: layer for layer in after.layers}
    for layer in before.layers:
        if len(layer.shape) > 1 and layer.name in held:
            yield layer, held[layer.name]


def _width(layer: LayerSummary) -> float:
    axis = 1 if layer.kind.startswith(("ConvTranspose", "Embedding")) else 0
    return float(layer.shape[axis])


def _left(before: LayerSummary, after: LayerSummary) -> float:
    return (after.parameters - after.zeros) / max(before.parameters - before.zeros, 1)


def scores(history: History) -> Iterator[Section]:
    """Yield the scores of the last event as histograms, with the line below which units went."""
    latest = {one.name: one for one in history.scores}
    if latest:
        text = (
            "The scores by which the last event that took something ranked what was there; what lies left of the cut"
            " went. A cut through a valley costs little; one through the crowd takes units that count as much as those"
            " that stay."
        )
        yield Section("Scores and the cut", text, [_scores(one) for one in latest.values()])


def _scores(one: Scores) -> Plot:
    lost, kept = tuple(map(float, one.lost)), tuple(map(float, one.kept))
    marks: list[Mark] = [
        Columns("removed", one.edges, (0.0,) * len(lost), lost, Tone.SECOND),
        Columns("kept", one.edges, lost, kept, Tone.MAIN),
    ]
    if one.cut is not None:
        marks.append(Rule("cut", one.cut))
    note = f"step {one.step:,}: {one.removed:,} removed" + (f", {one.gone:,} gone before" if one.gone else "")
    bins = zip(one.edges, one.edges[1:], one.lost, one.kept, strict=False)
    rows = tuple((f"{low:.4g}", f"{high:.4g}", whole(a), whole(b)) for low, high, a, b in bins if a or b)
    axis = Axis("score (higher = keep)", is_log=one.is_log)
    return Plot(
        one.name,
        axis,
        Axis("units", is_whole=True, span=(0.0, 1.0)),
        tuple(marks),
        Table(("score from", "to", "removed", "kept"), rows),
        note,
        is_small=True,
    )
