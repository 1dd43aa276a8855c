"""Which channels of a channel group stay: given by index, or read off masks."""

from collections.abc import Collection, Mapping

import numpy as np
from torch import Tensor

from lightning_prune.compaction.entries import Entries, ints, merge
from lightning_prune.graph import ChannelGroup, ChannelGroups


def named(groups: ChannelGroups, name: str) -> ChannelGroup:
    """Return the prunable channel group of this name.

    Raises:
        ValueError: there is none, or it is not prunable.
    """
    group = next((group for group in groups if group.name == name), None)
    if group is None:
        raise ValueError(f"there is no channel group {name!r}; print(channel_groups(model, inputs)) lists them")
    if not group.prunable:
        raise ValueError(f"channel group {name!r} cannot be pruned: {group.reason}; leave it out of the plan")
    return group


def checked(group: ChannelGroup, indices: Collection[int] | Tensor) -> np.ndarray:
    """Return the indices of channels to keep, sorted.

    Raises:
        TypeError: they are no ints.
        ValueError: there are none, or one is outside the channel group or stands twice.
    """
    if isinstance(indices, int):
        raise TypeError(f"channels to keep of {group.name!r} must be a list of indices, got {indices!r}")
    kept = np.asarray(indices.tolist() if isinstance(indices, Tensor) else list(indices))
    who, allowed = f"channels to keep of {group.name!r}", f"distinct ints in [0, {group.size})"
    if kept.size == 0:
        raise ValueError(f"{who} are none, so nothing of it would be left; keep at least one, {allowed}")
    if kept.ndim != 1 or not np.issubdtype(kept.dtype, np.integer):
        raise TypeError(f"{who} must be {allowed}, got {kept.tolist()!r}")
    bad = kept[(kept < 0) | (kept >= group.size)]
    if bad.size or len(np.unique(kept)) < len(kept):
        raise ValueError(f"{who} must be {allowed}, got {f'{bad[0]}' if bad.size else 'one of them twice'}")
    return np.sort(kept)


def entries_without(group: ChannelGroup, kept: np.ndarray) -> Entries:
    """Return the entries of all channels but the kept ones."""
    gone = np.setdiff1d(np.arange(group.size), kept)
    return merge({member.parameter: {member.axis: ints(member.indices[gone])}} for member in group.members)


def masked_out(group: ChannelGroup, masks: Mapping[str, Tensor], parameters: Collection[str]) -> np.ndarray:
    """Return which channels of the group are masked out in every parameter; shape (size,)."""
    dead = np.ones(group.size, dtype=bool)
    for member in group.members:
        if member.parameter in parameters:
            if member.parameter not in masks:
                return np.zeros(group.size, dtype=bool)
            mask = masks[member.parameter]
            others = [axis for axis in range(mask.dim()) if axis != member.axis]
            alive = (mask.any(dim=others) if others else mask).cpu().numpy()
            dead &= ~alive[member.indices].any(axis=1)
    return dead
