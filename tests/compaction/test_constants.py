"""Activations that do not map zero to zero: the masks lie on the consumers too, so nothing is left to be folded."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from compaction_cases import half_of
from graph_oracle import randomised, relative_error
from torch import Tensor, nn

from lightning_prune.compaction import Compaction, compact
from lightning_prune.graph import channel_groups
from lightning_prune.model import masks

Function = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Function] = {
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "hardsigmoid": F.hardsigmoid,
    "logsigmoid": F.logsigmoid,
    "elu shifted": lambda x: F.elu(x) + 1.5,
    "cos": torch.cos,
    "exp": torch.exp,
    "2 ** x": lambda x: torch.pow(2.0, x.clamp(-3, 3)),
    "erfc": torch.erfc,
    "acos": lambda x: torch.acos(torch.tanh(x)),
    "clamp": lambda x: x.clamp(0.3, 2),
    "step": lambda x: (x >= 0).to(x.dtype),
    "by hand": lambda x: 1 / (1 + torch.exp(-x)),
    "1 - x": lambda x: 1 - x,
}


class Chain(nn.Module):
    """A producer of 8 channels, one activation, and a consumer."""

    def __init__(self, activation: Function, consumer: nn.Module) -> None:
        super().__init__()
        self.producer, self.activation, self.consumer = nn.Conv2d(3, 8, 3), activation, consumer

    def forward(self, x: Tensor) -> Tensor:
        return self.consumer(self.activation(self.producer(x)))


class Apply(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


class Concatenated(nn.Module):
    """Beside channels of its own, so that the offset is not zero."""

    def __init__(self) -> None:
        super().__init__()
        self.other, self.merge = nn.Conv2d(8, 5, 1), nn.Conv2d(13, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(torch.cat([self.other(x), x], 1))


class Several(nn.Module):
    """A padded convolution, a linear layer and a gate read the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(8, 3, 3, padding=1), nn.Linear(8, 3)
        self.squeeze, self.excite = nn.Linear(8, 4), nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return self.conv(x * gate[:, :, None, None]) + self.linear(x.amax((2, 3)))[:, :, None, None]


class Residual(nn.Module):
    """What does not map zero to zero is added to the producer's own channels."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + torch.sigmoid(self.inner(x)))


class Heads(nn.Module):
    """Attention whose values never are zero."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        q, k, v = (torch.sigmoid(f(x)).unflatten(-1, (-1, 2)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


CONSUMERS: dict[str, Callable[[], nn.Module]] = {
    "linear": Flat,
    "convolution": lambda: nn.Conv2d(8, 3, 3),
    "padded convolution": lambda: nn.Conv2d(8, 3, 3, padding=1),
    "convolution padded by reflection": lambda: nn.Conv2d(8, 3, 3, padding=1, padding_mode="reflect"),
    "convolution padded by ones": lambda: nn.Sequential(nn.ConstantPad2d(1, 1.0), nn.Conv2d(8, 3, 3)),
    "transposed convolution": lambda: nn.ConvTranspose2d(8, 3, 2, 2),
    "depthwise convolution": lambda: nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Sigmoid(), nn.Conv2d(8, 3, 1)
    ),
    "grouped convolution": lambda: nn.Sequential(nn.Conv2d(8, 12, 3, padding=1, groups=2), nn.Conv2d(12, 3, 1)),
    "pooling": lambda: nn.Sequential(nn.AvgPool2d(2, padding=1), nn.MaxPool2d(2), nn.Conv2d(8, 3, 1)),
    "interpolation": lambda: nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(8, 3, 3)),
    "batch norm": lambda: nn.Sequential(nn.BatchNorm2d(8), nn.Softplus(), nn.Conv2d(8, 3, 3, padding=1)),
    "batch norm without weight": lambda: nn.Sequential(nn.BatchNorm2d(8, affine=False), nn.Conv2d(8, 3, 3, padding=1)),
    "concatenation": Concatenated,
    "several": Several,
    "residual": Residual,
    "heads": Heads,
    "activation on activation": lambda: nn.Sequential(nn.Sigmoid(), Apply(torch.cos), nn.Conv2d(8, 3, 3, padding=1)),
}


class Side(nn.Module):
    """Chains beside each other: one trace for many."""

    def __init__(self, chains: dict[str, nn.Module]) -> None:
        super().__init__()
        self.chains = nn.ModuleDict(chains)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [chain(x) for chain in self.chains.values()]


def side_by_side(consumer: str) -> nn.Module:
    named: dict[str, nn.Module] = {name: Chain(f, CONSUMERS[consumer]()) for name, f in ACTIVATIONS.items()}
    return randomised(Side(named))


X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_masked_equals_compact_for_every_activation(consumer: str) -> None:
    model = side_by_side(consumer)
    groups = channel_groups(model, X)
    producers = [f"chains.{name}.producer" for name in ACTIVATIONS]
    assert all(groups[name].prunable for name in producers)
    plan = Compaction.from_keep(groups, half_of(groups))
    masked = copy.deepcopy(model)
    plan.mask(masked)
    report = compact(model, plan, X)
    assert report.put_back == {}
    assert relative_error(masked, model, (X,), {}) <= 1e-12
    assert {tuple(p.shape) for n, p in model.named_parameters() if n.endswith("producer.weight")} == {(4, 3, 3, 3)}


@pytest.mark.parametrize("consumer", ["linear", "padded convolution", "batch norm", "several"])
def test_zero_producers_alone_would_be_something_else(consumer: str) -> None:
    """The masks of a run lie on what :meth:`Compaction.mask` zeroes; the constant of a producer alone would go on."""
    model = side_by_side(consumer)
    groups = channel_groups(model, X)
    plan = Compaction.from_keep(groups, half_of(groups))
    masked, halfway = copy.deepcopy(model), copy.deepcopy(model)
    plan.mask(masked)
    parameters = masks.dense_parameters(halfway)
    with torch.no_grad():
        for name, axes in plan.removed.items():
            if ".producer." in name:
                parameters[name].index_fill_(0, torch.tensor(axes[0]), 0)
    ours, theirs = masked(X), halfway(X)
    assert all(float((a - b).detach().abs().max()) > 1e-3 for a, b in zip(ours, theirs, strict=True))


class NoWeights(nn.Module):
    """What reads the channels has no weight that a mask could lie on."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.producer, self.function = nn.Conv2d(3, 8, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(torch.sigmoid(self.producer(x)))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x.mean((2, 3)), "model output"),
        (lambda x: x.mean(1), "mean in the model's own forward reduces it"),
        (lambda x: x.sum((1, 2, 3)), "sum in the model's own forward reduces it"),
        (lambda x: x.flatten(1).amax(1), "amax in the model's own forward reduces it"),
        (lambda x: x.flatten(2) @ x.flatten(2).mT, "model output"),
        (
            lambda x: torch.einsum("bchw,bchw->bhw", x, x),
            "einsum in the model's own forward multiplies two activations",
        ),
    ],
)
def test_a_consumer_without_weights_keeps_the_channels(function: Function, reason: str) -> None:
    assert channel_groups(NoWeights(function), X.float())["producer"].reason == reason
