"""Which units a recipe takes, and what it tells of those that it leaves."""

import logging
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import utils
from torch.nn.utils import parametrizations

from lightning_prune import Channel, Element, OneShot, Recipe, Targets, Uniform, finalize
from lightning_prune.graph import channel_groups
from lightning_prune.run.binding import bind
from lightning_prune.run.pruner import prune_step

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")


def pruned(model: nn.Module, x: Tensor, recipe: Recipe) -> tuple[nn.Module, float]:
    """The model with masks after one event at float64, finalized and proved exact; the sparsity of the event."""
    model, x = model.double(), x.double()
    pruner = bind(recipe, model, (x,))
    pruner.attach(model)
    event = prune_step(pruner, model, sparsity=0.5)
    masked = model.eval()(x).detach()
    finalize(model, x)
    assert torch.allclose(model(x), masked, rtol=0, atol=1e-12)
    return model, event.sparsity


def half(granularity: Channel | Element, *include: str, count: str | None = None) -> Recipe:
    targets = Targets(include=include or ("*",))
    return Recipe(granularity=granularity, schedule=OneShot(0.5), targets=targets, allocation=Uniform(), count=count)  # pyright: ignore[reportArgumentType]


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0])


@pytest.mark.parametrize("include", [(), ("lstm",), ("lstm.*",), ("lstm.weight_hh_l0",), ("lstm.weight_ih_l0",)])
def test_one_weight_of_a_recurrent_layer_chooses_its_hidden_units(include: tuple[str, ...]) -> None:
    model, sparsity = pruned(Reader(), torch.randn(2, 5, 4), half(Channel(), *include))
    assert sparsity == 0.5
    assert model.get_submodule("lstm").hidden_size == 4


def test_the_weights_of_recurrent_layers_are_half_zeros() -> None:
    model, sparsity = pruned(Reader(), torch.randn(2, 5, 4), half(Element()))
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    assert zeros == sum(weight.numel() for weight in weights) // 2
    assert sparsity == 0.5


class Kernels(nn.Module):
    """Bare kernels, as in ISTA-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.k1, self.k2 = (nn.Parameter(torch.randn(16, inputs, 3, 3) / 9) for inputs in (1, 16))
        self.k3 = nn.Parameter(torch.randn(1, 16, 3, 3) / 9)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(torch.relu(F.conv2d(x, self.k1, padding=1)), self.k2, padding=1)
        return F.conv2d(torch.sign(x) * torch.relu(x.abs() - 0.01), self.k3, padding=1)


def test_bare_kernels_that_are_named_lose_channels() -> None:
    model, _ = pruned(Kernels(), torch.randn(2, 1, 6, 6), half(Channel(), "k1", "k2"))
    assert {name: tuple(kernel.shape) for name, kernel in model.named_parameters()} == {
        "k1": (8, 1, 3, 3),
        "k2": (8, 8, 3, 3),
        "k3": (1, 8, 3, 3),
    }
    alone, _ = pruned(Kernels(), torch.randn(2, 1, 6, 6), half(Channel(), "k1"))
    assert alone.get_parameter("k2").shape == (16, 8, 3, 3)


NORMS = (parametrizations.weight_norm, utils.weight_norm, parametrizations.spectral_norm, utils.spectral_norm)


def normed(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    layers = norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), norm(nn.Conv2d(8, 8, 3)), nn.ReLU(), nn.Conv2d(8, 2, 1)
    return nn.Sequential(*layers)


@pytest.mark.parametrize("norm", NORMS)
def test_channels_of_normed_layers_are_targets(norm: Callable[[nn.Module], nn.Module]) -> None:
    model, sparsity = pruned(normed(norm), torch.randn(2, 3, 8, 8), half(Channel()))
    assert sparsity == 0.5
    assert [model.get_submodule(name).out_channels for name in "024"] == [4, 4, 2]
    few, sparsity = pruned(normed(norm), torch.randn(2, 3, 8, 8), half(Channel(), count="macs"))
    assert 0.5 <= sparsity < 0.7
    assert few.get_parameter("0.bias").numel() < 8


@pytest.mark.parametrize("norm", NORMS)
def test_single_weights_of_normed_layers_are_left_out_which_is_told(norm: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.warns(UserWarning, match=r"hold 2% of the weights of Sequential"):
        model, _ = pruned(normed(norm), torch.randn(2, 3, 8, 8), half(Element()))
    assert (model.get_parameter("4.weight") == 0).sum() == 8


def test_less_than_half_of_the_weights_is_told_with_its_reason() -> None:
    model = nn.Sequential(nn.Embedding(50, 4), nn.Linear(4, 4))
    with pytest.warns(
        UserWarning, match=r"hold 7% .*: 0\.weight is none, since embeddings are chosen by name\. Write T"
    ):
        bind(half(Element()), model, None)
    bind(half(Element(), "1"), model, None)
    bind(half(Element(), "*", "0.weight"), model, None)
    bind(Recipe(schedule=OneShot(0.05), count="params"), model, None)  # of the whole network
    model[0].weight.requires_grad_(False)
    with pytest.warns(UserWarning, match=r"0\.weight is none, since it is frozen\. Unfreeze it, or name"):
        bind(half(Element()), model, None)


def test_a_group_that_falls_out_because_of_the_targets_is_told(caplog: pytest.LogCaptureFixture) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.d(torch.relu(self.c(x + self.b(x))))

    model, x = Residual(), torch.randn(2, 4)
    assert [group.name for group in channel_groups(model, x) if group.prunable] == ["a", "c"]
    with caplog.at_level(logging.WARNING, logger="lightning_prune"):
        pruner = bind(half(Channel(), "a", "c"), model, (x,))
    assert list(pruner.units.sizes) == ["c"]
    told = [record.message for record in caplog.records if record.name.startswith("lightning_prune")]
    assert told == ["channel group a stays: b.weight makes its channels too and is no target"]
