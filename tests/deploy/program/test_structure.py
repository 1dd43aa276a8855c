"""Structured arguments and outputs: each tensor is an input or output by its name, and the file computes the same."""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from lightning_prune.deploy import RuntimeModel, benchmark, export, verify
from lightning_prune.deploy.program.eager import given_inputs
from lightning_prune.deploy.program.loaders import split_batch
from lightning_prune.deploy.program.signature import TensorSpec, flatten_outputs
from lightning_prune.deploy.program.structure import Arguments, Records, flat_inputs, shaped
from lightning_prune.model.example import Example

needs_executorch = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="needs the extra 'mobile' (executorch)"
)
AUDIO = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
LENGTH = torch.tensor([6, 3])


class Pair(NamedTuple):
    audio: Tensor
    length: Tensor


@dataclass
class Batch:
    audio: Tensor
    length: Tensor
    name: str | None = None


@dataclass
class Result:
    mean: Tensor
    parts: dict[str, Tensor]
    loss: Tensor | None = None


class Keywords(nn.Module):
    """Takes its inputs by keyword alone, one of them whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 3)

    def forward(self, *, audio: Tensor, length: Tensor, scale: float = 1.0) -> Result:
        inside = torch.arange(6) < length[:, None]
        mean = self.net(audio * inside) * scale
        return Result(mean, {"loud": mean.abs(), "length": length + 1})


class OfOne(Keywords):
    """Takes a batch as a whole."""

    def __init__(self, get: Callable[[Any, str], Tensor]) -> None:
        super().__init__()
        self.get = get

    def forward(self, batch: Any) -> Result:  # type: ignore[override]
        return super().forward(audio=self.get(batch, "audio"), length=self.get(batch, "length"))


def item(batch: Any, name: str) -> Tensor:
    return batch[name]


KEYWORDS = {"length": LENGTH, "audio": AUDIO}


@needs_executorch
@pytest.mark.parametrize(
    ("model", "inputs", "names"),
    [
        pytest.param(Keywords(), KEYWORDS, ["audio", "length"], id="keywords"),
        pytest.param(OfOne(item), KEYWORDS, ["batch.length", "batch.audio"], id="dict"),
        pytest.param(OfOne(getattr), (Batch(AUDIO, LENGTH),), ["batch.audio", "batch.length"], id="dataclass"),
        pytest.param(OfOne(getattr), Pair(AUDIO, LENGTH), ["batch.audio", "batch.length"], id="named tuple"),
    ],
)
def test_a_file_takes_and_gives_what_the_model_does_by_name(
    model: nn.Module, inputs: Any, names: list[str], tmp_path: Path
):
    loader = [({"length": LENGTH[:1], "audio": AUDIO[:1]}, torch.zeros(1)), {"audio": AUDIO, "length": LENGTH}]
    artifact = export(model.eval(), tmp_path / "m.pte", example_inputs=inputs, verify_on=loader)
    assert artifact.verification.samples == 3
    told = json.loads(artifact.manifest_path.read_text())["methods"]["forward"]
    assert [one["name"] for one in told["inputs"]] == names
    assert [one["name"] for one in told["outputs"]] == ["mean", "parts.loud", "parts.length"]
    with torch.no_grad():
        expected = flatten_outputs(Arguments.of(model, given_inputs(inputs)).example(model)).values()
    program = RuntimeModel(artifact.path)
    in_order = [AUDIO if name.endswith("audio") else LENGTH for name in names]
    calls = [program(KEYWORDS), program(Batch(AUDIO, LENGTH)), program(*in_order)]
    for outputs in calls:
        for output, wanted in zip(outputs, expected, strict=True):
            torch.testing.assert_close(output, wanted)
    assert verify(artifact.path, model, inputs, verify_on=loader).max_abs_error < 1e-5
    if not any(isinstance(x, Batch | Pair) for x in (inputs, *inputs)):
        assert verify(artifact.path, model).max_abs_error < 1e-5  # by the file's own inputs
    assert benchmark(artifact.path, rounds=1)["m"].median_ms > 0
    assert benchmark(artifact.path, KEYWORDS, rounds=1)["m"].median_ms > 0


@needs_executorch
def test_plain_values_become_part_of_the_program_and_are_told(tmp_path: Path):
    model, inputs = Keywords().eval(), {**KEYWORDS, "scale": 2.5}
    artifact = export(model, tmp_path / "m.pte", example_inputs=inputs)
    assert any("Part of the program" in note and "scale=2.5" in note for note in artifact.notes)
    with torch.no_grad():
        expected = model(**inputs)
    torch.testing.assert_close(RuntimeModel(artifact.path)(audio=AUDIO, length=LENGTH)[0], expected.mean)


@needs_executorch
def test_sizes_vary_by_name(tmp_path: Path):
    batch = torch.export.Dim("batch", min=1, max=4)
    sizes = {"batch": {"audio": {0: batch}, "length": {0: batch}}}
    artifact = export(OfOne(item).eval(), tmp_path / "m.pte", example_inputs=KEYWORDS, dynamic_shapes=sizes)
    assert len(RuntimeModel(artifact.path)({"audio": AUDIO[:1], "length": LENGTH[:1]})[0]) == 1


class TestArguments:
    def test_names_are_those_of_the_signature_in_its_order(self):
        def method(tokens: Tensor, *features: Any, flag: bool = True, **more: Tensor) -> None: ...

        x = torch.zeros(1)
        arguments = Arguments.of(method, Example((x, x, {"a": [x, x]}), {"late": x, "flag": False}))
        assert arguments.names == ("tokens", "features_0", "features_1.a.0", "features_1.a.1", "late")
        numbers = [torch.tensor(float(i)) for i in range(5)]
        filled = arguments.filled(numbers)
        assert filled.args == (numbers[0], numbers[1], {"a": [numbers[2], numbers[3]]})
        assert filled.kwargs == {"flag": False, "late": numbers[4]}
        assert arguments.fixed == {"flag": False}

    def test_what_no_program_can_take(self):
        with pytest.raises(TypeError, match="example_inputs: batch is a object: pass one tensor per positional"):
            Arguments.of(lambda batch: None, Example((object(),)))
        with pytest.raises(TypeError, match=r"example_inputs\[0\] is a int"):
            Arguments.of(lambda x: None, Example((3,)))

    def test_a_file_says_how_it_is_called(self):
        assert shaped(lambda x, y: None, ["x", "y"], (AUDIO, LENGTH)).args == (AUDIO, LENGTH)
        assert shaped(Keywords(), ["audio", "length"], (AUDIO, LENGTH)).kwargs == {"audio": AUDIO, "length": LENGTH}
        nested = shaped(lambda batch: None, ["batch.x", "batch.y.0", "batch.y.1"], (AUDIO, LENGTH, LENGTH))
        assert nested.kwargs == {"batch": {"x": AUDIO, "y": (LENGTH, LENGTH)}}


class TestByName:
    def test_calls(self):
        names = ["audio", "length"]
        for args, kwargs in (
            ((AUDIO, LENGTH), {}),
            ((KEYWORDS,), {}),
            ((AUDIO,), {"length": LENGTH}),
            ((), KEYWORDS),
            (((AUDIO, LENGTH),), {}),
        ):
            assert [id(x) for x in flat_inputs(names, args, kwargs)] == [id(AUDIO), id(LENGTH)]
        assert len(flat_inputs(names, (AUDIO, LENGTH), {"other": AUDIO})) == 3

    @pytest.mark.parametrize(
        "batch",
        [
            {"length": LENGTH, "audio": AUDIO, "label": LENGTH},
            {"length": LENGTH, "audio": AUDIO, "labels": LENGTH, "weights": AUDIO},
            ({"length": LENGTH, "audio": AUDIO}, LENGTH),
            (Batch(AUDIO, LENGTH), LENGTH),
            (Pair(AUDIO, LENGTH), LENGTH),
            ((AUDIO, LENGTH), LENGTH),
            (AUDIO, LENGTH, LENGTH),
        ],
    )
    def test_batches(self, batch: Any):
        (converted,) = Records(["batch.audio", "batch.length"], [batch], "verify_on")
        takes = [TensorSpec("audio", (4, 6), torch.float32), TensorSpec("length", (4,), torch.int64)]
        inputs, targets = split_batch(converted, takes, needs_targets=True)
        assert torch.equal(inputs[0], AUDIO)
        assert torch.equal(inputs[1], LENGTH)
        assert targets is LENGTH

    def test_a_batch_without_an_input(self):
        with pytest.raises(ValueError, match="verify_on: a batch holds audio, the inputs are audio, length"):
            list(Records(["audio", "length"], [{"audio": AUDIO}], "verify_on"))
        way_out = r'such as \[{"audio": batch\["sound"\], "length": batch\["length"\], "label": batch\["label"\]} for'
        with pytest.raises(ValueError, match=way_out):
            list(Records(["audio", "length"], [{"label": LENGTH, "length": LENGTH, "sound": AUDIO}], "calibration"))
