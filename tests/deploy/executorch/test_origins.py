import pytest
import torch
from torch import Tensor, nn

from lightning_prune.deploy import export
from lightning_prune.errors import ExportError


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * len(x.numpy())


def test_the_line_that_is_told_is_the_users(tmp_path):
    with pytest.raises(ExportError, match=r"test_origins\.py:\d+: return self\.net\(x\) \* len\(x\.numpy\(\)\)"):
        export(Counting(), tmp_path / "m.pte", example_inputs=torch.zeros(1, 3))
