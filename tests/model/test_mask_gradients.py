"""Gradients of a masked weight are zero where it is pruned, whatever reads it and whatever comes first."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lightning_prune.model import masks


def keep(model: nn.Module, name: str) -> Tensor:
    weight = masks.dense_parameters(model)[name]
    return torch.rand(weight.shape, generator=torch.Generator().manual_seed(weight.numel())) >= 0.5


def reading_once(layer: nn.Linear, x: Tensor) -> Tensor:
    return layer(x).square().sum()


def reading_twice(layer: nn.Linear, x: Tensor) -> Tensor:
    return layer(layer(x)).square().sum()


def reading_outside(layer: nn.Linear, x: Tensor) -> Tensor:
    return layer(x).square().sum() + (layer.weight + 1).square().sum()


def reading_outside_first(layer: nn.Linear, x: Tensor) -> Tensor:
    return (layer.weight + 1).square().sum() + linear(x, layer.weight + 1).sum() + layer(x).square().sum()


@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True")
@pytest.mark.parametrize("reading", [reading_once, reading_twice, reading_outside, reading_outside_first])
@pytest.mark.parametrize("backward", ["plain", "twice", "graph", "noise"])
def test_whatever_reads_a_weight_its_gradient_is_zero_where_pruned(
    reading: Callable[[nn.Linear, Tensor], Tensor], backward: str
) -> None:
    layer = nn.Linear(32, 32)
    masks.attach(layer, ["weight"])
    masks.write(layer, [("weight", keep(layer, "weight"))])
    x = torch.rand(4, 32)
    for _ in range(2):  # the second has what the first one leaves in memory
        layer.zero_grad()
        reading(layer, x).backward(create_graph=backward == "graph")
        if backward == "twice":
            reading(layer, x).backward()
        gradient = layer.weight.grad
        assert gradient is not None
        if backward == "noise":
            with torch.no_grad():
                gradient.add_(1)
        expected = torch.where(keep(layer, "weight"), gradient.detach().clone(), 0)
        masks.zero_gradients(layer)
        assert torch.equal(gradient, expected)
        layer.zero_grad()


def test_a_gradient_that_came_through_the_mask_is_not_multiplied_again() -> None:
    layer = nn.Linear(32, 32)
    masks.attach(layer, ["weight"])
    masks.write(layer, [("weight", keep(layer, "weight"))])
    reading_once(layer, torch.rand(4, 32)).backward()
    gradient = layer.weight.grad
    assert gradient is not None
    gradient.data.fill_(1)  # which no version tells
    masks.zero_gradients(layer)
    assert bool(gradient.all())
    masks.zero_gradients(layer)  # it was known for one step
    assert torch.equal(gradient != 0, keep(layer, "weight"))


@pytest.mark.parametrize("left_by", ["zero_grad", "autograd.grad"])
def test_a_gradient_that_lies_where_a_masked_one_lay_is_not_taken_for_it(left_by: str) -> None:
    layer, x = nn.Linear(64, 64), torch.rand(4, 64)
    masks.attach(layer, ["weight"])
    masks.write(layer, [("weight", keep(layer, "weight"))])
    for _ in range(20):  # the allocator gives the same memory again in most of them
        if left_by == "zero_grad":
            reading_once(layer, x).backward()
            layer.zero_grad()
        else:
            torch.autograd.grad(reading_once(layer, x), layer.weight)
        linear(x, layer.weight + 1).sum().backward()
        gradient = layer.weight.grad
        assert gradient is not None
        masks.zero_gradients(layer)
        assert torch.equal(gradient != 0, keep(layer, "weight"))
        layer.zero_grad()
        del gradient


def test_a_mask_that_changes_after_the_forward_pass_holds_for_its_gradient() -> None:
    layer = nn.Linear(8, 8)
    masks.attach(layer, ["weight"])
    loss = reading_once(layer, torch.rand(4, 8))
    masks.write(layer, [("weight", keep(layer, "weight"))])
    loss.backward()
    masks.zero_gradients(layer)
    assert layer.weight.grad is not None
    assert torch.equal(layer.weight.grad != 0, keep(layer, "weight"))


def test_an_embedding_of_sparse_gradients() -> None:
    layer = nn.Embedding(10, 4, sparse=True)
    masks.attach(layer, ["weight"])
    masks.write(layer, [("weight", keep(layer, "weight"))])
    layer(torch.tensor([1, 2, 2])).sum().backward()
    masks.zero_gradients(layer)
    gradient = layer.weight.grad
    assert gradient is not None
    assert gradient.is_sparse
    assert not gradient.to_dense()[~keep(layer, "weight")].any()
