"""Four bits: the layers that fit, zeros that stay zeros, and scales."""

import pytest
import torch
from deploy_models import EXAMPLE
from quantization_cases import PATTERNS, Tokens, pruned, stored, tokens, traced
from torch import Tensor, nn

from lightning_prune.deploy.quantization import Int4Groupwise
from lightning_prune.deploy.quantization.int4 import best_scales
from lightning_prune.errors import ExportError


def test_four_bits_for_the_layers_that_fit() -> None:
    program, x = tokens()
    found = Int4Groupwise().quantize(program, (x,))
    assert list(found.sqnr) == ["up", "down"]
    assert found.kept_float == ("head",)
    assert all(ratio > 14 for ratio in found.sqnr.values())
    assert list(Int4Groupwise(group_size=64).quantize(program, (x,)).sqnr) == ["up"]


@pytest.mark.parametrize("pattern", [name for name in PATTERNS if name != "everything"])
def test_pruned_weights_of_four_bits_stay_exactly_zero(pattern: str) -> None:
    torch.manual_seed(0)
    model = pruned(Tokens(), pattern, ["up.weight", "down.weight"])
    x = torch.randn(4, 64)
    program = Int4Groupwise(min_output_sqnr=5).quantize(traced(model, x), (x,)).program
    integers = {tuple(one.shape): one for one in stored(program)}
    for name in ("up", "down"):
        weight = model.get_parameter(f"{name}.weight")
        zero, one = weight == 0, integers[tuple(weight.shape)]
        assert bool((one[zero] == 0).all())
        assert -8 <= int(one.min()) <= int(one.max()) <= 7


def test_scales_leave_no_more_error_than_the_range_does() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 64) * (torch.rand(6, 64) < 0.5)
    weight[0] = 0
    scales = best_scales(weight, 32)
    assert scales.shape == (6, 2)
    assert bool((scales > 0).all())

    def errors(s: Tensor) -> Tensor:
        groups = weight.view(6, 2, 32)
        return (groups - (groups / s[..., None]).round().clamp(-8, 7) * s[..., None]).square().sum(2)

    full = (weight.view(6, 2, 32).abs().amax(2) / 7.5).clamp(min=1e-30)
    assert bool((errors(scales) <= errors(full) + 1e-6).all())
    assert float(errors(scales).sum()) < 0.95 * float(errors(full).sum())


def test_a_model_without_linear_layers_has_no_four_bits() -> None:
    with pytest.raises(ExportError, match="no Linear"):
        Int4Groupwise().quantize(traced(nn.Conv2d(1, 2, 3), EXAMPLE), (EXAMPLE,))
