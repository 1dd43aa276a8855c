"""Weights that reproduce outputs from the inputs that are left: ridge regression, pure tensor maths."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor

from lightning_prune.values import Choice, check_whole

DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Shares of the mean second moment that are tried as the ridge; the held-out samples choose among them."""

_PIECE = 4_096
"""Rows that are float64 at a time."""

_ITERATIONS = 60
"""Of conjugate gradients where each row of a weight keeps other entries; the error falls by less than 1 % after 40."""


@dataclass(frozen=True)
class LeastSquares(Choice):
    """Fit what is left of each layer so that it gives the outputs that the layer gave before the cut.

    With X the inputs of a layer after the cut, Y its outputs before it and W its weights, the kept entries become

        argmin ‖X Wᵀ − Y‖² + λ m ‖W − W₀‖²,   m = mean second moment of X,

    in the order in which the layers run, so that a layer also makes up for what those before it could not. λ is the
    one of five that does best on samples held out; where none does better than no repair the layer is left as it is.

    Args:
        samples: how many samples are looked at, at most, over all ranks; a fourth of them is held out.
        rows: how many rows (samples times positions) of each layer enter the fit, at most, on each rank.
        megabytes: what the samples that a fit keeps take, at most, over all ranks, and with them a checkpoint; fewer
            are kept of larger ones. What an event takes follows from it: of the samples go as many through the model as
            no layer gives more than eight times that for, and of rows as many enter as all layers together give no
            more for.

    Source: the reconstruction of He, Zhang and Sun 2017 (Channel Pruning, equation 5), with the sequential targets of
    their section 3.2; one ridge for all layers and a held-out choice of it are ours. Frantar and Alistarh 2023
    (SparseGPT) for single weights, solved here by conjugate gradients on each row's kept entries.
    """

    samples: int = 256
    rows: int = 16_384
    megabytes: int = 32

    def __post_init__(self) -> None:
        check_whole("LeastSquares.samples", self.samples, MIN_SAMPLES, why=": fewer fit their own noise")
        check_whole("LeastSquares.rows", self.rows, 64)
        check_whole("LeastSquares.megabytes", self.megabytes, 1)

    @property
    def bytes_at_event(self) -> int:
        """What a layer's outputs, and what is written down of all layers, take at most while an event goes on."""
        return 8 * self.megabytes << 20


@dataclass(frozen=True)
class NoRepair(Choice):
    """Leave what is left of each layer as it is: training alone makes up for what went."""


MIN_SAMPLES = 16
"""Fewer samples made a real encoder worse (.48 to .05 with 12), whatever the ridge."""


@dataclass(frozen=True)
class Moments:
    """Sums over rows of a layer's inputs and of the outputs to be given; they add up over batches and ranks.

    Args:
        inputs: XᵀX, shape (groups, columns, columns), float64.
        cross: XᵀY, shape (groups, columns, outputs).
        outputs: ΣY², shape (groups, outputs).
        rows: number of rows.
    """

    inputs: Tensor
    cross: Tensor
    outputs: Tensor
    rows: Tensor

    @classmethod
    def of(cls, inputs: Tensor, outputs: Tensor) -> "Moments":
        """Return the sums over rows.

        Args:
            inputs: shape (groups, rows, columns).
            outputs: shape (groups, rows, outputs).
        """
        pieces = zip(inputs.split(_PIECE, 1), outputs.split(_PIECE, 1), strict=True)
        doubles = ((x.double(), y.double()) for x, y in pieces)
        sums = (cls(x.mT @ x, x.mT @ y, y.square().sum(1), x.new_tensor(float(x.shape[1]))) for x, y in doubles)
        return reduce(add, sums)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the sums, for ranks that add them up in place."""
        return self.inputs, self.cross, self.outputs, self.rows

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(*(a + b for a, b in zip(self.tensors(), other.tensors(), strict=True)))

    def error(self, weights: Tensor, rows: Tensor) -> float:
        """Return ‖X Wᵀ − Y‖² over the outputs that are kept.

        Args:
            weights: shape (groups, outputs, columns).
            rows: bool, shape (groups, outputs); True = counts.
        """
        w = weights.double()
        squares = ((w @ self.inputs) * w).sum(-1) - 2 * (w * self.cross.mT).sum(-1) + self.outputs
        return float(squares[rows].sum().clamp_min(0))


def fit(moments: Moments, start: Tensor, kept: Tensor, damping: float) -> Tensor:
    """Return the weights of least squares that are zero wherever they are not kept.

    Args:
        moments: of inputs and wanted outputs.
        start: W₀, towards which the ridge draws; shape (groups, outputs, columns).
        kept: bool, same shape; True = may be other than zero.
        damping: λ, a share of the mean second moment of the kept columns.

    Returns:
        Weights of the shape and dtype of ``start``.
    """
    w0 = start.double() * kept
    groups = zip(moments.inputs / moments.rows, moments.cross / moments.rows, w0, kept, strict=True)
    return torch.stack([_fit_group(*group, damping) for group in groups]).to(start.dtype)


def _fit_group(h: Tensor, cross: Tensor, start: Tensor, kept: Tensor, damping: float) -> Tensor:
    columns, outputs, c = kept.any(0), kept.any(1), cross.mT
    ridge = damping * h.diagonal()[columns].mean().clamp_min(1e-30)
    if bool((kept == outputs[:, None] & columns).all()):
        index = columns.nonzero().flatten()
        system = h[index][:, index] + ridge * torch.eye(len(index), dtype=h.dtype, device=h.device)
        factor, info = torch.linalg.cholesky_ex(system)
        if int(info):
            return start
        wanted = (c[:, index] + ridge * start[:, index]) * outputs[:, None]
        return torch.zeros_like(start).index_copy_(1, index, torch.cholesky_solve(wanted.mT, factor).mT)
    return _conjugate_gradients(h, c, start, kept, ridge)


def _conjugate_gradients(h: Tensor, c: Tensor, start: Tensor, kept: Tensor, ridge: Tensor) -> Tensor:
    """Solve every row on its own kept entries, all rows side by side; preconditioned by the diagonal."""
    weights, scale = start.clone(), 1 / (h.diagonal() + ridge)
    residual = (c + ridge * start - weights @ h - ridge * weights) * kept
    step = residual * scale
    product = (residual * step).sum(1, keepdim=True)
    for _ in range(_ITERATIONS):
        ahead = (step @ h + ridge * step) * kept
        length = product / (step * ahead).sum(1, keepdim=True).clamp_min(1e-300)
        weights += length * step
        residual -= length * ahead
        better = residual * scale
        following = (residual * better).sum(1, keepdim=True)
        step = better + following / product.clamp_min(1e-300) * step
        product = following
    return weights


def best_fit(
    fitted_on: Moments, judged_on: Moments, start: Tensor, kept: Tensor, dampings: Sequence[float] = DAMPINGS
) -> tuple[Tensor, float, float, float | None]:
    """Return the weights that do best on samples that they were not fitted on.

    Args:
        fitted_on: moments of the samples to fit.
        judged_on: moments of the samples held out.
        start: the weights as they are; shape (groups, outputs, columns).
        kept: bool, same shape.
        dampings: to choose from.

    Returns:
        The weights, fitted on all samples; the held-out error before; that after; the damping, None where the weights
        are those of the start since no fit did better.
    """
    rows = kept.any(-1)
    before = judged_on.error(start * kept, rows)
    tried = {damping: judged_on.error(fit(fitted_on, start, kept, damping), rows) for damping in dampings}
    damping = min(tried, key=lambda d: tried[d])
    if not tried[damping] < before:
        return start, before, before, None
    return fit(fitted_on + judged_on, start, kept, damping), before, tried[damping], damping
