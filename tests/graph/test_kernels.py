"""Layers that standardise their own weight lose inputs and outputs exactly, however they write it."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graph_oracle import check_exact, randomised, sizes
from torch import Tensor, nn

from lightning_prune.compaction import Compaction, compact
from lightning_prune.compaction.resize import reshape_like
from lightning_prune.graph import channel_groups
from lightning_prune.model.counting import settled

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Batch(nn.Conv2d):
    """As timm and Hugging Face write it, with a gain as of NFNets."""

    def __init__(self, into: int, out: int, size: int, groups: int = 1) -> None:
        super().__init__(into, out, size, padding=size // 2, groups=groups)
        self.gain, self.scale, self.eps = nn.Parameter(torch.ones(out, 1, 1, 1)), (into * size**2) ** -0.5, 1e-3

    def forward(self, input: Tensor) -> Tensor:
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1),
            None,
            None,
            weight=(self.gain * self.scale).view(-1),
            training=True,
            momentum=0.0,
            eps=self.eps,
        ).reshape_as(self.weight)
        return F.conv2d(input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ByHand(nn.Conv2d):
    """As the paper's authors write it."""

    def __init__(self, into: int, out: int, size: int, groups: int = 1) -> None:
        super().__init__(into, out, size, padding=size // 2, groups=groups)

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight
        weight = weight - weight.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True).mean(dim=3, keepdim=True)
        std = weight.view(weight.size(0), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-3
        return self._conv_forward(input, weight / std, self.bias)


class VarMean(ByHand):
    """As diffusion models write it."""

    def forward(self, input: Tensor) -> Tensor:
        var, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        weight = (self.weight - mean) * (var + 1e-3).rsqrt()
        return F.conv2d(input=input, weight=weight, bias=self.bias, padding=self.padding, groups=self.groups)


class Net(nn.Module):
    """A stem, a residual with norms as in BiT, a grouped convolution, a head."""

    def __init__(self, conv: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.stem, self.norm, self.body = conv(3, 8, 3), nn.GroupNorm(4, 8), conv(8, 12, 3)
        self.deep, self.down = conv(12, 12, 3, groups=6), conv(12, 8, 1)
        self.last, self.head = nn.GroupNorm(4, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(torch.relu(self.deep(torch.relu(self.body(torch.relu(self.norm(x)))))))
        return self.head(torch.relu(self.last(x)))


KINDS: list[Callable[..., nn.Module]] = [Batch, ByHand, VarMean]


@pytest.mark.parametrize("conv", KINDS)
def test_standardised_kernels_lose_inputs_and_outputs_exactly(conv: Callable[..., nn.Module]) -> None:
    groups = check_exact(Net(conv), X)
    assert sizes(groups) == {"stem": 4, "body": 6}
    followed = {"norm.num_groups", "last.num_groups", "body.kernel_counted", "down.kernel_counted"}
    assert groups.attributes.keys() == followed


def pruned(conv: Callable[..., nn.Module]) -> tuple[Any, Any, Compaction]:
    """Return a masked and a compact network, and the plan."""
    model: Any = randomised(Net(conv))
    groups = channel_groups(model, X.double())
    plan = Compaction.from_keep(groups, {"stem": [0, 2, 3], "body": [1, 4]})
    masked: Any = copy.deepcopy(model)
    plan.mask(masked)
    compact(model, plan, X.double(), tolerance=1e-12)
    return masked, model, plan


@pytest.mark.parametrize("conv", KINDS)
def test_gradients_are_those_of_the_masked_network(conv: Callable[..., nn.Module]) -> None:
    masked, model, plan = pruned(conv)
    for one in (masked, model):
        one(X.double()).square().sum().backward()
    for name, parameter in model.named_parameters():
        expected = masked.get_parameter(name).grad
        for axis, kept in plan.keep.get(name, {}).items():
            expected = expected.index_select(axis, torch.tensor(kept))
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-12)


def test_the_smaller_layer_is_still_what_it_was() -> None:
    masked, model, plan = pruned(Batch)
    assert isinstance(model.body, Batch)
    assert type(model.stem) is Batch  # it reads the image
    assert model.state_dict().keys() == masked.state_dict().keys()
    assert {id(p) for p in model.body.parameters()} == {id(p) for p in model.body._parameters.values()}
    expected = masked(X.double())
    exported = torch.export.export(model, (X.double(),)).module()
    loaded = randomised(Net(Batch), seed=1)
    Compaction.from_json(plan.to_json()).rebuild(loaded).load_state_dict(model.state_dict())
    copies = [model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), exported, loaded]
    for one in copies:
        torch.testing.assert_close(one(X.double()), expected, rtol=1e-12, atol=1e-12)


def test_layers_lose_inputs_twice_and_their_own_class_comes_back_with_all_of_them() -> None:
    _, model, plan = pruned(ByHand)
    again = channel_groups(model, X.double())
    further = Compaction.from_keep(again, {"body": [1]})
    before = copy.deepcopy(model)
    further.mask(before)
    compact(model, further, X.double(), tolerance=1e-12)
    torch.testing.assert_close(model(X.double()), before(X.double()), rtol=1e-12, atol=1e-12)
    assert (model.down.kernel_counted, model.down.in_channels) == (6.0, 2)
    whole = Net(ByHand).double().state_dict()
    reshape_like(model, whole, plan.attributes)
    model.load_state_dict(whole)
    assert type(model.down) is ByHand
    assert settled(model.down) is ByHand


class Touching(Net):
    """What enters is not zero where its channel is."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.down(torch.sigmoid(self.body(self.stem(x)))))


class Undefined(ByHand):
    """A row of zeros would be 0 / 0."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight / self.weight.std(dim=(1, 2, 3), keepdim=True), self.bias)


class AcrossRows(ByHand):
    """One mean over all of the weight."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight - self.weight.mean(), self.bias)


def test_a_layer_keeps_its_sizes_where_zeros_would_change_something() -> None:
    touched = channel_groups(Touching(Batch), X)
    assert sizes(touched) == {"stem": 8, "down": 8}
    assert touched["body"].reason == "conv2d at down sums over it with a weight that no mask makes zero"
    for conv in (Undefined, AcrossRows):
        assert sizes(channel_groups(Net(conv), X)) == {}
