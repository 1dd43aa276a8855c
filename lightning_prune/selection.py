"""Which units go: scores + shares + granularity + channel groups -> boolean masks; pure tensor maths.

Two kinds of units have the same four questions to answer (:class:`Units`): those inside one target
(:class:`ElementUnits`) and channels, which span layers (:class:`ChannelUnits`).
"""

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from lightning_prune.allocation import Candidates
from lightning_prune.criteria import Scores
from lightning_prune.errors import CheckpointError, PruningError
from lightning_prune.granularity import Block, Channel, Element, Granularity, NOfM
from lightning_prune.graph import ChannelGroup, ChannelGroups
from lightning_prune.ranking import keep_mask
from lightning_prune.shards import ALONE, Spread
from lightning_prune.targets import Target

Masks = Mapping[str, Tensor]
"""Dense name -> bool mask of the parameter's shape, True = keep."""

ALL: Masks = MappingProxyType({})
"""For ``in_play``: no weight has left with a channel of another recipe."""


class Units(Protocol):
    """The units that one recipe may remove from one model."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Dense name -> shape of every parameter that gets a mask."""
        ...

    @property
    def weights(self) -> Sequence[str]:
        """Dense names of the targets among them: the weights that the units are made of, or the channels by."""
        ...

    @property
    def sizes(self) -> Mapping[str, int]:
        """Target or channel group -> number of its units."""
        ...

    def most_removable(self) -> dict[str, int]:
        """Return how many units of each target or channel group may go at most."""
        ...

    def sparsity(self, masks: Masks, in_play: Masks = ALL) -> float:
        """Return what share of the units' own measure (weights of the targets; channels) is gone."""
        ...

    def candidates(self, scores: Scores, masks: Masks, in_play: Masks = ALL) -> Candidates:
        """Return every unit with its score: -inf where the masks removed it already."""
        ...

    def removed(self, shares: Mapping[str, float], candidates: Candidates) -> dict[str, int]:
        """Return how many units go per name, those removed already included."""
        ...

    def densities(self, removed: Mapping[str, int]) -> dict[str, float]:
        """Return the share of each parameter's elements that is left when so many units go."""
        ...

    def masks(self, candidates: Candidates, removed: Mapping[str, int], scores: Scores) -> Iterator[tuple[str, Tensor]]:
        """Yield (dense name, bool mask) of every masked parameter, one at a time."""
        ...


@dataclass(frozen=True)
class ElementUnits:
    """Units inside single targets: weights, n:m blocks, blocks.

    Args:
        granularity: how a target is cut into units.
        targets: what may be pruned.
    """

    granularity: Granularity
    targets: tuple[Target, ...]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Dense name -> shape of every target."""
        return {target.name: target.shape for target in self.targets}

    @property
    def weights(self) -> list[str]:
        """Dense names of the targets."""
        return [target.name for target in self.targets]

    @property
    def sizes(self) -> dict[str, int]:
        """Target -> number of its units."""
        return {t.name: self.granularity.units(torch.empty(t.shape, device="meta"), t).numel() for t in self.targets}

    def check_spread(self, spread: Spread) -> None:
        """Refuse rows of targets that cut units apart.

        Raises:
            PruningError: a unit lies on several ranks, or may.
        """
        for target in self.targets:
            if not _holds_units(self.granularity, spread.rows[target.name], target):
                first, stop = spread.rows[target.name]
                raise PruningError(
                    f"{target.name} is sharded by rows, of which this rank holds {first} to {stop}, and units of"
                    f" {self.granularity} may lie on several ranks: use Element(), other targets, or another number of"
                    " ranks"
                )

    def most_removable(self) -> dict[str, int]:
        """Return every unit of every target."""
        return self.sizes

    def sparsity(self, masks: Masks, in_play: Masks = ALL) -> float:
        """Return the share of the weights in units that is masked out; only of those in play, where that is stated."""
        gone = whole = 0
        for target in self.targets:
            mask = masks[target.name][in_play[target.name]] if target.name in in_play else masks[target.name]
            gone += mask.numel() - int(torch.count_nonzero(mask))
            whole += mask.numel() if target.name in in_play else self.granularity.within(target)
        return gone / max(whole, 1)

    def candidates(self, scores: Scores, masks: Masks, in_play: Masks = ALL) -> Candidates:
        """Return every unit; for single weights the scores are computed only when they are read."""
        spread = scores.spread
        if isinstance(self.granularity, Element) and in_play:
            mine = {t.name: in_play.get(t.name, torch.ones_like(masks[t.name])) for t in self.targets}
            units = {name: scores[name][spread.own(name, inside)] for name, inside in mine.items()}
            return replace(_candidates(units, self.shapes, scores.dtype, spread), in_play=mine)
        if isinstance(self.granularity, Element):
            sizes = self.sizes
            before = {name: size - int(torch.count_nonzero(masks[name])) for name, size in sizes.items()}
            return Candidates(scores, self.shapes, sizes, before, scores.dtype, spread=spread)
        units = {}
        for target in self.targets:
            gone = self.granularity.removed(spread.own(target.name, masks[target.name]), target)
            of_target = self.granularity.units(finite(scores[target.name]), target)
            units[target.name] = of_target.masked_fill(gone, -torch.inf)
        return _candidates(units, self.shapes, scores.dtype, spread)

    def removed(self, shares: Mapping[str, float], candidates: Candidates) -> dict[str, int]:
        """Return how many units go per target: exact in the sum."""
        return apportion(shares, candidates.sizes, candidates.removed)

    def densities(self, removed: Mapping[str, int]) -> dict[str, float]:
        """Return the share of each target's weights that is left."""
        return {t.name: 1 - self.granularity.zeros(removed[t.name], t) / math.prod(t.shape) for t in self.targets}

    def masks(self, candidates: Candidates, removed: Mapping[str, int], scores: Scores) -> Iterator[tuple[str, Tensor]]:
        """Yield the mask of each target."""
        for target in self.targets:
            keep = keep_highest(candidates, target.name, removed[target.name])
            own = self._own_mask(target, keep, candidates, scores)
            yield target.name, candidates.spread.gather(target.name, own, target.shape)

    def _own_mask(self, target: Target, keep: Tensor, candidates: Candidates, scores: Scores) -> Tensor:
        """Return the mask of the rows that this rank looks at, from the units in them that stay (bool, flat)."""
        if target.name in candidates.in_play:
            inside = candidates.spread.own(target.name, candidates.in_play[target.name])
            return torch.ones_like(inside).masked_scatter_(inside, keep)
        if isinstance(self.granularity, Element):
            return keep.view(candidates.spread.own_shape(target.name, target.shape))
        keep = keep.view(candidates.scores[target.name].shape)
        return self.granularity.elements(keep, scores[target.name], target)


@dataclass(frozen=True)
class ChannelUnits:
    """Channels: everything in all layers that goes with one.

    Args:
        granularity: bounds on the widths.
        groups: the channel groups that may shrink.
        shapes: dense name -> shape of every member parameter; other members (buffers) carry no mask.
        found: all channel groups of the model.
    """

    granularity: Channel
    groups: tuple[ChannelGroup, ...]
    shapes: Mapping[str, tuple[int, ...]]
    found: ChannelGroups

    def only(self, names: Sequence[str], parameters: Collection[str]) -> "ChannelUnits":
        """Return the units of these channel groups alone.

        Args:
            names: of channel groups.
            parameters: dense names of the model's parameters, which carry masks where buffers do not.

        Raises:
            CheckpointError: there is no such group.
        """
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

    def sparsity(self, masks: Masks, in_play: Masks = ALL) -> float:
        """Return the share of the channels that are masked out everywhere."""
        return sum(int(gone.sum()) for gone in self.gone(masks).values()) / sum(self.sizes.values())

    def _members(self) -> dict[str, list[tuple[ChannelGroup, int, Tensor]]]:
        """Return the (group, axis, indices (size, per channel)) that lie in each masked parameter."""
        members: dict[str, list[tuple[ChannelGroup, int, Tensor]]] = defaultdict(list)
        for group in self.groups:
            for member in group.members:
                if member.parameter in self.shapes:
                    members[member.parameter].append((group, member.axis, torch.from_numpy(member.indices)))
        return members

    def candidates(self, scores: Scores, masks: Masks, in_play: Masks = ALL) -> Candidates:
        """Return every channel; its score is the sum over all weights that go with it."""
        totals = {group.name: torch.zeros(group.size, dtype=torch.float64) for group in self.groups}
        for parameter, members in self._members().items():
            if parameter in scores:
                values = finite(scores[parameter])
                for group, axis, indices in members:
                    along = _sum_along(values, axis).cpu().double()
                    if axis == 0 and scores.spread.is_sharded:
                        along = scores.spread.in_place(parameter, along, self.shapes[parameter][0])
                    totals[group.name] += along[indices].sum(dim=1)
        totals = {name: scores.spread.sum(total) for name, total in totals.items()}
        gone = self.gone(masks)
        units = {name: total.masked_fill(gone[name], -torch.inf) for name, total in totals.items()}
        shapes = {group.name: self.shapes[self._made_by(group)[0]] for group in self.groups}
        return _candidates(units, shapes, torch.float64)

    def _made_by(self, group: ChannelGroup) -> list[str]:
        names = (member.parameter for member in group.members if member.role == "output")
        return [name for name in dict.fromkeys(names) if len(self.shapes.get(name, ())) > 1]

    def gone(self, masks: Masks) -> dict[str, Tensor]:
        """Return for each group which channels (bool, shape (size,)) are masked out everywhere."""
        alive = {group.name: torch.zeros(group.size, dtype=torch.bool) for group in self.groups}
        for parameter, members in self._members().items():
            for group, axis, indices in members:
                along = _sum_along(masks[parameter].to(torch.int32), axis).cpu() > 0
                alive[group.name] |= along[indices].any(dim=1)
        return {name: ~some for name, some in alive.items()}

    def removed(self, shares: Mapping[str, float], candidates: Candidates) -> dict[str, int]:
        """Return how many channels go per group, moved to a width that the granularity allows.

        A kept width is rounded down to the next allowed one; it never grows again.
        """
        wanted = apportion(shares, candidates.sizes, candidates.removed)
        result: dict[str, int] = {}
        for group in self.groups:
            widths = self.granularity.widths(group.size)
            kept = next((width for width in widths if width <= group.size - wanted[group.name]), widths[-1])
            result[group.name] = max(group.size - kept, candidates.removed[group.name])
        return result

    def densities(self, removed: Mapping[str, int]) -> dict[str, float]:
        """Return the share of each member parameter that is left."""
        lost: dict[tuple[str, int], int] = defaultdict(int)
        for parameter, members in self._members().items():
            for group, axis, indices in members:
                lost[parameter, axis] += removed[group.name] * indices.shape[1]
        left: dict[str, float] = {}
        for (parameter, axis), count in lost.items():
            left[parameter] = left.get(parameter, 1.0) * (1 - count / self.shapes[parameter][axis])
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


def _holds_units(granularity: Granularity, rows: tuple[int, int], target: Target) -> bool:
    """Say whether these rows of a target hold whole units only; of an unknown granularity nobody can tell."""
    if isinstance(granularity, NOfM):
        return target.input_axis != 0
    if isinstance(granularity, Block):
        return all(row % granularity.shape[0] == 0 for row in rows)
    return isinstance(granularity, Element)


def _candidates(
    units: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    spread: Spread = ALONE,
) -> Candidates:
    own = [(scores.numel(), int((scores == -torch.inf).sum())) for scores in units.values()]
    counts = dict(zip(units, spread.sum(torch.tensor(own)).tolist(), strict=True))
    sizes = {name: size for name, (size, _) in counts.items()}
    removed = {name: gone for name, (_, gone) in counts.items()}
    return Candidates(units, shapes, sizes, removed, dtype, spread=spread)


def apportion(shares: Mapping[str, float], sizes: Mapping[str, int], removed: Mapping[str, int]) -> dict[str, int]:
    """Return how many units go from each name, so that the sum is exactly round(sum of share * size).

    Each gets the floor of share * size; what is missing goes to the largest remainders, ties to the first name. Where
    more is removed already than that, it stays removed and the others give way in proportion; only when more is
    removed in all is the sum larger.

    Raises:
        ValueError: the shares are not one number in [0, 1] for each name.

    Example:
        >>> apportion({"a": 0.5, "b": 0.5}, {"a": 3, "b": 3}, {"a": 0, "b": 0})
        {'a': 2, 'b': 1}
    """
    if set(shares) != set(sizes):
        odd = sorted(set(shares) ^ set(sizes))
        raise ValueError(f"the allocation must return one share for each target; that is not so for {odd[:5]}")
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"the allocation gave {name} the share {share!r}; it must lie in [0, 1]")
    wanted = {name: shares[name] * sizes[name] for name in sizes}
    total = max(round(sum(wanted.values())), sum(removed.values()))
    exact = _above(wanted, removed)
    # a share that is k / size in floating point must give k
    result = {name: math.floor(exact[name] + 1e-9) for name in sizes}
    missing = total - sum(result.values())
    for name in sorted(sizes, key=lambda name: result[name] - exact[name])[:missing]:
        result[name] += 1
    return result


def _above(wanted: Mapping[str, float], least: Mapping[str, int]) -> dict[str, float]:
    """Return numbers with the sum of ``wanted`` that are nowhere below ``least``; those above it give in proportion."""
    total = sum(wanted.values())
    at_least: dict[str, float] = {}
    while True:
        free = {name: number for name, number in wanted.items() if name not in at_least}
        left = max(0.0, total - sum(at_least.values()))
        scale = left / sum(free.values()) if at_least and any(free.values()) else 1.0
        below = {name: float(least[name]) for name, number in free.items() if number * scale < least[name]}
        if not below:
            return {name: at_least.get(name, number * scale) for name, number in wanted.items()}
        at_least |= below


def keep_highest(candidates: Candidates, name: str, k: int) -> Tensor:
    """Return which units of one name stay (bool, flat) when its k lowest go."""
    cut = candidates.cut_of(name, k)
    kept = []
    for piece in candidates.pieces(name):
        mask, cut = keep_mask(piece, cut)
        kept.append(mask)
    return torch.cat(kept)


def finite(scores: Tensor) -> Tensor:
    """Return the scores with 0 where they are -inf (pruned), so that sums over units stay finite."""
    return scores.masked_fill(scores == -torch.inf, 0)


def _sum_along(values: Tensor, axis: int) -> Tensor:
    return values.movedim(axis, 0).flatten(1).sum(dim=1) if values.dim() > 1 else values
