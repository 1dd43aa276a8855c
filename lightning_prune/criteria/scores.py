"""Scores as a mapping that computes them when they are read."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from lightning_prune.criteria.observations import Observations
from lightning_prune.criteria.watching import ObservingCriterion
from lightning_prune.criteria.weights import CHUNK, Criterion, Magnitude, Random, wide
from lightning_prune.distributed.shards import ALONE, Spread, is_sharded, lies_like, mixing
from lightning_prune.errors import NonFiniteError
from lightning_prune.model.frame import Frame


class Scores(Mapping[str, Tensor]):
    """The scores of each parameter, computed when read and not kept: at most one parameter's stand in memory.

    Args:
        criterion: a criterion, or one that observes the run.
        weights: dense name -> parameter.
        observed: what such a criterion has seen; unused otherwise.
        pruned: dense name -> bool mask (True = kept); pruned positions score -inf, so that they stay pruned.
        frame: scores have the shapes of the beginning; what has been removed since scores -inf too.
        spread: which rows of each parameter this rank scores; those of a criterion that is a function of the user's
            are averaged over the ranks, in case it looks at data.
    """

    def __init__(
        self,
        criterion: Criterion | ObservingCriterion,
        weights: Mapping[str, Tensor],
        observed: Observations,
        pruned: Mapping[str, Tensor],
        frame: Frame | None = None,
        spread: Spread = ALONE,
    ) -> None:
        self._frame = frame or Frame()
        self._criterion = criterion
        self._weights = weights
        self._observed = observed
        self._pruned = pruned
        self.spread = spread
        self._touched = {name for name, mask in pruned.items() if int(torch.count_nonzero(mask)) < mask.numel()}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which these scores are compared: float64 if any weight is, otherwise float32."""
        wide = any(weight.dtype == torch.float64 for weight in self._weights.values())
        return torch.float64 if wide else torch.float32

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def __getitem__(self, name: str) -> Tensor:
        scores = self._raw(name)
        if name in self._touched:
            scores = scores.masked_fill(~self.spread.own(name, self._pruned[name]), -torch.inf)
        return self._frame.widen(name, scores, -torch.inf)

    def chunks(self, name: str) -> Iterator[Tensor]:
        """Yield the scores of one parameter as flat pieces in row-major order."""
        if name in self._frame.keep:
            yield from self[name].flatten().split(CHUNK)
            return
        mask = self.spread.own(name, self._pruned[name]).flatten() if name in self._touched else None
        for index, scores in enumerate(self._pieces(name)):
            start = index * CHUNK
            yield scores if mask is None else torch.where(mask[start : start + CHUNK], scores, -torch.inf)

    def _pieces(self, name: str) -> Iterator[Tensor]:
        """Yield the scores of this rank's rows, flat; of built-in criteria without having all of them at once."""
        if type(self._criterion) is Magnitude:
            for weight in self._own(name).flatten().split(CHUNK):
                yield self._checked(name, self._criterion(name, weight), weight.shape)
        elif isinstance(self._criterion, ObservingCriterion):
            total, steps = self._observed.total(name, self._criterion.watches)
            total = self.spread.own(name, self._checked(name, total, self._weights[name].shape)).flatten()
            for weight, piece in zip(self._own(name).flatten().split(CHUNK), total.split(CHUNK), strict=True):
                yield self._checked(name, self._criterion.score(weight.to(wide(weight)), piece / steps), piece.shape)
        else:
            yield from self._raw(name).flatten().split(CHUNK)

    def _own(self, name: str) -> Tensor:
        return self.spread.own(name, self._weights[name].detach())

    def _raw(self, name: str) -> Tensor:
        weight, rows = self._weights[name].detach(), self.spread.rows.get(name)
        if isinstance(self._criterion, ObservingCriterion):
            return self._scored(self._criterion, name, weight.shape)
        if type(self._criterion) is Magnitude:
            return self._checked(name, self._criterion(name, own := self._own(name)), own.shape)
        if isinstance(self._criterion, Random) and rows:
            return self._criterion.rows(name, self._own(name), rows[0])
        with mixing(weight):
            scores = lies_like(self._criterion(name, weight), weight)
        if type(self._criterion) is not Random and not is_sharded(scores):
            scores = self.spread.mean(self._checked(name, scores, weight.shape))
        return self.spread.own(name, self._checked(name, scores, weight.shape))

    def _scored(self, criterion: ObservingCriterion, name: str, shape: torch.Size) -> Tensor:
        mean = self._checked(name, self._observed.mean(name, criterion.watches), shape)
        own = self._own(name)
        return self._checked(name, criterion.score(own.to(wide(own)), self.spread.own(name, mean)), own.shape)

    def _checked(self, name: str, scores: object, shape: torch.Size) -> Tensor:
        if not isinstance(scores, Tensor) or scores.shape != shape:
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(
                f"{self._criterion} returned {got} for {name}; let it return a tensor of scores of the weight's shape"
                f" {tuple(shape)}"
            )
        return scores.to(wide(scores))

    def check(self) -> None:
        """Look at every weight and score once, so that nothing is pruned by a broken one.

        Raises:
            NonFiniteError: one is NaN or infinite; it names the parameter.
            PruningError: the criterion has observed nothing of a parameter.
        """
        for name in self._weights:
            for piece in self._own(name).flatten().split(CHUNK):
                _check_finite(name, "weights", piece)
            if self._criterion != Magnitude(norm=1):
                mask = self.spread.own(name, self._pruned[name]).flatten() if name in self._touched else None
                for index, scores in enumerate(self._pieces(name)):
                    start = index * CHUNK
                    kept = scores if mask is None else torch.where(mask[start : start + CHUNK], scores, 0)
                    _check_finite(name, "scores", kept)


def _check_finite(name: str, what: str, values: Tensor) -> None:
    # a sum is one fast pass; only when it overflows or is NaN do we look at each element
    if not torch.isfinite(values.sum(dtype=torch.float32)) and not bool(torch.isfinite(values).all()):
        count = int((~torch.isfinite(values)).sum())
        raise NonFiniteError(
            f"{name} has {count} {what} that are NaN or infinite; nothing was pruned. Look at the loss and the"
            " learning rate of the last steps, or resume from an earlier checkpoint"
        )
