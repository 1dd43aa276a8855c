"""What studies found, as sections: which layers stand what, whether a criterion can be believed."""

import math
import statistics
from collections.abc import Iterator

from lightning_prune.study.advise import Advice
from lightning_prune.study.comparison import Comparison, Row
from lightning_prune.study.curve import Sensitivity
from lightning_prune.study.deletion import Deletion
from lightning_prune.study.report.figures import Axis, Dot, Dots, HeatMap, Plot, Section, Shape, Table, Tone
from lightning_prune.study.report.numbers import brief, share, whole
from lightning_prune.study.significance import Significance


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


def of_significance(found: Significance) -> Iterator[Section]:
    """Yield, where units were removed to prove it, the true change of the loss against the score of each criterion."""
    if found.deletion is None:
        return
    figures = [_proof(found, criterion, found.deletion) for criterion in found.tables]
    text = (
        f"{len(found.deletion.units):,} units were removed one at a time and put back. A criterion that can be believed"
        " gives low scores to those whose loss hardly changes."
    )
    yield Section("Can the scores be believed?", text, figures)


def _proof(found: Significance, criterion: str, deletion: Deletion) -> Plot:
    pairs = zip(deletion.units, deletion.changes, strict=True)
    points = [
        (f"{name}[{index}]", float(found.tables[criterion][name].flatten()[index]), abs(change))
        for (name, index), change in pairs
    ]
    correlation = deletion.correlations.get(criterion, math.nan)
    dots = tuple(Dot(x, y, "", f"{name}: score {brief(x)}, change {brief(y)}") for name, x, y in points if x > 0 < y)
    rows = tuple((name, f"{x:.4g}", f"{y:.4g}") for name, x, y in points)
    return Plot(
        title=criterion,
        x=Axis("score", is_log=True),
        y=Axis("size of the true change of the loss", is_log=True),
        marks=(Dots("unit", dots, Tone.MAIN, "ring"),),
        table=Table(("unit", "score", "true change of the loss"), rows),
        note=f"rank correlation {brief(correlation)} over {len(points):,} units",
    )


_COSTS = {"macs": "MACs", "effective_macs": "MACs with a weight that is not zero", "bytes": "memory (bytes)"}


def of_comparison(found: Comparison) -> Iterator[Section]:
    """Yield the metric of each recipe and of the dense networks against what was made equal, with spread over seeds."""
    cost, seeds = _COSTS[found.equal], len(found.rows[0].outcomes)
    kinds: tuple[tuple[str, bool, Tone, Shape], ...] = (
        ("recipe", False, Tone.MAIN, "circle"),
        ("dense network", True, Tone.SECOND, "ring"),
    )
    marks = tuple(
        Dots(name, tuple(_side(row, found, cost) for row in found if row.is_control is is_control), tone, shape)
        for name, is_control, tone, shape in kinds
    )
    costs = [row.cost for row in found if row.cost > 0]
    axis = Axis(cost, is_log=bool(costs) and max(costs) > 4 * min(costs))
    head = ("side", f"place at equal {cost}", f"{found.metric}, mean", "spread", cost, "parameters", "seconds per run")
    table = Table(head, tuple(_cells(row) for row in found))
    title = f"{found.metric} against {cost}"
    text = (
        f"Every side was trained for {found.epochs:,} epochs with {seeds:,} seeds; bars are the standard deviation over"
        f" these. {'Higher' if found.higher_is_better else 'Lower'} is better. A recipe is worth its trouble where it"
        " beats the small dense network of the same cost."
    )
    yield Section("Recipes beside each other", text, [Plot(title, axis, Axis(found.metric), marks, table)], table)


def _side(row: Row, found: Comparison, cost: str) -> Dot:
    note = f"{row.name}: {found.metric} {brief(row.mean)} ± {brief(row.spread)}, {cost} {brief(row.cost)}"
    return Dot(row.cost, row.mean, row.name, note, row.spread)


def _cells(row: Row) -> tuple[str, ...]:
    parameters = statistics.fmean(one.parameters for one in row.outcomes)
    seconds = statistics.fmean(one.seconds for one in row.outcomes)
    return (
        row.name,
        whole(row.rank),
        f"{row.mean:.4g}",
        f"± {row.spread:.2g}",
        whole(row.cost),
        whole(parameters),
        f"{seconds:.1f}",
    )
