"""Layers that compute as if they were 8-bit integers, and are themselves again afterwards."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_prune.model import masks
from lightning_prune.trainer.fake_quantization import (
    RATE,
    FakeQuantization,
    fake_quantized,
    fake_quantized_weight,
    quantizable,
    update_ranges,
)

LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (3, 6)),
    "conv1d": (lambda: nn.Conv1d(2, 4, 3), (3, 2, 8)),
    "conv2d": (lambda: nn.Conv2d(2, 4, 3, groups=2), (3, 2, 8, 8)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 4, 3), (3, 2, 5, 5)),
}


def rounded(weight: np.ndarray, axis: int) -> np.ndarray:
    moved = np.moveaxis(weight.astype(np.float64), axis, 0)
    scale = np.abs(moved.reshape(len(moved), -1)).max(1) / 127
    scale = np.where(scale > 0, scale, 1).reshape(-1, *[1] * (weight.ndim - 1))
    return np.moveaxis(np.round(moved / scale) * scale, 0, axis)


@pytest.mark.parametrize("axis", [0, 1])
def test_weights_are_rounded_as_numpy_says(axis: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(7, 5, 3)
    weight[torch.rand(7, 5, 3) < 0.4] = 0
    weight.select(axis, 2).zero_()
    got = fake_quantized_weight(weight, axis)
    np.testing.assert_allclose(got.numpy(), rounded(weight.numpy(), axis), atol=1e-6)
    assert bool((got[weight == 0] == 0).all())


def test_the_gradient_of_a_weight_passes() -> None:
    weight = torch.randn(4, 6, requires_grad=True)
    factor = torch.randn(4, 6)
    (fake_quantized_weight(weight, 0) * factor).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, factor)


def test_inputs_outside_the_range_are_cut_and_have_no_gradient() -> None:
    x = torch.tensor([-3.0, -1.0, 0.0, 0.013, 2.0, 5.0], requires_grad=True)
    got = fake_quantized(x, torch.tensor(-1.0), torch.tensor(2.0))
    step = 3 / 255
    assert bool(((got - x.clamp(-1, 2)).abs() <= step / 2 + 1e-6).all())
    assert got[2] == 0
    got.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 0]


def test_a_range_of_nothing_gives_zeros() -> None:
    nothing = torch.zeros(())
    assert torch.equal(fake_quantized(torch.zeros(3), nothing, nothing), torch.zeros(3))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("is_masked", [False, True])
def test_a_layer_is_itself_again_after_each_run(kind: str, is_masked: bool) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    layer: Any = make()
    model = nn.Sequential(layer)
    x = torch.randn(shape)
    if is_masked:
        masks.attach(model, ["0.weight"])
        masks.write(model, [("0.weight", torch.rand_like(layer.weight) < 0.5)])
    before, names = copy.deepcopy(model.state_dict()), [name for name, _ in model.named_parameters()]
    weight = layer.weight.detach().clone()
    plain = model(x)
    one = FakeQuantization()
    one.attach(model[0])
    got = model(x)
    assert 0 < float((got - plain).detach().abs().max()) < 0.1
    got.square().sum().backward()
    with pytest.raises(RuntimeError):
        model(torch.randn(1, 1, 1, 1, 1, 1))
    assert torch.equal(layer.weight, weight)
    assert [name for name, _ in model.named_parameters()] == names
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is not None for p in model.parameters())
    one.remove()
    assert torch.equal(model(x), plain)


def test_masked_weights_are_zero_in_the_rounded_layer_and_get_no_gradient() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    keep = torch.rand(8, 8) < 0.5
    masks.attach(model, ["0.weight"])
    masks.write(model, [("0.weight", keep)])
    FakeQuantization(torch.tensor([-4.0, 4.0])).attach(model[0])
    assert bool((model(torch.eye(8)).T != 0).any())
    assert bool((model(torch.eye(8)).T[~keep] == 0).all())
    model(torch.randn(4, 8)).sum().backward()
    gradient = next(model.parameters()).grad
    assert gradient is not None
    assert bool((gradient[~keep] == 0).all())


def test_a_traced_graph_is_in_float() -> None:
    model, x = nn.Sequential(nn.Linear(3, 3)), torch.randn(2, 3)
    plain = model(x)
    FakeQuantization().attach(model[0])
    assert torch.equal(torch.export.export(model, (x,)).module()(x), plain)
    assert not torch.equal(model(x), plain)


def test_a_copy_has_hooks_of_its_own() -> None:
    layer = nn.Linear(3, 3)
    one = FakeQuantization()
    one.attach(layer)
    copied = copy.deepcopy(layer)
    copied(torch.randn(2, 3))
    assert one.seen is None
    assert torch.equal(copied.weight, layer.weight)


def test_ranges_follow_what_training_sees_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    one = FakeQuantization()
    one.attach(model[0])
    model.eval()(torch.tensor([[-9.0, 9.0]]))
    with torch.no_grad():
        model.train()(torch.tensor([[-9.0, 9.0]]))
    update_ranges({"0": one})
    assert one.range is None
    model(torch.tensor([[1.0, 3.0]]))
    model(torch.tensor([[-1.0, 2.0]]))
    update_ranges({"0": one})
    assert one.range is not None
    assert one.range.tolist() == [-1.0, 3.0]
    model(torch.tensor([[-2.0, 1.0]]))
    update_ranges({"0": one})
    expected = [-1.0 - RATE, 3.0 + RATE * (1 - 3)]
    np.testing.assert_allclose(one.range.tolist(), expected, rtol=1e-6)


def test_a_mask_attached_later_is_noticed() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    one = FakeQuantization()
    one.attach(model[0])
    assert one.is_last(model[0])
    masks.attach(model, ["0.weight"])
    assert not one.is_last(model[0])
    one.attach(model[0])
    assert one.is_last(model[0])


def test_layers_are_chosen_by_path() -> None:
    model = nn.ModuleDict(
        {
            "stem": nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)),
            "deep": nn.Sequential(nn.Linear(2, 2), nn.Conv3d(1, 1, 1), nn.ConvTranspose2d(2, 2, 1, groups=2)),
            "head": nn.LazyLinear(2),
        }
    )
    assert [path for path, _ in quantizable(model)] == ["stem.0", "deep.0"]
    assert [path for path, _ in quantizable(model, ["stem"])] == ["deep.0"]
    assert [path for path, _ in quantizable(model, ["*.0"])] == []


def test_half_precision_stays_half() -> None:
    x: Tensor = torch.randn(4, dtype=torch.bfloat16)
    assert fake_quantized(x, torch.tensor(-1.0), torch.tensor(1.0)).dtype == torch.bfloat16
    assert fake_quantized_weight(torch.randn(2, 2, dtype=torch.bfloat16), 0).dtype == torch.bfloat16
