"""A network with parameters before, between and after the masked ones."""

import torch
from torch import Tensor, nn

from lightning_prune.model import masks


class Net(nn.Module):
    """Parameters before, between and after the masked ones, and a buffer whose name looks like a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)
        self.shift = nn.Parameter(torch.zeros(3))
        self.register_buffer("attn_mask", torch.tensor([1.0, 0.5, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x * self.scale)).relu().mean((2, 3))
        return (self.head(x) + self.shift) * self.get_buffer("attn_mask")


NAMES = ["conv.weight", "conv.bias", "head.weight"]


X = torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(5))


def masked(names: list[str] = NAMES) -> Net:
    torch.manual_seed(0)
    model = Net()
    masks.attach(model, names)
    return model


def draw(model: nn.Module, share: float = 0.5) -> dict[str, Tensor]:
    """Random masks for a model, with a True in each."""
    drawn = {name: torch.rand(mask.shape) >= share for name, mask in masks.read(model).items()}
    for mask in drawn.values():
        mask.view(-1)[0] = True
    return drawn


def held(model: nn.Module, path: str, name: str) -> Tensor:
    return getattr(model.get_submodule(path), name)


def state_of(model: nn.Module) -> tuple[dict[str, bytes], list[int], list[int]]:
    values = {name: value.detach().numpy().tobytes() for name, value in model.state_dict().items()}
    return values, [id(p) for p in model.parameters()], [len(m._forward_pre_hooks) for m in model.modules()]
