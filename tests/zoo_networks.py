"""Convolutional architectures written by hand, small; each block as its paper draws it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(
    made_of: int, makes: int, kernel: int = 3, stride: int = 1, groups: int = 1, relu: bool = True
) -> nn.Sequential:
    layers = [nn.Conv2d(made_of, makes, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(makes)]
    return nn.Sequential(*layers, *([nn.ReLU()] if relu else []))


def classifier(width: int, classes: int = 10) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


class Vgg(nn.Sequential):
    def __init__(self) -> None:
        stages = [conv(3, 16), conv(16, 16), nn.MaxPool2d(2), conv(16, 32), conv(32, 32), nn.MaxPool2d(2)]
        head = [nn.Flatten(), nn.Linear(32 * 16, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10)]
        super().__init__(*stages, *head)


class DenseNet(nn.Module):
    def __init__(self, growth: int = 8) -> None:
        super().__init__()
        self.stem, width = conv(3, 16), 16
        self.stages, self.transitions = nn.ModuleList(), nn.ModuleList()
        for _ in range(2):
            layers = nn.ModuleList()
            for _ in range(3):
                inner = [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 4 * growth, 1), nn.BatchNorm2d(4 * growth)]
                layers.append(nn.Sequential(*inner, nn.ReLU(), nn.Conv2d(4 * growth, growth, 3, padding=1)))
                width += growth
            self.stages.append(layers)
            shrink = nn.Conv2d(width, width // 2, 1)
            self.transitions.append(nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), shrink, nn.AvgPool2d(2)))
            width //= 2
        self.head = classifier(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layers, transition in zip(self.stages, self.transitions, strict=True):
            for layer in layers:  # type: ignore[union-attr]
                x = torch.cat([x, layer(x)], 1)
            x = transition(x)
        return self.head(x)


def shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class ShuffleUnit(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            conv(half, half, 1), conv(half, half, 3, groups=half, relu=False), conv(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        return shuffled(torch.cat([left, self.branch(right)], 1), 2)


class ShuffleDown(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.left = nn.Sequential(conv(width, width, 3, 2, groups=width, relu=False), conv(width, width, 1))
        self.right = nn.Sequential(
            conv(width, width, 1), conv(width, width, 3, 2, groups=width, relu=False), conv(width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return shuffled(torch.cat([self.left(x), self.right(x)], 1), 2)


class ShuffleNetV2(nn.Sequential):
    def __init__(self) -> None:
        units = [ShuffleDown(16), ShuffleUnit(32), ShuffleUnit(32), ShuffleDown(32), ShuffleUnit(64)]
        super().__init__(conv(3, 16), *units, conv(64, 64, 1), classifier(64))


class GroupedShuffleNet(nn.Module):
    """ShuffleNet (v1): grouped 1×1 convolutions with a channel shuffle between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 96)
        self.squeeze = conv(96, 72, 1, groups=3)
        self.depthwise = conv(72, 72, 3, groups=72, relu=False)
        self.grow = conv(72, 96, 1, groups=3, relu=False)
        self.head = classifier(96)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.grow(self.depthwise(shuffled(self.squeeze(x), 3)))
        return self.head(F.relu(x + y))


class InceptionBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = conv(width, 8, 1)
        self.three = nn.Sequential(conv(width, 8, 1), conv(8, 16))
        self.five = nn.Sequential(conv(width, 4, 1), conv(4, 8, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(width, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in (self.one, self.three, self.five, self.pool)], 1)


class Inception(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 16), InceptionBlock(16), nn.MaxPool2d(2), InceptionBlock(40), classifier(40))


class Res2Block(nn.Module):
    """Four equal widths, each convolution fed with the sum of its own part and the part before."""

    def __init__(self, width: int, inner: int = 8, scale: int = 4) -> None:
        super().__init__()
        self.inner = inner
        self.enter, self.leave = conv(width, inner * scale, 1), conv(inner * scale, width, 1, relu=False)
        self.convs = nn.ModuleList(conv(inner, inner) for _ in range(scale - 1))

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.enter(x), self.inner, 1)
        made, previous = [parts[0]], None
        for part, layer in zip(parts[1:], self.convs, strict=True):
            previous = layer(part if previous is None else part + previous)
            made.append(previous)
        return F.relu(self.leave(torch.cat(made, 1)) + x)


class Res2Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 32), Res2Block(32), nn.MaxPool2d(2), Res2Block(32), classifier(32))


class HrNet(nn.Module):
    """Two resolutions that exchange sums."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = conv(3, 16), conv(16, 32, 3, 2)
        self.high, self.low = nn.Sequential(conv(16, 16), conv(16, 16)), nn.Sequential(conv(32, 32), conv(32, 32))
        self.up, self.across = conv(32, 16, 1, relu=False), conv(16, 32, 3, 2, relu=False)
        self.head = nn.Conv2d(48, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.stem(x)
        low = self.down(high)
        high, low = self.high(high), self.low(low)
        lifted = F.interpolate(self.up(low), size=high.shape[-2:], mode="bilinear", align_corners=False)
        high, low = F.relu(high + lifted), F.relu(low + self.across(high))
        low = F.interpolate(low, size=high.shape[-2:], mode="nearest")
        return self.head(torch.cat([high, low], 1))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.downs = nn.ModuleList([conv(3, 16), conv(16, 32), conv(32, 48)])
        self.ups = nn.ModuleList([nn.ConvTranspose2d(48, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)])
        self.merges = nn.ModuleList([conv(64, 32), conv(32, 16)])
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = []
        for number, down in enumerate(self.downs):
            x = down(F.max_pool2d(x, 2) if number else x)
            seen.append(x)
        for up, merge, skip in zip(self.ups, self.merges, seen[-2::-1], strict=True):
            x = merge(torch.cat([up(x), skip], 1))
        return self.head(x)


class SqueezeExcite(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(width, width // 4), nn.Linear(width // 4, width)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class SeBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(width, width), conv(width, width, relu=False), SqueezeExcite(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


class SeResNet(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 24), SeBlock(24), conv(24, 48, 3, 2), SeBlock(48), classifier(48))


class Ghost(nn.Module):
    """Half of the channels are cheap depthwise images of the other half."""

    def __init__(self, made_of: int, makes: int) -> None:
        super().__init__()
        self.primary, self.cheap = conv(made_of, makes // 2, 1), conv(makes // 2, makes // 2, 3, groups=makes // 2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.primary(x)
        return torch.cat([first, self.cheap(first)], 1)


class GhostNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 48)
        self.grow, self.shrink, self.last = Ghost(48, 144), Ghost(144, 48), Ghost(48, 96)
        self.head = classifier(96)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.last(x + self.shrink(self.grow(x))))


class RepVggBlock(nn.Module):
    def __init__(self, made_of: int, makes: int) -> None:
        super().__init__()
        self.three, self.one = conv(made_of, makes, 3, relu=False), conv(made_of, makes, 1, relu=False)
        self.identity = nn.BatchNorm2d(makes) if made_of == makes else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.three(x) + self.one(x)
        return F.relu(y if self.identity is None else y + self.identity(x))


class RepVgg(nn.Sequential):
    def __init__(self) -> None:
        blocks = [RepVggBlock(3, 24), RepVggBlock(24, 24), nn.MaxPool2d(2), RepVggBlock(24, 48), RepVggBlock(48, 48)]
        super().__init__(*blocks, classifier(48))


class InvertedResidual(nn.Module):
    def __init__(self, width: int, grow: int = 4) -> None:
        super().__init__()
        wide = width * grow
        self.body = nn.Sequential(
            conv(width, wide, 1), conv(wide, wide, 3, groups=wide), conv(wide, width, 1, relu=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class MobileInverted(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 16), InvertedResidual(16), conv(16, 24, 3, 2), InvertedResidual(24), classifier(24))


class Bottleneck(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(width, 64, 1), conv(64, 64, 3, groups=groups), conv(64, width, 1, relu=False))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


class ResNeXt(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 64), Bottleneck(64, 8), nn.MaxPool2d(2), Bottleneck(64, 8), classifier(64))


class CspBlock(nn.Module):
    """Half of the channels go round the block (YOLO)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.leave = conv(width, 2 * (width // 2), 1), conv(width // 2 * 4, width, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(conv(width // 2, width // 2), conv(width // 2, width // 2)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class CspNet(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 32), CspBlock(32), conv(32, 48, 3, 2), CspBlock(48), classifier(48))


class PyramidNet(nn.Module):
    """A feature pyramid whose levels share one head."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([conv(3, 16), conv(16, 32, 3, 2), conv(32, 48, 3, 2)])
        self.laterals = nn.ModuleList(nn.Conv2d(width, 24, 1) for width in (16, 32, 48))
        self.tower = nn.Sequential(conv(24, 24), conv(24, 24))
        self.boxes, self.labels = nn.Conv2d(24, 4, 3, padding=1), nn.Conv2d(24, 6, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        levels = []
        for stage, lateral in zip(self.stages, self.laterals, strict=True):
            x = stage(x)
            levels.append(lateral(x))
        for upper in (1, 0):
            levels[upper] = levels[upper] + F.interpolate(levels[upper + 1], scale_factor=2.0)
        towers = [self.tower(level) for level in levels]
        return {"boxes": [self.boxes(t) for t in towers], "labels": [self.labels(t) for t in towers]}


class SuperResolution(nn.Module):
    """ESPCN: sub-pixel convolution inside the network."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 5, padding=2), nn.Tanh(), nn.Conv2d(32, 64, 3, padding=1), nn.PReLU(64)
        )
        self.shuffle, self.last = nn.PixelShuffle(2), nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.shuffle(self.body(x)))
