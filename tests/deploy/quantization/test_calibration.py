"""Batches to calibrate on: cut, filled up, counted and refused."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from deploy_models import EXAMPLE, images, loader, small
from quantization_cases import traced
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_prune.deploy.quantization import Int8
from lightning_prune.deploy.quantization.calibration import calibration_samples


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield torch.zeros(1, 8, 8)


@pytest.mark.parametrize(
    ("batches", "runs"),
    [
        (loader(10), 3),
        ([images(1)], 1),
        ([(images(4), torch.zeros(4)), (images(1), torch.zeros(1))], 2),
        ([((images(9),), None)], 3),
        (DataLoader(Endless(), batch_size=7), 64),
    ],
    ids=["loader", "one", "targets", "nested", "endless"],
)
def test_batches_are_cut_and_filled_up(batches: Any, runs: int) -> None:
    found = calibration_samples(batches, (EXAMPLE,), 256)
    assert [x.shape for (x,) in found] == [EXAMPLE.shape] * runs


def test_only_so_many_samples_are_used() -> None:
    found = calibration_samples([images(10)], (EXAMPLE,), 6)
    assert len(found) == 2
    assert torch.equal(found[1][0], images(10)[[4, 5, 4, 5]])


@pytest.mark.parametrize(
    ("batches", "told"),
    [
        ([], "no batch"),
        ([torch.zeros(4, 1, 9, 9)], r"\(4, 1, 9, 9\) float32, the example inputs are \(N, 1, 8, 8\) float32"),
        ([torch.zeros(4, 1, 8, 8, dtype=torch.int64)], "int64"),
        ([torch.full((4, 1, 8, 8), math.nan)], "batch 0 holds NaN"),
        (["images"], "holds the inputs str"),
    ],
)
def test_batches_that_do_not_fit_are_refused(batches: Any, told: str) -> None:
    with pytest.raises(ValueError, match=f"calibration: .*{told}"):
        Int8(batches).quantize(traced(small(), EXAMPLE), (EXAMPLE,))
