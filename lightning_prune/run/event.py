"""The record of one pruning event, and what is to be said of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_prune.compensation import Repair
from lightning_prune.documents import typed
from lightning_prune.selection.allocation import Candidates
from lightning_prune.selection.granularity import Channel, Granularity

_HARDLY_ANY = 0.05
"""Of a layer's weights: with less left than this, most of its outputs see hardly any input."""

_FEW = 4
"""Of so few channels one may be left though no group lost more than another."""


@dataclass(frozen=True)
class Event:
    """What one pruning event did.

    Args:
        step: completed optimizer steps.
        asked: the sparsity that the schedule asked for.
        sparsity: the sparsity reached, in what the recipe counts.
        layers: dense name of each masked weight with two or more axes -> share of it that is pruned.
        params: parameters left in the whole network.
        macs: multiply-accumulates left in it; None without an example input.
        repairs: what repair did to each layer, in the order in which they run; empty without.
        thin: what it has left as a bottleneck, in words; see :func:`thin`.
        unrepaired: why it was not repaired, where the recipe leaves that open; empty where there is nothing to tell.
    """

    step: int
    asked: float
    sparsity: float
    layers: Mapping[str, float]
    params: int
    macs: int | None
    repairs: tuple[Repair, ...] = ()
    thin: tuple[str, ...] = ()
    unrepaired: str = ""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Event":
        """Return the event that ``dataclasses.asdict`` has described, also in an older version.

        Raises:
            TypeError: it is none.
        """
        return typed(cls, values)


def thin(
    candidates: Candidates, removed: Mapping[str, int], asked: float, granularity: Granularity | Channel
) -> tuple[str, ...]:
    """Say what has become a bottleneck at an event, which the sparsity of the network does not show.

    A name is told once, at the event at which it comes to that.

    Args:
        candidates: of the event.
        removed: target or channel group -> how many of its units are gone after it.
        asked: the sparsity of the event; layers count that lost clearly more than that.
        granularity: of the units.
    """
    sizes, before = candidates.sizes, candidates.removed
    if isinstance(granularity, Channel):
        most = {name: size - 2 if size > _FEW else size for name, size in sizes.items()}
        what, advice = "left with a single channel", "set Channel(min_share=…)"
    else:
        share = max(1 - _HARDLY_ANY, asked + 0.01)
        most = {name: share / granularity.full_sparsity * size for name, size in sizes.items()}
        what, advice = f"left with less than {1 - share:.1%} of the weights", "exclude it with Targets(exclude=…)"
    names = [name for name, gone in removed.items() if before[name] <= most[name] < gone]
    if not names:
        return ()
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")
    return (
        f"{shown}: {what} where sparsity {asked:.2g} was asked for, which is likely to hold the network back. Let more"
        f" be left, {advice}, or take the same share everywhere: allocation=Uniform()",
    )
