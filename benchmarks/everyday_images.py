"""Everyday networks for images, tiny but of the real shape, each in `nn.` and in `F.` spelling.

The spelling is that of pooling, padding, interpolation, normalisation, attention and activations: layers of torch.nn,
or functions of torch.nn.functional in ``forward``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SPELLINGS = ("nn", "F")
Size = int | tuple[int, int]


class Call(nn.Module):
    """A function of torch.nn.functional with its arguments, called in ``forward``."""

    def __init__(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.function, self.args, self.kwargs = function, args, kwargs

    def forward(self, x: Tensor) -> Tensor:
        """Return what the function makes of it."""
        return self.function(x, *self.args, **self.kwargs)


class Normed(nn.Module):
    """A norm whose weight, bias and statistics the model holds itself, by `F.batch_norm`, `F.layer_norm` and so on."""

    def __init__(self, kind: str, width: int, groups: int = 1) -> None:
        super().__init__()
        self.kind, self.groups = kind, groups
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.mean: Tensor
        self.var: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape."""
        if self.kind == "batch":
            return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, self.training)
        if self.kind == "group":
            return F.group_norm(x, self.groups, self.weight, self.bias)
        if self.kind == "instance":
            return F.instance_norm(x, weight=self.weight, bias=self.bias)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias)


@dataclass(frozen=True)
class Spelled:
    """The same layers in one of the two spellings."""

    spelling: str

    def of(
        self, layer: Callable[[], nn.Module], function: Callable[..., Tensor], *args: Any, **kwargs: Any
    ) -> nn.Module:
        """Return the layer, or a call of the function."""
        return layer() if self.spelling == "nn" else Call(function, *args, **kwargs)

    def max_pool(self, size: int, stride: int | None = None, padding: int = 0, ceil: bool = False) -> nn.Module:
        """Return max pooling of images; without a stride where that is None, as many write it."""
        rest = {"padding": padding, "ceil_mode": ceil}
        return self.of(
            lambda: nn.MaxPool2d(size, stride, **rest),
            F.max_pool2d,
            size,
            **({} if stride is None else {"stride": stride}),
            **rest,
        )

    def avg_pool(self, size: Size, stride: Size | None = None, ceil: bool = False) -> nn.Module:
        """Return average pooling of images that would not count padding."""
        rest = (size, stride, 0, ceil, False)
        return self.of(lambda: nn.AvgPool2d(*rest), F.avg_pool2d, *rest)

    def global_pool(self) -> nn.Module:
        """Return the mean over each image."""
        return self.of(lambda: nn.AdaptiveAvgPool2d(1), F.adaptive_avg_pool2d, 1)

    def pad(self, sizes: tuple[int, ...], mode: str = "constant", value: float = 0.0) -> nn.Module:
        """Return padding, left, right, top, bottom; of sequences left, right."""
        layers = {
            "constant": nn.ZeroPad2d,
            "reflect": nn.ReflectionPad2d,
            "replicate": nn.ReplicationPad2d,
        }
        layer: Any = nn.ConstantPad1d if len(sizes) == 2 else layers[mode]
        args = (sizes, value) if len(sizes) == 2 else (sizes,)
        options = {"value": value} if mode == "constant" else {}
        return self.of(lambda: layer(*args), F.pad, sizes, mode, **options)

    def upsample(self, mode: str, align: bool | None = None) -> nn.Module:
        """Return twice the height and width."""
        options = {"scale_factor": 2.0, "mode": mode, "align_corners": align}
        return self.of(lambda: nn.Upsample(**options), F.interpolate, **options)

    def act(self, name: str) -> nn.Module:
        """Return an activation: relu, gelu, silu, hardswish, hardsigmoid."""
        layers = {
            "relu": nn.ReLU,
            "gelu": nn.GELU,
            "silu": nn.SiLU,
            "hardswish": nn.Hardswish,
            "hardsigmoid": nn.Hardsigmoid,
        }
        return self.of(layers[name], getattr(F, name))

    def norm(self, kind: str, width: int, groups: int = 1) -> nn.Module:
        """Return a norm of images (batch, group, instance), of tokens (layer) or of sequences (batch1d)."""
        layers: dict[str, Callable[[], nn.Module]] = {
            "batch": lambda: nn.BatchNorm2d(width),
            "batch1d": lambda: nn.BatchNorm1d(width),
            "group": lambda: nn.GroupNorm(groups, width),
            "instance": lambda: nn.InstanceNorm2d(width, affine=True),
            "layer": lambda: nn.LayerNorm(width),
        }
        return layers[kind]() if self.spelling == "nn" else Normed(kind.removesuffix("1d"), width, groups)

    def conv(
        self, made_of: int, makes: int, size: int = 3, stride: int = 1, groups: int = 1, act: str = ""
    ) -> nn.Module:
        """Return a convolution, its batch norm and an activation."""
        layer = nn.Conv2d(made_of, makes, size, stride, size // 2, groups=groups, bias=False)
        return nn.Sequential(layer, self.norm("batch", makes), *([self.act(act)] if act else []))


class Residual(nn.Module):
    """Two convolutions around a shortcut, which is pooled where the stride is 2, as in ResNet-D."""

    def __init__(self, s: Spelled, made_of: int, makes: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(s.conv(made_of, makes, 3, stride, act="relu"), s.conv(makes, makes))
        short = [s.avg_pool(2, 2, ceil=True)] if stride > 1 else []
        self.short = nn.Sequential(*short, s.conv(made_of, makes, 1)) if made_of != makes else nn.Identity()
        self.act = s.act("relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the same image size, or half of it."""
        return self.act(self.body(x) + self.short(x))


class ResNet(nn.Module):
    """A padded stem with max pooling, three stages, global pooling."""

    def __init__(self, s: Spelled) -> None:
        super().__init__()
        stem = [s.pad((3, 3, 3, 3)), nn.Conv2d(3, 16, 7, 2, bias=False), s.norm("batch", 16), s.act("relu")]
        self.stem = nn.Sequential(*stem, s.max_pool(3, 2, 1))
        self.stages = nn.Sequential(Residual(s, 16, 16, 1), Residual(s, 16, 32, 2), Residual(s, 32, 64, 2))
        self.pool, self.head = s.global_pool(), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.head(torch.flatten(self.pool(self.stages(self.stem(x))), 1))


class SqueezeExcite(nn.Module):
    """A gate per channel; by a mean over dimensions in EfficientNet, by pooling in MobileNetV3."""

    def __init__(self, s: Spelled, width: int, inner: str, gate: str) -> None:
        super().__init__()
        self.pool = s.global_pool() if inner == "relu" else Call(torch.mean, (2, 3), True)
        self.down, self.up = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)
        self.inner, self.gate = s.act(inner), s.act(gate) if gate == "hardsigmoid" else s.of(nn.Sigmoid, F.sigmoid)

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape."""
        return x * self.gate(self.up(self.inner(self.down(self.pool(x)))))


class Inverted(nn.Module):
    """Wide, depthwise, gate, narrow; padded on one side only where the stride is 2, as ports from TensorFlow are."""

    def __init__(self, s: Spelled, made_of: int, makes: int, stride: int, size: int, act: str, gate: str) -> None:
        super().__init__()
        wide = 4 * made_of
        pad = [s.pad((size // 2 - 1, size // 2) * 2)] if stride > 1 else []
        depthwise = nn.Conv2d(wide, wide, size, stride, 0 if pad else size // 2, groups=wide, bias=False)
        self.body = nn.Sequential(
            *(s.conv(made_of, wide, 1, act=act), *pad, depthwise, s.norm("batch", wide), s.act(act)),
            *(SqueezeExcite(s, wide, "relu" if act == "hardswish" else act, gate), s.conv(wide, makes, 1)),
        )
        self.is_around = stride == 1 and made_of == makes

    def forward(self, x: Tensor) -> Tensor:
        """Return the same image size, or half of it."""
        return x + self.body(x) if self.is_around else self.body(x)


class Mobile(nn.Module):
    """A stem, inverted residuals and a wide head: MobileNetV3 or EfficientNet."""

    def __init__(self, s: Spelled, act: str, gate: str) -> None:
        super().__init__()
        kinds = {"size": 5, "act": act, "gate": gate}
        blocks = [Inverted(s, 16, 24, 2, **kinds), Inverted(s, 24, 24, 1, **kinds), Inverted(s, 24, 32, 2, **kinds)]
        self.features = nn.Sequential(s.conv(3, 16, 3, 2, act=act), *blocks, s.conv(32, 96, 1, act=act))
        self.pool, self.drop = s.global_pool(), s.of(nn.Dropout, F.dropout, training=False)
        self.hidden, self.act, self.head = nn.Linear(96, 64), s.act(act), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.pool(self.features(x)).flatten(1)
        return self.head(self.drop(self.act(self.hidden(x))))


class ConvNeXtBlock(nn.Module):
    """A depthwise 7×7, a layer norm over channels in the last dimension, a perceptron, a scale."""

    def __init__(self, s: Spelled, width: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 7, 1, 3, groups=width), s.norm("layer", width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), s.act("gelu"), nn.Linear(4 * width, width))
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape."""
        y = self.mlp(self.norm(self.depthwise(x).permute(0, 2, 3, 1))) * self.scale
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Patches, two stages with a norm of channels-first images between, a mean and a norm before the head."""

    def __init__(self, s: Spelled) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 24, 4, 4), ConvNeXtBlock(s, 24)
        self.between, self.down = s.norm("group", 24), nn.Conv2d(24, 48, 2, 2)
        self.second, self.norm, self.head = ConvNeXtBlock(s, 48), s.norm("layer", 48), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.second(self.down(self.between(self.first(self.stem(x)))))
        return self.head(self.norm(x.mean([-2, -1])))


class DoubleConv(nn.Module):
    """Two convolutions with reflected borders, each with a norm."""

    def __init__(self, s: Spelled, made_of: int, makes: int, norm: str) -> None:
        super().__init__()
        layers = []
        for width in (made_of, makes):
            conv = nn.Conv2d(width, makes, 3)
            layers += [s.pad((1, 1, 1, 1), "reflect"), conv, s.norm(norm, makes, 4), s.act("relu")]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the same image size."""
        return self.layers(x)


class UNet(nn.Module):
    """Three depths; back up by interpolation and by a transposed convolution; masks of the input's size."""

    def __init__(self, s: Spelled) -> None:
        super().__init__()
        self.s = s
        self.one, self.two, self.three = (
            DoubleConv(s, a, b, n) for a, b, n in ((3, 16, "batch"), (16, 32, "group"), (32, 64, "instance"))
        )
        self.pool, self.up = s.max_pool(2), s.upsample("bilinear", True)
        self.narrow, self.across = nn.Conv2d(64, 32, 1), nn.ConvTranspose2d(32, 16, 2, 2)
        self.back_two, self.back_one = DoubleConv(s, 64, 32, "batch"), DoubleConv(s, 32, 16, "batch")
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a mask per class."""
        one = self.one(x)
        two = self.two(self.pool(one))
        three = self.narrow(self.up(self.three(self.pool(two))))
        three = F.interpolate(three, size=two.shape[2:], mode="nearest")
        back = self.back_two(torch.cat([two, three], 1))
        return self.head(self.back_one(torch.cat([one, self.across(back)], 1)))


class Csp(nn.Module):
    """Half of the channels through a bottleneck, all of them concatenated, as in YOLOv8's C2f."""

    def __init__(self, s: Spelled, made_of: int, makes: int) -> None:
        super().__init__()
        half = makes // 2
        self.enter, self.leave = s.conv(made_of, makes, 1, act="silu"), s.conv(3 * half, makes, 1, act="silu")
        self.inner = nn.Sequential(s.conv(half, half, act="silu"), s.conv(half, half, act="silu"))

    def forward(self, x: Tensor) -> Tensor:
        """Return the same image size."""
        a, b = self.enter(x).chunk(2, 1)
        return self.leave(torch.cat([a, b, b + self.inner(b)], 1))


class Yolo(nn.Module):
    """A backbone, SPPF, a neck with nearest upsampling, a head of distances from anchors made once and kept."""

    bins, classes = 8, 3

    def __init__(self, s: Spelled) -> None:
        super().__init__()
        self.stem = nn.Sequential(s.conv(3, 16, 3, 2, act="silu"), s.conv(16, 32, 3, 2, act="silu"), Csp(s, 32, 32))
        self.deep = nn.Sequential(s.conv(32, 64, 3, 2, act="silu"), Csp(s, 64, 64))
        self.narrow, self.pool, self.wide = s.conv(64, 32, 1, act="silu"), s.max_pool(5, 1, 2), s.conv(128, 64, 1)
        self.up, self.neck = s.upsample("nearest"), Csp(s, 96, 32)
        self.boxes = nn.ModuleList(nn.Conv2d(width, 4 * self.bins, 1) for width in (32, 64))
        self.scores = nn.ModuleList(nn.Conv2d(width, self.classes, 1) for width in (32, 64))
        self.anchors, self.strides = torch.empty(0), torch.empty(0)
        self.shape: Any = None

    def forward(self, x: Tensor) -> Tensor:
        """Return centres, sizes and scores of every anchor."""
        shallow = self.stem(x)
        pooled = [self.narrow(self.deep(shallow))]
        for _ in range(3):
            pooled.append(self.pool(pooled[-1]))
        deep = self.wide(torch.cat(pooled, 1))
        maps = [self.neck(torch.cat([self.up(deep), shallow], 1)), deep]
        boxes = torch.cat([head(x).flatten(2) for head, x in zip(self.boxes, maps, strict=True)], 2)
        scores = torch.cat([head(x).flatten(2) for head, x in zip(self.scores, maps, strict=True)], 2)
        if self.shape != maps[0].shape:
            self.anchors, self.strides = (each.transpose(0, 1) for each in self.made(maps))
            self.shape = maps[0].shape
        shares = boxes.view(len(x), 4, self.bins, -1).softmax(2)
        near, far = (shares * torch.arange(self.bins, dtype=x.dtype).view(1, 1, -1, 1)).sum(2).chunk(2, 1)
        low, high = self.anchors - near, self.anchors + far
        return torch.cat([(low + high) / 2 * self.strides, (high - low) * self.strides, scores.sigmoid()], 1)

    @staticmethod
    def made(maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the centres of all cells, and their strides."""
        points, strides = [], []
        for stride, x in zip((4, 8), maps, strict=True):
            sy, sx = torch.arange(x.shape[2]) + 0.5, torch.arange(x.shape[3]) + 0.5
            points.append(torch.stack(torch.meshgrid(sx, sy, indexing="xy"), -1).view(-1, 2))
            strides.append(torch.full((len(points[-1]), 1), float(stride)))
        return torch.cat(points), torch.cat(strides)


class Ssd(nn.Module):
    """Two maps, the first one normalised to length 1, boxes decoded around anchors that each forward makes anew."""

    def __init__(self, s: Spelled) -> None:
        super().__init__()
        self.shallow = nn.Sequential(s.conv(3, 16, act="relu"), s.max_pool(2, 2), s.conv(16, 32, act="relu"))
        self.deep = nn.Sequential(s.max_pool(2, 2, ceil=True), s.conv(32, 64, 3, 2, act="relu"))
        self.scale = nn.Parameter(torch.full((1, 32, 1, 1), 10.0))
        self.boxes = nn.ModuleList(nn.Conv2d(width, 2 * 4, 3, padding=1) for width in (32, 64))
        self.scores = nn.ModuleList(nn.Conv2d(width, 2 * 3, 3, padding=1) for width in (32, 64))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return boxes in pixels and scores of two anchors per cell."""
        shallow = self.shallow(image)
        maps, boxes, scores = [F.normalize(shallow, dim=1) * self.scale, self.deep(shallow)], [], []
        for x, box, score in zip(maps, self.boxes, self.scores, strict=True):
            offsets = box(x).permute(0, 2, 3, 1).reshape(len(x), -1, 4)
            anchors = self.anchors(x, image.shape[-1] / x.shape[-1])
            centres = anchors[:, :2] + 0.1 * offsets[..., :2] * anchors[:, 2:]
            sizes = anchors[:, 2:] * torch.exp(0.2 * offsets[..., 2:])
            boxes.append(torch.cat([centres - sizes / 2, centres + sizes / 2], -1))
            scores.append(score(x).permute(0, 2, 3, 1).reshape(len(x), -1, 3))
        return {"boxes": torch.cat(boxes, 1), "scores": F.softmax(torch.cat(scores, 1), -1)}

    def anchors(self, x: Tensor, stride: float) -> Tensor:
        """Return centre and size of two anchors for each cell of a map."""
        rows = (torch.arange(x.shape[2], device=x.device) + 0.5) * stride
        y, x_ = torch.meshgrid(rows, rows, indexing="ij")
        centres = torch.stack([x_, y], -1).reshape(-1, 1, 2).expand(-1, 2, -1)
        sizes = torch.tensor([[2.0, 2.0], [3.0, 1.5]]) * stride
        return torch.cat([centres, sizes.expand(len(centres), -1, -1)], -1).reshape(-1, 4)
