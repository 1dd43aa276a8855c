"""Which weights matter: parameters -> scores, higher = keep."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_prune.choice import Choice
from lightning_prune.errors import NonFiniteError, PruningError
from lightning_prune.frame import Frame
from lightning_prune.ranks import average, check_same
from lightning_prune.shards import ALONE, Spread, is_sharded, lies_like, mixing

Criterion = Callable[[str, Tensor], Tensor]
"""``criterion(name, weight) -> scores`` of the weight's shape; any function will do."""

CHUNK = 1 << 18
"""Elements looked at together: small enough to stay in a processor's cache."""


class GradientCriterion(ABC):
    """A criterion that watches the gradients of training: its score is the mean of :meth:`observe` over the steps."""

    @abstractmethod
    def observe(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return what one optimizer step says about each weight.

        Args:
            weight: the parameter before the step, any shape.
            gradient: the gradient of the loss, same shape: unscaled, before clipping, averaged over ranks.
        """


@dataclass(frozen=True)
class Magnitude(Choice):
    """|w| (norm 1) or w^2 (norm 2); single weights rank alike, sums over a channel or block do not.

    Args:
        norm: 1 or 2.

    Source:
        Han et al. 2015, "Learning both Weights and Connections"; Li et al. 2017 for the sum over a filter.

    Example:
        >>> Magnitude()("fc.weight", torch.tensor([1.0, -3.0]))
        tensor([1., 3.])
    """

    norm: int = 1

    def __post_init__(self) -> None:
        if self.norm not in (1, 2):
            raise ValueError(f"Magnitude.norm must be 1 (sum of |w|) or 2 (sum of w^2), got {self.norm!r}")

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """Return the scores, shape of ``weight``."""
        return weight.abs() if self.norm == 1 else weight.to(_wide(weight)).square()


@dataclass(frozen=True)
class Random(Choice):
    """A uniform score in [0, 1) that depends on seed and name alone: the same at each event and on each rank.

    Args:
        seed: any whole number.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise TypeError(f"Random.seed must be a whole number, got {self.seed!r}")

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """Return the scores, shape of ``weight``."""
        return torch.rand(weight.shape, generator=self._generator(name)).to(weight.device)

    def rows(self, name: str, own: Tensor, first: int) -> Tensor:
        """Return the scores of some rows of a weight, those of the first that ``own`` holds onwards, and no others."""
        generator = self._generator(name)
        skipped = first * own[0].numel() if len(own) else 0
        for start in range(0, skipped, CHUNK):
            torch.rand(min(CHUNK, skipped - start), generator=generator)
        return torch.rand(own.shape, generator=generator).to(own.device)

    def _generator(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {name}".encode()))


@dataclass(frozen=True)
class Taylor(GradientCriterion):
    """First-order effect on the loss of setting a weight to zero: the mean over the steps of (g w)^2.

    g is the gradient of the step's batch, w the weight. A channel's score is the sum over all its coupled weights.

    Source:
        Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", equation 8, averaged over
        mini-batches as there. The 2017 paper takes |mean of g a| of activations a instead, which cancels signs within
        a batch and needs a normalisation layer by layer. We differ in summing the squares over a channel's
        weights (their equation 9 squares the sum over a gate's outputs), since the sum of g w over a convolution's
        weights before a batch norm vanishes.

    Example:
        >>> Taylor().observe(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.5]))
        tensor([9., 1.])
    """

    def observe(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return (g w)^2, shape of ``weight``."""
        return (gradient * weight).square()


@dataclass
class Observations:
    """The running sums of a gradient criterion: for each parameter the sum of its terms and how many there were.

    Args:
        sums: dense name -> sum of the observed terms, shape of the parameter, float32 or wider, as what
            ``observe`` gets is.
        steps: dense name -> number of terms.
        past: dense names whose terms are from before the last event. They count until new ones come: with optimizers
            that take turns, not every parameter has a gradient between two events.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    past: set[str] = field(default_factory=set)

    @torch.no_grad()
    def add(self, criterion: GradientCriterion, name: str, weight: Tensor) -> None:
        """Add what this step's gradient (``weight.grad``) says; a parameter without one is left alone."""
        if weight.grad is None:
            return
        term = criterion.observe(weight.detach().to(_wide(weight)), weight.grad.to(_wide(weight)))
        if name in self.sums and name not in self.past:
            self.sums[name].add_(term)
            self.steps[name] += 1
        else:
            self.past.discard(name)
            self.sums[name], self.steps[name] = term.to(_wide(term), copy=True), 1

    def mean(self, name: str) -> Tensor:
        """Return the mean of the terms of one parameter. See :meth:`total`."""
        total, steps = self.total(name)
        return total / steps

    def total(self, name: str) -> tuple[Tensor, int]:
        """Return the sum of the terms of one parameter and how many there were.

        Raises:
            PruningError: none was ever observed.
        """
        if name not in self.sums:
            raise PruningError(
                f"{name} has had no gradient yet, so a gradient criterion cannot score it; let"
                " begin_step be at least 1, or exclude this parameter"
            )
        return self.sums[name], self.steps[name]

    def agree(self) -> None:
        """Make what the ranks have seen their mean; sums that are alike keep their bits, and sharded ones are one.

        Raises:
            PruningError: some rank has seen other parameters, or another number of steps.
        """
        check_same(self.steps, "number of observed gradients")
        average({name: total for name, total in self.sums.items() if not is_sharded(total)})

    def clear(self) -> None:
        """Forget everything."""
        self.sums, self.steps, self.past = {}, {}, set()

    def start_anew(self) -> None:
        """Begin a new mean of each parameter at its next gradient."""
        self.past = set(self.sums)


class Scores(Mapping[str, Tensor]):
    """The scores of each parameter, computed when read and not kept: at most one parameter's stand in memory.

    Args:
        criterion: a criterion or gradient criterion.
        weights: dense name -> parameter.
        observed: what a gradient criterion has seen; unused otherwise.
        pruned: dense name -> bool mask (True = kept); pruned positions score -inf, so that they stay pruned.
        frame: scores have the shapes of the beginning; what has been removed since scores -inf too.
        spread: which rows of each parameter this rank scores; those of a criterion that is a function of the user's
            are averaged over the ranks, in case it looks at data.
    """

    def __init__(
        self,
        criterion: Criterion | GradientCriterion,
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
        elif isinstance(self._criterion, GradientCriterion):
            total, steps = self._observed.total(name)
            total = self.spread.own(name, self._checked(name, total, self._weights[name].shape))
            yield from (piece / steps for piece in total.flatten().split(CHUNK))
        else:
            yield from self._raw(name).flatten().split(CHUNK)

    def _own(self, name: str) -> Tensor:
        return self.spread.own(name, self._weights[name].detach())

    def _raw(self, name: str) -> Tensor:
        weight, rows = self._weights[name].detach(), self.spread.rows.get(name)
        if isinstance(self._criterion, GradientCriterion):
            scores = self._observed.mean(name)
        elif type(self._criterion) is Magnitude:
            return self._checked(name, self._criterion(name, own := self._own(name)), own.shape)
        elif isinstance(self._criterion, Random) and rows:
            return self._criterion.rows(name, self._own(name), rows[0])
        else:
            with mixing(weight):
                scores = lies_like(self._criterion(name, weight), weight)
            if type(self._criterion) is not Random and not is_sharded(scores):
                scores = self.spread.mean(self._checked(name, scores, weight.shape))
        return self.spread.own(name, self._checked(name, scores, weight.shape))

    def _checked(self, name: str, scores: object, shape: torch.Size) -> Tensor:
        if not isinstance(scores, Tensor) or scores.shape != shape:
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(
                f"{self._criterion} returned {got} for {name}; let it return a tensor of scores of the weight's shape"
                f" {tuple(shape)}"
            )
        return scores.to(_wide(scores))

    def check(self) -> None:
        """Look at every weight and score once, so that nothing is pruned by a broken one.

        Raises:
            NonFiniteError: one is NaN or infinite; it names the parameter.
            PruningError: a gradient criterion has seen no gradient of a parameter.
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


def _wide(values: Tensor) -> torch.dtype:
    """Return the dtype to calculate in: squares and sums over many overflow and underflow in half precision."""
    return torch.promote_types(values.dtype, torch.float32)


def _check_finite(name: str, what: str, values: Tensor) -> None:
    # a sum is one fast pass; only when it overflows or is NaN do we look at each element
    if not torch.isfinite(values.sum(dtype=torch.float32)) and not bool(torch.isfinite(values).all()):
        count = int((~torch.isfinite(values)).sum())
        raise NonFiniteError(
            f"{name} has {count} {what} that are NaN or infinite; nothing was pruned. Look at the loss and the"
            " learning rate of the last steps, or resume from an earlier checkpoint"
        )
