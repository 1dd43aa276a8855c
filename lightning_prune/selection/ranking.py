"""Where the k lowest of very many scores end, found by radix histograms over their bits: no sort, no copy."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_prune.distributed.shards import ALONE, Spread

_DIGIT = 16
_BINS = 1 << _DIGIT


@dataclass(frozen=True)
class Cut:
    """The border between removed and kept scores.

    Args:
        bits: scores whose ordered bits are below this are removed.
        ties: so many of those equal to it are removed too, the first in order.
    """

    bits: int
    ties: int


def ordered_bits(scores: Tensor) -> Tensor:
    """Return whole numbers that compare as the floats do, same shape: int64 for float64, otherwise int32.

    Example:
        >>> ordered_bits(torch.tensor([-2.0, -1.0, 0.0, 3.0])).argsort().tolist()
        [0, 1, 2, 3]
    """
    is_double = scores.dtype == torch.float64
    bits = (scores if is_double else scores.float()).contiguous().view(torch.int64 if is_double else torch.int32)
    if bits.numel() == 0 or int(bits.min()) >= 0:
        return bits
    width = 63 if is_double else 31
    sign = bits >> width
    # negative floats have their magnitude below the sign bit; minus the sign, so that -0.0 ties with 0.0
    return (bits ^ (sign & ((1 << width) - 1))) - sign


def lowest(
    pieces: Callable[[], Iterable[Tensor]],
    k: int,
    dtype: torch.dtype = torch.float32,
    guess: Cut | None = None,
    spread: Spread = ALONE,
) -> Cut:
    """Return the cut that removes exactly the k lowest scores, ties by order.

    One pass over the scores for every 16 bits of the dtype counts how many share the next digit of their ordered
    bits; the digit in which the k-th lowest lies is the next digit of the cut.

    Args:
        pieces: yields all scores, any shapes, in the same order at each call; called 2 times (4 for float64).
        k: how many to remove, from 0 to the number of scores.
        dtype: the dtype in which scores are compared; float64 or anything narrower.
        guess: a cut that may be it but for its ties; looking costs one quick pass, being right saves the others.
        spread: the ranks among which the scores lie; each counts its own pieces, and only counts are exchanged.

    Raises:
        ValueError: k is negative or larger than the number of scores.

    Example:
        >>> scores = torch.tensor([3.0, 1.0, 2.0, 1.0])
        >>> keep_mask(scores, lowest(lambda: [scores], k=1))[0].tolist()
        [True, False, True, True]
    """
    if guess is not None:
        below, equal = spread.sum(torch.tensor(count(pieces(), guess.bits, dtype))).tolist()
        if below <= k <= below + equal:
            return Cut(guess.bits, ties=k - below)
    width = 64 if dtype == torch.float64 else 32
    prefix: int | None = None
    left = k
    for shift in range(width - _DIGIT, -1, -_DIGIT):
        cumulative = spread.sum(_histogram(pieces(), prefix, shift, dtype)).cumsum(0).cpu()
        if not 0 <= left <= int(cumulative[-1]):
            raise ValueError(f"cannot remove {k} of {int(cumulative[-1])} scores")
        if k == 0:
            return Cut(bits=-1 << (width - 1), ties=0)
        digit = int(torch.searchsorted(cumulative, left))
        left -= int(cumulative[digit - 1]) if digit else 0
        prefix = digit - _BINS // 2 if prefix is None else (prefix << _DIGIT) | digit
    return Cut(bits=prefix or 0, ties=left)


def lowest_of(ordered: Tensor, k: int) -> Cut:
    """Return what :func:`lowest` does, from the ordered bits of all scores, sorted: quick where they are few.

    Raises:
        ValueError: k is negative or larger than the number of scores.
    """
    if not 0 <= k <= len(ordered):
        raise ValueError(f"cannot remove {k} of {len(ordered)} scores")
    if k == 0:
        return Cut(bits=torch.iinfo(ordered.dtype).min, ties=0)
    return Cut(bits=int(ordered[k - 1]), ties=k - int(torch.searchsorted(ordered, ordered[k - 1])))


def _fast(bits: Tensor) -> Any:  # noqa: ANN401
    """Return the bits as a NumPy array on a CPU, where comparing and picking is several times faster than torch's."""
    return bits.numpy() if bits.device.type == "cpu" else bits


def _count_true(condition: np.ndarray | Tensor) -> int:
    return int(np.count_nonzero(condition) if isinstance(condition, np.ndarray) else torch.count_nonzero(condition))


def count(pieces: Iterable[Tensor], bits: int, dtype: torch.dtype) -> tuple[int, int]:
    """Return how many scores have ordered bits below ``bits``, and how many have those."""
    below = equal = 0
    for piece in pieces:
        ordered = _fast(ordered_bits(piece.to(dtype)))
        below += _count_true(ordered < bits)
        equal += _count_true(ordered == bits)
    return below, equal


def _histogram(pieces: Iterable[Tensor], prefix: int | None, shift: int, dtype: torch.dtype) -> Tensor:
    """Count the 16-bit digits at ``shift`` of the scores whose higher bits equal ``prefix``."""
    counts = torch.zeros(_BINS, dtype=torch.int64)
    for piece in pieces:
        bits = _fast(ordered_bits(piece.flatten().to(dtype)))
        if prefix is None:
            digits = (bits >> shift) + _BINS // 2
        else:
            digits = (bits[(bits >> (shift + _DIGIT)) == prefix] >> shift) & (_BINS - 1)
        counts = counts.to(piece.device)
        counts += torch.bincount(torch.as_tensor(digits), minlength=_BINS)
    return counts


def keep_mask(scores: Tensor, cut: Cut) -> tuple[Tensor, Cut]:
    """Return which scores stay (bool, same shape) and the cut for the scores that follow, with fewer ties left."""
    bits = _fast(ordered_bits(scores))
    keep = torch.as_tensor(bits >= cut.bits)
    if cut.ties:
        equal = torch.as_tensor(bits == cut.bits)
        number = int(torch.count_nonzero(equal))
        removed = equal if number <= cut.ties else equal & (equal.flatten().cumsum(0).view_as(equal) <= cut.ties)
        keep &= ~removed
        cut = Cut(cut.bits, cut.ties - min(number, cut.ties))
    return keep, cut
