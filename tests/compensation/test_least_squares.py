"""Least squares against NumPy's own."""

import numpy as np
import pytest
import torch

from lightning_prune.compensation.least_squares import DAMPINGS, LeastSquares, Moments, best_fit, fit


def problem(rows: int = 200, columns: int = 6, outputs: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    inputs = torch.randn(1, rows, columns, dtype=torch.float64) @ torch.randn(columns, columns, dtype=torch.float64)
    weights = torch.randn(1, outputs, columns, dtype=torch.float64)
    return inputs, inputs @ weights.mT, weights


def oracle(inputs: np.ndarray, outputs: np.ndarray, start: np.ndarray, kept: np.ndarray, damping: float) -> np.ndarray:
    """Ridge regression of each output on its own kept columns, by stacking the ridge under the rows."""
    found = np.zeros_like(start)
    moment = (inputs**2).mean(0)[kept.any(0)].mean()
    for row in range(len(start)):
        index = kept[row].nonzero()[0]
        root = np.sqrt(damping * moment * len(inputs))
        left = np.vstack([inputs[:, index], root * np.eye(len(index))])
        right = np.concatenate([outputs[:, row], root * start[row, index]])
        found[row, index] = np.linalg.lstsq(left, right, rcond=None)[0]
    return found


@pytest.mark.parametrize("damping", DAMPINGS)
def test_columns_that_are_gone_for_all_outputs(damping: float) -> None:
    inputs, outputs, weights = problem()
    kept = torch.ones_like(weights, dtype=torch.bool)
    kept[..., [1, 4]] = False
    kept[:, 2] = False
    fitted = fit(Moments.of(inputs, outputs), weights, kept, damping)
    expected = oracle(inputs[0].numpy(), outputs[0].numpy(), weights[0].numpy(), kept[0].numpy(), damping)
    np.testing.assert_allclose(fitted[0].numpy(), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("damping", DAMPINGS)
def test_each_output_keeps_other_columns(damping: float) -> None:
    inputs, outputs, weights = problem()
    kept = torch.rand(weights.shape, dtype=torch.float64) < 0.6
    fitted = fit(Moments.of(inputs, outputs), weights, kept, damping)
    expected = oracle(inputs[0].numpy(), outputs[0].numpy(), weights[0].numpy(), kept[0].numpy(), damping)
    np.testing.assert_allclose(fitted[0].numpy(), expected, rtol=1e-6, atol=1e-8)
    assert bool((fitted[~kept] == 0).all())


def test_groups_are_fitted_apart() -> None:
    first, second = problem(), problem()
    inputs, outputs, weights = (torch.cat(pair) for pair in zip(first, second, strict=True))
    kept = torch.ones_like(weights, dtype=torch.bool)
    kept[0, :, 0] = kept[1, :, 3] = False
    together = fit(Moments.of(inputs, outputs), weights, kept, 1e-3)
    for group in (0, 1):
        part = slice(group, group + 1)
        alone = fit(Moments.of(inputs[part], outputs[part]), weights[part], kept[part], 1e-3)
        torch.testing.assert_close(together[part], alone)


def test_a_column_that_others_can_make_costs_nothing() -> None:
    inputs, _, weights = problem(columns=5)
    inputs[..., 4] = inputs[..., 0] - 2 * inputs[..., 1]
    outputs = inputs @ weights.mT
    kept = torch.ones_like(weights, dtype=torch.bool)
    kept[..., 4] = False
    fitted_on, judged_on = Moments.of(inputs[:, :150], outputs[:, :150]), Moments.of(inputs[:, 150:], outputs[:, 150:])
    fitted, before, after, damping = best_fit(fitted_on, judged_on, weights * kept, kept)
    assert damping == min(DAMPINGS)
    assert after < 1e-4 * before
    expected = weights[..., :4] + weights[..., 4:] * torch.tensor([1.0, -2.0, 0.0, 0.0])
    torch.testing.assert_close(fitted[..., :4], expected, rtol=0.05, atol=0.05)


def test_noise_is_not_fitted() -> None:
    """With fewer samples than columns and outputs that are chance, nothing beats leaving the weights alone."""
    inputs = torch.randn(1, 40, 30, dtype=torch.float64)
    start = torch.zeros(1, 3, 30, dtype=torch.float64)
    outputs = torch.randn(1, 40, 3, dtype=torch.float64)
    kept = torch.ones_like(start, dtype=torch.bool)
    fitted, before, after, damping = best_fit(
        Moments.of(inputs[:, :30], outputs[:, :30]), Moments.of(inputs[:, 30:], outputs[:, 30:]), start, kept
    )
    assert damping is None
    assert after == before
    assert fitted is start


def test_moments_add_up_and_give_the_error() -> None:
    inputs, outputs, _ = problem()
    halves = Moments.of(inputs[:, :80], outputs[:, :80]) + Moments.of(inputs[:, 80:], outputs[:, 80:])
    for sum_, whole in zip(halves.tensors(), Moments.of(inputs, outputs).tensors(), strict=True):
        torch.testing.assert_close(sum_, whole)
    guess = torch.randn(1, 4, 6, dtype=torch.float64)
    rows = torch.tensor([[True, False, True, True]])
    expected = float((inputs @ guess.mT - outputs).square().sum(1)[rows].sum())
    assert halves.error(guess, rows) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"samples": 12}, ValueError, r"LeastSquares\.samples must be at least 16, got 12: fewer fit their own noise"),
        ({"samples": 64.0}, TypeError, r"LeastSquares\.samples must be an int, got 64\.0"),
        ({"rows": 8}, ValueError, r"LeastSquares\.rows must be at least 64"),
    ],
)
def test_bad_arguments(arguments: dict[str, int], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LeastSquares(**arguments)
