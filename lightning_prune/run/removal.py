"""Channels that leave while training goes on: what has left, and what goes next."""

from collections.abc import Collection, Sequence

import torch
from torch import nn

from lightning_prune.compaction import Compaction, applied_plan
from lightning_prune.selection import ChannelUnits, Masks


def removed_since(model: nn.Module, base: Compaction | None) -> Compaction | None:
    """Return what the model has lost since it had the shape of ``base`` (None: that it was built with)."""
    applied = applied_plan(model)
    return applied if applied is None or base is None else applied.beyond(base)


def next_removal(
    units: Sequence[ChannelUnits], masks: Masks, done: Compaction | None, stay: Collection[str]
) -> Compaction | None:
    """Plan to remove what is masked out entirely and still there.

    Args:
        units: of the recipes that remove channels, from one trace of the model.
        masks: in the shapes of the beginning; what has left already is False.
        done: what has left since the beginning.
        stay: channel groups that are not to be tried again.

    Returns:
        The plan for the model as it is now; None when nothing goes.
    """
    whole: Compaction | None = None
    for one in units:
        keep = {name: torch.nonzero(~gone).flatten() for name, gone in one.gone(masks).items() if name not in stay}
        # of its own trace: what may go over a normalisation differs between the recipes
        part = Compaction.from_keep(one.found, keep)
        whole = part if whole is None else whole.beside(part)
    if whole is None:
        return None
    plan = whole if done is None else whole.beyond(done)
    return plan if plan.removals else None
