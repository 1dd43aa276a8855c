"""Files that are written anew compute what they computed."""

from pathlib import Path

import pytest
import torch
from deploy_models import EXAMPLE, TwoInputs, images, small
from torch import Tensor, nn

from lightning_prune.deploy import XNNPACK, export
from lightning_prune.deploy.backends import Portable
from lightning_prune.deploy.runtime.model import RuntimeModel

pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")


class Branching(nn.Module):
    """Views, slices and reductions among the layers, so that memory is shared and reused."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(1, 4, 3), nn.LayerNorm(6), nn.Linear(6, 5)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.norm(self.conv(image)).softmax(-1)
        hidden = torch.cat([hidden[:, ::2], hidden[:, 1::2].flip(1)], 1).transpose(1, 2)
        return self.linear(hidden).cumsum(1), hidden.argmax(-1)


@pytest.mark.parametrize("backend", [XNNPACK(), Portable()], ids=lambda backend: backend.name)
@pytest.mark.parametrize("model", [small(), Branching()], ids=lambda model: type(model).__name__)
def test_every_variant_gives_the_same_outputs(tmp_path: Path, model: nn.Module, backend: XNNPACK | Portable):
    path = export(model, tmp_path / "a.pte", example_inputs=EXAMPLE, backend=backend).path
    (tmp_path / "variants").mkdir()
    program = RuntimeModel(path)
    expected = program(images(4))
    variants = program.doubled(tmp_path / "variants")
    assert variants[0]["name"] == ""
    assert all(one["calls"] for one in variants[1:])
    for one in variants:
        outputs = program.variant(one["file"])(images(4))
        assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True)), one


def test_whole_numbers_in_and_out(tmp_path: Path):
    inputs = (torch.arange(5), torch.randn(5, 4))
    path = export(TwoInputs(), tmp_path / "a.pte", example_inputs=inputs).path
    program = RuntimeModel(path)
    for one in program.doubled(tmp_path):
        outputs = program.variant(one["file"])(*inputs)
        assert all(torch.equal(a, b) for a, b in zip(outputs, program(*inputs), strict=True)), one
