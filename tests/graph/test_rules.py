"""One rule at a time: the axes that it joins, and the ones that it keeps."""

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from graph_oracle import check_exact, sizes, slots
from torch import Tensor, nn

from lightning_prune.graph import channel_groups

X1, X2, X3 = torch.randn(2, 4, 10), torch.randn(2, 4, 6, 6), torch.randn(2, 4, 4, 4, 4)


class Between(nn.Module):
    """A producer ``a`` of 8 channels, an operator, and a consumer ``b`` that takes what comes out."""

    def __init__(self, operator: Callable[[Tensor], Tensor], consumed: int = 8, kind: type[nn.Module] = nn.Conv2d):
        super().__init__()
        self.operator = operator
        self.a, self.b = kind(4, 8, 1), kind(consumed, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.operator(self.a(x)))


class Two(nn.Module):
    """Two producers ``a`` and ``b`` of 8 channels, an operator of both, and a consumer ``c``."""

    def __init__(self, operator: Callable[[Tensor, Tensor], Tensor], consumed: int = 8):
        super().__init__()
        self.operator = operator
        self.a, self.b, self.c = nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(consumed, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.operator(self.a(x), self.b(x)))


PASSES: list[Callable[[Tensor], Tensor]] = [
    F.relu, F.relu6, F.gelu, F.silu, F.mish, F.elu, F.selu, F.celu, F.hardswish, F.hardsigmoid, F.hardtanh, F.softplus,
    F.leaky_relu, F.logsigmoid, F.softsign, F.tanhshrink, torch.sigmoid, torch.tanh, torch.exp, torch.abs, torch.erf,
    lambda x: F.relu(x, inplace=True), lambda x: F.hardswish(x, inplace=True), lambda x: x.clamp(-1, 1),
    lambda x: -x * 2 + 1,
    lambda x: x / 3, lambda x: x**2, lambda x: torch.where(x > 0, x, 0.5 * x),
    lambda x: x.masked_fill(x > 0, 1.0),
    lambda x: x.to(torch.float32).double(), lambda x: x.clone().contiguous().detach(),
    lambda x: F.dropout2d(x, 0.5, False),
    lambda x: F.max_pool2d(x, 2), lambda x: F.avg_pool2d(x, 2), lambda x: F.adaptive_max_pool2d(x, 2),
    lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), [2, 2]),
    lambda x: F.max_pool2d(x, 2, return_indices=True)[0], lambda x: F.lp_pool2d(x, 2, 2),
    lambda x: F.interpolate(x, scale_factor=2), lambda x: F.interpolate(x, size=3, mode="bicubic"),
    lambda x: F.interpolate(x, size=3, mode="bilinear", antialias=True),
    lambda x: F.pad(x, (1, 0, 2, 1), value=1.0), lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"), lambda x: F.instance_norm(x), lambda x: x[:, :, ::2, 1:],
    lambda x: x - x.mean((2, 3), keepdim=True), lambda x: x * x.amax((2, 3), keepdim=True), lambda x: x.flip(1, 2),
    lambda x: x.roll(1, 2), lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2),
    lambda x: x.transpose(1, 3).transpose(3, 1),
    lambda x: x.flatten(2).unflatten(2, (6, 6)), lambda x: x.softmax(-1), lambda x: x.cumsum(2),
    lambda x: x.unsqueeze(2).squeeze(2),
    lambda x: x.expand(2, -1, -1, -1), lambda x: x.sort(2)[0], lambda x: x / (1 + torch.exp(-x)),
    lambda x: x / (x.var((2, 3), keepdim=True) + 1e-5).sqrt(), lambda x: F.normalize(x, dim=2),
]  # fmt: skip


class Branches(nn.Module):
    """Several models on one input: one trace for many operators."""

    def __init__(self, *branches: nn.Module):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [branch(x) for branch in self.branches]


@pytest.mark.parametrize("start", range(0, len(PASSES), 10))
def test_operators_that_leave_channels_alone(start: int):
    operators = PASSES[start : start + 10]
    groups = check_exact(Branches(*(Between(operator) for operator in operators)), X2)
    assert sizes(groups) == {f"branches.{number}.a": 8 for number in range(len(operators))}


RESHAPING: list[tuple[Callable[[Tensor], Tensor], int, int]] = [
    (lambda x: x.repeat(1, 2, 1, 1), 16, 8),
    (lambda x: torch.cat([x, x.flip(1)], 1), 16, 8),
    (lambda x: x.repeat_interleave(2, 1), 16, 8),
    (lambda x: x.movedim(1, -1).mT.mT.movedim((0, 3), (0, 1)), 8, 8),
    (lambda x: ((x > 0) & (x < 1)).to(x.dtype), 8, 8),
    (lambda x: F.pixel_shuffle(x, 2), 2, 2),
    (lambda x: F.pixel_unshuffle(x, 2), 32, 8),
    (lambda x: F.channel_shuffle(x, 2), 8, 4),
    (lambda x: F.glu(x, 1), 4, 4),
    (lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), 8, 4),
    (lambda x: x.view(2, 2, -1, 6, 6).transpose(1, 2).reshape(2, -1, 6, 6), 8, 4),
    (lambda x: x.flatten(0, 1).view(2, -1, 6, 6), 8, 8),
    (lambda x: torch.cat([x[:, x.shape[1] // 2 :], x[:, : x.size(1) // 2]], 1), 8, 4),
    (lambda x: torch.cat([x[:, -(x.shape[1] // 4) :], x[:, : x.shape[1] // 4]], 1), 4, 2),
    (lambda x: torch.cat(x.split(x.shape[1] // 2, 1)[::-1], 1), 8, 4),
    (lambda x: torch.cat(x.split([x.shape[1] // 4, x.shape[1] - x.shape[1] // 4], 1)[::-1], 1), 8, 2),
    (lambda x: F.unfold(x, 2).unflatten(2, (5, 5)), 32, 8),
    (lambda x: F.fold(x.flatten(2)[..., :25], (6, 6), 2), 2, 2),
    (lambda x: x.index_select(2, torch.tensor([0, 2])), 8, 8),
    (lambda x: x.gather(3, (x > 0).long()), 8, 8),
    (lambda x: x.unfold(2, 2, 2).flatten(3), 8, 8),
    (lambda x: x.tril(), 8, 8),
    (lambda x: x.tile(1, 2, 1, 1), 16, 8),
    (lambda x: torch.multiply(x, torch.subtract(x, 1)), 8, 8),
    (lambda x: torch.einsum("bchw->bcwh", x), 8, 8),
    (lambda x: x.sum(1, keepdim=True), 1, 8),
    (lambda x: x - x.mean(1, keepdim=True), 8, 8),
    (lambda x: (x.flatten(2).mT @ x.flatten(2))[..., None], 36, 8),
    (lambda x: F.normalize(x, dim=1), 8, 8),
]


def test_operators_that_move_channels():
    groups = check_exact(Branches(*(Between(operator, consumed) for operator, consumed, _ in RESHAPING)), X2)
    assert sizes(groups) == {f"branches.{number}.a": units for number, (_, _, units) in enumerate(RESHAPING)}


REFUSED: list[tuple[Callable[[Tensor], Tensor], int, str]] = [
    (lambda x: x.softmax(1), 8, "softmax @ mixes its channels"),
    (lambda x: F.layer_norm(x.transpose(1, 3), (8,)).transpose(1, 3), 8, "layer_norm @"),
    (lambda x: F.group_norm(x, 4), 8, "group_norm @ normalises it"),
    (lambda x: x.sigmoid().sum(1, keepdim=True), 1, "sum @ reduces it"),
    (lambda x: x.topk(4, 1)[0], 4, "topk @ mixes its channels"),
    (lambda x: x.cumsum(1), 8, "cumsum @ mixes its channels"),
    (lambda x: x[:, :4], 4, "slice @ takes or adds a part of it"),
    (lambda x: x.index_select(1, torch.tensor([0, 2])), 2, "index_select @ addresses its entries by number"),
    (lambda x: x.gather(1, (x > 0).long()), 8, "gather @ addresses its entries by number"),
    (lambda x: x.unfold(1, 8, 8).permute(0, 4, 2, 3, 1)[..., 0], 8, "unfold @ slides over it"),
    (lambda x: torch.einsum("bchw,bdhw->bd", x, x)[..., None, None], 8, "einsum @ sums over it"),
    (lambda x: x[:, [1, 0, 3]], 3, "index @ addresses its entries by number"),
    (lambda x: x[:, 3:4], 1, "slice @ takes or adds a part of it"),
    (lambda x: torch.stack(x.unbind(1), 1), 8, "unbind @ addresses its entries by number"),
    (lambda x: torch.cat(x.split([3, 5], 1), 1), 8, "split_with_sizes @ cuts it into parts"),
    (lambda x: torch.cat(x.split(2, 1)[::-1], 1), 8, "split @ cuts it into parts"),
    (lambda x: torch.cat(x.chunk(3, 1), 1), 8, "chunk @ cuts it into parts"),
    (lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)), 10, "pad @ pads it"),
    (lambda x: F.pad(x, (0, 0, 0, 0, 1, -1)), 8, "pad @ pads it"),
    (lambda x: x.roll(1, 1), 8, "roll @ moves its entries"),
    (lambda x: 1 / (x + 3), 8, "reciprocal @ may not be finite"),
    (lambda x: torch.log(x.abs()), 8, "log @ may not be finite where a channel is zero"),
    (lambda x: x.abs() ** -0.5, 8, "pow @ may not be finite where a channel is zero"),
    (lambda x: x + torch.ones(8, 1, 1), 8, "constant made by ones @"),
    (lambda x: (x.flatten(2).exp().mT @ x.flatten(2).cos())[..., None], 36, "multiplies two activations"),
]  # fmt: skip


def test_operators_that_need_every_channel():
    groups = channel_groups(Branches(*(Between(operator, consumed) for operator, consumed, _ in REFUSED)), X2)
    assert sizes(groups) == {}
    for number, (_, _, reason) in enumerate(REFUSED):
        assert reason.replace("@", f"at branches.{number}") in groups[f"branches.{number}.a"].reason


PAIRS: list[tuple[Callable[[Tensor, Tensor], Tensor], int, dict[str, int]]] = [
    (torch.add, 8, {"a": 8}),
    (torch.mul, 8, {"a": 8}),
    (torch.maximum, 8, {"a": 8}),
    (lambda x, y: x.add_(y), 8, {"a": 8}),
    (lambda x, y: x * torch.sigmoid(y.mean((2, 3), keepdim=True)), 8, {"a": 8}),
    (lambda x, y: torch.lerp(x, y, 0.3), 8, {"a": 8}),
    (lambda x, y: torch.cat([x, y], 1), 16, {"a": 8, "b": 8}),
    (lambda x, y: torch.cat([x, y.softmax(1)], 1), 16, {"a": 8}),
    (lambda x, y: torch.stack([x, y], 2).flatten(1, 2), 16, {"a": 8}),
    (lambda x, y: torch.stack([x, y], 0).sum(0), 8, {"a": 8}),
    (lambda x, y: x * y[:, :1], 8, {"a": 8}),
]


def test_operators_of_two_tensors():
    groups = check_exact(Branches(*(Two(operator, consumed) for operator, consumed, _ in PAIRS)), X2)
    assert sizes(groups) == {
        f"branches.{number}.{name}": size
        for number, (*_, expected) in enumerate(PAIRS)
        for name, size in expected.items()
    }


@pytest.mark.parametrize(("kind", "x"), [(nn.Conv1d, X1), (nn.Conv2d, X2), (nn.Conv3d, X3)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolutions_of_every_rank(kind: type[nn.Module], x: Tensor, groups: int):
    model = nn.Sequential(kind(4, 8, 1), kind(8, 12, 3, groups=groups), nn.Tanh(), kind(12, 4, 1))
    outside = 12 // groups if groups == 2 else 12
    expected = {1: {"0": 8, "1": 12}, 2: {"0": 4, "1": outside}, 4: {"0": 4}}[groups]
    assert sizes(check_exact(model, x)) == expected


@pytest.mark.parametrize(("kind", "x"), [(nn.ConvTranspose1d, X1), (nn.ConvTranspose2d, X2), (nn.ConvTranspose3d, X3)])
@pytest.mark.parametrize(("groups", "outside"), [(1, 6), (8, 8), (8, 16), (4, 8)])
def test_transposed_convolutions(kind: type[nn.Module], x: Tensor, groups: int, outside: int):
    model = nn.Sequential(kind(4, 8, 1), nn.Sigmoid(), kind(8, outside, 2, 2, groups=groups), kind(outside, 3, 1))
    expected = {"0": 8, "2": outside} if groups == 1 else {"0": groups}
    assert sizes(check_exact(model, x)) == expected


def test_depthwise_convolution_of_the_input_stays():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1))
    groups = check_exact(model, X2)
    assert sizes(groups) == {"1": 6}
    assert groups["0"].reason == "input of the model"


def test_depthwise_multiplier_on_the_input_goes_slot_by_slot():
    model = nn.Sequential(nn.Conv2d(4, 12, 3, groups=4), nn.Conv2d(12, 2, 1))
    groups = check_exact(model, X2)
    assert groups["0"].members[0].indices.tolist() == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    assert not groups.conv_groups


def test_unbatched_image_and_string_padding():
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding="same"), nn.ReLU(), nn.Conv2d(8, 2, 3, padding="valid"))
    assert sizes(check_exact(model, X2[0])) == {"0": 8}


class WithWeight(nn.Module):
    def __init__(self, change: Callable[[Tensor], Tensor], is_buffer: bool = False):
        super().__init__()
        self.a, self.change = nn.Linear(4, 8), change
        weight = torch.randn(3, 8)
        if is_buffer:
            self.register_buffer("weight", weight)
        else:
            self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.sigmoid(self.a(x)), self.change(self.weight))


@pytest.mark.parametrize("change", [lambda w: w, lambda w: 2 * w, lambda w: w.t().contiguous().t(), torch.tanh])
def test_weights_that_a_mask_makes_zero(change: Callable[[Tensor], Tensor]):
    assert sizes(check_exact(WithWeight(change), torch.randn(2, 4))) == {"a": 8}


@pytest.mark.parametrize(("change", "is_buffer"), [(torch.exp, False), (lambda w: w + 1, False), (lambda w: w, True)])
def test_weights_that_no_mask_makes_zero(change: Callable[[Tensor], Tensor], is_buffer: bool):
    groups = channel_groups(WithWeight(change, is_buffer), torch.randn(2, 4))
    assert groups["a"].reason == "linear in the model's own forward sums over it with a weight that no mask makes zero"


class FrozenNorm(nn.Module):
    """The batch norm of detection models: buffers only, written out."""

    def __init__(self, width: int):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        w, b, m, v = (t.reshape(1, -1, 1, 1) for t in self.buffers())
        scale = w * (v + 1e-5).rsqrt()
        return x * scale + (b - m * scale)


def test_division_by_a_statistic_with_epsilon_is_finite():
    model = nn.Sequential(nn.Conv2d(4, 8, 1), FrozenNorm(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    assert sizes(check_exact(model, X2)) == {"0": 8}


class MatMul(nn.Module):
    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.a = kind, nn.Linear(5, 8)
        self.w, self.v, self.bias = (nn.Parameter(torch.randn(*s)) for s in ((8, 6), (6, 3), (6,)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.kind == "addmm":
            return torch.addmm(self.bias, x.flatten(0, 1), self.w) @ self.v
        if self.kind == "left":
            return self.v.t() @ (self.w.t() @ x.transpose(1, 2))
        return torch.tanh(x @ self.w + self.bias) @ self.v


@pytest.mark.parametrize("kind", ["addmm", "left", "right"])
def test_products_with_bare_parameters(kind: str):
    groups = check_exact(MatMul(kind), torch.randn(2, 4, 5))
    assert sorted(sizes(groups).values()) == [6, 8]
    roles = {(m.parameter, m.axis): m.role for group in groups for m in group.members}
    assert (roles["w", 0], roles["w", 1], roles["v", 0]) == ("input", "output", "input")


class Words(nn.Module):
    def __init__(self, is_tied: bool):
        super().__init__()
        self.embed, self.hidden, self.out = nn.Embedding(11, 8), nn.Linear(8, 6), nn.Linear(6, 8)
        self.head = nn.Linear(8, 11, bias=False)
        if is_tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.out(torch.relu(self.hidden(self.embed(tokens)))))


@pytest.mark.parametrize("is_tied", [False, True])
def test_embedding_and_tied_weights(is_tied: bool):
    groups = check_exact(Words(is_tied), torch.randint(0, 11, (2, 5)))
    assert sizes(groups) == ({"embed": 8, "hidden": 6} if is_tied else {"embed": 8, "hidden": 6, "out": 8})
    first = groups["embed"].members[0]
    assert (first.parameter, first.axis, first.role) == ("embed.weight", 1, "output")
    assert "head.weight" not in groups.shapes or not is_tied


def test_batch_norm_of_batch_statistics_keeps_the_batch():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, track_running_stats=False, affine=False), nn.Linear(8, 2))
    assert sizes(check_exact(model, torch.randn(6, 4))) == {"0": 8}


class Weighted(nn.Module):
    """Products with weights that are bare parameters."""

    def __init__(self):
        super().__init__()
        self.a, self.c = nn.Linear(4, 8), nn.Linear(6, 2)
        self.b, self.added = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.multiply(self.a(x)))

    def multiply(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class ByEinsum(Weighted):
    def multiply(self, x: Tensor) -> Tensor:
        return torch.einsum("btk,km->btm", x, self.b) + self.added


class ByBatches(Weighted):
    def multiply(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.added, x, self.b.expand(len(x), -1, -1))


class ByImplicitEinsum(Weighted):
    def multiply(self, x: Tensor) -> Tensor:
        return torch.einsum("btk,km", x, self.b).transpose(1, 2)


@pytest.mark.parametrize("kind", [ByEinsum, ByBatches, ByImplicitEinsum])
def test_products_written_in_other_ways(kind: type[Weighted]):
    groups = check_exact(kind(), torch.randn(2, 3, 4))
    assert sizes(groups) == {"a": 8, "b": 6}
    assert ("b", 0, "input") in slots(groups, "a")


def test_a_convolution_of_one_place_leaves_the_other_axes_alone():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.space, self.b = nn.Linear(4, 8), nn.Conv1d(5, 5, 1), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.space(self.a(x)))

    assert sizes(check_exact(Tokens(), torch.randn(2, 5, 4))) == {"a": 8}


def test_scalar_prelu_slope_is_no_channel():
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.PReLU(), nn.Conv2d(8, 2, 1))
    groups = check_exact(model, X2)
    assert sizes(groups) == {"0": 8}
    assert all(group.name != "1" for group in groups)


def test_a_loss_that_the_forward_computes_keeps_the_logits_and_nothing_is_said():
    class Labelled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.b(torch.relu(self.a(x)))
            return nn.functional.cross_entropy(logits, labels), logits

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        groups = channel_groups(Labelled(), (torch.randn(2, 4), torch.tensor([0, 2])))
    assert sizes(groups) == {"a": 8}
