import math
import re
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from lightning_prune.deploy import XNNPACK, Artifact, Int8, export, verify
from lightning_prune.deploy.checking.cases import Case, cases, described
from lightning_prune.deploy.checking.comparison import Bounds, Differences, max_abs_difference
from lightning_prune.deploy.checking.verification import changed_predictions, compare_with
from lightning_prune.deploy.program.eager import EagerModel
from lightning_prune.deploy.program.loaders import OwnData, OwnSamples, check_batched, run_in_chunks, split_batch
from lightning_prune.deploy.program.signature import MethodSpec, TensorSpec, flatten_outputs
from lightning_prune.deploy.runtime.model import RuntimeModel
from lightning_prune.errors import ExportError, VerificationError

Pair = namedtuple("Pair", ["left", "right"])
IMAGE = TensorSpec("image", (4, 3), torch.float32)
LOGITS = TensorSpec("logits", (4, 2), torch.float32)
SPEC = MethodSpec((IMAGE,), (LOGITS,))


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


class TestDifferences:
    def test_it_keeps_the_largest_of_each_output(self):
        differences = Differences(["a", "b"], Bounds(1))
        differences.add([torch.tensor([0.5]), torch.zeros(1)], [torch.zeros(1), torch.zeros(1)], "one")
        differences.add([torch.tensor([0.25]), torch.ones(1)], [torch.zeros(1), torch.zeros(1)], "two")
        assert {name: error.max_abs_error for name, error in differences.errors.items()} == {"a": 0.5, "b": 1.0}

    @given(st.lists(st.tuples(st.floats(-9, 9, width=32), st.floats(-9, 9, width=32)), min_size=1, max_size=8))
    def test_ratio_against_numpy(self, pairs: list[tuple[float, float]]):
        output, wanted = np.array(pairs, dtype=np.float64).T
        differences = Differences(["a"], Bounds())
        for left, right in pairs:
            differences.add([torch.tensor([left]).double()], [torch.tensor([right]).double()], "one")
        noise = ((output - wanted) ** 2).sum()
        with np.errstate(divide="ignore"):
            expected = np.inf if noise == 0 else 10 * np.log10(max((wanted**2).sum(), 1e-300) / noise)
        assert differences.errors["a"].sqnr_db == pytest.approx(expected)

    def test_ratio_that_is_too_low(self):
        differences = Differences(["a"], Bounds(min_sqnr=20))
        differences.add([torch.tensor([10.0])], [torch.tensor([11.0])], "one")
        differences.check()
        differences.add([torch.tensor([1.0])], [torch.tensor([2.0])], "two")
        with pytest.raises(VerificationError, match=r"output 'a': .* is 18\.0 dB, the lowest accepted is 20 dB"):
            differences.check()

    def test_outputs_that_are_not_floating_have_no_ratio(self):
        differences = Differences(["a"], Bounds(min_sqnr=10))
        differences.add([torch.tensor([1, 2])], [torch.tensor([3, 2])], "one")
        differences.check()
        assert differences.errors["a"].to_json() == {"max_abs_error": 2.0, "sqnr_db": None}

    def test_without_a_tolerance_what_is_not_finite_is_refused(self):
        for wrong in (math.nan, math.inf):
            with pytest.raises(VerificationError, match="holds NaN or infinities"):
                Differences(["a"], Bounds(min_sqnr=-100)).add([torch.tensor([wrong])], [torch.zeros(1)], "one")

    @pytest.mark.parametrize(
        ("outputs", "text"),
        [
            ([torch.zeros(2)], r"output 'a' on one: the program gives \(2,\) float32, the eager model \(1,\) float32"),
            ([torch.zeros(1).int()], r"output 'a' on one: the program gives \(1,\) int32"),
            ([], "the program gives 0 outputs on one, the eager model 1"),
            ([torch.tensor([2.0])], "largest absolute difference from the eager model is 2, the tolerance is 0.5"),
            ([torch.tensor([math.inf])], "holds NaN or infinities that"),
        ],
    )
    def test_refusals(self, outputs: list[Tensor], text: str):
        with pytest.raises(VerificationError, match=text):
            Differences(["a"], Bounds(0.5)).add(outputs, [torch.zeros(1)], "one")


class TestOwnData:
    @pytest.mark.parametrize(
        "batch",
        [
            (torch.arange(30.0).reshape(10, 3), torch.zeros(10)),
            {"image": torch.arange(30.0).reshape(10, 3), "label": torch.zeros(10)},
            {"pixels": torch.arange(30.0).reshape(10, 3), "label": torch.zeros(10)},
        ],
        ids=["pair", "by name", "the only one that fits"],
    )
    def test_eight_samples_in_runs_of_the_size_of_the_program(self, batch: Any):
        samples = OwnData([batch], "the loader").samples([TensorSpec("image", (5, 3), torch.float32)], None)
        first, second = (x for (x,) in samples.inputs)
        assert torch.equal(first, torch.arange(15.0).reshape(5, 3))
        assert torch.equal(second[:3], torch.arange(15.0, 24.0).reshape(3, 3))
        assert torch.equal(second[3:], second[2:3].expand(2, 3))
        assert samples.count == 8

    @pytest.mark.parametrize("batch", [torch.zeros(4, 7), {"a": torch.zeros(4, 3), "b": torch.zeros(4, 3)}, ["text"]])
    def test_what_does_not_fit_is_told_and_refuses_nothing(self, batch: Any):
        samples = OwnData([batch], "the loader").samples([IMAGE], None)
        _, notes = cases(EagerModel(nn.Linear(3, 2)), [torch.zeros(4, 3)], {}, own=samples)
        assert not samples.inputs
        assert "Not compared on the loader (ValueError: " in notes[0]

    def test_no_batch_is_nothing_to_tell(self):
        assert OwnData([], "the loader").samples([IMAGE], None) == OwnSamples("the loader")

    def test_it_comes_before_random_inputs(self):
        own = OwnData([torch.rand(8, 3)], "the loader").samples([IMAGE], None)
        compared, _ = cases(EagerModel(nn.Linear(3, 2)), [torch.zeros(4, 3)], {}, own=own)
        assert list(compared)[-2:] == ["sample 1 of the loader", "random inputs"]
        assert described(compared, own) == "8 samples of the loader"

    def test_what_was_compared_on_without_it(self):
        model, none = EagerModel(nn.Linear(3, 2)), OwnSamples()
        for example, told in ((torch.zeros(4, 3), "random inputs only"), (torch.rand(4, 3), "the example inputs and")):
            assert described(cases(model, [example], {})[0], none).startswith(told)
        tokens = [torch.tensor([[1, 2]])]
        assert described(cases(EagerModel(nn.Embedding(3, 2)), tokens, {})[0], none) == "the example inputs only"

    def test_what_the_model_rejects_is_told(self):
        own = OwnData([torch.tensor([[7, 8]])], "the loader").samples([TensorSpec("x", (1, 2), torch.int64)], None)
        compared, notes = cases(EagerModel(nn.Embedding(3, 2)), [torch.tensor([[1, 2]])], {}, own=own)
        assert list(compared) == ["the example inputs"]
        assert "Not compared on the loader (Embedding rejects" in notes[0]


class TestLoader:
    @given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 4))
    def test_chunks_give_what_one_run_gives(self, samples: int, largest: int, less: int):
        batch, seen, smallest = torch.randn(samples, 3), [], max(1, largest - less)

        def run(x: Tensor) -> list[Tensor]:
            seen.append(len(x))
            return [2 * x, x.sum(1)]

        doubled, summed = run_in_chunks(run, [batch], smallest, largest)
        assert torch.equal(doubled, 2 * batch)
        assert torch.equal(summed, batch.sum(1))
        assert all(smallest <= size <= largest for size in seen)
        assert len(seen) == math.ceil(samples / largest)

    def test_sizes_that_may_vary(self):
        spec = TensorSpec("image", (4, 3, 8), torch.float32, {0: (1, 16), 2: (4, 8)})
        assert len(split_batch(torch.zeros(20, 3, 5), [spec], False)[0][0]) == 20
        with pytest.raises(ValueError, match=r"\(2, 3, 9\) float32, the example inputs are \(N, 3, 4…8\) float32"):
            split_batch(torch.zeros(2, 3, 9), [spec], False)

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
        _, found = compare_with(program, eager, {}, SPEC, Bounds(1.0), [batch, batch], metric)
        assert found.metrics == {"eager": 1.0, "executorch": 0.0}
        assert found.changed_predictions == found.samples == 10
        assert metric.compute() == 0

    def test_a_metric_for_other_outputs(self):
        batch = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)
        with pytest.raises(
            ValueError, match=r"metric: MulticlassAccuracy takes no outputs \(4, 2\) float32 with target"
        ):
            compare_with(lambda x: [x[:, :2]], lambda x: [x[:, :2]], {}, SPEC, Bounds(1.0), [batch],
                         MulticlassAccuracy(7))  # fmt: skip

    def test_metric_of_several_numbers(self):
        batch = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)
        with pytest.raises(ValueError, match=r"MulticlassConfusionMatrix gives \(2, 2\) int64; pass one that computes"):
            compare_with(lambda x: [x[:, :2]], lambda x: [x[:, :2]], {}, SPEC, Bounds(1.0), [batch],
                         MulticlassConfusionMatrix(2))  # fmt: skip

    def test_a_trial_alone_is_judged_by_itself(self):
        def program(x: Tensor) -> list[Tensor]:
            return [x[:, :2] + (1 if len(x) == 2 else 0)]

        given = {"good": torch.full((400, 3), 9.0), "bad": torch.ones(2, 3)}
        trials = {where: Case([x], [x[:, :2]]) for where, x in given.items()}
        compare_with(program, lambda x: [x[:, :2]], trials, SPEC, Bounds(min_sqnr=10))
        with pytest.raises(VerificationError, match=r"'logits' on bad: .* is 0\.0 dB.*leave dynamic_shapes= out"):
            compare_with(program, lambda x: [x[:, :2]], trials, SPEC, Bounds(min_sqnr=10), alone=["bad"])

    def test_a_loader_is_judged_by_itself(self):
        """Calibrated on values of another scale, a file is right on those and useless on the loader's."""

        def program(x: Tensor) -> list[Tensor]:
            return [torch.where(x[:, :2] > 2, x[:, :2], 0.0)]

        loud = torch.full((400, 3), 99.0)
        trials = {"a calibration sample": Case([loud], [loud[:, :2]])}
        compare_with(program, lambda x: [x[:, :2]], trials, SPEC, Bounds(min_sqnr=10))
        with pytest.raises(VerificationError, match=r"'logits' on verify_on: .* is 0\.0 dB.*samples like these"):
            compare_with(program, lambda x: [x[:, :2]], trials, SPEC, Bounds(min_sqnr=10), [torch.ones(4, 3)])

    @pytest.mark.parametrize(("error", "hint"), [(0.055, "0.06"), (13.5, "20"), (0.25, "0.3"), (3e-4, "0.0003")])
    def test_the_tolerance_that_is_named_would_do(self, error: float, hint: str):
        x = torch.zeros(4, 3, dtype=torch.float64)
        x[0] = 1000 * error  # in an output of such numbers it may be rounding
        trials = {"zeros": Case([x], [x[:, :2]])}
        program = lambda x: [torch.where(x > 0, x, error)[:, :2]]  # noqa: E731
        with pytest.raises(VerificationError, match=rf"accept it with tolerance={hint}$"):
            compare_with(program, lambda x: [x[:, :2]], trials, SPEC, Bounds(1e-4))
        compare_with(program, lambda x: [x[:, :2]], trials, SPEC, Bounds(float(hint)))

    def test_no_tolerance_is_named_for_what_is_no_rounding(self):
        x = torch.full((4, 3), 0.5)
        with pytest.raises(VerificationError, match=r"is 0\.25, .*no rounding.*Portable\(\)") as told:
            compare_with(lambda x: [x[:, :2] + 0.25], lambda x: [x], {"x": Case([x], [x[:, :2]])}, SPEC, Bounds(1e-4))
        assert "tolerance=" not in str(told.value)


class TestSignature:
    def test_names_of_outputs(self):
        x = torch.zeros(1)
        assert list(flatten_outputs(x)) == ["output"]
        assert list(flatten_outputs((x, x))) == ["output_0", "output_1"]
        assert list(flatten_outputs({"b": x, "a": [x, {"c": x}]})) == ["b", "a.0", "a.1.c"]
        assert list(flatten_outputs(Pair(x, (x, x)))) == ["left", "right.0", "right.1"]

    def test_nothing_comes_out(self):
        with pytest.raises(ExportError, match="returns no tensor"):
            flatten_outputs(())


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


@pytest.fixture(scope="module", params=["float", "int8"])
def kind(request: pytest.FixtureRequest) -> str:
    pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")
    return request.param


@pytest.fixture(scope="module", params=["fixed", "varying"])
def options(request: pytest.FixtureRequest, kind: str) -> dict[str, Any]:
    """What is exported, and the data: the same for both."""
    data = 20 * torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    shapes = {"input": {0: torch.export.Dim("batch", min=1, max=6)}} if request.param == "varying" else None
    backend = XNNPACK(quantization=Int8(calibration=[data])) if kind == "int8" else XNNPACK()
    return {"example_inputs": data, "backend": backend, "dynamic_shapes": shapes, "verify_on": [data, data[:3]]}


@pytest.fixture(scope="module")
def artifact(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return export(network(), tmp_path_factory.mktemp("verdict") / "m.pte", **options)


class TestOneVerdict:
    """``export`` and ``verify`` say the same of the same file, data and sizes."""

    def test_of_a_good_file(self, artifact: Artifact, options: dict[str, Any], kind: str):
        examples = None if kind == "int8" else options["example_inputs"]
        found = verify(artifact.path, network(), examples, verify_on=options["verify_on"])
        assert found == artifact.verification
        assert kind == "float" or found.max_abs_error > 0

    @pytest.mark.parametrize("size", [1, 4, 6])
    def test_of_a_file_that_is_wrong_at_one_size(
        self, artifact: Artifact, options: dict[str, Any], kind: str, size: int, monkeypatch: pytest.MonkeyPatch
    ):
        run = RuntimeModel.__call__

        def wrong(self: RuntimeModel, *inputs: Tensor) -> tuple[Tensor, ...]:
            outputs = run(self, *inputs)
            return tuple(y + y.abs().mean() for y in outputs) if len(inputs[0]) == size else outputs

        monkeypatch.setattr(RuntimeModel, "__call__", wrong)

        def of_export() -> object:
            return export(network(), artifact.path.with_name("again.pte"), **options)

        def of_verify() -> object:
            examples = None if kind == "int8" else options["example_inputs"]
            return verify(artifact.path, network(), examples, verify_on=options["verify_on"])

        def verdict(of: Callable[[], object]) -> str | None:
            try:
                of()
            except VerificationError as error:
                told = str(error).partition(": ")[2]
                return re.split(r" (?:Compare|Calibrate|Is it|If it|That is no rounding)\b", told)[0]

        told = verdict(of_export)
        assert told == verdict(of_verify)
        runs_at_this_size = size == 4 or options["dynamic_shapes"] is not None
        assert (told is not None) == runs_at_this_size
