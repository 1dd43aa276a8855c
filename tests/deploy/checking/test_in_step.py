"""A program with a memory agrees with its model call by call, and what is wrong with its state is named."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from lightning_prune.deploy import XNNPACK, Int8, Portable, Sequences, export, inspect, load_manifest, verify
from lightning_prune.deploy.runtime.model import RuntimeModel
from lightning_prune.errors import ExportError, VerificationError

pytest.importorskip("executorch")
DRAW = torch.Generator().manual_seed(0)
X = torch.randn(1, 6, generator=DRAW)


def drawn(count: int, length: int) -> Sequences:
    return Sequences([[torch.randn(1, 6, generator=DRAW) for _ in range(length)] for _ in range(count)])


class Average(nn.Module):
    """A running average of features that begins at 2, and faults of it."""

    mean: Tensor

    def __init__(self, fault: str = "", first: float = 2.0):
        super().__init__()
        torch.manual_seed(0)
        self.fault = fault
        self.i, self.o = nn.Linear(6, 12), nn.Linear(12, 3)
        self.register_buffer("mean", torch.full((1, 12), first))

    def forward(self, x: Tensor) -> Tensor:
        seen = self.i(x).relu()
        new = self.mean * 0.9 + seen * 0.1
        if self.fault == "twice":
            new = new * 0.9 + seen * 0.1
        if self.fault == "data":
            self.mean.data = new
        elif self.fault != "dropped":
            written = new.roll(1, 1) if self.fault == "slot" else new
            self.mean.copy_(written * (1.5 if self.fault == "drift" else 1))
        return self.o(new)


class Late(Average):
    """The average of the call before the last."""

    older: Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("older", torch.full((1, 12), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        new = self.mean * 0.9 + self.i(x).relu() * 0.1
        self.mean.copy_(self.older + 0)
        self.older.copy_(new)
        return self.o(new)


class Delays(Average):
    """Buffers that take one another's values in every way that there is."""

    a: Tensor
    b: Tensor
    unread: Tensor
    viewed: Tensor
    assigned: Tensor
    earlier: Tensor

    def __init__(self):
        super().__init__()
        for name in ("a", "b", "unread", "viewed", "assigned", "earlier"):
            self.register_buffer(name, torch.full((1, 12), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        new = self.mean * 0.9 + self.i(x).relu() * 0.1
        y = self.o(new + self.a + 2 * self.b + 3 * self.viewed + 4 * self.assigned + 5 * self.earlier)
        self.unread.copy_(self.b)
        self.viewed.copy_(self.b.view(12)[None])
        self.b.copy_(self.a)
        self.mean.copy_(new)
        self.a.copy_(self.mean)
        self.earlier = self.assigned
        self.assigned = new * 2
        return y


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("state") / "average.pte"
    model = Average().eval()
    artifact = export(model, path, example_inputs=X)
    assert artifact.max_abs_error <= 1e-6
    assert bool((model.mean == 2).all())
    return path


def test_the_manifest_lists_the_state(program: Path):
    state = {"name": "mean", "shape": [1, 12], "dtype": "float32", "first": "stored", "methods": ["forward"]}
    assert load_manifest(program)["state"] == [state]
    assert "  state         mean (1, 12) float32, first stored\n" in str(inspect(program))


def test_buffers_that_take_one_anothers_values(tmp_path: Path):
    artifact = export(model := Delays().eval(), tmp_path / "a.pte", example_inputs=X)
    assert artifact.max_abs_error <= 1e-5  # of outputs up to 20
    assert {each["name"] for each in artifact.state} == {name for name, _ in model.named_buffers()}


def test_two_sequences_of_256_steps_with_a_reset(program: Path):
    runtime, draw = RuntimeModel(program), torch.Generator().manual_seed(1)
    for _ in range(2):
        model = Average().eval()
        runtime.reset()
        with torch.no_grad():
            for _ in range(256):
                x = torch.randn(1, 6, generator=draw)
                assert (runtime(x)[0] - model(x)).abs().max() <= 1e-6


def test_sequences_of_ones_own(program: Path):
    verification = verify(program, Average().eval(), verify_on=drawn(2, 256))
    assert (verification.samples, verification.sequences) == (512, 2)
    assert verification.max_abs_error <= 1e-6
    model = Average().eval()
    model.mean[0, 3] = 1.0
    with pytest.raises(VerificationError, match="step 0 of sequence 0"):
        verify(program, model, verify_on=drawn(1, 4))


class Twin(Average):
    """The same without a memory: what the average was is an input."""

    def forward(self, x: Tensor, mean: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.o(mean * 0.9 + self.i(x).relu() * 0.1)


@pytest.mark.slow
def test_8_bits_are_as_near_over_a_sequence_as_without_a_memory(tmp_path: Path):
    model, calibration, judged = Average().eval(), drawn(4, 64), drawn(2, 128)
    artifact = export(
        model, tmp_path / "a.pte", example_inputs=X, backend=XNNPACK(quantization=Int8(calibration)), verify_on=judged
    )
    pairs, signal, noise = (
        {"calibration": list[tuple[Tensor, Tensor]](), "judged": list[tuple[Tensor, Tensor]]()},
        0.0,
        0.0,
    )
    with torch.no_grad():
        for name, rows in (("calibration", calibration), ("judged", judged)):
            for row in rows:
                model.mean.fill_(2)
                for x in row:
                    pairs[name].append((x, model.mean.clone()))
                    model(x)
    twin = tmp_path / "twin.pte"
    quantized = XNNPACK(quantization=Int8(pairs["calibration"]))
    export(Twin().eval(), twin, example_inputs=pairs["judged"][0], backend=quantized)
    runtime, eager = RuntimeModel(twin), Twin().eval()
    for x, mean in pairs["judged"]:
        y = eager(x, mean).detach()
        signal, noise = signal + float(y.square().sum()), noise + float((y - runtime(x, mean)[0]).square().sum())
    assert artifact.sqnr_db > 10 * math.log10(signal / noise) - 3


def test_verify_passes_the_same_model_and_leaves_its_state(program: Path):
    model = Average().eval()
    assert verify(program, model, example_inputs=X).max_abs_error <= 1e-6
    assert bool((model.mean == 2).all())


FAULTS = {
    "dropped": "the state is not carried",
    "twice": "carried twice|differs from step 0",
    "slot": "wrong slot of its axis 1",
    "drift": "grows from call to call",
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault: str, tmp_path: Path):
    export(Average(fault).eval(), tmp_path / "a.pte", example_inputs=X)
    with pytest.raises(VerificationError, match=FAULTS[fault]):
        verify(tmp_path / "a.pte", Average().eval(), example_inputs=X)


@pytest.mark.slow
def test_zeros_in_the_place_of_first_values_are_named(tmp_path: Path):
    export(Average(first=0.0).eval(), tmp_path / "a.pte", example_inputs=X)
    with pytest.raises(VerificationError, match="the first state is zeros"):
        verify(tmp_path / "a.pte", Average().eval(), example_inputs=X)


@pytest.mark.slow
def test_a_state_that_is_late_is_named(tmp_path: Path):
    export(Late().eval(), tmp_path / "a.pte", example_inputs=X)
    with pytest.raises(VerificationError, match="one call late"):
        verify(tmp_path / "a.pte", Average().eval(), example_inputs=X)


def test_what_the_trace_would_lose_is_refused(tmp_path: Path):
    with pytest.raises(ExportError, match=r"mean: .* does not see, such as self\.mean\.data"):
        export(Average("data").eval(), tmp_path / "a.pte", example_inputs=X)


class Places(nn.Module):
    """The last eight frames, of which a call writes one or several, at places that it is given."""

    ring: Tensor

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.i, self.o = nn.Linear(6, 12), nn.Linear(12, 3)
        self.register_buffer("ring", torch.zeros(8, 12))

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        self.ring.index_copy_(0, position, self.i(x).relu())
        return self.o(self.ring.mean(0, keepdim=True))


def frames(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    return [
        (torch.randn(size, 6, generator=DRAW), torch.arange(end - size, end) % 8)
        for size, end in zip(sizes, ends, strict=True)
    ]


@pytest.mark.slow
def test_calls_of_mixed_sizes_in_one_sequence(tmp_path: Path):
    n = Dim("n", min=1, max=4)
    mixed = Sequences([frames(3, 1, 1, 4, 2, 1), frames(1, 4, 4, 4, 1, 1, 1), frames(4)])
    artifact = export(
        Places().eval(),
        tmp_path / "a.pte",
        example_inputs=frames(2)[0],
        dynamic_shapes=({0: n}, {0: n}),
        backend=Portable(),
        verify_on=mixed,
    )
    assert (artifact.verified_samples, artifact.verification.sequences) == (14, 3)
    assert artifact.max_abs_error <= 1e-6
    with pytest.raises(ValueError, match=r"call 1 of sequence 0 holds \(5, 6\) float32"):
        verify(artifact.path, Places().eval(), verify_on=Sequences([frames(1, 5)]))
    other = Places().eval()
    other.ring[7, 3] = 1.0
    with pytest.raises(VerificationError, match="step 0 of sequence 0"):
        verify(artifact.path, other, verify_on=mixed)
