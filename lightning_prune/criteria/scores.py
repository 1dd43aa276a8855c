"""Scores as a mapping that computes them when they are read."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lightning_prune.criteria.observations import Observations
from lightning_prune.criteria.watching import GradientCriterion, ObservingCriterion
from lightning_prune.criteria.weights import CHUNK, Criterion, weighing, wide
from lightning_prune.distributed.shards import ALONE, Spread, is_sharded, lies_like, mixing
from lightning_prune.distributed.threads import one_thread
from lightning_prune.errors import NonFiniteError


class Scores(Mapping[str, Tensor]):
    """The scores of each parameter, computed when read and not kept: at most one parameter's stand in memory.

    Args:
        criterion: a criterion, or one that observes the run.
        weights: dense name -> parameter.
        observed: what such a criterion has seen; unused otherwise.
        pruned: dense name -> bool mask (True = kept); pruned positions score -inf, so that they stay pruned.
        spread: which rows of each parameter this rank scores; those of a criterion that is a function of the user's
            are averaged over the ranks, in case it looks at data.
    """

    def __init__(
        self,
        criterion: Criterion | ObservingCriterion,
        weights: Mapping[str, Tensor],
        observed: Observations,
        pruned: Mapping[str, Tensor],
        spread: Spread = ALONE,
    ) -> None:
        self._criterion = criterion if isinstance(criterion, ObservingCriterion) else weighing(criterion)
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

    @property
    def are_losses(self) -> bool:
        """Whether they estimate what the loss would gain, by gradients, and so compare between layers as they are."""
        return isinstance(self._criterion, GradientCriterion)

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def __getitem__(self, name: str) -> Tensor:
        return self.filled(name, -torch.inf)

    def filled(self, name: str, pruned: float) -> Tensor:
        """Return the scores of one parameter, with this number where it is pruned."""
        scores = next(self._pieces(name, lambda values: (values,)))
        if name in self._touched:
            return torch.where(self.spread.own(name, self._pruned[name]), scores, pruned)
        return scores

    def chunks(self, name: str) -> Iterator[Tensor]:
        """Yield the scores of one parameter as flat pieces in row-major order.

        Of element-wise criteria no more than a piece is there at a time.
        """
        yield from self._flat(name, -torch.inf)

    def _flat(self, name: str, pruned: float) -> Iterator[Tensor]:
        mask = self.spread.own(name, self._pruned[name]).flatten() if name in self._touched else None
        for index, scores in enumerate(self._pieces(name, lambda values: values.flatten().split(CHUNK))):
            start = index * CHUNK
            yield scores if mask is None else torch.where(mask[start : start + CHUNK], scores, pruned)

    def _pieces(self, name: str, cut: Callable[[Tensor], Sequence[Tensor]]) -> Iterator[Tensor]:
        """Yield the scores of this rank's rows, cut into pieces that an element-wise criterion sees one by one."""
        weight = self._weights[name].detach()
        own = self.spread.own(name, weight)
        if isinstance(self._criterion, ObservingCriterion):
            total, steps = self._observed.total(name, self._criterion.watches)
            total = self.spread.own(name, self._checked(name, total, weight.shape))
            for piece, term in zip(cut(own), cut(total), strict=True):
                yield self._checked(name, self._criterion.score(piece.to(wide(piece)), term / steps), piece.shape)
        elif self._criterion.is_elementwise:
            for piece in cut(own):
                yield self._checked(name, self._criterion(name, piece), piece.shape)
        elif self._criterion.knows_rows:
            first, _ = self.spread.rows.get(name, (0, 0))
            yield from cut(self._checked(name, self._criterion.rows(name, own, first), own.shape))
        else:
            with mixing(weight):
                scores = lies_like(self._criterion(name, weight), weight)
            if not is_sharded(scores):
                scores = self.spread.mean(self._checked(name, scores, weight.shape))
            yield from cut(self.spread.own(name, self._checked(name, scores, weight.shape)))

    def _checked(self, name: str, scores: object, shape: torch.Size) -> Tensor:
        if not isinstance(scores, Tensor) or scores.shape != shape:
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(
                f"{self._criterion} returned {got} for {name}; let it return a tensor of scores of the weight's shape"
                f" {tuple(shape)}"
            )
        return scores.to(wide(scores))

    @one_thread()
    def check(self) -> None:
        """Look at every weight and score once, so that nothing is pruned by a broken one.

        Raises:
            NonFiniteError: one is NaN or infinite; it names the parameter.
            PruningError: the criterion has observed nothing of a parameter.
        """
        for name, weight in self._weights.items():
            for piece in self.spread.own(name, weight.detach()).flatten().split(CHUNK):
                _check_finite(name, "weights", piece)
            if not self._criterion.stays_finite:
                for scores in self._flat(name, 0.0):
                    _check_finite(name, "scores", scores)


def _check_finite(name: str, what: str, values: Tensor) -> None:
    # a sum is one fast pass; only when it overflows or is NaN do we look at each element
    if not torch.isfinite(values.sum(dtype=torch.float32)) and not bool(torch.isfinite(values).all()):
        count = int((~torch.isfinite(values)).sum())
        raise NonFiniteError(
            f"{name} has {count} {what} that are NaN or infinite; nothing was pruned. Look at the loss and the"
            " learning rate of the last steps, or resume from an earlier checkpoint"
        )
