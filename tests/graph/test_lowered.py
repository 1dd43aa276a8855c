"""What a network holds while XNNPACK runs it, computed from its graph and read off the exported file."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.memory import NETWORKS, UNet, squeezed
from lightning_prune.graph.lowered import activations
from lightning_prune.model.workspace import workspace


class Each(nn.Module):
    """Every kernel that is known."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, padding=2, groups=8, dilation=2), nn.BatchNorm2d(8))
        self.point, self.grouped = nn.Conv2d(8, 8, 1), nn.Conv2d(16, 8, 3, padding=1, groups=2)
        self.less, self.more = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.hidden, self.head = nn.Linear(8 * 4 * 4, 24), nn.Linear(32, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        x = F.relu(x + self.point(F.hardswish(self.depthwise(x))))
        x = x * F.hardsigmoid(self.more(F.relu(self.less(F.adaptive_avg_pool2d(x, 1)))))
        x = F.silu(self.grouped(torch.cat([x, F.gelu(x)], 1))) - torch.tanh(x)
        x = F.max_pool2d(F.leaky_relu(x, 0.1), 2)
        x = F.avg_pool2d(F.interpolate(x, scale_factor=2, mode="bilinear"), 2)
        flat = F.relu(self.hidden(x.flatten(1))) * 2.0
        return self.head(torch.cat([flat, torch.sigmoid(x).mean((2, 3))], 1))


class Apart(nn.Module):
    """Norms that no convolution can take up, paddings of their own, and slopes that are learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.slope = nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.PReLU(8)
        self.second, self.identity, self.last_norm = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(16)
        self.shared, self.last = nn.PReLU(), nn.Conv2d(16, 4, 1)
        for norm in (self.norm, self.identity, self.last_norm):
            norm.running_mean = torch.randn(norm.num_features)

    def forward(self, image: Tensor) -> Tensor:
        x = self.first(F.pad(image, (0, 1, 0, 1)))
        y = self.second(F.pad(self.slope(self.norm(self.shared(x))), (1, 1, 1, 1)))
        return self.last(F.relu(self.last_norm(torch.cat([F.relu(self.identity(x) + y), x], 1))))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (Each, (1, 3, 16, 16)),
        (Apart, (2, 3, 32, 32)),
        (squeezed, (1, 3, 32, 32)),
        (UNet, (2, 3, 32, 32)),
        NETWORKS["perceptron"],
    ],
    ids=["each", "apart", "squeezed", "unet", "perceptron"],
)
def test_it_is_what_stands_in_the_file(tmp_path: Path, make: type[nn.Module], shape: tuple[int, ...]) -> None:
    pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")
    from lightning_prune.deploy import export, inspect

    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(shape)
    export(model, tmp_path / "a.pte", example_inputs=x)
    found = inspect(tmp_path / "a.pte")
    assert set(found["forward"].outside) <= {"dim_order_ops::_to_dim_order_copy.out"}  # of numbers in a hard sigmoid
    assert found["forward"].memory_bytes is not None
    held = activations(model, x)
    sizes = {tensor: 4 * sum(own.values()) for tensor, own in held.elements.items()}
    between = {tensor: size for tensor, size in sizes.items() if tensor not in held.borders}
    told = workspace(held.steps, between)[0] + held.pointers + sum(sizes[tensor] for tensor in held.borders)
    # the file's own tensors at the borders are rounded up to 16 bytes, and a few constants are packed as weights
    assert told == pytest.approx(found["forward"].memory_bytes - found.constant_bytes, rel=0.002, abs=200)


def test_channels_go_with_the_weight_that_makes_them() -> None:
    held = activations(Each(), torch.zeros(1, 3, 16, 16))
    made = {tuple(own) for own in held.elements.values()}
    assert {("",), ("stem.0.weight",), ("hidden.weight",), ("hidden.weight", "grouped.weight")} <= made
    (output,) = (held.elements[tensor] for tensor in held.borders if "" not in held.elements[tensor])
    assert output == {"head.weight": 5.0}


class Normed(nn.Module):
    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))


@pytest.mark.parametrize(
    ("last", "told"),
    [
        (nn.GroupNorm(2, 4), "group_norm at last"),
        (nn.Upsample(scale_factor=2), "upsample_nearest2d at last"),
        (nn.AdaptiveAvgPool2d(2), "adaptive_avg_pool2d at last"),
        (nn.Sequential(nn.Flatten(2), nn.BatchNorm1d(4)), "batch_norm at last.1"),
        (nn.Sequential(nn.Flatten(2), nn.PReLU(4)), "prelu at last.1"),
        (nn.ReflectionPad2d(1), "pad at last"),
        (nn.ZeroPad2d(-1), "pad at last"),
    ],
    ids=lambda given: type(given).__name__ if isinstance(given, nn.Module) else given.split()[0],
)
def test_what_is_not_known_is_refused_by_name(last: nn.Module, told: str) -> None:
    with pytest.raises(ValueError, match=f"not known: {told} is none of"):
        activations(Normed(last), torch.zeros(1, 3, 8, 8))


def test_another_type_than_float32_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the input tensors_0 is torch\.float64"):
        activations(nn.Linear(2, 2).double(), torch.zeros(1, 2, dtype=torch.float64))
