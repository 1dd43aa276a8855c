"""Criteria that look at the weight alone."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_prune.values import Choice

Criterion = Callable[[str, Tensor], Tensor]
"""``criterion(name, weight) -> scores`` of the weight's shape; any function will do."""

CHUNK = 1 << 18
"""Elements looked at together: small enough to stay in a processor's cache."""


def wide(values: Tensor) -> torch.dtype:
    """Return the dtype to calculate in: squares and sums over many overflow and underflow in half precision."""
    return torch.promote_types(values.dtype, torch.float32)


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
        return weight.abs() if self.norm == 1 else weight.to(wide(weight)).square()


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
