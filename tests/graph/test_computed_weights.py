"""Weights that are computed: weight and spectral norm lose channels exactly, in both forms; others say why not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import utils
from torch.nn.utils import parametrizations, parametrize

from lightning_prune import summarize
from lightning_prune.compaction import Compaction, compact
from lightning_prune.graph import channel_groups
from lightning_prune.model.summary import measure_macs

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")

X = torch.randn(2, 3, 8, 8, dtype=torch.float64)

Wrap = Callable[[Any], nn.Module]


class Net(nn.Module):
    """A residual, so that a direction loses rows and columns with one channel; a transposed convolution; a Linear."""

    def __init__(self, wrap: Wrap) -> None:
        super().__init__()
        self.stem, self.body = wrap(nn.Conv2d(3, 8, 3, padding=1)), wrap(nn.Conv2d(8, 8, 3, padding=1))
        self.up, self.mid = wrap(nn.ConvTranspose2d(8, 6, 2, 2)), wrap(nn.Linear(6, 10))
        self.head = nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + torch.sigmoid(self.body(x))
        return self.head(torch.relu(self.mid(torch.relu(self.up(x)).mean((2, 3)))))


def net(wrap: Wrap) -> nn.Module:
    torch.manual_seed(0)
    model = Net(wrap).double()
    for _ in range(3):
        model(X)
    return model.eval()


NORMS: dict[str, Wrap] = {
    "weight norm": parametrizations.weight_norm,
    "older weight norm": utils.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "older spectral norm": utils.spectral_norm,
    "weight norm as a whole": lambda layer: parametrizations.weight_norm(layer, dim=-1),
    "weight norm over inputs": lambda layer: parametrizations.weight_norm(layer, dim=1),
}


class PlusOnes(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + torch.ones_like(weight)


def test_a_weight_that_is_one_where_its_parameter_is_zero_loses_no_inputs() -> None:
    groups = channel_groups(net(lambda layer: parametrize.register_parametrization(layer, "weight", PlusOnes())), X)
    assert {group.name: group.size for group in groups if group.prunable} == {"mid": 10}  # the head is plain


@pytest.mark.parametrize("wrap", NORMS.values(), ids=NORMS)
def test_normed_weights_lose_channels_exactly(wrap: Wrap) -> None:
    model = net(wrap)
    before = measure_macs(model, X).total
    groups = channel_groups(model, X)
    assert {group.name: group.size for group in groups if group.prunable} == {"stem": 8, "up": 6, "mid": 10}
    plan = Compaction.from_keep(groups, {"stem": [0, 2, 5], "up": [1, 3], "mid": range(5)})
    assert Compaction.from_json(plan.to_json()) == plan
    masked = net(wrap)
    plan.mask(masked)
    report = compact(model, plan, X, tolerance=1e-12)
    assert report.put_back == {}
    assert torch.allclose(model(X), masked(X), rtol=0, atol=1e-13)
    layers: dict[str, Any] = dict(model.named_children())
    assert [layers["body"].in_channels, layers["body"].out_channels, tuple(layers["body"].weight.shape)] == [
        3,
        3,
        (3, 3, 3, 3),
    ]
    assert [layers["up"].in_channels, layers["up"].out_channels, layers["mid"].in_features] == [3, 2, 2]
    assert measure_macs(model, X).total < before / 2
    assert str(summarize(model, X))


def test_direction_and_length_go_together_and_the_direction_carries_no_mask() -> None:
    model = net(parametrizations.weight_norm)
    plan = Compaction.from_keep(channel_groups(model, X), {"stem": range(4)})
    length, direction = (f"body.parametrizations.weight.original{number}" for number in (0, 1))
    removal = plan.removals["stem"]
    assert removal.entries[length] == {0: (4, 5, 6, 7)}
    assert removal.entries[direction] == {0: (4, 5, 6, 7), 1: (4, 5, 6, 7)}
    assert removal.unmasked[direction] == (0,)
    assert removal.masked[direction] == {1: (4, 5, 6, 7)}
    assert removal.under("net").unmasked[f"net.{direction}"] == (0,)
    plan.mask(model)
    assert model(X).isfinite().all()


def test_two_removals_are_one() -> None:
    model, once = net(parametrizations.weight_norm), net(parametrizations.weight_norm)
    first = Compaction.from_keep(channel_groups(model, X), {"stem": [0, 1, 2, 5, 6, 7]})
    compact(model, first, X)
    second = Compaction.from_keep(channel_groups(model, X), {"stem": [0, 2, 3]})
    compact(model, second, X)
    compact(once, first.then(second), X)
    assert torch.equal(once(X), model(X))


class Scaled(nn.Conv2d):
    """A weight that is a property."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel)
        self.raw = nn.Parameter(self._parameters.pop("weight").detach())  # pyright: ignore[reportOptionalMemberAccess]

    @property
    def weight(self) -> Tensor:
        return self.raw / 2

    @weight.setter
    def weight(self, value: Tensor) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._parameters["weight"] = nn.Parameter(value)


def test_a_weight_that_is_a_property_goes_too() -> None:
    model = nn.Sequential(Scaled(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)).double()
    assert measure_macs(model, X).total == 2 * 36 * (8 * 27 + 2 * 8)
    groups = channel_groups(model, X)
    compact(model, Compaction.from_keep(groups, {"0": range(3)}), X, tolerance=1e-12)
    assert model(X).shape == (2, 2, 6, 6)
    assert model[0].raw.shape == (3, 3, 3, 3)


class Softly(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.softmax(0)


@pytest.mark.filterwarnings("ignore:lightning_prune has no rule")
@pytest.mark.parametrize(
    ("wrap", "why"),
    [
        (parametrizations.orthogonal, "no rule for aten.mH"),
        (lambda layer: parametrize.register_parametrization(layer, "weight", Softly()) or layer, "softmax"),
    ],
)
def test_what_cannot_go_is_named_and_other_layers_go(wrap: Wrap, why: str) -> None:
    model = nn.Sequential(
        wrap(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)
    ).double()
    groups = channel_groups(model, X)
    assert why in groups["0"].reason
    report = compact(model, Compaction.from_keep(groups, {"2": range(4)}), X, tolerance=1e-12)
    assert report.removed == {"2": (4, 8)}
