"""Sees the scores that a run ranks by: an allocation that decides as the recipe's own does, and remembers."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from lightning_prune.selection.allocation import Allocation, Candidates
from lightning_prune.study.report.history import Scores

SAMPLE = 1 << 16
"""At most about so many scores of a target are counted, evenly taken; the cut is then a quantile of these."""

Removed = Callable[[Mapping[str, float], Candidates], Mapping[str, int]]


@dataclass(eq=False)
class Watched:
    """An allocation that gives what another one gives, and keeps a sample of the scores of the last event.

    Args:
        inner: the recipe's own allocation; None: it leaves that open.
        seen: the candidates of the event last asked for; None before.
        sample: target or channel group -> its scores, ascending, -inf for what was gone.
        shares: what the inner one answered last.
    """

    inner: Allocation | None
    seen: Candidates | None = None
    sample: dict[str, np.ndarray] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        return repr(self.inner)  # a checkpoint names the recipe by this, watched or not

    def __call__(self, share: float, candidates: Candidates) -> Mapping[str, float]:
        """Return the share of each name, as the inner allocation says."""
        if candidates is not self.seen and not candidates.spread.is_sharded:
            self.seen, self.sample = candidates, {}
            for name, size in candidates.sizes.items():
                stride = max(1, math.ceil(size / SAMPLE))
                start, taken = 0, [np.empty(0)]
                for piece in candidates.pieces(name):
                    taken.append(piece[start::stride].detach().to("cpu", torch.float64).numpy())
                    start = (start - len(piece)) % stride
                self.sample[name] = np.sort(np.concatenate(taken))
        self.shares = (self.inner or candidates.default)(share, candidates)
        return self.shares

    def take(self, step: int, removed: Removed) -> tuple[Scores, ...]:
        """Return the histograms of the event that has just taken place, and forget its scores.

        Args:
            step: completed optimizer steps.
            removed: from shares and candidates to the number of units that went per name.
        """
        if self.seen is None:
            return ()
        gone, candidates = removed(self.shares, self.seen), self.seen
        found = tuple(_histogram(candidates, name, self.sample[name], gone[name], step) for name in candidates.sizes)
        self.seen, self.sample = None, {}
        return found


def _histogram(candidates: Candidates, name: str, sample: np.ndarray, removed: int, step: int) -> Scores:
    size, gone = candidates.sizes[name], candidates.removed[name]
    place = round(removed / max(size, 1) * len(sample))
    ranked = sample[np.isfinite(sample)]
    is_log = bool(len(ranked) and ranked[0] >= 0 and ranked[-1] > 0)
    cut = float(sample[place]) if 0 < removed < size and place < len(sample) else None
    edges = _edges(ranked, is_log, cut)
    each = size / max(len(sample), 1)
    parts = (part[np.isfinite(part)].clip(edges[0], edges[-1]) for part in (sample[:place], sample[place:]))
    lost, kept = (tuple((np.histogram(p, edges)[0] * each).round().astype(int).tolist()) for p in parts)
    return Scores(
        name=name,
        step=step,
        edges=tuple(edges.tolist()),
        kept=kept,
        lost=lost,
        is_log=is_log,
        cut=cut if cut is None or not is_log else max(cut, float(edges[0])),
        removed=removed - gone,
        gone=gone,
    )


def _edges(ranked: np.ndarray, is_log: bool, cut: float | None) -> np.ndarray:
    """Return the borders of 8 to 40 bins, more scores, more bins; the cut is one of them where it lies between."""
    bins = min(40, max(8, math.ceil(2 * math.sqrt(len(ranked)))))
    if not len(ranked):
        return np.linspace(0.0, 1.0, bins + 1)
    if is_log:
        above = ranked[ranked > 0]
        low, high = max(above[0], above[-1] * 1e-12), above[-1]
        return _split(np.geomspace, (low, high if high > low * (1 + 1e-9) else low * 2), cut, bins)
    low, high = float(ranked[0]), float(ranked[-1])
    return _split(np.linspace, (low, high if high > low else low + 1.0), cut, bins)


def _split(
    spaced: Callable[[float, float, int], np.ndarray], span: tuple[float, float], cut: float | None, bins: int
) -> np.ndarray:
    """Return borders evenly spaced below the cut and above it, of about the same width on both sides."""
    low, high = span
    even = spaced(low, high, bins + 1)
    if cut is None or cut <= low:
        return even
    if cut >= high:  # the highest alone stays: it has a bin of its own
        high = cut + (even[-1] - even[-2])
    below = min(max(1, int(np.argmin(np.abs(even - cut)))), bins - 1)
    return np.concatenate([spaced(low, cut, below + 1)[:-1], [cut], spaced(cut, high, bins - below + 1)[1:]])
