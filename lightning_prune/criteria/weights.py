"""Criteria that look at the weight alone."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_prune.values import Choice, check_whole

Criterion = Callable[[str, Tensor], Tensor]
"""``criterion(name, weight) -> scores`` of the weight's shape; any function will do."""

CHUNK = 1 << 18
"""Elements looked at together: small enough to stay in a processor's cache."""


def wide(values: Tensor) -> torch.dtype:
    """Return the dtype to calculate in: squares and sums over many overflow and underflow in half precision."""
    return torch.promote_types(values.dtype, torch.float32)


class WeightCriterion(Choice, ABC):
    """A criterion that looks at the weight alone, and says what may be spared; see :func:`weighing`."""

    @property
    def is_elementwise(self) -> bool:
        """Whether each score hangs on its weight alone, so that it may be called with pieces."""
        return False

    @property
    def knows_rows(self) -> bool:
        """Whether :meth:`rows` does without the other rows."""
        return False

    @property
    def stays_finite(self) -> bool:
        """Whether finite weights have finite scores, so that nobody need look."""
        return False

    @abstractmethod
    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """Return the scores, shape of ``weight``."""

    def rows(self, name: str, own: Tensor, first: int) -> Tensor:
        """Return the scores of some rows of a weight, those of the first that ``own`` holds onwards, and no others."""
        return self(name, own)


@dataclass(frozen=True, repr=False)
class _Function(WeightCriterion):
    """A function of the user's own, of which nothing is known."""

    function: Criterion

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        return self.function(name, weight)

    def __repr__(self) -> str:
        return repr(self.function)


def weighing(criterion: Criterion) -> WeightCriterion:
    """Return a criterion that says what may be spared, which the built-in ones do by themselves."""
    return criterion if isinstance(criterion, WeightCriterion) else _Function(criterion)


@dataclass(frozen=True)
class Magnitude(WeightCriterion):
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

    @property
    def is_elementwise(self) -> bool:
        """Whether each score hangs on its weight alone; of a subclass with a formula of its own nothing is known."""
        return type(self).__call__ is Magnitude.__call__

    @property
    def stays_finite(self) -> bool:
        """Whether finite weights have finite scores: squares may overflow."""
        return self.norm == 1 and self.is_elementwise

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """Return the scores, shape of ``weight``."""
        return weight.abs() if self.norm == 1 else weight.to(wide(weight)).square()


@dataclass(frozen=True)
class Random(WeightCriterion):
    """A uniform score in [0, 1) that depends on seed and name alone: the same at each event and on each rank.

    Args:
        seed: any whole number.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("Random.seed", self.seed)

    @property
    def knows_rows(self) -> bool:
        """Whether rows are scored without the others; of a subclass with a formula of its own nothing is known."""
        return type(self).__call__ is Random.__call__

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """Return the scores, shape of ``weight``."""
        return self.rows(name, weight, 0)

    def rows(self, name: str, own: Tensor, first: int) -> Tensor:
        """Return the scores of some rows of a weight, those of the first that ``own`` holds onwards, and no others."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {name}".encode()))
        skipped = first * own[0].numel() if len(own) else 0
        for start in range(0, skipped, CHUNK):
            torch.rand(min(CHUNK, skipped - start), generator=generator)
        return torch.rand(own.shape, generator=generator).to(own.device)
