"""The proof of a criterion: remove units one at a time and look at the loss."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from tqdm import tqdm

from lightning_prune.data.losses import Loss, loss_of
from lightning_prune.data.passes import Passes
from lightning_prune.errors import PruningError
from lightning_prune.model.plain_copy import plain_copy
from lightning_prune.selection import Units
from lightning_prune.study._removal import one_gone, without


@dataclass(frozen=True)
class Deletion:
    """What the removal of single units did to the loss, and how well criteria had foretold it.

    Args:
        units: (target or channel group, index of the unit in it), as they were drawn.
        changes: loss without each of them minus the loss with it.
        loss: mean loss per batch of the whole model.
        correlations: criterion -> Spearman's rank correlation of its scores with the sizes of the changes, in [-1, 1];
            NaN where either has no spread.
        dtype: in which the losses were computed.
    """

    units: tuple[tuple[str, int], ...]
    changes: tuple[float, ...]
    loss: float
    correlations: Mapping[str, float]
    dtype: torch.dtype

    def __str__(self) -> str:
        lower = sum(change < 0 for change in self.changes)
        found = [f"{value:8.3f}  {name}" for name, value in self.correlations.items()]
        return "\n".join(
            (
                f"{len(self.units)} units removed one at a time (loss {self.loss:.4g}, lowered by {lower} of them);",
                "rank correlation of the scores with the size of the change:",
                *found,
            )
        )


def drawn(sizes: Mapping[str, int], gone: Mapping[str, Tensor], count: int, seed: int) -> list[tuple[str, int]]:
    """Return units drawn at random without repetition among those that are there; all, where there are no more.

    Args:
        sizes: target or channel group -> number of its units.
        gone: the same -> units (bool, flat) that are removed already.
        count: how many.
        seed: of the draw.
    """
    there = [(name, index) for name in sizes for index in torch.nonzero(~gone[name].flatten()).flatten().tolist()]
    order = torch.randperm(len(there), generator=torch.Generator().manual_seed(seed))[:count]
    return [there[index] for index in order.tolist()]


def measure(
    model: nn.Module,
    passes: Passes,
    loss: Loss | None,
    units: Units,
    chosen: Sequence[tuple[str, int]],
    scores: Mapping[str, Tensor],
    tables: Mapping[str, Mapping[str, Tensor]],
) -> Deletion:
    """Remove the chosen units one at a time and correlate the change of the loss with the scores.

    What is foretold is the size of the change, not its sign: single weights of a trained network raise the loss as
    often as they lower it.

    Args:
        model: in eval mode; measured on a float64 copy, since single weights change the loss by less than float32
            shows.
        passes: the data, gone through once for each unit and once for all.
        loss: None for the model's own.
        units: of the model.
        chosen: (target or channel group, index).
        scores: dense name -> scores of its elements, by which n:m blocks choose what stays.
        tables: criterion -> target or channel group -> score of each unit.

    Source:
        Molchanov et al. 2019, equation 1: what a parameter is worth is the squared change of the error without it.
    """
    model, before, dtype = _widened(model, passes, loss)
    changes = []
    for name, index in tqdm(chosen, desc="deletion", disable=None, leave=False):
        with without(model, one_gone(units, name, index, scores)):
            changes.append(_mean_loss(model, passes, loss, dtype) - before)
    sizes = [abs(change) for change in changes]
    correlations = {
        criterion: spearman([float(table[name].flatten()[index]) for name, index in chosen], sizes)
        for criterion, table in tables.items()
    }
    return Deletion(tuple(chosen), tuple(changes), before, correlations, dtype)


def _widened(model: nn.Module, passes: Passes, loss: Loss | None) -> tuple[nn.Module, float, torch.dtype]:
    """Return a float64 copy and its loss; where its code makes float32 tensors, the model as it is and its loss."""
    try:
        copied = plain_copy(model).double()
        return copied, _mean_loss(copied, passes, loss, torch.float64), torch.float64
    except PruningError:
        raise
    except (RuntimeError, TypeError):
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        return model, _mean_loss(model, passes, loss, dtype), dtype


@torch.no_grad()
def _mean_loss(model: nn.Module, passes: Passes, loss: Loss | None, dtype: torch.dtype) -> float:
    values = []
    for index, batch in enumerate(passes):
        wide = tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, batch)
        values.append(float(loss_of(model, wide, index, loss)))
    return math.fsum(values) / len(values)


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's rank correlation, ties sharing the mean of their ranks; NaN where either has no spread.

    Example:
        >>> spearman([1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 40.0, 30.0])
        0.8
    """
    a, b = _ranks(first), _ranks(second)
    a, b = a - a.mean(), b - b.mean()
    spread = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / spread if spread else math.nan


def _ranks(values: Sequence[float]) -> np.ndarray:
    _, inverse, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
