"""From values to sections: what each figure of the report shows."""

import math
from collections.abc import Iterator, Sequence

from lightning_prune.guard import Trial, Verdict
from lightning_prune.model.summary import LayerSummary
from lightning_prune.study.advise import Advice
from lightning_prune.study.comparison import Comparison
from lightning_prune.study.curve import Sensitivity
from lightning_prune.study.report._figures import (
    SERIES,
    Axis,
    Bars,
    Columns,
    Dot,
    Dots,
    Figure,
    HeatMap,
    Line,
    Mark,
    Plot,
    Rule,
    Section,
    Shape,
    Tone,
)
from lightning_prune.study.report._numbers import brief, share, whole
from lightning_prune.study.report.history import History, Scores
from lightning_prune.study.significance import Significance
from lightning_prune.tables import Table

WIDTHS = "Output channels per layer"
"""Title of the figure that shows them before and after."""


def fit_sections(history: History) -> list[Section]:
    """Return the sections on a fit: what it was like over its steps, its layers, its scores; each where known."""
    return [*over_steps(history), *layers(history), *scores(history)]


def over_steps(history: History) -> Iterator[Section]:
    """Yield sparsity and metrics over the steps, with commits and rollbacks marked."""
    figures: list[Figure] = []
    steps = Axis("completed optimizer steps", span=(0.0, float(max(history.last_step, 1))))
    curve = history.sparsity or tuple((event.step, event.sparsity) for event in history.events)
    if curve:
        start = () if curve[0][0] == 0 else ((0.0, 0.0),)
        curve = (*start, *curve, (float(max(history.last_step, curve[-1][0])), curve[-1][1]))
        marks = (Line("sparsity", curve, Tone.MAIN, is_stepped=True), *_events(history))
        axis = Axis("sparsity", is_share=True, span=(0.0, 1.0))
        figures.append(Plot("Sparsity over steps", steps, axis, marks, _event_table(history)))
    for index, (name, points) in enumerate(history.metrics.items()):
        line = Line(name, points, SERIES[(index + 1) % len(SERIES)])
        cells = ((whole(step), f"{v:.6g}" if math.isfinite(v) else brief(v)) for step, v in points)
        marks = (line, *_verdicts(history, points))
        figures.append(Plot(f"{name} over steps", steps, Axis(name), marks, Table(("step", name), tuple(cells))))
    if figures:
        text = "How much was pruned when, and what quality did meanwhile."
        if history.trials:
            text += " A ring is an event that the guard kept, a cross one that it rolled back."
        yield Section("Over the run", text, figures)


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


def _verdicts(history: History, points: Sequence[tuple[int, float]]) -> Iterator[Mark]:
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


def layers(history: History) -> Iterator[Section]:
    """Yield the channels and the weights of each layer before and after."""
    if history.before is None or history.after is None:
        return
    held = {layer.name: layer for layer in history.after.layers}
    pairs = [(b, held[b.name]) for b in history.before.layers if len(b.shape) > 1 and b.name in held]
    figures: list[Figure] = []
    if any(before.shape != after.shape for before, after in pairs):
        rows = tuple((b.name or "(root)", (_width(b), _width(a))) for b, a in pairs)
        figures.append(Bars(WIDTHS, "channels", ("before", "after"), rows))
    shares = tuple((b.name or "(root)", ((a.parameters - a.zeros) / max(b.parameters - b.zeros, 1),)) for b, a in pairs)
    if shares:
        note = "Weights that are not zero, in percent of those that the layer had before."
        figures.append(Bars("Weights left per layer", "of the layer", ("left",), shares, note, is_share=True))
    if figures:
        yield Section("Layers before and after", "Which layers shrank, and by how much.", figures)


def _width(layer: LayerSummary) -> float:
    axis = 1 if layer.kind.startswith(("ConvTranspose", "Embedding")) else 0
    return float(layer.shape[axis])


def scores(history: History) -> Iterator[Section]:
    """Yield the scores of the last event as histograms, with the line below which units went."""
    latest = {one.name: one for one in history.scores}
    if latest:
        text = (
            "The scores by which the last event that took something ranked what was there; what lies below the cut"
            " went. A cut through a valley costs little; one through the crowd takes units that count as much as those"
            " that stay."
        )
        yield Section("Scores and the cut", text, [_histogram(one) for one in latest.values()])


def _histogram(one: Scores) -> Plot:
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


def made(history: History) -> Iterator[Section]:
    """Yield how the fit was made."""
    if history.origin:
        text = "What it takes to do it again."
        yield Section("How it was made", text, table=Table(("", "of the fit"), tuple(history.origin.items())))


def of_advice(advice: Advice) -> Iterator[Section]:
    """Yield the verdict, what speaks for and against it, and what to try first."""
    side = {True: "for pruning", False: "against it", None: "to know"}
    rows = [(side[one.speaks_for], one.text) for one in advice.findings]
    rows += [("to try first" if advice.prune else "instead", text) for text in advice.first]
    yield Section("Advice", f"Prune: {'yes' if advice.prune else 'no'}.", table=Table(("", "finding"), tuple(rows)))


def of_sensitivity(curve: Sensitivity) -> Iterator[Section]:
    """Yield the metric of each layer or channel group at each level, as a heat map."""
    figure = HeatMap(
        title=f"{curve.metric} with one layer pruned",
        rows=tuple(curve.metrics),
        columns=tuple(map(share, curve.levels)),
        column_label=f"removed, {curve.granularity.partition('(')[0].lower()}s of this one alone",
        values=tuple(tuple(values) for values in curve.metrics.values()),
        unit=curve.metric,
        note=f"With nothing pruned: {brief(curve.base)}. The stronger the colour, the more is lost.",
        is_low_strong=curve.higher_is_better,
    )
    text = "What each layer or channel group stands, alone and without training; the rest of the model is whole."
    yield Section("Sensitivity", text, [figure])


def of_significance(measured: Significance) -> Iterator[Section]:
    """Yield, where units were removed to prove it, the true change of the loss against the score of each criterion."""
    deletion = measured.deletion
    if deletion is None:
        return
    figures = []
    for criterion, table in measured.tables.items():
        points = [
            (f"{name}[{index}]", float(table[name].flatten()[index]), abs(change))
            for (name, index), change in zip(deletion.units, deletion.changes, strict=True)
        ]
        notes = {name: f"{name}: score {brief(x)}, change {brief(y)}" for name, x, y in points}
        plot = Plot(
            title=criterion,
            x=Axis("score", is_log=True),
            y=Axis("size of the true change of the loss", is_log=True),
            marks=(Dots("unit", tuple(Dot(x, y, "", notes[n]) for n, x, y in points if x > 0 < y), shape="ring"),),
            table=Table(
                ("unit", "score", "true change of the loss"), tuple((n, f"{x:.4g}", f"{y:.4g}") for n, x, y in points)
            ),
            note=f"rank correlation {brief(deletion.correlations.get(criterion, math.nan))} over {len(points):,} units",
        )
        figures.append(plot)
    text = (
        f"{len(deletion.units):,} units were removed one at a time and put back. A criterion that can be believed"
        " gives low scores to those whose loss hardly changes."
    )
    yield Section("Can the scores be believed?", text, figures)


_COSTS = {"macs": "MACs", "effective_macs": "MACs with a weight that is not zero", "bytes": "memory (bytes)"}


def of_comparison(compared: Comparison) -> Iterator[Section]:
    """Yield the metric of each recipe and of the dense networks against what was made equal, with spread over seeds."""
    cost, metric = _COSTS[compared.equal], compared.metric
    notes = {
        row.name: f"{row.name}: {metric} {brief(row.mean)} ± {brief(row.spread)}, {cost} {brief(row.cost)}"
        for row in compared
    }
    dots = {row.name: Dot(row.cost, row.mean, row.name, notes[row.name], row.spread) for row in compared}
    marks = (
        Dots("recipe", tuple(dots[row.name] for row in compared if not row.is_control)),
        Dots("dense network", tuple(dots[row.name] for row in compared if row.is_control), Tone.SECOND, "ring"),
    )
    costs = [row.cost for row in compared if row.cost > 0]
    axis = Axis(cost, is_log=bool(costs) and max(costs) > 4 * min(costs))
    table = compared.table()
    text = (
        f"Every side was trained for {compared.epochs:,} epochs with {len(compared.rows[0].outcomes):,} seeds; bars are"
        f" the standard deviation over these. {'Higher' if compared.higher_is_better else 'Lower'} is better. A recipe"
        " is worth its trouble where it beats the small dense network of the same cost."
    )
    plot = Plot(f"{metric} against {cost}", axis, Axis(metric), marks, table)
    yield Section("Recipes beside each other", text, [plot], table)
