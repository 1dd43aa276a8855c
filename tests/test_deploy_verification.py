import math
from collections import namedtuple

import numpy as np
import pytest
import torch
from deploy_models import TwoInputs
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from lightning_prune.deploy.signature import TensorSpec, flatten_outputs, input_names
from lightning_prune.deploy.verification import (
    Comparison,
    changed_predictions,
    check_batched,
    max_abs_difference,
    run_in_chunks,
    split_batch,
    verify,
)
from lightning_prune.errors import ExportError, VerificationError

Pair = namedtuple("Pair", ["left", "right"])
IMAGE = TensorSpec("image", (4, 3), torch.float32)
LOGITS = TensorSpec("logits", (4, 2), torch.float32)


class TestDifference:
    @given(
        st.lists(
            st.tuples(st.floats(width=32, allow_nan=False), st.floats(width=32, allow_nan=False)),
            min_size=1,
            max_size=8,
        )
    )
    def test_against_numpy(self, pairs: list[tuple[float, float]]):
        left, right = np.array(pairs, dtype=np.float64).T
        with np.errstate(invalid="ignore"):
            expected = np.where(left == right, 0, np.abs(left - right)).max()
        assert max_abs_difference(torch.tensor(left), torch.tensor(right)) == expected

    def test_nan_is_seen_wherever_it_stands(self):
        for left, right in ((math.nan, 1.0), (1.0, math.nan), (math.nan, math.nan)):
            assert math.isnan(max_abs_difference(torch.tensor([0.0, left]), torch.tensor([5.0, right])))

    def test_integers_bools_and_nothing(self):
        assert max_abs_difference(torch.tensor([1, 5]), torch.tensor([1, 2])) == 3
        assert max_abs_difference(torch.tensor([True]), torch.tensor([False])) == 1
        assert max_abs_difference(torch.empty(0), torch.empty(0)) == 0


class TestComparison:
    def test_it_keeps_the_largest_of_each_output(self):
        comparison = Comparison(["a", "b"], tolerance=1)
        comparison.add([torch.tensor([0.5]), torch.zeros(1)], [torch.zeros(1), torch.zeros(1)], "one")
        comparison.add([torch.tensor([0.25]), torch.ones(1)], [torch.zeros(1), torch.zeros(1)], "two")
        assert comparison.errors == {"a": 0.5, "b": 1.0}

    @pytest.mark.parametrize(
        ("outputs", "text"),
        [
            ([torch.zeros(2)], r"output 'a' on one: the program gives \(2,\) float32, the eager model \(1,\) float32"),
            ([torch.zeros(1).int()], r"output 'a' on one: the program gives \(1,\) int32"),
            ([], "the program gives 0 outputs on one, the eager model 1"),
            ([torch.tensor([2.0])], "largest absolute difference from the eager model is 2, the tolerance is 0.5"),
            ([torch.tensor([math.inf])], "is inf, the tolerance"),
        ],
    )
    def test_refusals(self, outputs: list[Tensor], text: str):
        with pytest.raises(VerificationError, match=text):
            Comparison(["a"], tolerance=0.5).add(outputs, [torch.zeros(1)], "one")


class TestLoader:
    @given(st.integers(1, 9), st.integers(1, 5))
    def test_chunks_give_what_one_run_gives(self, samples: int, size: int):
        batch, seen = torch.randn(samples, 3), []

        def run(x: Tensor) -> list[Tensor]:
            seen.append(len(x))
            return [2 * x, x.sum(1)]

        doubled, summed = run_in_chunks(run, [batch], size)
        assert torch.equal(doubled, 2 * batch)
        assert torch.equal(summed, batch.sum(1))
        assert seen == [size] * math.ceil(samples / size)

    def test_forms_of_a_batch(self):
        x, y = torch.zeros(2, 3), torch.tensor([1, 0])
        for batch in (x, (x,), [x, y], (x, y), ((x,), y)):
            assert torch.equal(split_batch(batch, [IMAGE], False)[0][0], x)
        two = [IMAGE, IMAGE]
        for batch in ((x, x, y), ((x, x), y)):
            inputs, targets = split_batch(batch, two, True)
            assert len(inputs) == 2
            assert targets is y

    def test_batches_that_do_not_fit(self):
        for batch in (
            torch.zeros(2, 4),
            torch.zeros(0, 3),
            torch.zeros(2, 3).double(),
            "text",
            (),
            torch.zeros(()),
            {"x": 1},
        ):
            with pytest.raises(ValueError, match=r"the example inputs are \(N, 3\) float32"):
                split_batch(batch, [IMAGE], False)
        with pytest.raises(ValueError, match=r"each batch must be \(inputs, targets\)"):
            split_batch((torch.zeros(2, 3),), [IMAGE], True)

    def test_outputs_without_a_batch(self):
        check_batched([IMAGE], [LOGITS])
        for shape in ((), (3, 2)):
            with pytest.raises(ValueError, match="first dimension of every input and output must be the batch"):
                check_batched([IMAGE], [TensorSpec("loss", shape, torch.float32)])

    def test_changed_predictions(self):
        left, right = torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.tensor([[1.0, 2.0], [1.0, 2.0]])
        assert changed_predictions(left, right) == 1
        assert changed_predictions(left[:, :1], right[:, :1]) is None
        assert changed_predictions(left[0], right[0]) is None

    def test_both_sides_get_a_fresh_metric(self):
        def eager(x: Tensor) -> list[Tensor]:
            return [x[:, :2]]

        def program(x: Tensor) -> list[Tensor]:
            return [x[:, :2].flip(1) * 1e-3]

        metric = MulticlassAccuracy(2, average="micro")
        metric.update(torch.tensor([1]), torch.tensor([0]))
        batch = torch.tensor([[0.0, 1e-3, 0.0]]).repeat(5, 1), torch.ones(5, dtype=torch.long)
        found = verify(program, eager, {}, [IMAGE], [LOGITS], 1.0, [batch, batch], metric)
        assert found.metrics == {"eager": 1.0, "executorch": 0.0}
        assert found.changed_predictions == found.samples == 10
        assert metric.compute() == 0

    def test_metric_of_several_numbers(self):
        batch = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)
        with pytest.raises(ValueError, match=r"MulticlassConfusionMatrix gives \(2, 2\) int64; pass one that computes"):
            verify(lambda x: [x[:, :2]], lambda x: [x[:, :2]], {}, [IMAGE], [LOGITS], 1.0, [batch],
                   MulticlassConfusionMatrix(2))  # fmt: skip


class TestSignature:
    def test_names_of_inputs(self):
        assert input_names(TwoInputs(), 3) == ["tokens", "features_0", "features_1"]

    def test_names_of_outputs(self):
        x = torch.zeros(1)
        assert list(flatten_outputs(x)) == ["output"]
        assert list(flatten_outputs((x, x))) == ["output_0", "output_1"]
        assert list(flatten_outputs({"b": x, "a": [x, {"c": x}]})) == ["b", "a.0", "a.1.c"]
        assert list(flatten_outputs(Pair(x, (x, x)))) == ["left", "right.0", "right.1"]

    def test_nothing_comes_out(self):
        with pytest.raises(ExportError, match="returns no tensor"):
            flatten_outputs(())
