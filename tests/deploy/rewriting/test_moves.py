"""Parts of quantized tensors keep the scale that they have."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rewriting_cases import Call
from torch import Tensor, nn

from lightning_prune.deploy import XNNPACK, Int8, export
from lightning_prune.deploy.executorch.lowering import graph_of
from lightning_prune.deploy.program.eager import EagerModel

pytest.importorskip("executorch")
SHAPE = 1, 3, 8, 8


def boxes(conv: nn.Module, x: Tensor) -> Tensor:
    """One part goes into a product, whose scale is another one, the other part on in float."""
    y = conv(x)
    return 0.1 * y[:, :4] * y[:, 4:].exp()


def model() -> nn.Module:
    torch.manual_seed(0)
    return Call(boxes, nn.Conv2d(3, 8, 3)).eval()


def backend() -> XNNPACK:
    return XNNPACK(quantization=Int8([torch.randn(32, *SHAPE[1:])]))


def test_every_part_is_of_the_scale_of_the_whole() -> None:
    program = graph_of(EagerModel(model()), [torch.randn(SHAPE)], backend()).program
    slices = [n for n in program.graph.nodes if str(n.target) == "aten.slice.Tensor"]
    assert len(slices) == 2
    for part in slices:
        (rounded,) = part.users
        assert "quantize_per_tensor" in str(rounded.target)
        assert rounded.args[1:3] == part.args[0].args[1:3]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_only_zeros_are_padded_among_integers(value: float) -> None:
    conv = nn.Conv2d(3, 8, 3)
    padded = Call(lambda conv, x: F.pad(conv(x), (1, 1, 1, 1), value=value).sigmoid(), conv)
    program = graph_of(EagerModel(padded.eval()), [torch.randn(SHAPE)], backend()).program
    (pad,) = [n for n in program.graph.nodes if "pad" in str(n.target)]
    (user,) = pad.users
    has_one_scale = "quantize_per_tensor" in str(user.target) and user.args[1:3] == pad.args[0].args[1:3]
    assert has_one_scale is (value == 0)


@pytest.mark.slow
def test_xnnpack_takes_the_parts(tmp_path: Path) -> None:
    data = [torch.randn(8, *SHAPE[1:])]
    artifact = export(model(), tmp_path / "m.pte", example_inputs=torch.randn(SHAPE), backend=backend(), verify_on=data)
    assert artifact.notes == ()  # it was left to portable kernels before, after a failed load
    assert artifact.sqnr_db > 25
