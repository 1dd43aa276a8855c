"""Networks to quantize, their programs, and patterns of pruned weights."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from lightning_prune.deploy.program.eager import EagerModel
from lightning_prune.model import masks


class Residual(nn.Module):
    """Convolution with batch norm, addition, multiplication, a layer called twice, Linear: (N, 3, 8, 8) -> (N, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.block = nn.ModuleDict({"conv": nn.Conv2d(32, 32, 3, padding=1), "norm": nn.BatchNorm2d(32)})
        self.gate = nn.Conv2d(32, 32, 1)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = (x + self.block["norm"](self.block["conv"](x))).relu()
        x = x * self.gate(self.gate(x).relu()).sigmoid()
        return self.head(x.mean((2, 3)))


class Tokens(nn.Module):
    """Linear layers of several widths around a LayerNorm: (N, 64) -> (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(64, 96)
        self.norm = nn.LayerNorm(96)
        self.down = nn.Linear(96, 40)
        self.head = nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.down(self.norm(self.up(x).relu())).relu())


def traced(model: nn.Module, x: Tensor, **options: Any) -> ExportedProgram:
    return torch.export.export(EagerModel(model.eval()), (x,), **options)


def residual() -> tuple[ExportedProgram, Tensor, list[Tensor]]:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    return traced(Residual(), x), x, [torch.randn(6, 3, 8, 8) for _ in range(3)]


def tokens() -> tuple[ExportedProgram, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(4, 64)
    return traced(Tokens(), x), x


RESIDUAL_LAYERS = ["stem.0", "block.conv", ":add", "gate:conv2d_2", "gate:conv2d_3", ":mul", "head"]


PATTERNS: dict[str, Callable[[Tensor], Tensor]] = {
    "elements": lambda w: torch.rand_like(w) > 0.8,
    "2 of 4": lambda w: (torch.arange(w.numel()) % 4 < 2).view_as(w),
    "blocks": lambda w: (torch.arange(len(w)) // 4 % 2 == 0).view(-1, *[1] * (w.ndim - 1)).expand_as(w),
    "channels": lambda w: (torch.arange(len(w)) % 3 > 0).view(-1, *[1] * (w.ndim - 1)).expand_as(w),
    "everything": lambda w: torch.zeros_like(w, dtype=torch.bool),
}


def pruned(model: nn.Module, pattern: str, names: list[str]) -> nn.Module:
    masks.attach(model, names)
    weights = dict(masks.dense_parameters(model))
    masks.write(model, [(name, PATTERNS[pattern](weights[name])) for name in names])
    return masks.fold(model)


def stored(program: ExportedProgram) -> Iterator[Tensor]:
    for value in (*program.state_dict.values(), *program.constants.values()):
        if isinstance(value, Tensor):
            integers = getattr(value, "qdata", value)
            if integers.dtype == torch.int8 and integers.ndim > 1:
                yield integers
