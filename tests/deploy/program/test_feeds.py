"""State that is an argument and a result goes from call to call: by name, by position, in containers, in 8 bits."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from lightning_prune.deploy import (
    XNNPACK,
    Int8,
    Method,
    MethodSpec,
    Portable,
    Sequences,
    TensorSpec,
    export,
    inspect,
    load_manifest,
    verify,
)
from lightning_prune.deploy.artifact.manifest import to_text
from lightning_prune.deploy.program.feeds import Feeding, checked_feeds
from lightning_prune.deploy.program.signature import Feed
from lightning_prune.deploy.runtime.model import RuntimeModel
from lightning_prune.errors import ExportError, VerificationError

X, Y, H, C = (
    TensorSpec(n, s, torch.float32) for n, s in (("x", (1, 4)), ("y", (1, 2)), ("s.0", (1, 8)), ("s.1", (1, 8)))
)
OUT = (Y, *(TensorSpec(f"output_1.{i}", (1, 8), torch.float32) for i in range(2)))
SPEC, ZEROS = MethodSpec((X, H, C), OUT), [torch.zeros(1, 4), torch.zeros(1, 8), torch.zeros(1, 8)]
BOTH = (Feed("s.0", "output_1.0"), Feed("s.1", "output_1.1"))


class Cell(nn.Module):
    """A recurrent cell whose state is an argument and a result."""

    def __init__(self, fault: str = ""):
        super().__init__()
        torch.manual_seed(0)
        self.fault = fault
        self.i, self.turn, self.o = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor, h: Tensor) -> dict[str, Tensor]:
        h = h * 0.9 + torch.tanh(self.i(x) + self.turn(h)) * (0.1 if not self.fault else 0.11)
        return {"y": self.o(h), "h_out": h}


class Recurrent(nn.Module):
    """An LSTM with ``(h, c)`` in and out."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.o = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, state = self.lstm(x, state)
        return self.o(y), state


def frames(count: int, length: int, seed: int = 1) -> Sequences:
    draw = torch.Generator().manual_seed(seed)
    return Sequences([[torch.randn(1, 6, generator=draw) for _ in range(length)] for _ in range(count)])


@pytest.mark.parametrize(
    "feeds", [{"s": "output_1"}, {1: 1}, {"s.0": "output_1.0", "s.1": "output_1.1"}, {1: "output_1"}]
)
def test_by_name_by_position_and_one_by_one(feeds: Mapping[Any, Any]):
    assert checked_feeds(feeds, SPEC, ZEROS) == BOTH


def test_it_begins_with_what_stands_throughout_the_example():
    x, h, c = ZEROS
    assert [feed.first for feed in checked_feeds({1: 1}, SPEC, [x, h + 2, torch.arange(8.0)[None]])] == [2, 0]
    with pytest.raises(ValueError, match=r"'s.1' is -inf throughout .* take a large one"):
        checked_feeds({1: 1}, SPEC, [x, h, c - torch.inf])


@pytest.mark.parametrize(
    ("feeds", "error", "text"),
    [
        ([1], TypeError, "feeds: got a list, must be a dict"),
        ({"q": "y"}, ValueError, r"there is no input 'q'; the inputs are x \(1, 4\) float32, s.0"),
        ({1: 2}, ValueError, r"there is no output 2; the outputs are y"),
        ({1: -1}, ValueError, "there is no output -1"),
        ({True: 1}, TypeError, "got True for an input"),
        ({"s": "output_1.0"}, ValueError, "give as many"),
        ({"s.0": "y"}, ValueError, "y .* cannot be .*; of its shape and dtype is 'output_1.0' or 'output_1.1'"),
        ({"s": "output_1", "s.1": "output_1.0"}, ValueError, "'s.1' stands there twice"),
    ],
)
def test_refusals(feeds: Any, error: type[Exception], text: str):
    with pytest.raises(error, match=text):
        checked_feeds(feeds, SPEC, ZEROS)


def test_calls_in_a_row_take_what_the_one_before_gave():
    feeding = Feeding.of(MethodSpec(SPEC.inputs, SPEC.outputs, BOTH))
    told = list[tuple[float, ...]]()

    def run(x: Tensor, h: Tensor, c: Tensor) -> list[Tensor]:
        told.append((float(x), float(h), float(c)))
        return [x, h + x, c - x]

    calls = [[torch.tensor(float(x)), torch.tensor(9.0), torch.tensor(9.0)] for x in (1, 2, 3)]
    feeding.in_a_row(run, [feeding.begun(calls[0]), *calls[1:]])
    assert told == [(1, 0, 0), (2, 1, -1), (3, 3, -3)]


def test_sequences_leave_out_what_is_fed():
    spec = MethodSpec(SPEC.inputs, SPEC.outputs, (Feed("s.0", "output_1.0", 2.0), BOTH[1]))
    x, h, c = ZEROS
    taken = Sequences([[x, {"x": x}, (x,)], [(x, h + 5, c)]]).taken(spec, None, "verify_on")
    assert [[float(call[1][0, 0]) for call in row] for row in taken.calls] == [[2, 2, 2], [5]]
    with pytest.raises(ValueError, match=r"call 0 .* holds .*; s.0, s.1 may be left out"):
        Sequences([[(x, h)]]).taken(spec, None, "verify_on")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("executorch")
    path = tmp_path_factory.mktemp("feeds") / "cell.pte"
    example = (torch.randn(1, 6), torch.zeros(1, 12))
    artifact = export(
        Cell().eval(), path, example_inputs=example, feeds={"h": "h_out"}, verify_on=frames(2, 64), backend=Portable()
    )
    assert (artifact.verified_samples, artifact.verification.sequences) == (128, 2)
    assert artifact.max_abs_error <= 1e-6
    return path


def test_the_manifest_names_it(program: Path):
    feeds = [{"input": "h", "output": "h_out", "first": 0.0}]
    assert load_manifest(program)["methods"]["forward"]["feeds"] == feeds
    assert "    feeds       h_out into h, first 0\n" in str(inspect(program))


@pytest.mark.parametrize("change", [{"first": "0"}, {"input": "x"}, {"output": "y"}, {"input": "q"}, {"more": 1}])
def test_a_manifest_that_feeds_what_cannot_be_is_refused(program: Path, tmp_path: Path, change: dict[str, Any]):
    manifest = json.loads(program.with_suffix(".json").read_text())
    manifest["methods"]["forward"]["feeds"][0] |= change
    (tmp_path / "a.json").write_text(to_text(manifest), encoding="utf-8")
    with pytest.raises(ExportError, match="not a complete manifest"):
        load_manifest(tmp_path / "a.json")


def test_verify_feeds_both_sides_by_the_manifest(program: Path):
    verification = verify(program, Cell().eval(), (torch.randn(1, 6), torch.randn(1, 12)), verify_on=frames(2, 256, 3))
    assert verification.samples == 512
    assert verification.max_abs_error <= 1e-6
    with pytest.raises(VerificationError, match="step 0 of sequence 0 from the first state"):
        verify(program, Cell("other").eval(), (torch.randn(1, 6), torch.zeros(1, 12)))


@pytest.mark.slow
def test_h_and_c_of_an_lstm_that_begins_at_two_in_batches_of_any_size(tmp_path: Path):
    pytest.importorskip("executorch")
    batch = Dim("batch", min=1, max=4)
    example = (torch.randn(2, 5, 6), (torch.full((1, 2, 8), 2.0), torch.zeros(1, 2, 8)))
    artifact = export(
        Recurrent().eval(),
        tmp_path / "a.pte",
        example_inputs=example,
        feeds={"state": "output_1"},
        dynamic_shapes={"x": {0: batch}, "state": {"0": {1: batch}, "1": {1: batch}}},
    )
    assert [feed.first for feed in artifact.methods["forward"].feeds] == [2, 0]
    assert artifact.max_abs_error <= 1e-6
    model, session = Recurrent().eval(), RuntimeModel(artifact.path).session()
    for _ in range(2):
        session.reset()
        state = example[1]
        with torch.no_grad():
            for _ in range(128):
                x = torch.randn(2, 5, 6)
                wanted, state = model(x, state)
                assert (session.step(x)[0] - wanted).abs().max() <= 1e-6


@pytest.mark.slow
def test_8_bits_are_calibrated_and_judged_over_sequences(tmp_path: Path):
    pytest.importorskip("executorch")
    model, example, judged = Cell().eval(), (torch.randn(1, 6), torch.zeros(1, 12)), frames(2, 128, 7)
    backend = XNNPACK(quantization=Int8(frames(4, 32)))
    artifact = export(
        model, tmp_path / "a.pte", example_inputs=example, feeds={1: 1}, backend=backend, verify_on=judged
    )
    assert artifact.sqnr_db > 20
    kept = artifact.quantized["forward"].kept_float
    assert {name.partition("_")[0] for name in kept} == {"add"}  # of the loop, and no layer


@pytest.mark.slow
def test_a_further_method_has_its_own(tmp_path: Path):
    pytest.importorskip("executorch")

    class Both(Cell):
        def step(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            outputs = self(x, h)
            return outputs["y"], outputs["h_out"]

    model, example = Both().eval(), (torch.randn(1, 6), torch.zeros(1, 12))
    step = Method("step", example, feeds={"h": "output_1"})
    artifact = export(model, tmp_path / "a.pte", example_inputs=example, methods={"step": step}, backend=Portable())
    assert not artifact.methods["forward"].feeds
    assert artifact.methods["step"].feeds == (Feed("h", "output_1"),)


def test_a_first_value_of_more_than_64_bits_is_held_by_floats():
    """A manifest may say so, since JSON knows no types: 2**70 is a number that float32 has."""
    feeding = Feeding.of(MethodSpec((H,), OUT[1:2], (Feed("s.0", "output_1.0", 2**70),)))
    assert torch.equal(feeding.firsts((H,))[0], torch.full((1, 8), 2.0**70))
