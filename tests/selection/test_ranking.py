"""The radix cut against a stable NumPy sort: every dtype, ties and all, however the scores are cut into pieces."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_prune.selection.ranking import Cut, count, keep_mask, lowest, ordered_bits

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def removed_by(scores: Tensor, k: int, sizes: Sequence[int], guess: Cut | None = None) -> np.ndarray:
    """Which of these scores go, found piece by piece as an event does."""
    dtype = scores.dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    cut = lowest(lambda: scores.split(list(sizes)), k, wide, guess)
    gone, rest = [], cut
    for piece in scores.split(list(sizes)):
        below, equal = count([piece], rest.bits, wide)
        keep, after = keep_mask(piece, rest)
        assert int((~keep).sum()) == below + min(equal, rest.ties)
        assert after.ties == max(0, rest.ties - equal)
        rest = after
        gone.append(~keep.flatten())
    return torch.cat(gone).numpy() if gone else np.zeros(0, dtype=bool)


def lowest_by_sort(scores: Tensor, k: int) -> np.ndarray:
    values = scores.double().numpy()
    gone = np.zeros(values.shape, dtype=bool)
    gone[np.argsort(values, kind="stable")[:k]] = True
    return gone


def scores_of(kind: str, n: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(n, generator=generator, dtype=torch.float64)
    if kind == "ties":
        scores = (scores * 2).round()
    elif kind == "equal":
        scores = torch.full((n,), 0.25, dtype=torch.float64)
    elif kind == "zeros of both signs":
        scores = torch.where(torch.rand(n, generator=generator) < 0.5, 0.0, -0.0).double()
    elif kind == "pruned":
        scores[torch.rand(n, generator=generator) < 0.4] = -torch.inf
    elif kind == "tiny":
        scores = scores * 1e-42
    elif kind == "huge":
        scores = scores * 1e4
    elif kind == "magnitudes":
        scores = scores.abs()
    return scores.to(dtype)


KINDS = ("normal", "ties", "equal", "zeros of both signs", "pruned", "tiny", "huge", "magnitudes")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_cut_is_the_stable_sort(kind: str, dtype: torch.dtype) -> None:
    n = 257
    scores = scores_of(kind, n, dtype, seed=3)
    for k in (0, 1, 77, 128, n - 1, n):
        expected = lowest_by_sort(scores, k)
        for sizes in ([n], [100, 1, 0, 156]):
            np.testing.assert_array_equal(removed_by(scores, k, sizes), expected)


@given(
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(DTYPES),
    sizes=st.lists(st.integers(0, 12), max_size=8),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_any_pieces_give_the_same(kind: str, dtype: torch.dtype, sizes: list[int], share: float, seed: int) -> None:
    n = sum(sizes)
    scores = scores_of(kind, n, dtype, seed)
    k = round(share * n)
    gone = removed_by(scores, k, sizes)
    assert gone.sum() == k
    np.testing.assert_array_equal(gone, lowest_by_sort(scores, k))


@given(n=st.integers(1, 40), share=st.floats(0, 1), guessed=st.floats(0, 1), seed=st.integers(0, 99))
def test_a_guess_changes_nothing(n: int, share: float, guessed: float, seed: int) -> None:
    scores = scores_of("ties", n, torch.float32, seed)
    guess = lowest(lambda: [scores], round(guessed * n))
    k = round(share * n)
    np.testing.assert_array_equal(removed_by(scores, k, [n], guess), lowest_by_sort(scores, k))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ordered_bits_order_as_the_floats_do(dtype: torch.dtype) -> None:
    special = [-torch.inf, -2.0, -1e-5, -0.0, 0.0, 1e-5, 1.0, 2.0, torch.inf]
    scores = torch.cat([torch.tensor(special, dtype=torch.float64), torch.randn(50, dtype=torch.float64)]).to(dtype)
    bits = ordered_bits(scores)
    assert torch.equal(bits[:, None] < bits[None, :], scores[:, None] < scores[None, :])
    assert torch.equal(bits[:, None] == bits[None, :], scores[:, None] == scores[None, :])


def test_non_contiguous_scores_count_in_row_major_order() -> None:
    scores = torch.randn(6, 8).t()[::2]
    keep, _ = keep_mask(scores, lowest(lambda: [scores], 9))
    np.testing.assert_array_equal(~keep.flatten().numpy(), lowest_by_sort(scores.flatten(), 9))


@pytest.mark.parametrize("k", [-1, 4])
def test_more_than_there_are_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"cannot remove {k} of 3 scores"):
        lowest(lambda: [torch.zeros(3)], k)


def test_nothing_of_nothing() -> None:
    assert removed_by(torch.zeros(0), 0, []).size == 0
    keep, cut = keep_mask(torch.zeros(0), Cut(bits=5, ties=2))
    assert (keep.shape, cut) == (torch.Size([0]), Cut(5, 2))
