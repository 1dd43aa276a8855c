"""Models take the shape of a state dict before it is loaded."""

import copy
from collections.abc import Callable

import pytest
import torch
from compaction_cases import (
    RESIDUAL_INPUT,
    Mlp,
    Residual,
    everything,
    half_plan,
    masked_residual,
    outputs,
    trained,
)
from torch import nn

from lightning_prune.compaction import Compaction, applied_plan, compact, reshape_like
from lightning_prune.model import masks


def test_reshape_like_takes_the_shape_of_a_checkpoint_and_back() -> None:
    dense, small = trained(Residual()), trained(Residual())
    plan = half_plan(small, RESIDUAL_INPUT)
    compact(small, plan, RESIDUAL_INPUT)
    model = Residual()
    for source in (small, dense, small):
        assert reshape_like(model, source.state_dict(), plan.attributes) is model
        model.load_state_dict(source.state_dict())
        assert repr(model) == repr(source)
        assert torch.equal(outputs(model, RESIDUAL_INPUT), outputs(source, RESIDUAL_INPUT))


def test_reshape_like_for_masked_models_and_masked_checkpoints() -> None:
    masked, groups, _ = masked_residual()
    compact(masked, Compaction.from_masks(masked, groups), RESIDUAL_INPUT)
    plan = applied_plan(masked)
    assert plan is not None
    model = Residual()
    masks.attach(model, masks.read(masked))
    model(RESIDUAL_INPUT).sum().backward()
    reshape_like(model, masked.state_dict(), plan.attributes)
    assert all(mask.all() for mask in masks.read(model).values())
    assert all(parameter.grad is None or parameter.grad.shape == parameter.shape for parameter in model.parameters())
    model.load_state_dict(masked.state_dict())
    assert torch.equal(outputs(model, RESIDUAL_INPUT), outputs(masked, RESIDUAL_INPUT))


def test_reshape_like_leaves_what_the_state_dict_lacks() -> None:
    model = Mlp()
    before = everything(model)
    reshape_like(model, {"0.weight": torch.zeros(8), "1.weight": torch.zeros(8), "other": torch.zeros(3)})
    assert everything(model) == before


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "Conv1d": (lambda: nn.Conv1d(4, 8, 3), lambda: nn.Conv1d(3, 5, 3)),
    "Conv2d": (lambda: nn.Conv2d(4, 8, 3, bias=False), lambda: nn.Conv2d(3, 5, 3, bias=False)),
    "Conv3d": (lambda: nn.Conv3d(4, 8, 1), lambda: nn.Conv3d(3, 5, 1)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 8, 3), lambda: nn.ConvTranspose1d(3, 5, 3)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 8, 3), lambda: nn.ConvTranspose2d(3, 5, 3)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(4, 8, 1), lambda: nn.ConvTranspose3d(3, 5, 1)),
    "Linear": (lambda: nn.Linear(4, 8), lambda: nn.Linear(3, 5)),
    "Bilinear": (lambda: nn.Bilinear(4, 5, 8), lambda: nn.Bilinear(3, 2, 5)),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(8), lambda: nn.BatchNorm1d(5)),
    "BatchNorm2d without affine": (lambda: nn.BatchNorm2d(8, affine=False), lambda: nn.BatchNorm2d(5, affine=False)),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(8), lambda: nn.BatchNorm3d(5)),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(8, affine=True), lambda: nn.InstanceNorm2d(5, affine=True)),
    "InstanceNorm1d with statistics": (
        lambda: nn.InstanceNorm1d(8, track_running_stats=True),
        lambda: nn.InstanceNorm1d(5, track_running_stats=True),
    ),
    "LayerNorm": (lambda: nn.LayerNorm([8, 2]), lambda: nn.LayerNorm([5, 2])),
    "RMSNorm": (lambda: nn.RMSNorm(8), lambda: nn.RMSNorm(5)),
    "GroupNorm": (lambda: nn.GroupNorm(2, 8), lambda: nn.GroupNorm(2, 6)),
    "Embedding": (lambda: nn.Embedding(9, 8), lambda: nn.Embedding(9, 5)),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(9, 8), lambda: nn.EmbeddingBag(9, 5)),
    "PReLU": (lambda: nn.PReLU(8), lambda: nn.PReLU(5)),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_reshaped_layer_is_the_layer_built_at_that_size(layer: str) -> None:
    large, small = (make() for make in LAYERS[layer])
    fresh, reshaped = copy.deepcopy(small), reshape_like(copy.deepcopy(large), small.state_dict())
    reshaped.load_state_dict(fresh.state_dict())
    public = {name: value for name, value in vars(fresh).items() if name[0] != "_"}
    assert {name: vars(reshaped)[name] for name in public} == public
    assert repr(reshape_like(small, large.state_dict())) == repr(large)
