"""What is said of a run: a line for each event, and a table at the end; text made of values."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from lightning_prune.guard import Trial, Verdict
from lightning_prune.recipe import Recipe
from lightning_prune.run.event import Event
from lightning_prune.selection import ChannelUnits
from lightning_prune.tables import aligned

_SHOWN = 3
"""Of names in a line; more are counted."""

_EXPECTED = ("input of the model", "model output")
"""Reasons for which channels stay in every network, so that nobody needs to be told."""


@dataclass(frozen=True)
class Size:
    """How large a network is.

    Args:
        parameters: that are not pruned.
        macs: multiply-accumulates that they make for one example input; None: not measured.
        bytes: of its parameters and buffers in memory.
        metrics: name -> value, as the last validation logged them.
    """

    parameters: int
    macs: int | None
    bytes: int
    metrics: Mapping[str, float] = field(default_factory=dict)


def event_line(event: Event, dense: Size, layers: Mapping[str, float] | None = None) -> str:
    """Return what an event did, in a line.

    Args:
        event: of the run.
        dense: the network before the first event.
        layers: dense name of each masked weight -> share of it that was pruned before the event, 0 where it is not
            named; None: nobody knows, and what changed most is left out.

    Example:
        >>> event = Event(9, 0.6, 0.6016, {"0.weight": 0.625, "2.weight": 0.5}, 122, None)
        >>> event_line(event, Size(276, None, 1104), {})
        'step 9: sparsity 0.6016 (asked 0.6000), 122 parameters (44%) left; most from 0 (0% -> 62% gone)'
    """
    left = [f"{event.params:,} parameters ({event.params / dense.parameters:.0%})"]
    if event.macs is not None:
        left.append(f"{event.macs:,} MACs" + (f" ({event.macs / dense.macs:.0%})" if dense.macs else ""))
    text = f"step {event.step}: sparsity {event.sparsity:.4f} (asked {event.asked:.4f}), {', '.join(left)} left"
    if event.repairs:
        text += f", {sum(repair.is_done for repair in event.repairs)} of {len(event.repairs)} layers repaired"
    lost = {} if layers is None else {name: share - layers.get(name, 0.0) for name, share in event.layers.items()}
    most = max(lost, key=lost.__getitem__, default="")
    if layers is not None and lost.get(most, 0.0) > 0:
        name = most.removesuffix(".weight")
        text += f"; most from {name} ({layers.get(most, 0.0):.0%} -> {event.layers[most]:.0%} gone)"
    return text


def repair_line(events: Sequence[Event]) -> str:
    """Return which events were not repaired that would have been, and why the last of them; "" for none.

    Example:
        >>> event = Event(9, 0.6, 0.6, {}, 122, None, unrepaired="Net is compiled")
        >>> repair_line([event])
        'not repaired: 1 of 1 event, for Net is compiled'
    """
    without = [event.unrepaired for event in events if event.unrepaired]
    of = f"{len(without)} of {len(events)} event{'s' if events[1:] else ''}"
    return f"not repaired: {of}, for {without[-1]}" if without else ""


def reached_line(recipe: Recipe, asked: float, reached: float) -> str:
    """Return in words what a recipe asked for in the end, and what was reached.

    Example:
        >>> from lightning_prune.schedules import OneShot
        >>> reached_line(Recipe(schedule=OneShot(0.5), count="macs"), 0.5, 0.503)
        'sparsity 0.5030 of the MACs (asked 0.5000)'
    """
    own = "channels" if recipe.is_structured else "weights"
    counted = {"params": "parameters", "macs": "MACs"}.get(recipe.count or "", own)
    counted = f"way to {recipe.need}" if recipe.need is not None else counted
    return f"sparsity {reached:.4f} of the {counted} (asked {asked:.4f})"


def staying(
    units: Sequence[ChannelUnits], masked: Mapping[str, int], removed: Collection[str] | None
) -> dict[str, str]:
    """Return the channel groups that are as wide as they were -> why.

    Args:
        units: of the recipes that remove channels.
        masked: channel group -> how many of its channels the events have masked out.
        removed: the groups that the finalized model has lost channels of; None: it is not finalized.
    """
    stay: dict[str, str] = {}
    for found in (own.found for own in units):
        stay |= {group.name: group.reason for group in found if not group.prunable}
    for own in units:
        stay |= own.stay
    for name, count in masked.items():
        stay.pop(name, None)  # another recipe may choose it
        if not count:
            stay[name] = "none of its channels ranked low enough"
        elif removed is not None and name not in removed:
            stay[name] = "its channels are zero, and removing them is not exact"
    return stay


def stay_line(stay: Mapping[str, str]) -> str:
    """Return which channel groups stay and why, in a line; "" where there is nothing to be told.

    Args:
        stay: channel group -> reason. The inputs and outputs of the model are left out.

    Example:
        >>> stay = {"a": "no target", "b": "layer norm", "c": "no target", "d": "model output"}
        >>> stay_line(stay)
        '3 channel groups stay: no target (a, c); layer norm (b)'
    """
    by_reason: dict[str, list[str]] = {}
    for name, reason in stay.items():
        if reason not in _EXPECTED:
            by_reason.setdefault(reason, []).append(name)
    if not by_reason:
        return ""
    count = sum(map(len, by_reason.values()))
    parts = [
        f"{reason} ({', '.join(names[:_SHOWN])}{f' and {len(names) - _SHOWN} more' if names[_SHOWN:] else ''})"
        for reason, names in by_reason.items()
    ]
    return f"{count} channel group{'s stay' if count > 1 else ' stays'}: {'; '.join(parts)}"


def guard_line(trials: Sequence[Trial]) -> str:
    """Return how many events a guard rolled back and why the last of them; "" for none.

    Example:
        >>> kept = Trial(9, {0: 0.0}, {0: 0.5}, outcome=Verdict.COMMIT)
        >>> why = "val_acc fell to 0.8"
        >>> failed = Trial(19, {0: 0.5}, {0: 0.7}, outcome=Verdict.ROLL_BACK, reason=why)
        >>> guard_line([kept, failed])
        'the guard rolled back 1 of 2 events: val_acc fell to 0.8'
    """
    failed = [trial for trial in trials if trial.outcome is Verdict.ROLL_BACK]
    return f"the guard rolled back {len(failed)} of {len(trials)} events: {failed[-1].reason}" if failed else ""


def closing(title: str, before: Size, after: Size, notes: Sequence[str] = ()) -> str:
    """Return the end of a run: a table of what was and what is, under a title and above some lines.

    Args:
        title: the first line.
        before: the network before the first event.
        after: as it is now.
        notes: further lines; empty ones are left out.

    Example:
        >>> before = Size(1000, None, 4000, {"val_acc": 0.9})
        >>> print(closing("pruned", before, Size(500, None, 2000, {"val_acc": 0.89})))
        pruned
                    before  after  left
        -------------------------------
        parameters   1,000    500   50%
        bytes        4,000  2,000   50%
        val_acc        0.9   0.89
    """
    pairs = [("parameters", before.parameters, after.parameters)]
    if before.macs is not None and after.macs is not None:
        pairs.append(("MACs", before.macs, after.macs))
    pairs.append(("bytes", before.bytes, after.bytes))
    rows = [("", "before", "after", "left")]
    rows += [(name, f"{was:,}", f"{now:,}", f"{now / was:.0%}" if was else "") for name, was, now in pairs]
    for name, value in after.metrics.items():
        rows.append((name, f"{before.metrics[name]:.4g}" if name in before.metrics else "-", f"{value:.4g}", ""))
    return "\n".join([title, aligned(rows), *filter(None, notes)])
