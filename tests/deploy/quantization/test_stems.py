"""First convolutions that see four pixels as four channels compute what they computed."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_prune.deploy.program.eager import EagerModel
from lightning_prune.deploy.quantization import Int8
from lightning_prune.deploy.quantization.noise import sqnr_db
from lightning_prune.deploy.quantization.stems import halve_images, halved


@pytest.mark.parametrize("kernel", [(5, 5), (6, 7), (7, 7), (8, 5), (9, 11)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 2), (3, 3), (4, 5)])
@pytest.mark.parametrize("size", [(12, 14), (20, 16)])
def test_the_result_is_the_same(kernel: tuple[int, int], padding: tuple[int, int], size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, *size).double(), torch.randn(4, 3, *kernel).double()
    expected = F.conv2d(x, weight, stride=2, padding=padding)
    made, borders = halved(weight, list(padding), torch.Size(size))
    got = F.conv2d(F.pad(F.pixel_unshuffle(x, 2), borders), made)
    assert got.shape == expected.shape
    assert float((got - expected).abs().max()) < 1e-12
    assert int((made != 0).sum()) == weight.numel()


class Stem(nn.Module):
    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.layers = nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(), nn.MaxPool2d(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def graph_of(conv: nn.Conv2d, size: int = 16) -> torch.fx.GraphModule:
    x = torch.randn(1, conv.in_channels, size, size)
    return torch.export.export(Stem(conv).eval(), (x,)).module()  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize(
    ("conv", "size"),
    [
        (nn.Conv2d(3, 4, 3, 2), 16),
        (nn.Conv2d(3, 4, 7, 1), 16),
        (nn.Conv2d(8, 4, 7, 2), 16),
        (nn.Conv2d(3, 4, 7, 2), 17),
        (nn.Conv2d(4, 4, 7, 2, groups=2), 16),
        (nn.Conv2d(3, 4, 5, 2, dilation=2), 16),
    ],
    ids=["small kernel", "no stride", "many channels", "odd image", "groups", "dilation"],
)
def test_others_are_left_alone(conv: nn.Conv2d, size: int) -> None:
    graph = graph_of(conv, size)
    assert halve_images(graph, frozenset(node.name for node in graph.graph.nodes)) == 0


def test_only_what_is_quantized_is_rewritten() -> None:
    graph = graph_of(nn.Conv2d(3, 4, 7, 2, bias=False))
    assert halve_images(graph, frozenset()) == 0
    assert halve_images(graph, frozenset({"conv2d"})) == 1


def test_zeros_stay_zeros_and_the_noise_is_small() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 7, 2, padding=3, bias=False)
    with torch.no_grad():
        conv.weight.mul_(torch.rand_like(conv.weight) < 0.5)
    model, x = EagerModel(Stem(conv)).eval(), torch.randn(2, 3, 16, 16)
    program = torch.export.export(model, (x,))
    found = Int8([torch.randn(32, 3, 16, 16)]).quantize(program, (x,))
    assert found.output_sqnr[0] > 30
    assert sqnr_db(model(x)[0].detach(), found.program.module()(x)[0].detach()) > 25
    values = (*found.program.state_dict.values(), *found.program.constants.values())
    (integers,) = (v for v in values if isinstance(v, torch.Tensor) and v.dtype == torch.int8 and v.ndim == 4)
    assert tuple(integers.shape) == (8, 12, 4, 4)
    assert int((integers != 0).sum()) <= int((conv.weight != 0).sum())
