"""Dense, masked, compact, int8: the versions of one model beside each other, in a table and as a trade-off."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lightning_prune.model.summary import Summary
from lightning_prune.study.report._figures import Axis, Dot, Dots, Line, Mark, Plot, Section, Tone
from lightning_prune.study.report._numbers import brief, share, whole
from lightning_prune.study.report.history import History
from lightning_prune.study.tried import Tried
from lightning_prune.tables import Table

if TYPE_CHECKING:
    from lightning_prune.deploy import Artifact, Timing


@dataclass(frozen=True)
class Variant:
    """One version of a model; None where something is not known.

    Args:
        name: as the user calls it.
        quality: the metric.
        quality_spread: how far it may lie off; 0 where nobody says so.
        parameters: number of parameters.
        nonzero: how many of them are not zero.
        macs: multiply-accumulates of one run.
        effective_macs: of those, the ones with a weight that is not zero.
        memory_bytes: of parameters and buffers.
        file_bytes: of the .pte.
        zipped_bytes: of the .pte after deflate.
        milliseconds: median latency.
        spread_ms: interquartile range of the latency.
    """

    name: str
    quality: float | None = None
    parameters: int | None = None
    nonzero: int | None = None
    macs: int | None = None
    effective_macs: int | None = None
    memory_bytes: int | None = None
    file_bytes: int | None = None
    zipped_bytes: int | None = None
    milliseconds: float | None = None
    spread_ms: float | None = None
    quality_spread: float = 0.0


def variants(
    models: Mapping[str, Summary],
    artifacts: Mapping[str, "Artifact"],
    latencies: Mapping[str, "Timing"],
    quality: Mapping[str, float],
    quality_spread: Mapping[str, float],
) -> tuple[Variant, ...]:
    """Return one variant for each name, in the order in which names appear; a file's facts come before a model's."""
    found = []
    for name in dict.fromkeys((*models, *artifacts, *latencies, *quality)):
        model, file, time = models.get(name), artifacts.get(name), latencies.get(name)
        measured = next((value for where, value in (file.metrics if file else {}).items() if where != "eager"), None)
        found.append(
            Variant(
                name=name,
                quality=quality.get(name, measured),
                quality_spread=quality_spread.get(name, 0.0),
                parameters=file.parameters if file else model.parameters if model else None,
                nonzero=file.nonzero_parameters if file else model.parameters - model.zeros if model else None,
                macs=file.macs if file else model.macs if model else None,
                effective_macs=model.effective_macs if model else None,
                memory_bytes=model.bytes if model else None,
                file_bytes=file.size_bytes if file else None,
                zipped_bytes=file.zipped_bytes if file else None,
                milliseconds=time.median_ms if time else None,
                spread_ms=time.spread_ms if time else None,
            )
        )
    return tuple(found)


def of_history(history: History, metric: str) -> tuple[Variant, ...]:
    """Return the model of a fit before, with the masks of its last event, and after; what is known of these."""
    before, after = history.before, history.after
    if before is None or after is None:
        return ()
    final = next((value for _, value in reversed(history.metrics.get(metric, ()))), None)
    found = [replace(_whole("before", before), quality=history.at_first(metric))]
    if history.events:
        last = history.events[-1]
        found.append(replace(found[0], name="masked", quality=final, nonzero=last.params, effective_macs=last.macs))
    return (*found, replace(_whole("after", after), quality=final))


def _whole(name: str, model: Summary) -> Variant:
    left = model.parameters - model.zeros
    return Variant(name, None, model.parameters, left, model.macs, model.effective_macs, model.bytes)


def table(known: Sequence[Variant], metric: str) -> Iterator[Section]:
    """Yield the table of the variants, with the columns of which something is known."""
    times = [
        "–"
        if one.milliseconds is None
        else f"{one.milliseconds:.3g}" + ("" if one.spread_ms is None else f" ± {one.spread_ms / 2:.2g}")
        for one in known
    ]
    columns = [
        (
            metric,
            [_quality(one.quality) + (f" ± {one.quality_spread:.2g}" if one.quality_spread else "") for one in known],
        ),
        ("parameters", [whole(one.parameters) for one in known]),
        ("not zero", [whole(one.nonzero) for one in known]),
        ("MACs", [whole(one.macs) for one in known]),
        ("MACs not zero", [whole(one.effective_macs) for one in known]),
        ("memory (bytes)", [whole(one.memory_bytes) for one in known]),
        (".pte (bytes)", [whole(one.file_bytes) for one in known]),
        ("zipped (bytes)", [whole(one.zipped_bytes) for one in known]),
        ("latency (ms)", times),
    ]
    columns = [(head, cells) for head, cells in columns if any(cell != "–" for cell in cells)]
    if not columns:
        return
    text = "What each version holds, costs and reaches. MACs are the multiply-accumulates of one run."
    if any(one.spread_ms is not None for one in known):
        text += " Latency is the median ± half the interquartile range."
    first, last = known[0], known[-1]
    costs = (("macs", "MACs"), ("file_bytes", "bytes of the file"), ("milliseconds", "time"))
    pairs = [(getattr(first, key), getattr(last, key), word) for key, word in costs]
    parts = [f"{share(after / before)} of the {word}" for before, after, word in pairs if before and after is not None]
    if len(known) > 1 and first.quality is not None and last.quality is not None:
        parts.append(f"a value of {_quality(last.quality)} to {_quality(first.quality)} in {metric}")
    if len(known) > 1 and parts:
        text += f" Beside “{first.name}”, “{last.name}” has {', '.join(parts)}."
    if last.quality is not None and first.quality is None:
        text += (
            f" What “{first.name}” reached is not known: run trainer.validate(…) ahead of the fit, or name it in"
            " Report(quality=…)."
        )
    rows = tuple((one.name, *(cells[index] for _, cells in columns)) for index, one in enumerate(known))
    yield Section("The models beside each other", text, table=Table(("model", *(head for head, _ in columns)), rows))


def _quality(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}" if math.isfinite(value) and abs(value) < 1e4 else brief(value)


@dataclass(frozen=True)
class Cost:
    """Something that a model costs: its name with the unit, and the field of a :class:`Variant` that holds it."""

    label: str
    field: str


COSTS = (
    Cost("latency (ms)", "milliseconds"),
    Cost(".pte (bytes)", "file_bytes"),
    Cost("memory (bytes)", "memory_bytes"),
    Cost("MACs", "macs"),
)


def pareto(found: Iterable[Variant], metric: str, is_higher_better: bool) -> Iterator[Section]:
    """Yield the metric against latency, bytes and MACs, with a line through the best of each size."""
    judged = [one for one in found if one.quality is not None and math.isfinite(one.quality)]
    figures = []
    for cost in COSTS:
        points = [(one, float(getattr(one, cost.field))) for one in judged if getattr(one, cost.field)]
        points = [(one, spent) for one, spent in points if 0 < spent < math.inf]
        is_choice = len({spent for _, spent in points}) > 1 < len({one.quality for one, _ in points})
        is_told_by_files = cost.field == "memory_bytes" and any(one.file_bytes for one in judged)
        if is_choice and not is_told_by_files:
            figures.append(_trade(points, cost, metric, is_higher_better))
    if figures:
        better = "up" if is_higher_better else "down"
        text = f"Better is to the left and {better}. No other model is both cheaper and better than one on the line."
        yield Section("Quality against cost", text, figures)


def of_tried(tried: Tried) -> Iterator[Section]:
    """Yield the metric of all networks that were tried, and of the dense one, against what each costs."""
    found = [Variant("dense", tried.base, tried.parameters, macs=tried.macs, milliseconds=tried.milliseconds)]
    for one in tried.attempts:
        name = f"{1 - one.asked:.1%}, chosen" if one is tried.best else f"{1 - one.asked:.1%}"
        found.append(Variant(name, one.metric, one.parameters, macs=one.macs, milliseconds=one.milliseconds))
    figures = [figure for section in pareto(found, tried.metric, tried.higher_is_better) for figure in section.figures]
    text = (
        f"How far the recipe could go: networks are named by what was to be left of their {tried.counted}, and"
        f" {tried.metric} may be {tried.max_drop:g} {'lower' if tried.higher_is_better else 'higher'} than that of the"
        " dense one."
    )
    yield Section("What was tried", text, figures, tried.table())


def _trade(points: Sequence[tuple[Variant, float]], cost: Cost, metric: str, is_higher_better: bool) -> Plot:
    dots = {(one.name, spent, one.quality or 0.0) for one, spent in points}
    # the front: cheapest first, those to which no other is at least as good in both
    sign, highest, best = 1 if is_higher_better else -1, -math.inf, []
    for dot in sorted(dots, key=lambda dot: (dot[1], -sign * dot[2], dot[0])):
        if sign * dot[2] > highest:
            highest = sign * dot[2]
            best.append(dot)
    notes = {name: f"{name}: {metric} {brief(quality)}, {cost.label} {brief(spent)}" for name, spent, quality in dots}
    spreads = {one.name: one.quality_spread for one, _ in points}
    on_line = tuple(Dot(spent, quality, name, notes[name], spreads[name]) for name, spent, quality in best)
    rest = tuple(Dot(x, y, name, notes[name], spreads[name]) for name, x, y in sorted(dots - set(best)))
    marks: list[Mark] = [Line("best of each size", tuple((dot.x, dot.y) for dot in on_line), Tone.MAIN, is_dashed=True)]
    marks.append(Dots("none better and cheaper", on_line, Tone.MAIN))
    marks += [Dots("others", rest, Tone.SECOND, "ring")] if rest else []
    rows = tuple((name, _quality(y), whole(x) if x >= 100 else f"{x:.4g}") for name, x, y in sorted(dots))
    table = Table(("model", metric, cost.label), rows)
    is_log = max(dot[1] for dot in dots) > 4 * min(dot[1] for dot in dots)
    return Plot(f"{metric} against {cost.label}", Axis(cost.label, is_log=is_log), Axis(metric), tuple(marks), table)
