"""Shares of units -> whole numbers of them, and which ones those are."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_prune.distributed.shards import ALONE, Spread
from lightning_prune.selection.allocation import Candidates
from lightning_prune.selection.ranking import keep_mask


def candidates_of(
    units: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    spread: Spread = ALONE,
) -> Candidates:
    """Return the scores of all units as candidates: -inf where one has gone already."""
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


def means(candidates: Candidates) -> dict[str, float]:
    """Return the mean of the absolute scores of each name's units that are still there; 1 where that is none or 0."""
    left = {name: units[units != -torch.inf] for name, units in candidates.scores.items()}
    return {name: (float(units.abs().mean()) if len(units) else 0.0) or 1.0 for name, units in left.items()}
