import re
import signal
from pathlib import Path

import pytest
import torch
from processes import file_limit
from torch import Tensor, nn

from lightning_prune.deploy import Method, Vulkan, export
from lightning_prune.errors import ExportError

pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")


class Sorted(nn.Module):
    """Holds an operator for which ExecuTorch has no kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sort(1)[0]


class Inverted(nn.Module):
    """Holds an operator that cannot be lowered."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.inv(x)


class Arctangent(nn.Module):
    """Holds an operator that Vulkan has not."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.atan2(x.relu(), x + 3).cumsum(1)


class Branching(nn.Module):
    """Branches on values."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class TestOperatorThatCannotBeExported:
    @pytest.mark.parametrize(
        ("inner", "text"),
        [
            (Sorted(), r"no kernel .* in module '1', at test_refusals.py:\d+: return x\.sort\(1\)\[0\]"),
            (Inverted(), r"cannot be lowered to XNNPACK.* in module '1', at test_refusals\.py:\d+: .*inv\(x\)"),
            (Branching(), r"cannot be traced .* at test_refusals\.py:\d+: return x if x\.sum\(\) > 0 else -x"),
        ],
        ids=["kernel", "lowering", "tracing"],
    )
    def test_module_and_line_are_named(self, tmp_path: Path, inner: nn.Module, text: str):
        with pytest.raises(ExportError, match=text):
            export(nn.Sequential(nn.Linear(4, 4), inner), tmp_path / "m.pte", example_inputs=torch.randn(4, 4))
        assert list(tmp_path.iterdir()) == []


class TestOperatorOutsideTheBackend:
    def test_its_line_and_the_way_to_its_time_are_in_a_note(self, tmp_path: Path):
        class Summed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(4, 4)

            def forward(self, x: Tensor) -> Tensor:
                x = self.linear(x).cumsum(1)
                return self.linear(x.cumsum(0))

        methods = {"sums": Method("forward", torch.randn(4, 4))}
        artifact = export(Summed(), tmp_path / "m.pte", example_inputs=torch.randn(4, 4), methods=methods)
        lines = r"aten::cumsum ×2 \(test_refusals\.py:\d+, test_refusals\.py:\d+\)"
        assert re.fullmatch(
            rf"Operator calls that stay outside xnnpack .*, 2 in all: {lines}\. benchmark\(path, profile=True\) .*",
            artifact.notes[0],
        )
        assert "Operator calls of sums that stay" in artifact.notes[1]
        assert "benchmark(path, method='sums', profile=True) shows" in artifact.notes[1]

    def test_what_cannot_be_timed_here_is_not_said_to_be(self, tmp_path: Path):
        artifact = export(Arctangent(), tmp_path / "m.pte", example_inputs=torch.randn(4, 4), backend=Vulkan())
        assert any("stay outside vulkan" in note for note in artifact.notes)
        assert not any("benchmark" in note for note in artifact.notes)


class TestFullDisk:
    @pytest.fixture(autouse=True)
    def _no_signal(self):
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        yield
        signal.signal(signal.SIGXFSZ, before)

    @pytest.mark.parametrize("room", [3_000, 30_000, 120_000])
    def test_nothing_is_left(self, tmp_path: Path, room: int):
        model = nn.Linear(200, 200)
        with pytest.raises(ExportError, match="File too large"), file_limit(room):
            export(model, tmp_path / "m.pte", example_inputs=torch.zeros(1, 200), external_weights=True)
        assert list(tmp_path.iterdir()) == []


class Remembers(nn.Module):
    """Adds the call before, kept where a program has no memory."""

    def __init__(self, way: str):
        super().__init__()
        self.way, self.past, self.calls = way, torch.zeros(1, 4), []
        self.kept = nn.Parameter(torch.zeros(1, 4), requires_grad=False)
        self.register_buffer("late", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "self.past = x":
            past, self.past = self.past, x
        elif self.way == "self.past.copy_(x)":
            past = self.past.clone()
            self.past.copy_(x)
        elif self.way == "self.kept.copy_(x)":
            past = self.kept.clone()
            self.kept.copy_(x)
        elif self.way == "self.late = x":
            past = torch.zeros(1, 4) if self.late is None else self.late
            self.late = x
        else:
            past = torch.cat(self.calls).sum(0, keepdim=True) if self.calls else torch.zeros(1, 4)
            self.calls.append(x)
        return x + 2 * past


class Counts(nn.Module):
    """Counts its calls, and no call reads the count."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + 1


class Gives(nn.Module):
    """Returns its buffer itself, and a bool."""

    mean: Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.ones(1, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.mean.mul_(0.5).add_(x)
        return self.mean, x.argmax(1) > 1


class TestMemoryThatIsNoBuffer:
    @pytest.mark.parametrize(
        ("way", "name"),
        [
            ("self.past = x", "in past."),
            ("self.past.copy_(x)", "in past."),
            ("self.kept.copy_(x)", "in kept."),
            ("self.late = x", "elsewhere"),
            ("self.calls.append(x)", "elsewhere"),
        ],
    )
    def test_it_is_refused_by_its_name(self, tmp_path: Path, way: str, name: str):
        with pytest.raises(ExportError, match="gives something else at a second call") as refusal:
            export(Remembers(way).eval(), tmp_path / "a.pte", example_inputs=torch.randn(1, 4))
        assert name in str(refusal.value)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("model", [Counts(), Gives()], ids=["a count", "a buffer that is an output"])
    def test_what_no_later_call_reads_is_exported(self, tmp_path: Path, model: nn.Module):
        assert export(model.eval(), tmp_path / "a.pte", example_inputs=torch.randn(1, 4)).path.is_file()
