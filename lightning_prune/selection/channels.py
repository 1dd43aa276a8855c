"""Channels, which span layers."""

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import neg

import torch
from torch import Tensor

from lightning_prune.criteria import Scores
from lightning_prune.distributed.shards import Spread
from lightning_prune.distributed.threads import one_thread
from lightning_prune.errors import CheckpointError
from lightning_prune.graph import ChannelGroup, ChannelGroups
from lightning_prune.selection.allocation import Candidates
from lightning_prune.selection.counts import apportion, candidates_of, keep_highest
from lightning_prune.selection.granularity import Channel
from lightning_prune.selection.units import ALL, Masks


@dataclass(frozen=True)
class ChannelUnits:
    """Channels: everything in all layers that goes with one.

    Args:
        granularity: bounds on the widths.
        groups: the channel groups that may shrink.
        shapes: dense name -> shape of every member parameter; other members (buffers) carry no mask.
        found: all channel groups of the model.
        stay: those that could go by themselves and may not -> why, in words.
    """

    granularity: Channel
    groups: tuple[ChannelGroup, ...]
    shapes: Mapping[str, tuple[int, ...]]
    found: ChannelGroups
    stay: Mapping[str, str] = field(default_factory=dict)

    def chosen(self) -> list[str]:
        """Return the names of the channel groups."""
        return [group.name for group in self.groups]

    def check_spread(self, spread: Spread) -> None:
        """Take any rows: the parts of a channel's score are added up over the ranks."""

    def only(self, names: Sequence[str] | None, parameters: Collection[str]) -> "ChannelUnits":
        """Return the units of these channel groups alone.

        Args:
            names: of channel groups; None: none.
            parameters: dense names of the model's parameters, which carry masks where buffers do not.

        Raises:
            CheckpointError: there is no such group.
        """
        names = names or ()
        lacking = set(names) - {group.name for group in self.found if group.prunable}
        if lacking:
            raise CheckpointError(
                f"the checkpoint prunes channel group {min(lacking)!r}, which this model does not have; resume with the"
                " same model"
            )
        groups = tuple(self.found[name] for name in names)
        members = dict.fromkeys(member.parameter for group in groups for member in group.members)
        shapes = {name: self.found.shapes[name] for name in members if name in parameters}
        return replace(self, groups=groups, shapes=shapes)

    def keeping(self, share: float) -> "ChannelUnits":
        """Return the units of which each group keeps this share at least."""
        return replace(self, granularity=replace(self.granularity, min_share=share))

    @property
    def weights(self) -> list[str]:
        """Dense names of the weights that make the channels."""
        return [name for group in self.groups for name in self._made_by(group)]

    @property
    def sizes(self) -> dict[str, int]:
        """Channel group -> number of its channels."""
        return {group.name: group.size for group in self.groups}

    def most_removable(self) -> dict[str, int]:
        """Return what brings each group down to the narrowest allowed width."""
        return {group.name: group.size - self.granularity.widths(group.size)[-1] for group in self.groups}

    @cached_property
    def _held(self) -> list[tuple[str, str, ChannelGroup, int, Tensor]]:
        """What lies in a parameter: its name, the role, the group, the axis and the indices (size, per channel)."""
        return [
            (member.parameter, member.role, group, member.axis, torch.from_numpy(member.indices))
            for group in self.groups
            for member in group.members
            if member.parameter in self.shapes
        ]

    def _members(
        self, roles: Collection[str] = ("output", "input")
    ) -> dict[str, list[tuple[ChannelGroup, int, Tensor]]]:
        """Return the (group, axis, indices (size, per channel)) of these roles that lie in each parameter."""
        members: dict[str, list[tuple[ChannelGroup, int, Tensor]]] = defaultdict(list)
        for parameter, role, group, axis, indices in self._held:
            if role in roles:
                members[parameter].append((group, axis, indices))
        return members

    @cached_property
    def _widths(self) -> dict[int, tuple[int, ...]]:
        return {size: self.granularity.widths(size) for size in self.sizes.values()}

    def standing(self, masks: Masks, in_play: Masks = ALL) -> tuple[float, Masks]:
        """Return the share of the channels that are masked out everywhere, and what leaves with them.

        The latter are the masks, False as well at what goes along unmasked, such as the direction in weight norm.
        """
        gone, found = self.gone(masks), dict(masks)
        for parameter, members in self._members(("unmasked",)).items():
            mask = (
                found[parameter].clone() if parameter in found else torch.ones(self.shapes[parameter], dtype=torch.bool)
            )
            for group, axis, indices in members:
                mask.index_fill_(axis, indices[gone[group.name]].flatten().to(mask.device), False)
            found[parameter] = mask
        return sum(int(channels.sum()) for channels in gone.values()) / sum(self.sizes.values()), found

    @one_thread()
    def candidates(self, scores: Scores, masks: Masks, in_play: Masks = ALL) -> Candidates:
        """Return every channel; its score is the sum over all weights that go with it.

        Where neighbours have left, the mean over what is left of a weight's slice stands for the rest of it: a channel
        is not worth less because others went before, or each cut would call for the next one beside it.
        """
        totals = {group.name: torch.zeros(group.size, dtype=torch.float64) for group in self.groups}
        gone = self.gone(masks)
        lost = {name: int(channels.count_nonzero()) for name, channels in gone.items()}
        for parameter, members in self._members().items():
            if parameter not in scores:
                continue
            values = scores.filled(parameter, 0.0)
            left = dict.fromkeys((axis for _, axis, _ in members), 1.0)  # of each axis, the share
            for group, axis, indices in members:
                left[axis] -= lost[group.name] * indices.shape[1] / self.shapes[parameter][axis]
            for group, axis, indices in members:
                others = [other for other in range(values.dim()) if other != axis]
                along = (values.sum(dim=others) if others else values).cpu().double()
                if axis == 0 and scores.spread.is_sharded:
                    along = scores.spread.in_place(parameter, along, self.shapes[parameter][0])
                beside = math.prod(share for other, share in left.items() if other != axis)
                totals[group.name] += along[indices].sum(dim=1) / (beside or 1.0)
        totals = {name: scores.spread.sum(total) for name, total in totals.items()}
        units = {name: total.masked_fill(gone[name], -torch.inf) for name, total in totals.items()}
        shapes = {group.name: self.shapes[self._made_by(group)[0]] for group in self.groups}
        return candidates_of(units, shapes, torch.float64)

    def _made_by(self, group: ChannelGroup) -> list[str]:
        names = (member.parameter for member in group.members if member.role == "output")
        return [name for name in dict.fromkeys(names) if len(self.shapes.get(name, ())) > 1]

    def gone(self, masks: Masks) -> dict[str, Tensor]:
        """Return for each group which channels (bool, shape (size,)) are masked out everywhere."""
        alive = {group.name: torch.zeros(group.size, dtype=torch.bool) for group in self.groups}
        # the small masks first: a channel whose bias is there need not be looked for in the weights
        for parameter, members in sorted(self._members().items(), key=lambda item: math.prod(self.shapes[item[0]])):
            for group, axis, indices in members:
                unseen = ~alive[group.name]
                if bool(unseen.any()):
                    places, mask = indices[unseen], masks[parameter]
                    slices = mask.index_select(axis, places.flatten().to(mask.device))
                    others = [other for other in range(mask.dim()) if other != axis]
                    some = (slices.amax(dim=others) if others else slices).cpu()
                    alive[group.name][unseen] = some.view(places.shape).any(dim=1)
        return {name: ~some for name, some in alive.items()}

    def removed(self, shares: Mapping[str, float], candidates: Candidates) -> dict[str, int]:
        """Return how many channels go per group, moved to a width that the granularity allows.

        A kept width is rounded down to the next allowed one; it never grows again.
        """
        wanted = apportion(shares, candidates.sizes, candidates.removed)
        result: dict[str, int] = {}
        for group in self.groups:
            widths, most = self._widths[group.size], group.size - wanted[group.name]
            kept = widths[min(bisect_left(widths, -most, key=neg), len(widths) - 1)]
            result[group.name] = max(group.size - kept, candidates.removed[group.name])
        return result

    @cached_property
    def shares(self) -> dict[str, list[tuple[str, int, float]]]:
        """Parameter -> the groups that lie in it, each with its axis and the share of the axis that one channel has."""
        return {
            parameter: [
                (group.name, axis, indices.shape[1] / self.shapes[parameter][axis]) for group, axis, indices in members
            ]
            for parameter, members in self._members(("output", "input", "unmasked")).items()
        }

    def densities(self, removed: Mapping[str, float]) -> dict[str, float]:
        """Return the share of each member parameter that is left."""
        left = dict.fromkeys(self.shares, 1.0)
        for parameter, parts in self.shares.items():
            if any(removed[group] for group, _, _ in parts):
                axes = dict.fromkeys((axis for _, axis, _ in parts), 1.0)
                for group, axis, share in parts:
                    axes[axis] -= removed[group] * share
                left[parameter] = math.prod(axes.values())
        return left

    def masks(self, candidates: Candidates, removed: Mapping[str, int], scores: Scores) -> Iterator[tuple[str, Tensor]]:
        """Yield the mask of each member parameter."""
        yield from self._spread({g.name: keep_highest(candidates, g.name, removed[g.name]) for g in self.groups})

    def left(self, masks: Masks) -> dict[str, Tensor]:
        """Return of each member parameter what has not left with a channel: bool, True = still there."""
        return dict(self._spread({name: ~gone for name, gone in self.gone(masks).items()}))

    def _spread(self, keep: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for parameter, members in self._members().items():
            mask = torch.ones(self.shapes[parameter], dtype=torch.bool)
            for group, axis, indices in members:
                mask.index_fill_(axis, indices[~keep[group.name]].flatten(), False)
            yield parameter, mask
