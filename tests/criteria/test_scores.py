"""Scores against NumPy, means over steps, and broken numbers that are named before anything is pruned."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_prune.criteria import GradientCriterion, Magnitude, Observations, Random, Scores, Taylor
from lightning_prune.criteria import scores as scores_module
from lightning_prune.errors import NonFiniteError, PruningError


def bad(value: Any) -> Any:
    """A value of a wrong type, which a type checker would not let through."""
    return value


def scores_of(
    criterion: Any, weights: Mapping[str, Tensor], pruned: Mapping[str, Tensor] | None = None, **observed: Any
) -> Scores:
    return Scores(criterion, weights, Observations(**observed), pruned or {})


def whole(scores: Scores, name: str) -> np.ndarray:
    return torch.cat(list(scores.chunks(name))).double().numpy()


@pytest.mark.parametrize("norm", [1, 2])
def test_magnitude(norm: int) -> None:
    weight = torch.randn(4, 3)
    np.testing.assert_allclose(Magnitude(norm)("w", weight).numpy(), np.abs(weight.numpy()) ** norm, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_weights_score_in_float32(dtype: torch.dtype) -> None:
    weight = torch.tensor([[1e-4, 3e-4], [300.0, 600.0]], dtype=dtype)
    for criterion in (Magnitude(1), Magnitude(2), Random()):
        found = scores_of(criterion, {"w": weight})["w"]
        assert found.dtype == torch.float32
        assert bool(torch.isfinite(found).all())
        assert len(found.unique()) == 4
    assert scores_of(Magnitude(), {"w": weight}).dtype == torch.float32
    assert scores_of(Magnitude(), {"w": weight, "v": weight.double()}).dtype == torch.float64


def test_random_hangs_on_seed_and_name_alone() -> None:
    weight = torch.randn(50, 4)
    torch.manual_seed(1)
    first = Random(seed=3)("fc.weight", weight)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    other_rank = Random(seed=3)("fc.weight", weight * 0)
    assert torch.equal(first, other_rank)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, Random(seed=4)("fc.weight", weight))
    assert not torch.equal(first, Random(seed=3)("fc2.weight", weight))
    assert first.shape == weight.shape
    assert 0.4 < float(first.mean()) < 0.6


def test_random_is_the_same_in_every_process() -> None:
    got = Random(seed=0)("conv.weight", torch.zeros(3))
    np.testing.assert_allclose(got.numpy(), [0.9205, 0.4213, 0.6180], atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_taylor_is_the_mean_over_the_steps(dtype: torch.dtype) -> None:
    observed = Observations()
    terms = []
    weight = nn.Parameter(torch.randn(3, 4).to(dtype))
    for _ in range(7):
        weight.grad = (torch.randn(3, 4) * 1e-4).to(dtype)
        observed.add(Taylor(), "w", weight)
        terms.append((weight.detach().double().numpy() * weight.grad.double().numpy()) ** 2)
        with torch.no_grad():
            weight.mul_(0.9)
    mean = observed.mean("w")
    assert mean.dtype == torch.promote_types(dtype, torch.float32)
    assert observed.steps == {"w": 7}
    np.testing.assert_allclose(mean.double().numpy(), np.mean(terms, axis=0), rtol=1e-5)


def test_the_mean_counts_only_steps_with_a_gradient_and_starts_anew() -> None:
    observed = Observations()
    weight = nn.Parameter(torch.tensor([2.0, 3.0]))
    observed.add(Taylor(), "w", weight)
    assert observed.steps == {}
    for gradient in (1.0, 3.0):
        weight.grad = torch.full((2,), gradient)
        observed.add(Taylor(), "w", weight)
        weight.grad = None
        observed.add(Taylor(), "w", weight)
    assert observed.mean("w").tolist() == [20.0, 45.0]
    observed.start_anew()
    assert observed.mean("w").tolist() == [20.0, 45.0]  # until there is a new one
    for gradient in (2.0, 2.0):
        weight.grad = torch.full((2,), gradient)
        observed.add(Taylor(), "w", weight)
        assert observed.mean("w").tolist() == [16.0, 36.0]
    observed.clear()
    with pytest.raises(
        PruningError, match=r"w has had no gradient yet.*exclude this parameter.*: Targets\(exclude=\('w',\)\)$"
    ):
        observed.mean("w")


def test_observing_keeps_no_graph_and_no_reference_to_the_gradient() -> None:
    class Raw(GradientCriterion):
        def observe(self, weight: Tensor, gradient: Tensor) -> Tensor:
            return gradient

    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    observed = Observations()
    observed.add(Raw(), "w", weight)
    weight.grad.fill_(100)
    assert observed.mean("w").tolist() == [1.0, 1.0]
    assert not observed.mean("w").requires_grad


CRITERIA: tuple[Any, ...] = (Magnitude(), Magnitude(2), Random(), lambda name, weight: -weight)


@pytest.mark.parametrize("criterion", CRITERIA, ids=["L1", "L2", "random", "function"])
def test_chunks_are_the_scores_in_row_major_order(criterion: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores_module, "CHUNK", 7)
    weights = {"a": torch.randn(5, 6), "b": torch.randn(2, 4, 3, 3).to(memory_format=torch.channels_last)}
    pruned = {"a": torch.rand(5, 6) > 0.5, "b": torch.ones(2, 4, 3, 3, dtype=torch.bool)}
    scores = scores_of(criterion, weights, pruned)
    for name, weight in weights.items():
        expected = np.where(pruned[name].numpy(), criterion(name, weight).numpy(), -np.inf)
        np.testing.assert_array_equal(whole(scores, name), expected.flatten())
        np.testing.assert_array_equal(scores[name].numpy(), expected)
    assert list(scores) == ["a", "b"]
    assert len(scores) == 2


def test_scores_never_write_into_the_weights() -> None:
    class Signed(Magnitude):
        def __call__(self, name: str, weight: Tensor) -> Tensor:
            assert weight.dim() == 2
            return weight

    weight = torch.randn(4, 4)
    before = weight.clone()
    for criterion in (Signed(), lambda name, weight: weight):
        scores = scores_of(criterion, {"w": weight}, {"w": torch.rand(4, 4) > 0.5})
        scores.check()
        list(scores.chunks("w"))
        assert torch.equal(weight, before)


def test_scores_are_looked_up_when_read() -> None:
    seen: list[str] = []

    def criterion(name: str, weight: Tensor) -> Tensor:
        seen.append(name)
        return weight

    scores = scores_of(criterion, {"a": torch.ones(2), "b": torch.ones(2)})
    assert seen == []
    scores["b"]
    assert seen == ["b"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("criterion", [Magnitude(), Magnitude(2), Random()], ids=["L1", "L2", "random"])
def test_broken_weights_are_named(criterion: Any, value: float) -> None:
    weights = {"good": torch.randn(3, 3), "layer.weight": torch.randn(4, 5)}
    weights["layer.weight"][1, 2:4] = value
    with pytest.raises(
        NonFiniteError, match=r"layer.weight has 2 weights that are NaN or infinite; nothing was pruned"
    ):
        scores_of(criterion, weights).check()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_broken_scores_are_named(value: float) -> None:
    def criterion(name: str, weight: Tensor) -> Tensor:
        scores = weight.clone()
        scores[0, 0] = value
        return scores

    weights = {"layer.weight": torch.randn(4, 5)}
    with pytest.raises(NonFiniteError, match=r"layer.weight has 1 scores that are NaN or infinite"):
        scores_of(criterion, weights).check()
    observed = {"sums": {"layer.weight": criterion("", weights["layer.weight"])}, "steps": {"layer.weight": 2}}
    with pytest.raises(NonFiniteError, match=r"layer.weight has 1 scores that are NaN or infinite"):
        scores_of(Taylor(), weights, **observed).check()


def test_squares_that_overflow_are_broken_scores() -> None:
    with pytest.raises(NonFiniteError, match=r"w has 1 scores that are NaN or infinite"):
        scores_of(Magnitude(2), {"w": torch.tensor([1.0, 1e30])}).check()


def test_finite_numbers_whose_sum_overflows_pass() -> None:
    scores_of(Magnitude(), {"w": torch.full((3,), 3e38), "v": torch.full((3,), 1e300, dtype=torch.float64)}).check()


def test_what_is_pruned_already_may_score_anything() -> None:
    weight = torch.tensor([[0.0, 2.0], [0.0, 4.0]])
    scores = scores_of(lambda name, w: w.log(), {"w": weight}, {"w": weight != 0})
    scores.check()
    assert scores["w"][:, 0].tolist() == [-torch.inf] * 2


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        (
            torch.ones(3),
            r"returned \(3,\) for fc.weight; let it return a tensor of scores of the weight's shape \(2, 3\)",
        ),
        (1.5, "returned float for fc.weight"),
        (None, "returned NoneType for fc.weight"),
    ],
)
def test_a_criterion_that_returns_something_else(returned: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        scores_of(lambda name, weight: returned, {"fc.weight": torch.ones(2, 3)}).check()


def test_whole_numbers_will_do_as_scores() -> None:
    scores = scores_of(lambda name, weight: (weight > 0).int(), {"w": torch.tensor([1.0, -1.0])})
    scores.check()
    assert scores["w"].tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    "build", [lambda: Magnitude(3), lambda: Magnitude(bad("L1")), lambda: Magnitude(norm=bad(1.5))]
)
def test_bad_norm(build: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"Magnitude.norm must be 1 \(sum of \|w\|\) or 2 \(sum of w\^2\), got"):
        build()
