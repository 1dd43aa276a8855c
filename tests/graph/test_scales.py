"""Means over channels: exact at another width where a parameter and an eps take up what changes; or why not."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from graph_oracle import check_exact, randomised, sizes
from torch import Tensor, nn

from lightning_prune.graph import Scale, channel_groups

X = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))


class HuggingFace(nn.Module):
    """As transformers writes the norm of Llama, Mistral, Qwen and T5."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(width)), 1e-2

    def forward(self, x: Tensor) -> Tensor:
        kind = x.dtype
        x = x.to(torch.float64)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * x.to(kind)


class Gemma(nn.Module):
    """The weight is stored less one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(width)), 1e-2

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (1.0 + self.weight)


class Divided(nn.Module):
    """x over the root, of the mean of x*x that loses its axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.g, self.eps = nn.Parameter(torch.ones(width)), 1e-2

    def forward(self, x: Tensor) -> Tensor:
        return self.g * (x / torch.sqrt((x * x).mean(-1).unsqueeze(-1) + self.eps))


class Functional(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.eps = nn.Parameter(torch.ones(width)), 1e-2

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=self.eps) * self.scale


class UnitLength(nn.Module):
    """The norm of lucidrains' models: its root of the width is a number of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.scale = nn.Parameter(torch.ones(width)), width**0.5

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * self.scale * self.gamma


class Response(nn.Module):
    """Global response normalisation of ConvNeXt V2, as timm writes it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width)), 1e-2

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm(p=2, dim=1, keepdim=True)
        return x + torch.addcmul(self.bias, self.weight, x * (size / (size.mean(dim=-1, keepdim=True) + self.eps)))


class Constant(nn.Module):
    """An eps that is a number in the code."""

    def __init__(self, width: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-2)


class ConstantResponse(Response):
    """As Hugging Face writes it, another eps in the code."""

    def forward(self, x: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(x, ord=2, dim=1, keepdim=True)
        return self.weight * (x * (size / (size.mean(dim=-1, keepdim=True) + 3e-2))) + self.bias + x


class Attending(nn.Module):
    """Takes a mean that no parameter could take up, as the attention over places of CBAM does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weigh = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([x.mean(-1), torch.mean(x * x, dim=-1)], -1)
        return x * self.weigh(both).sigmoid()


class Net(nn.Module):
    """A residual stream with two norms on it."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.enter, self.first, self.up, self.down = nn.Linear(6, 8), norm(8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.last, self.head = norm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        x = x + self.down(F.silu(self.up(self.first(x))))
        return self.head(self.last(x))


RMS = Scale(-0.5)
EXACT: dict[str, tuple[Callable[[int], nn.Module], dict[str, Scale]]] = {
    "torch": (lambda width: nn.RMSNorm(width, eps=1e-2), {"weight": RMS}),
    "eps of the type": (nn.RMSNorm, {"weight": RMS}),
    "Hugging Face": (HuggingFace, {"weight": RMS}),
    "Gemma": (Gemma, {"weight": Scale(-0.5, 1.0)}),
    "divided": (Divided, {"g": RMS}),
    "functional": (Functional, {"scale": RMS}),
    "unit length": (UnitLength, {}),
    "response": (Response, {"weight": Scale(-1.0)}),
}


@pytest.mark.parametrize("norm", EXACT)
def test_a_width_under_an_rms_norm_goes_exactly(norm: str) -> None:
    make, scales = EXACT[norm]
    groups = check_exact(randomised(Net(make)), X.double())
    assert sizes(groups) == {"enter": 8, "up": 12}
    assert groups["enter"].scales == {
        f"{at}.{name}": scale for at in ("first", "last") for name, scale in scales.items()
    }
    eps = {path: follows for path, follows in groups.attributes.items() if "eps" in path}
    assert len(eps) == (0 if norm == "unit length" else 2)


@pytest.mark.parametrize("norm", [Constant, ConstantResponse, Attending])
def test_a_module_counts_the_channels_that_went_where_nothing_takes_up_its_mean(
    norm: Callable[[int], nn.Module],
) -> None:
    model = randomised(Net(norm))
    groups = check_exact(model, X.double())
    assert sizes(groups) == {"enter": 8, "up": 12}
    assert groups["enter"].scales == {}
    assert {path for path, _ in groups.attributes.items()} == {"first.mean_counted", "last.mean_counted"}


def test_layers_that_read_a_norm_without_a_weight_take_up_its_change() -> None:
    model = Net(lambda width: nn.RMSNorm(width, eps=1e-2, elementwise_affine=False))
    groups = check_exact(randomised(model), X.double())
    assert groups["enter"].scales == {"up.weight": RMS, "head.weight": RMS}
    assert {"first.eps", "first.normalized_shape"} <= groups.attributes.keys()


def test_a_norm_of_the_heads_goes_with_them() -> None:
    class Wide(nn.Module):
        """OLMo 2 normalises all heads of the query at once."""

        def __init__(self) -> None:
            super().__init__()
            self.heads, self.width = 4, 3
            self.q, self.norm, self.out = nn.Linear(6, 12), nn.RMSNorm(12, eps=1e-2), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.q(x)).unflatten(-1, (self.heads, self.width))
            return self.out((y * y.sigmoid().amax((1, 3), keepdim=True)).flatten(2))

    groups = check_exact(randomised(Wide()), X.double())
    assert sizes(groups) == {"q": 4}
    assert groups["q"].scales == {"norm.weight": RMS}


class Beside(nn.Module):
    """One norm over two widths that go by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.last = nn.Linear(6, 8), nn.Linear(6, 4), nn.RMSNorm(12, 1e-2), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(torch.cat([self.a(x), self.b(x)], -1)))


class Elsewhere(Net):
    """The weight of a norm, read by something else too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.first.get_parameter("weight").sum()


class Biased(Net):
    """Not zero where a channel of the stream is."""

    def __init__(self) -> None:
        super().__init__(lambda width: nn.RMSNorm(width, eps=1e-2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(torch.sigmoid(self.enter(x))))


class InTheModel(Net):
    """The model's own code takes the mean, with an eps that is a number in it."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.head(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-2))


class Deviating(nn.Module):
    """A mean beside a variance, which would count other channels."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / x.var(-1, keepdim=True).add(1e-2).sqrt()


STAYS: list[tuple[Callable[[], nn.Module], str]] = [
    (
        lambda: InTheModel(Constant),
        "mean in the model's own forward reduces it: add in the model's own forward adds 0.01, which no attribute of"
        " its module holds",
    ),
    (lambda: Net(lambda _: Deviating()), "mean at first reduces it: sub at first takes what it changes"),
    (Beside, "rms_norm at norm normalises it"),
    (lambda: Elsewhere(nn.RMSNorm), "rms_norm at first normalises it"),
    (Biased, "rms_norm at last normalises it"),
    (lambda: Net(nn.LayerNorm), "layer_norm at first normalises it"),
]


@pytest.mark.parametrize("number", range(len(STAYS)))
def test_a_width_stays_where_nothing_could_take_up_its_change(number: int) -> None:
    make, reason = STAYS[number]
    groups = channel_groups(make(), X)
    assert next(group.reason for group in groups if group.name in ("a", "enter")) == reason
    assert not any(group.scales for group in groups)


def test_norms_that_share_a_weight_are_multiplied_once() -> None:
    model = Net(lambda width: nn.RMSNorm(width, eps=1e-2))
    model.last = model.first
    groups = check_exact(randomised(model), X.double())
    assert groups["enter"].scales == {"first.weight": RMS}


def test_looking_leaves_the_model_alone() -> None:
    model = Net(nn.RMSNorm)
    before = copy.deepcopy(model.state_dict())
    channel_groups(model, X)
    assert model.first.eps is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
