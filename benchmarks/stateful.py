"""Models with memory on the phone: in step with their model, with half of their channels, in 8 bits; and faults put in.

    python -m benchmarks.stateful

Each model is exported to XNNPACK, dense and with half of every channel group removed, and runs two sequences of 256
calls with a reset between them, on the file and on the model. In 8 bits it is calibrated on four sequences of 32; its
twin without a memory is given the state of the float model at each call. Two tables are printed, as Markdown.
"""

import copy
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_prune import Compaction, channel_groups, compact
from lightning_prune.deploy import XNNPACK, Int8, RuntimeModel, Sequences, export, verify
from lightning_prune.errors import ExportError, VerificationError

Call = tuple[Tensor, ...]


class Stateful(nn.Module):
    """A model with buffers; a subclass makes its layers, whose weights are drawn with one seed."""

    def call(self, number: int, draw: torch.Generator) -> Call:
        """Return the inputs of one call of a sequence."""
        return (torch.randn(1, 6, generator=draw),)


class Stream(Stateful):
    """A convolution over the last three frames, and one over the last three of its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.o = nn.Linear(6, 16), nn.Linear(16, 3)
        self.first, self.second = nn.Conv1d(16, 16, 3), nn.Conv1d(16, 16, 3)
        self.register_buffer("past", torch.zeros(1, 16, 2))
        self.register_buffer("later", torch.zeros(1, 16, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Return three numbers for a frame of six."""
        frames = torch.cat([self.get_buffer("past"), self.i(x).relu().unsqueeze(2)], 2)
        self.get_buffer("past").copy_(frames[:, :, 1:])
        frames = torch.cat([self.get_buffer("later"), self.first(frames).relu()], 2)
        self.get_buffer("later").copy_(frames[:, :, 1:])
        return self.o(self.second(frames)[:, :, 0].relu())


class Ring(Stateful):
    """The last eight frames, the oldest overwritten; where to is an input."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.o = nn.Linear(6, 16), nn.Linear(16, 3)
        self.register_buffer("ring", torch.zeros(8, 16))

    def call(self, number: int, draw: torch.Generator) -> Call:
        """Return a frame and its place."""
        return *super().call(number, draw), torch.tensor([number % 8])

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """Return three numbers for a frame of six."""
        self.get_buffer("ring").index_copy_(0, position, self.i(x).relu())
        return self.o(self.get_buffer("ring").mean(0, keepdim=True))


class Average(Stateful):
    """A running average that begins at 2."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.o = nn.Linear(6, 16), nn.Linear(16, 3)
        self.register_buffer("mean", torch.full((1, 16), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        """Return three numbers for a frame of six."""
        new = self.get_buffer("mean") * 0.9 + self.i(x).relu() * 0.1
        self.get_buffer("mean").copy_(new)
        return self.o(new)


class Gru(Stateful):
    """A GRU cell, written with Linear layers, whose state is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.s, self.o = nn.Linear(6, 48), nn.Linear(16, 48), nn.Linear(16, 3)
        self.register_buffer("h", torch.zeros(1, 16))

    def forward(self, x: Tensor) -> Tensor:
        """Return three numbers for a frame of six."""
        before = self.get_buffer("h")
        (r, z, n), (of_r, of_z, of_n) = self.x(x).chunk(3, 1), self.s(before).chunk(3, 1)
        z = torch.sigmoid(z + of_z)
        h = (1 - z) * torch.tanh(n + torch.sigmoid(r + of_r) * of_n) + z * before
        before.copy_(h)
        return self.o(h)


class Cell(Stateful):
    """The same as torch spells it: ``nn.GRUCell``, whose state is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.o = nn.GRUCell(6, 16), nn.Linear(16, 3)
        self.register_buffer("h", torch.zeros(1, 16))

    def forward(self, x: Tensor) -> Tensor:
        """Return three numbers for a frame of six."""
        h = self.cell(x, self.get_buffer("h"))
        self.get_buffer("h").copy_(h)
        return self.o(h)


class Cache(Stateful):
    """Attention of eight heads of queries over a cache of four of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(6, 32), nn.Linear(32, 3)
        self.k, self.v = nn.Linear(6, 16), nn.Linear(6, 16)
        self.register_buffer("keys", torch.zeros(1, 4, 256, 4))
        self.register_buffer("values", torch.zeros(1, 4, 256, 4))
        self.register_buffer("mask", torch.full((256, 256), -1e9).triu(1))

    def call(self, number: int, draw: torch.Generator) -> Call:
        """Return a frame and its position."""
        return *super().call(number, draw), torch.tensor([number])

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """Return three numbers for a frame of six."""
        q = self.q(x).view(1, -1, 2, 4)
        k, v = (each(x).view(1, 1, -1, 4).transpose(1, 2) for each in (self.k, self.v))
        self.get_buffer("keys").index_copy_(2, position, k)
        self.get_buffer("values").index_copy_(2, position, v)
        seen = (q @ self.get_buffer("keys").transpose(2, 3) / 2 + self.get_buffer("mask")[position]).softmax(-1)
        return self.o((seen @ self.get_buffer("values")).flatten(1))


class Chaotic(Stateful):
    """A recurrence whose smallest differences grow from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.turn, self.o = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        nn.init.normal_(self.turn.weight, std=1.5)
        self.register_buffer("h", torch.full((1, 16), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        """Return three numbers for a frame of six."""
        h = torch.tanh(self.i(x) + self.turn(self.get_buffer("h")))
        self.get_buffer("h").copy_(h)
        return self.o(h)


MODELS: dict[str, type[Stateful]] = {
    "streaming convolution": Stream,
    "ring buffer": Ring,
    "running average from 2": Average,
    "GRU cell": Gru,
    "nn.GRUCell": Cell,
    "cache of keys and values": Cache,
}


def made(kind: type[Stateful]) -> Stateful:
    """Return a model of a kind, always the same one."""
    torch.manual_seed(0)
    return kind().eval()


def rows(model: Stateful, count: int, length: int, seed: int) -> list[list[Call]]:
    """Return sequences of calls."""
    draw = torch.Generator().manual_seed(seed)
    return [[model.call(number, draw) for number in range(length)] for _ in range(count)]


@torch.no_grad()
def run(model: Stateful, row: list[Call], state: list[Call] | None = None) -> list[Tensor]:
    """Return the outputs of a sequence, and keep the state before each call; the model begins and ends at its first."""
    first = {name: buffer.clone() for name, buffer in model.named_buffers()}
    outputs = []
    for call in row:
        if state is not None:
            state.append(tuple(buffer.clone() for buffer in model.buffers()))
        outputs.append(model(*call).clone())
    for name, value in first.items():
        model.get_buffer(name).copy_(value)
    return outputs


def half(model: Stateful, dtype: torch.dtype, step: int = 2) -> tuple[Stateful, float, int, int]:
    """Remove half of every channel group, every second or (with 1) the last ones.

    Returns:
        the compact model, its error over 256 calls, entries of the state before and after.
    """
    model = copy.deepcopy(model).to(dtype)
    calls = [tuple(x.to(dtype) if x.is_floating_point() else x for x in call) for call in rows(model, 1, 256, 3)[0]]
    groups = channel_groups(model, calls[0])
    plan = Compaction.from_keep(
        groups,
        {g.name: range(0, g.size, 2)[: g.size // 2] if step == 2 else range(g.size // 2) for g in groups if g.prunable},
    )
    state = [each.name for each in groups.state]
    masked, before = copy.deepcopy(model), sum(model.get_buffer(name).numel() for name in state)
    plan.mask(masked)
    report = compact(model, plan, calls[0])
    if report.put_back:
        raise SystemExit(f"{type(model).__name__}: {report.put_back}")
    error = max(float((a - b).abs().max()) for a, b in zip(run(masked, calls), run(model, calls), strict=True))
    return model, error, before, sum(model.get_buffer(name).numel() for name in state)


def in_step(path: Path, model: Stateful) -> float:
    """Return the largest error over two sequences of 256 calls with a reset between them."""
    runtime, worst = RuntimeModel(path), 0.0
    for row in rows(model, 2, 256, 4):
        runtime.reset()
        for call, wanted in zip(row, run(model, row), strict=True):
            worst = max(worst, float((runtime(*call)[0] - wanted).abs().max()))
    return worst


class Twin(nn.Module):
    """A model whose state is an input."""

    def __init__(self, model: Stateful) -> None:
        super().__init__()
        self.inner, self.count = model, len(list(model.buffers()))

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return what the model gives in this state."""
        inputs, state = tensors[: -self.count], tensors[-self.count :]
        own = dict(zip((name for name, _ in self.inner.named_buffers()), (x.clone() for x in state), strict=True))
        return torch.func.functional_call(self.inner, own, inputs)


def noise(model: Stateful, folder: Path) -> tuple[float, float]:
    """Return the ratio in dB that 8 bits reach over two sequences of 256 calls, and that of the twin."""
    calibration, judged, twin = Sequences(rows(model, 4, 32, 5)), rows(model, 2, 256, 6), copy.deepcopy(model)
    pairs: dict[str, list[Call]] = {"calibration": [], "judged": []}
    for name, sequences in (("calibration", calibration.calls), ("judged", judged)):
        for row in sequences:
            run(model, row, state := [])
            pairs[name] += [(*call, *held) for call, held in zip(row, state, strict=True)]
    backend = XNNPACK(quantization=Int8(calibration, min_output_sqnr=0.0))
    export(model, folder / "int8.pte", example_inputs=judged[0][0], backend=backend)
    backend = XNNPACK(quantization=Int8(Sequences([pairs["calibration"]]), min_output_sqnr=0.0))
    export(Twin(twin), folder / "twin.pte", example_inputs=pairs["judged"][0], backend=backend)
    of_state, of_twin, ratios = RuntimeModel(folder / "int8.pte"), RuntimeModel(folder / "twin.pte"), []
    wanted = torch.cat([y for row in judged for y in run(model, row)])
    got = list[Tensor]()
    for row in judged:
        of_state.reset()
        got += [of_state(*call)[0] for call in row]
    for each in (torch.cat(got), torch.cat([of_twin(*call)[0] for call in pairs["judged"]])):
        ratios.append(10 * math.log10(float(wanted.square().sum() / (wanted - each).square().sum())))
    return ratios[0], ratios[1]


class Faulty(Average):
    """The running average with a fault."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.register_buffer("older", torch.full((1, 16), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        """Return three numbers for a frame of six."""
        mean, older, seen = self.get_buffer("mean"), self.get_buffer("older"), self.i(x).relu()
        new = mean * 0.9 + seen * 0.1
        if self.fault == "carried twice":
            new = new * 0.9 + seen * 0.1
            mean.copy_(new)
            new = new + 0
        elif self.fault == "one step late":
            mean.copy_(older)
            older.copy_(new)
        elif self.fault == ".data":
            mean.data = new
        elif self.fault != "not carried":
            written = new.roll(1, 1) if self.fault == "wrong slot" else new
            mean.copy_(written * (1.5 if self.fault == "drift that grows" else 1))
        return self.o(new)


FAULTS = ("not carried", "carried twice", "one step late", "wrong slot", "zeros", "drift that grows", ".data")


def named(fault: str, folder: Path) -> str:
    """Return what is said of a file with a fault."""
    torch.manual_seed(0)
    model, x = Faulty(fault).eval(), torch.randn(1, 6)
    if fault == "zeros":
        model.get_buffer("mean").zero_()
    try:
        export(model, folder / "fault.pte", example_inputs=x)
        verify(folder / "fault.pte", made(Average), example_inputs=x)
    except (VerificationError, ExportError) as error:
        return str(error).removeprefix(f"{folder / 'fault.pte'}: ").split(": output")[0].split(". Write")[0]
    return "**passes**"


def stale(folder: Path) -> str:
    """Return what is said of a runtime whose reset has no effect."""
    reset: Callable[[RuntimeModel], None] = RuntimeModel.reset
    model, x = made(Average), torch.randn(1, 6)
    export(model, folder / "stale.pte", example_inputs=x)
    try:
        RuntimeModel.reset = lambda self: None  # type: ignore[method-assign]
        verify(folder / "stale.pte", model, example_inputs=x)
    except VerificationError as error:
        return str(error).removeprefix(f"{folder / 'stale.pte'}: ").split(": output")[0]
    finally:
        RuntimeModel.reset = reset  # type: ignore[method-assign]
    return "**passes**"


def main() -> None:
    """Print both tables."""
    torch.set_num_threads(1)
    print("| model | error | entries of the state | error of the removal | error, half | 8 bits | twin in 8 bits |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title, kind in MODELS.items():
            model = made(kind)
            example = rows(model, 1, 1, 7)[0][0]
            export(model, folder / "dense.pte", example_inputs=example)
            _, exact, before, after = half(model, torch.float64)
            halved = half(model, torch.float32)[0]
            export(halved, folder / "half.pte", example_inputs=example)
            errors = in_step(folder / "dense.pte", model), in_step(folder / "half.pte", halved)
            ratios = noise(model, folder)
            print(
                f"| {title} | {errors[0]:.1e} | {before:,} → {after:,} | {exact:.0e} | {errors[1]:.1e} |"
                f" {ratios[0]:.1f} dB | {ratios[1]:.1f} dB |",
                flush=True,
            )
        # the last channels, so that sums have the order that they had: it would forget its weights for another one
        _, exact, before, after = half(made(Chaotic), torch.float32, step=1)
        print(f"| chaotic cell, float32 | – | {before} → {after} | {exact:.0e} | – | – | – |", flush=True)
        told = [f"| {fault} | {named(fault, folder)} |" for fault in FAULTS]
        told.append(f"| stale after a reset | {stale(folder)} |")
    print("\n| put in | refused with |\n| --- | --- |")
    print("\n".join(told))


if __name__ == "__main__":
    main()
