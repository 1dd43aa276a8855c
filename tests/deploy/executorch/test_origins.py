import functools

import pytest
import torch
from torch import Tensor, nn

from lightning_prune.deploy import export
from lightning_prune.deploy.executorch.origins import origin
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


def test_a_line_of_the_standard_library_is_not_the_users():
    text = f'File "{__file__}", line 7, in f\n    net(x)\nFile "{functools.__file__}", line 909, in g\n    dispatch()'
    assert origin(text) == ", at test_origins.py:7: net(x)"
    assert origin(text.replace(__file__, functools.__file__)) == ""
    assert "timm.py:7" in origin(
        text.replace(__file__, torch.__file__.replace("torch", "timm").replace("__init__", "timm"))
    )
