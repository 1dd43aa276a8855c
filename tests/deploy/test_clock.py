"""Whole programs by the processor's time."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_prune.deploy import export
from lightning_prune.deploy.clock import milliseconds


@pytest.mark.slow
def test_four_times_the_work_takes_longer(tmp_path: Path) -> None:
    pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")
    x = torch.zeros(1, 3, 32, 32)
    small, large = (
        export(nn.Conv2d(3, width, 3).eval(), tmp_path / f"{width}.pte", example_inputs=x) for width in (16, 256)
    )
    times = milliseconds({"small": small, "large": large}, rounds=20)
    assert list(times) == ["small", "large"]
    assert 0 < times["small"] < times["large"]
