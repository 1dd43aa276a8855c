"""A rule may find nothing, what no kernel computes is refused, and the file computes what the model does."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rewriting_cases import Call, traced
from torch import nn

from lightning_prune.deploy import export
from lightning_prune.deploy.backends import XNNPACK
from lightning_prune.deploy.rewriting import by_operator, rewritten
from lightning_prune.errors import ExportError

needs_executorch = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="needs the extra 'mobile' (executorch)"
)


def test_a_rule_may_find_nothing():
    program = traced(nn.ReLU(), (torch.zeros(2),))
    assert by_operator({torch.ops.aten.relu.default: lambda editor, node: None})(program) == 0
    assert rewritten(program, ()) is program


@pytest.mark.parametrize(
    "layer",
    [nn.Conv3d(2, 4, 3), nn.ConvTranspose3d(2, 4, 3), nn.Conv3d(2, 4, 3, padding="same")],
    ids=["conv", "transposed", "same"],
)
def test_convolutions_that_no_kernel_computes_are_refused_by_name(layer: nn.Module):
    model = nn.ModuleDict({"stem": layer, "after": nn.ReLU()})
    program = traced(Call(lambda parts, x: parts["after"](parts["stem"](x)), model), (torch.randn(1, 2, 5, 5, 5),))
    with pytest.raises(ExportError, match=r"parts\.0\.stem: ExecuTorch has no kernel for convolutions of three"):
        rewritten(program, XNNPACK().rewrites())


def behind_a_convolution(function: Callable[..., Any], *parts: nn.Module) -> nn.Module:
    return Call(lambda conv, *rest: function(*rest[:-1], conv(rest[-1])), nn.Conv2d(3, 6, 3, padding=1), *parts)


@needs_executorch
@pytest.mark.parametrize(
    "model",
    [
        pytest.param(behind_a_convolution(lambda y: y.softmax(1)), id="softmax over channels"),
        pytest.param(behind_a_convolution(lambda y: y.softmax(3)), id="softmax over columns"),
        pytest.param(behind_a_convolution(lambda y: F.max_pool2d(y, 2)), id="max pooling without a stride"),
        pytest.param(
            behind_a_convolution(lambda m, y: m(y.permute(0, 2, 3, 1).view(2, -1, 6)), nn.PReLU()), id="permute, view"
        ),
    ],
)
def test_a_file_computes_what_stands_behind_a_convolution(model: nn.Module, tmp_path: Path):
    artifact = export(model.eval(), tmp_path / "m.pte", example_inputs=torch.randn(2, 3, 8, 8))
    assert artifact.max_abs_error < 1e-5
    assert not artifact.notes  # nothing of it stays outside


@needs_executorch
@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_a_sequence_convolution_whose_weight_is_computed(norm: Callable[..., nn.Module], tmp_path: Path):
    model = nn.Sequential(norm(nn.Conv1d(3, 4, 3)), nn.ReLU(), norm(nn.Conv1d(4, 2, 1))).eval()
    assert export(model, tmp_path / "m.pte", example_inputs=torch.randn(2, 3, 8)).max_abs_error < 1e-5
