import signal
from pathlib import Path

import pytest
import torch
from processes import file_limit
from torch import Tensor, nn

from lightning_prune.deploy import export
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


class Branching(nn.Module):
    """Branches on values."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class TestOperatorThatCannotBeExported:
    @pytest.mark.parametrize(
        ("inner", "text"),
        [
            (Sorted(), r"no kernel .* in module '1', at test_deploy_refusals.py:\d+: return x\.sort\(1\)\[0\]"),
            (Inverted(), r"cannot be lowered to XNNPACK.* in module '1', at test_deploy_refusals\.py:\d+: .*inv\(x\)"),
            (Branching(), r"cannot be traced .* at test_deploy_refusals\.py:\d+: return x if x\.sum\(\) > 0 else -x"),
        ],
        ids=["kernel", "lowering", "tracing"],
    )
    def test_module_and_line_are_named(self, tmp_path: Path, inner: nn.Module, text: str):
        with pytest.raises(ExportError, match=text):
            export(nn.Sequential(nn.Linear(4, 4), inner), tmp_path / "m.pte", example_inputs=torch.randn(4, 4))
        assert list(tmp_path.iterdir()) == []


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
