"""Shares of the targets against direct NumPy solutions."""

import copy
import math
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_prune import OneShot, Recipe
from lightning_prune.selection import allocation, ranking
from lightning_prune.selection.allocation import ERK, Candidates, Global, Uniform
from lightning_prune.selection.counts import keep_highest


def candidates(*scores: torch.Tensor, shapes: list[tuple[int, ...]] | None = None) -> Candidates:
    named = {f"layer{i}": score for i, score in enumerate(scores)}
    return Candidates(
        scores=named,
        shapes={n: tuple(s.shape) for n, s in named.items()}
        if shapes is None
        else dict(zip(named, shapes, strict=True)),
        sizes={n: s.numel() for n, s in named.items()},
        removed={n: int((s == -torch.inf).sum()) for n, s in named.items()},
        dtype=torch.float64 if any(s.dtype == torch.float64 for s in scores) else torch.float32,
    )


def counts(shares: dict[str, float], of: Candidates) -> list[int]:
    exact = [shares[name] * size for name, size in of.sizes.items()]
    np.testing.assert_allclose(exact, np.round(exact), atol=1e-6)
    return [round(x) for x in exact]


def test_uniform() -> None:
    assert Uniform()(0.3, candidates(torch.ones(4), torch.ones(2, 2))) == {"layer0": 0.3, "layer1": 0.3}


def erk_by_bisection(share: float, shapes: list[tuple[int, ...]], sizes: list[int]) -> np.ndarray:
    """Densities min(1, eps * sum(shape) / prod(shape)) with eps found numerically, not layer by layer."""
    raw = np.array([sum(shape) / math.prod(shape) for shape in shapes])
    low, high = 0.0, 1 / raw.min()
    for _ in range(200):
        eps = (low + high) / 2
        kept = (np.minimum(1, eps * raw) * sizes).sum()
        low, high = (eps, high) if kept < (1 - share) * sum(sizes) else (low, eps)
    return 1 - np.minimum(1, high * raw)


SHAPES = st.lists(st.lists(st.integers(1, 40), min_size=2, max_size=4).map(tuple), min_size=1, max_size=8)


@given(shapes=SHAPES, share=st.floats(0, 1))
def test_erk_is_the_direct_solution(shapes: list[tuple[int, ...]], share: float) -> None:
    sizes = [math.prod(shape) for shape in shapes]
    of = Candidates({}, dict(zip("abcdefgh", shapes, strict=False)), dict(zip("abcdefgh", sizes, strict=False)), {})
    found = np.array(list(ERK()(share, of).values()))
    np.testing.assert_allclose(found, erk_by_bisection(share, shapes, sizes), atol=1e-7)
    assert np.all((found >= 0) & (found <= 1))
    assert (found * sizes).sum() == pytest.approx(share * sum(sizes), rel=1e-6, abs=1e-6)


@given(shapes=SHAPES, shares=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted))
def test_erk_never_falls(shapes: list[tuple[int, ...]], shares: list[float]) -> None:
    of = candidates(*(torch.zeros(shape) for shape in shapes))
    low, high = (np.array(list(ERK()(share, of).values())) for share in shares)
    assert np.all(high >= low - 1e-9)


def test_erk_keeps_small_layers_dense() -> None:
    of = candidates(torch.zeros(8, 1, 3, 3), torch.zeros(512, 512, 3, 3), torch.zeros(10, 512))
    shares = ERK()(0.5, of)
    assert shares["layer0"] == 0.0
    assert shares["layer1"] > shares["layer2"] >= 0.0


def test_a_target_without_units_takes_no_part() -> None:
    of = candidates(torch.rand(4, 5), torch.zeros(4, 0), shapes=[(4, 5), (4, 3)])
    for spread in (Uniform(), ERK(), Global()):
        shares = spread(0.5, of)
        assert shares["layer0"] == pytest.approx(0.5)
        assert 0 <= shares["layer1"] <= 1


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    share=st.floats(0, 1),
    ties=st.booleans(),
    double=st.booleans(),
    seed=st.integers(0, 99),
)
def test_global_is_the_k_smallest_of_all(sizes: list[int], share: float, ties: bool, double: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.randn(n, generator=generator).to(torch.float64 if double else torch.float32) for n in sizes]
    of = candidates(*(score.round() if ties else score for score in scores))
    together = np.concatenate([score.numpy() for score in of.scores.values()])
    k = round(share * len(together))
    gone = np.zeros(len(together), dtype=bool)
    gone[np.argsort(together, kind="stable")[:k]] = True
    expected = [int(part.sum()) for part in np.split(gone, np.cumsum(sizes)[:-1])]
    assert counts(Global()(share, of), of) == expected


def test_global_compares_double_and_single_in_double() -> None:
    fine = 1 + torch.tensor([1e-12, 2e-12, 3e-12], dtype=torch.float64)
    of = candidates(torch.ones(2), fine)
    assert counts(Global()(0.6, of), of) == [2, 1]


def test_what_is_removed_already_goes_first() -> None:
    of = candidates(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([5.0, -torch.inf, -torch.inf]))
    assert counts(Global()(0.5, of), of) == [1, 2]


def test_pieces_are_flat_and_in_the_common_dtype() -> None:
    of = candidates(torch.rand(2, 3), torch.rand(4).double())
    pieces = [piece for name in of.sizes for piece in of.pieces(name)]
    assert [(piece.dim(), piece.dtype) for piece in pieces] == [(1, torch.float64)] * 2
    assert of.total == 10


def test_global_ranks_by_score_per_cost():
    scores = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([2.0, 4.0, 9.0])}
    candidates = Candidates(
        scores,
        {"a": (3, 1), "b": (3, 1)},
        {"a": 3, "b": 3},
        {"a": 0, "b": 0},
        costs={"macs": {"a": 1.0, "b": 4.0}},
    )
    # per cost: a 1, 2, 3; b 0.5, 1, 2.25: with ties by order of names
    assert Global(cost="macs")(0.5, candidates) == {"a": 1 / 3, "b": 2 / 3}
    assert Global(cost={"a": 4.0, "b": 1.0})(0.5, candidates) == {"a": 1.0, "b": 0.0}
    assert Global()(0.5, candidates) == {"a": 2 / 3, "b": 1 / 3}


def test_a_share_asked_for_again_looks_at_no_score_again(monkeypatch: pytest.MonkeyPatch) -> None:
    units = candidates(torch.arange(40.0), torch.arange(60.0).flip(0))
    units = replace(units, costs={"macs": {"layer0": 3.0, "layer1": 1.0}})
    monkeypatch.setattr(allocation, "CHUNK", 0)  # so few are sorted once otherwise
    looked: list[int] = []
    histogram = ranking._histogram
    monkeypatch.setattr(ranking, "_histogram", lambda *given: [looked.append(1), histogram(*given)][1])
    first = Global(cost="macs")(0.3, units)
    passes = len(looked)
    assert passes == 2
    assert Global(cost="macs")(0.3, units) == first
    assert len(looked) == passes
    assert Global()(0.3, units) != first


@pytest.mark.parametrize("double", [False, True])
def test_few_are_cut_as_many_are(double: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    scores = [(torch.randn(n) * 3).round().masked_fill(torch.rand(n) < 0.2, -torch.inf) for n in (40, 1, 30)]
    few = candidates(*(s.double() if double else s for s in scores))
    many = replace(few, _cuts={})
    for k in range(few.total + 1):
        cut = few.cut(k)
        by_name = {name: keep_highest(few, name, n).tolist() for name, n in few.removed_by(cut).items()}
        with monkeypatch.context() as patched:
            patched.setattr(allocation, "CHUNK", 0)
            assert many.cut(k) == cut
            assert many.removed_by(cut) == few.removed_by(cut)
            assert {
                name: keep_highest(many, name, len(kept) - sum(kept)).tolist() for name, kept in by_name.items()
            } == by_name
    with pytest.raises(ValueError, match="cannot remove 72 of 71 scores"):
        few.cut(72)


def test_global_refuses_bad_costs():
    candidates = Candidates({"a": torch.ones(2), "b": torch.ones(2)}, {"a": (2, 1)}, {"a": 2, "b": 2}, {"a": 0, "b": 0})
    with pytest.raises(ValueError, match='must be "params", "macs", a table or None'):
        Global(cost="bytes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs an example input: set example_input_array"):
        Global(cost="macs")(0.5, candidates)
    with pytest.raises(
        ValueError, match=r"no entry for a and 1 more; it has \['c'\] and needs one for each of \['a', 'b"
    ):
        Global(cost={"c": 1.0})(0.5, candidates)
    zero = Candidates({"a": torch.ones(2)}, {"a": (2, 1)}, {"a": 2}, {"a": 0}, costs={"macs": {"a": 0.0}})
    with pytest.raises(ValueError, match=r"gives a the cost 0\.0; each must be a positive, finite number"):
        Global(cost="macs")(0.5, zero)
    with pytest.raises(ValueError, match=r"empty table; give each .* a cost, or leave cost out"):
        Global(cost={})


@pytest.mark.parametrize("cost", [0, -1.0, math.nan, math.inf, True, "1", None, torch.tensor(1.0)])
def test_global_refuses_a_table_with_such_a_cost_at_once(cost: Any):
    with pytest.raises(ValueError, match=r"Global\.cost gives b the cost .*; each must be a positive, finite number"):
        Global(cost={"a": 1.0, "b": cost})


class Table(Mapping[str, float]):
    """A mapping that no unpickler of weights knows."""

    def __getitem__(self, name: str) -> float:
        return {"a": np.float32(2.0), "b": 1}[name]  # type: ignore[return-value]

    def __iter__(self) -> Iterator[str]:
        return iter("ab")

    def __len__(self) -> int:
        return 2


def test_a_table_of_any_kind_is_kept_as_plain_numbers(tmp_path: Path):
    allocation = Global(cost=Table())
    assert allocation == Global(cost={"a": 2.0, "b": 1.0})
    assert all(type(cost) is float for cost in allocation.cost.values())  # type: ignore[union-attr]
    assert pickle.loads(pickle.dumps(allocation)) == copy.deepcopy(allocation) == allocation
    torch.save(Recipe(schedule=OneShot(0.5), allocation=allocation), tmp_path / "recipe.pt")
    assert torch.load(tmp_path / "recipe.pt", weights_only=True).allocation == allocation


def test_a_table_is_no_longer_the_callers():
    given = {"a": 1.0}
    allocation = Global(cost=given)
    given["a"] = 0.0
    assert allocation.cost == {"a": 1.0}
