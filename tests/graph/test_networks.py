"""Whole networks, small: masked equals compact, and the groups are the ones a reader expects."""

import pytest
import torch
import torch.nn.functional as F
from graph_oracle import check_exact, sizes, slots
from torch import Tensor, nn


def conv_bn(cin: int, cout: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.fc1, self.fc2 = nn.Conv2d(8, 6, 3), nn.Linear(6 * 9, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.sigmoid(self.bn(self.conv1(x))), 2)
        x = F.adaptive_avg_pool2d(F.silu(self.conv2(x)), 3)
        return self.fc2(F.dropout(F.gelu(self.fc1(x.flatten(1))), 0.5, self.training))


class Residual(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, groups: int = 1):
        super().__init__()
        self.a, self.b = conv_bn(cin, cout, 3, stride), conv_bn(cout, cout, groups=groups)
        self.short = nn.Identity() if stride == 1 and cin == cout else conv_bn(cin, cout, 1, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.relu(self.a(x)))
        y += self.short(x)
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self, groups: int = 1):
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.layer1 = nn.Sequential(Residual(8, 8, 1, groups), Residual(8, 8, 1, groups))
        self.layer2 = nn.Sequential(Residual(8, 16, 2, groups), Residual(16, 16, 1, groups))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer2(self.layer1(F.relu(self.stem(x)))).mean((2, 3)))


class PreActivation(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.bn1, self.conv1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv1(F.relu(self.bn1(x)))
        return self.conv2(F.relu(self.bn2(x)))


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        widths = (8, 12, 16)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, 4, 3, padding=1)) for c in widths
        )
        self.transition, self.fc = nn.Conv2d(20, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        x = F.avg_pool2d(self.transition(torch.cat(features, 1)), 2)
        return self.fc(x.mean([2, 3]))


class Inverted(nn.Module):
    def __init__(self, cin: int, hidden: int, cout: int):
        super().__init__()
        self.expand, self.deep = conv_bn(cin, hidden, 1), conv_bn(hidden, hidden, groups=hidden)
        self.squeeze, self.excite = nn.Conv2d(hidden, 3, 1), nn.Conv2d(3, hidden, 1)
        self.project = conv_bn(hidden, cout, 1)
        self.is_residual = cin == cout

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.deep(F.relu6(self.expand(x))))
        y = y * F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        y = self.project(y)
        return x + y if self.is_residual else y


class MobileNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.fc = conv_bn(3, 8, 3, 2), nn.Linear(8, 5)
        self.blocks = nn.Sequential(Inverted(8, 16, 8), Inverted(8, 12, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(F.hardswish(self.stem(x))).mean((-1, -2)))


class ShuffleUnit(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        pointwise, deep = conv_bn(half, half, 1), conv_bn(half, half, groups=half)
        self.branch = nn.Sequential(pointwise, nn.ReLU(), deep, conv_bn(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        x = torch.cat([left, self.branch(right)], 1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return x.view(batch, -1, height, width)


class ShuffleNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(conv_bn(3, 12), nn.ReLU(), ShuffleUnit(12), ShuffleUnit(12), nn.Conv2d(12, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.down2, self.middle = conv_bn(3, 6), conv_bn(6, 8, 3, 2), conv_bn(8, 10, 3, 2)
        self.up1, self.up2 = nn.ConvTranspose2d(10, 8, 2, 2), nn.ConvTranspose2d(12, 6, 2, 2, groups=6)
        self.merge1, self.merge2, self.out = conv_bn(16, 12), conv_bn(12, 6), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.down1(x))
        b = F.relu(self.down2(a))
        x = torch.cat([self.up1(F.relu(self.middle(b))), b], 1)
        x = torch.cat([self.up2(self.merge1(x)), a], dim=1)
        return self.out(F.interpolate(self.merge2(x), scale_factor=2.0, mode="bilinear"))


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv1d(4, 16, 3), nn.Conv1d(8, 16, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.a(x).chunk(2, dim=1)
        x = F.glu(self.b(torch.tanh(value) * torch.sigmoid(gate)), 1)
        return self.c(x.transpose(1, 2))


class Attention(nn.Module):
    def __init__(self, width: int, head: int):
        super().__init__()
        self.head, self.qkv = head, nn.Linear(width, 3 * width)
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, -1, self.head).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, -1)
        return self.out(x)


class GroupedQuery(nn.Module):
    def __init__(self, width: int, head: int, repeats: int):
        super().__init__()
        self.head, self.repeats = head, repeats
        self.q, self.out = nn.Linear(width, 4 * head), nn.Linear(4 * head, width)
        self.k, self.v = nn.Linear(width, 4 // repeats * head), nn.Linear(width, 4 // repeats * head)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, self.head)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        k, v = (t[:, :, None].expand(-1, -1, self.repeats, -1, -1).flatten(1, 2) for t in (k, v))
        weights = (q @ k.transpose(-1, -2) / self.head**0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int, attention: nn.Module):
        super().__init__()
        self.norm1, self.norm2, self.attention = nn.LayerNorm(width), nn.LayerNorm(width), attention
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale * self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.zeros(1, 1, 16))
        self.position = nn.Parameter(torch.zeros(1, 5, 16))
        self.blocks = nn.Sequential(Block(16, Attention(16, 4)), Block(16, GroupedQuery(16, 4, 2)))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, 8, 4, 4), nn.BatchNorm1d(8)
        self.tokens1, self.tokens2 = nn.Linear(4, 10), nn.Linear(10, 4)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.patch(x).flatten(2))
        x = x + self.tokens2(F.gelu(self.tokens1(x)))
        return self.head(x.mean(-1))


class SuperResolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.slope, self.b, self.c = nn.Conv2d(3, 6, 3), nn.PReLU(6), nn.Conv2d(6, 16, 3), nn.Conv2d(4, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.pad(F.pixel_shuffle(self.b(F.pad(self.slope(self.a(x)), (1, 1, 1, 1))), 2), (1, 1), value=1.0))


IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_plain_cnn_has_one_group_a_layer_and_flattens_nine_entries_a_channel():
    groups = check_exact(Plain(), IMAGE)
    assert sizes(groups) == {"conv1": 8, "conv2": 6, "fc1": 12}
    (consumer,) = [member for member in groups["conv2"].members if member.parameter == "fc1.weight"]
    assert consumer.role == "input"
    assert consumer.indices.tolist() == [list(range(9 * unit, 9 * unit + 9)) for unit in range(6)]
    assert groups["fc2"].reason == "model output"
    assert groups["conv1 (input)"].reason == "input of the model"


def test_resnet_joins_what_is_added():
    groups = check_exact(ResNet(), IMAGE)
    assert sizes(groups) == {
        "stem.0": 8, "layer1.0.a.0": 8, "layer1.1.a.0": 8, "layer2.0.a.0": 16, "layer2.0.b.0": 16, "layer2.1.a.0": 16,
    }  # fmt: skip
    assert slots(groups, "layer1.0.a.0") == {
        ("layer1.0.a.0.weight", 0, "output"),
        *((f"layer1.0.a.1.{name}", 0, "output") for name in ("weight", "bias", "running_mean", "running_var")),
        ("layer1.0.b.0.weight", 1, "input"),
    }
    assert ("layer2.0.short.0.weight", 0, "output") in slots(groups, "layer2.0.b.0")
    assert ("layer2.0.short.0.weight", 1, "input") in slots(groups, "stem.0")


def test_resnext_convolution_of_few_groups_keeps_them_and_loses_slots():
    groups = check_exact(ResNet(groups=2), IMAGE)
    assert sizes(groups)["layer1.0.a.0"] == 4
    assert groups["layer1.0.a.0"].members[0].indices.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert not groups.conv_groups


def test_resnext_convolution_of_many_groups_loses_whole_groups():
    groups = check_exact(ResNet(groups=4), IMAGE)
    assert sizes(groups) == {"stem.0": 4, "layer2.0.a.0": 4}
    assert {f"layer{i}.{j}.b.0.weight" for i in (1, 2) for j in (0, 1)} == groups.conv_groups


def test_densenet_numbers_concatenated_channels_by_offset():
    groups = check_exact(Dense(), IMAGE)
    assert sizes(groups) == {"stem": 8, "layers.0.2": 4, "layers.1.2": 4, "layers.2.2": 4, "transition": 10}
    offsets = {m.parameter: m.offset for m in groups["layers.1.2"].members if m.axis == 1}
    assert offsets == {"layers.2.2.weight": 12, "transition.weight": 12}


def test_mobilenet_carries_depthwise_and_squeeze_excite_along():
    groups = check_exact(MobileNet(), IMAGE)
    assert sizes(groups) == {
        "stem.0": 8, "blocks.0.expand.0": 16, "blocks.0.squeeze": 3, "blocks.1.expand.0": 12, "blocks.1.squeeze": 3,
    }  # fmt: skip
    assert groups.conv_groups == {"blocks.0.deep.0.weight", "blocks.1.deep.0.weight"}
    assert {("blocks.0.excite.weight", 0, "output"), ("blocks.0.squeeze.weight", 1, "input")} <= slots(
        groups, "blocks.0.expand.0"
    )


def test_shufflenet_follows_channels_through_the_shuffle():
    groups = check_exact(ShuffleNet(), IMAGE)
    assert sizes(groups) == {"net.0.0": 3, "net.2.branch.0.0": 6, "net.3.branch.0.0": 6}
    assert groups["net.0.0"].members[0].indices.shape == (3, 4)


def test_unet_transposed_convolutions_and_skips():
    groups = check_exact(UNet(), IMAGE)
    assert sizes(groups) == {"down1.0": 6, "down2.0": 8, "middle.0": 10, "up1": 8, "merge1.0": 6, "merge2.0": 6}
    assert ("up1.weight", 1, "output") in slots(groups, "up1")
    assert ("up1.weight", 0, "input") in slots(groups, "middle.0")
    assert groups["merge1.0"].members[0].indices.tolist() == [[2 * unit, 2 * unit + 1] for unit in range(6)]


def test_gates_take_both_halves():
    groups = check_exact(Gated(), torch.randn(2, 4, 9))
    assert sizes(groups) == {"a": 8, "b": 8}
    assert groups["a"].members[0].indices[1].tolist() == [1, 9]


def test_transformer_keeps_the_normalised_width_and_prunes_heads_and_hidden_units():
    groups = check_exact(ViT(), IMAGE)
    assert sizes(groups) == {
        "blocks.0.attention.qkv": 4, "blocks.0.up": 64, "blocks.1.attention.q": 2, "blocks.1.up": 64,
    }  # fmt: skip
    assert groups["blocks.0.attention.qkv"].members[0].indices.shape == (4, 12)
    width = groups["patch"]
    assert width.size == 16
    assert not width.prunable
    assert {("token", 2), ("position", 2), ("norm.weight", 0), ("blocks.0.up.weight", 1), ("head.weight", 1)} <= {
        (member.parameter, member.axis) for member in width.members
    }
    assert width.reason == "layer_norm at blocks.0.norm1 normalises it"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Mixer(), {"patch": 8, "tokens1": 10}),
        (
            SuperResolution(),
            {
                "a": 6,
                "b": 4,
            },
        ),
        (PreActivation(), {"stem": 8}),
    ],
)
def test_small_ones(model: nn.Module, expected: dict[str, int]):
    groups = check_exact(model, IMAGE)
    assert sizes(groups) == expected
