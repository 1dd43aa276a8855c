"""Sequences of calls are taken as a program takes them, or refused with where the fault is."""

from typing import Any

import pytest
import torch

from lightning_prune.deploy import MethodSpec, Normalize, Sequences, TensorSpec
from lightning_prune.deploy.checking.verification import check_metric
from lightning_prune.deploy.quantization.calibration import samples_of

X, P = TensorSpec("x", (1, 4), torch.float32), TensorSpec("position", (2,), torch.int64, {0: (1, 8)})
STEP = (torch.ones(1, 4), torch.arange(3))


def test_calls_by_order_and_by_name():
    by_name = {"position": STEP[1], "x": STEP[0]}
    taken = Sequences([[STEP, list(STEP)], (by_name,)]).taken(MethodSpec((X, P), ()), None, "verify_on")
    assert [len(row) for row in taken.calls] == [2, 1]
    for row in taken.calls:
        for x, position in row:
            assert torch.equal(x, STEP[0])
            assert torch.equal(position, STEP[1])


def test_images_become_bytes():
    image = TensorSpec("image", (1, 3, 2, 2), torch.uint8)
    normalize = Normalize(mean=[0.5] * 3, std=[0.5] * 3)
    taken = Sequences([[torch.ones(1, 3, 2, 2)]]).taken(MethodSpec((image,), ()), normalize, "verify_on")
    assert torch.equal(taken.calls[0][0][0], torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("sequences", "error", "text"),
    [
        ([], ValueError, "there is none"),
        (torch.zeros(3, 1, 4), TypeError, "got a Tensor, must be a list of lists"),
        ([torch.zeros(3, 1, 4)], TypeError, "number 0 is a Tensor, must be a list of calls"),
        ([[], [STEP]], ValueError, "sequence 0 has no call"),
        ([[STEP, torch.ones(1, 4)]], ValueError, r"call 1 of sequence 0 holds \(1, 4\) float32, the program takes x"),
        (
            [[{"a": STEP[0], "b": STEP[1]}]],
            ValueError,
            "call 0 of sequence 0 holds a, b, the inputs are x, position: name",
        ),
        ([[(torch.ones(1, 4), torch.arange(9))]], ValueError, r"takes .*position \(1…8,\) int64"),
    ],
)
def test_refusals(sequences: Any, error: type[Exception], text: str):
    with pytest.raises(error, match=text):
        Sequences(sequences).taken(MethodSpec((X, P), ()), None, "verify_on")


def test_a_name_that_is_none_of_the_inputs_is_refused_where_there_is_one():
    with pytest.raises(ValueError, match="verify_on: call 1 of sequence 0 holds wrong, the inputs are x: name them"):
        Sequences([[{"x": STEP[0]}, {"wrong": STEP[0]}]]).taken(MethodSpec((X,), ()), None, "verify_on")


def test_a_metric_has_no_targets_here():
    from torchmetrics import MeanMetric

    with pytest.raises(ValueError, match="sequences hold no targets"):
        check_metric(MeanMetric(), Sequences([[STEP]]))


def test_calibration_takes_the_first_calls_in_their_rows():
    rows = Sequences([[(torch.full((1, 4), float(10 * row + at)),) for at in range(3)] for row in range(3)])
    samples = samples_of(rows, [torch.zeros(1, 4)], 5)
    assert [[int(x[0, 0]) for (x,) in row] for row in samples.rows] == [[0, 1, 2], [10, 11]]
    with pytest.raises(ValueError, match="call 1 of sequence 0 holds NaN"):
        samples_of(Sequences([[STEP[:1], (torch.full((1, 4), torch.nan),)]]), [torch.zeros(1, 4)], 5)
