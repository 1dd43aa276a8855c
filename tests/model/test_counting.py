"""Modules that count what was removed: as many zeros more in their means and kernels, and nothing else."""

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_prune.model.counting import KERNEL, MEAN, counting, settled


class Rms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return (
            self.weight * x * torch.rsqrt(torch.mean(x * x, -1, keepdim=True) + x.abs().mean(-1, keepdim=True) + 1e-2)
        )


class Standardised(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight
        return F.linear(input, weight - weight.mean(1, keepdim=True), bias=self.bias)


def smaller(module: nn.Module, name: str, value: float) -> Any:
    small: Any = copy.deepcopy(module)
    setattr(small, name, value)
    small.__class__ = settled(small)
    return small


def test_means_are_over_as_many_as_there_were() -> None:
    x = torch.randn(3, 4)
    zeros = torch.cat([x, torch.zeros(3, 2)], -1)
    whole = Rms()
    whole.weight = nn.Parameter(torch.ones(6))
    small = smaller(Rms(), MEAN, 1.5)
    torch.testing.assert_close(small(x), whole(zeros)[:, :4])
    assert not torch.allclose(Rms()(x), small(x))


def test_kernels_are_standardised_with_the_zeros_that_went() -> None:
    x, layer = torch.randn(3, 4), Standardised(4, 5)
    small, whole = smaller(layer, KERNEL, 1.75), Standardised(7, 5)
    with torch.no_grad():
        whole.weight.copy_(torch.cat([layer.weight, torch.zeros(5, 3)], -1))
        whole.bias.copy_(layer.bias)
    torch.testing.assert_close(small(x), whole(torch.cat([x, torch.zeros(3, 3)], -1)))
    assert small.weight is small._parameters["weight"]


@pytest.mark.parametrize(("module", "name"), [(Rms(), MEAN), (Standardised(4, 5), KERNEL)])
def test_classes_are_the_same_in_copies_pickles_and_back(module: nn.Module, name: str) -> None:
    small = smaller(module, name, 2.0)
    kind = counting(type(module), name)
    assert type(small) is kind
    assert isinstance(small, type(module))
    x = torch.randn(3, 4)
    for one in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert type(one) is kind
        torch.testing.assert_close(one(x), small(x))
    setattr(small, name, 1.0)
    assert settled(small) is type(module)


def test_what_a_mask_shows_in_place_of_a_kernel_is_shown_again() -> None:
    small = smaller(Standardised(4, 5), KERNEL, 2.0)
    shown = torch.zeros(5, 4)
    small.__dict__["weight"] = shown
    torch.testing.assert_close(small(torch.randn(3, 4)), small.bias.expand(3, 5))
    assert small.weight is shown
