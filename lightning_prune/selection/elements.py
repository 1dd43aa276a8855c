"""Units inside single targets: weights, n:m blocks, blocks."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_prune.criteria import Scores
from lightning_prune.distributed.shards import Spread
from lightning_prune.distributed.threads import one_thread
from lightning_prune.errors import PruningError
from lightning_prune.selection.allocation import Candidates
from lightning_prune.selection.counts import apportion, candidates_of, finite, keep_highest
from lightning_prune.selection.granularity import Granularity
from lightning_prune.selection.targets import Target
from lightning_prune.selection.units import ALL, Masks


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

    def chosen(self) -> None:
        """Return None: the targets stay what they are."""

    def only(self, names: Sequence[str] | None, parameters: Collection[str]) -> "ElementUnits":
        """Return the units of these targets alone; None: all."""
        return self if names is None else replace(self, targets=tuple(t for t in self.targets if t.name in names))

    def check_spread(self, spread: Spread) -> None:
        """Refuse rows of targets that cut units apart.

        Raises:
            PruningError: a unit lies on several ranks, or may.
        """
        for target in self.targets:
            if not self.granularity.is_whole_in(spread.rows[target.name], target):
                first, stop = spread.rows[target.name]
                raise PruningError(
                    f"{target.name} is sharded by rows, of which this rank holds {first} to {stop}, and units of"
                    f" {self.granularity} may lie on several ranks: use Element(), other targets, or another number of"
                    " ranks"
                )

    def most_removable(self) -> dict[str, int]:
        """Return every unit of every target."""
        return self.sizes

    def standing(self, masks: Masks, in_play: Masks = ALL) -> tuple[float, Masks]:
        """Return the share of the weights in units that is masked out, and the masks: nothing goes along.

        Only of those in play, where that is stated.
        """
        gone = whole = 0
        for target in self.targets:
            mask = masks[target.name][in_play[target.name]] if target.name in in_play else masks[target.name]
            gone += mask.numel() - int(torch.count_nonzero(mask))
            whole += mask.numel() if target.name in in_play else self.granularity.within(target)
        return gone / max(whole, 1), masks

    @one_thread()
    def candidates(self, scores: Scores, masks: Masks, in_play: Masks = ALL) -> Candidates:
        """Return every unit; for single weights the scores are computed only when they are read."""
        spread = scores.spread
        if self.granularity.is_single and in_play:
            mine = {t.name: in_play.get(t.name, torch.ones_like(masks[t.name])) for t in self.targets}
            units = {name: scores[name][spread.own(name, inside)] for name, inside in mine.items()}
            return replace(candidates_of(units, self.shapes, scores.dtype, spread), in_play=mine)
        if self.granularity.is_single:
            sizes = self.sizes
            before = {name: size - int(torch.count_nonzero(masks[name])) for name, size in sizes.items()}
            return Candidates(scores, self.shapes, sizes, before, scores.dtype, spread=spread)
        units = {}
        for target in self.targets:
            gone = self.granularity.removed(spread.own(target.name, masks[target.name]), target)
            of_target = self.granularity.units(finite(scores[target.name]), target)
            units[target.name] = of_target.masked_fill(gone, -torch.inf)
        return candidates_of(units, self.shapes, scores.dtype, spread)

    def removed(self, shares: Mapping[str, float], candidates: Candidates) -> dict[str, int]:
        """Return how many units go per target: exact in the sum."""
        return apportion(shares, candidates.sizes, candidates.removed)

    def densities(self, removed: Mapping[str, float]) -> dict[str, float]:
        """Return the share of each target's weights that is left."""
        return {
            t.name: 1 - self.granularity.zeros(round(removed[t.name]), t) / math.prod(t.shape) for t in self.targets
        }

    def masks(self, candidates: Candidates, removed: Mapping[str, int], scores: Scores) -> Iterator[tuple[str, Tensor]]:
        """Yield the mask of each target."""
        for target in self.targets:
            keep = keep_highest(candidates, target.name, removed[target.name])
            if target.name in candidates.in_play:
                inside = candidates.spread.own(target.name, candidates.in_play[target.name])
                own = torch.ones_like(inside).masked_scatter_(inside, keep)
            elif self.granularity.is_single:
                own = keep.view(candidates.spread.own_shape(target.name, target.shape))
            else:
                keep = keep.view(candidates.scores[target.name].shape)
                own = self.granularity.elements(keep, scores[target.name], target)
            yield target.name, candidates.spread.gather(target.name, own, target.shape)
