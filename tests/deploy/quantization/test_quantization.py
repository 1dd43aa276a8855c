"""Int8, Int8Dynamic and Int4Groupwise: what they say and refuse, and that zeros stay zeros."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from deploy_models import EXAMPLE, images, loader, small
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils.data import DataLoader, IterableDataset

from lightning_prune.deploy.program.eager import EagerModel
from lightning_prune.deploy.quantization import Int4Groupwise, Int8, Int8Dynamic, Quantization
from lightning_prune.deploy.quantization.calibration import calibration_samples
from lightning_prune.deploy.quantization.int4 import best_scales
from lightning_prune.deploy.quantization.noise import sqnr_db
from lightning_prune.errors import ExportError, VerificationError
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


def test_every_layer_is_reported_and_the_program_is_left_alone() -> None:
    program, x, batches = residual()
    before = [value.detach().clone() for value in program.module()(x)]
    found = Int8(batches).quantize(program, (x,))
    assert [name for name in found.sqnr] == [name.removeprefix(":") for name in RESIDUAL_LAYERS]
    assert found.kept_float == ()
    assert all(25 < ratio < 60 for ratio in (*found.sqnr.values(), *found.output_sqnr))
    assert all(torch.equal(a, b) for a, b in zip(before, program.module()(x), strict=True))
    assert sqnr_db(before[0], found.program.module()(x)[0]) > 20


def test_the_reported_ratio_is_that_of_its_formula() -> None:
    program, x, batches = residual()
    found = Int8(batches).quantize(program, (x,))
    runs = calibration_samples(batches, (x,), 256)
    signal = noise = 0.0
    for (inputs,) in runs:
        y, z = (p.module()(inputs)[0].detach().double() for p in (program, found.program))
        signal, noise = signal + float(y.square().sum()), noise + float((y - z).square().sum())
    assert found.output_sqnr[0] == pytest.approx(10 * math.log10(signal / noise), abs=0.05)


class Twice(nn.Module):
    """One convolution with a batch norm of its own for each of two calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])
        for norm, scale in zip(self.norms, (0.2, 3.0), strict=True):
            nn.init.constant_(norm.weight, scale)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        return self.norms[0](self.conv(x)).relu() + self.norms[1](self.conv(x.flip(3)))


def test_a_layer_called_twice_has_the_batch_norm_of_each_call() -> None:
    torch.manual_seed(0)
    program = traced(Twice(), EXAMPLE)
    found = Int8([images(8)]).quantize(program, (EXAMPLE,))
    x = images(4)
    assert sqnr_db(*(p.module()(x)[0].detach() for p in (program, found.program))) > 30


@pytest.mark.parametrize(
    ("skip", "kept"),
    [
        (("head",), ["head"]),
        (("block",), ["block.conv"]),
        (("stem.*", "gate"), ["stem.0", "gate:conv2d_2", "gate:conv2d_3"]),
        (("gate:conv2d_3",), ["gate:conv2d_3"]),
        (("add", "mul"), ["add", "mul"]),
    ],
)
def test_what_is_skipped_stays_in_float(skip: tuple[str, ...], kept: list[str]) -> None:
    program, x, batches = residual()
    found = Int8(batches, skip=skip).quantize(program, (x,))
    assert list(found.kept_float) == kept
    assert not set(kept) & found.sqnr.keys()
    assert len(kept) + len(found.sqnr) == len(RESIDUAL_LAYERS)


def test_the_noisiest_layers_go_back_to_float_until_the_ratio_is_reached() -> None:
    program, x, batches = residual()
    plain = Int8(batches).quantize(program, (x,))
    wanted = min(plain.sqnr.values()) + 2
    found = Int8(batches, min_sqnr=wanted).quantize(program, (x,))
    assert min(*found.sqnr.values(), *found.output_sqnr) >= wanted
    assert 0 < len(found.kept_float) < len(plain.sqnr)


def test_nothing_is_kept_where_the_ratio_is_reached() -> None:
    program, x, batches = residual()
    plain = Int8(batches).quantize(program, (x,))
    found = Int8(batches, min_sqnr=min(*plain.sqnr.values(), *plain.output_sqnr) - 1).quantize(program, (x,))
    assert found.kept_float == ()


def test_outputs_below_the_bound_are_refused_with_their_ratio() -> None:
    program, x, batches = residual()
    ratio = Int8(batches).quantize(program, (x,)).output_sqnr[0]
    with pytest.raises(VerificationError, match=rf"output 0 reaches {ratio:.1f} dB.*min_output_sqnr is 90"):
        Int8(batches, min_output_sqnr=90).quantize(program, (x,))


class Outlier(nn.Module):
    """One entry a million times larger than the rest takes up the whole range."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.tensor([1e6] + [1.0] * 7)
        return self.linear((x * scale) / scale)


def test_a_range_eaten_up_by_an_outlier_is_refused_or_kept_in_float() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    program = traced(Outlier(), x)
    with pytest.raises(VerificationError, match="noisiest layers"):
        Int8([x]).quantize(program, (x,))
    found = Int8([x], min_sqnr=20).quantize(program, (x,))
    assert found.output_sqnr[0] >= 20
    assert found.sqnr


class Masked(nn.Module):
    """Attention with a mask of −∞."""

    def __init__(self) -> None:
        super().__init__()
        self.key = nn.Linear(8, 8)
        self.value = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.full((x.shape[1], x.shape[1]), -math.inf).triu(1)
        scores = (x @ self.key(x).transpose(1, 2) + mask).softmax(-1)
        return scores @ self.value(x)


def test_a_mask_of_infinities_stays_in_float() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    found = Int8([torch.randn(4, 5, 8)]).quantize(traced(Masked(), x), (x,))
    assert list(found.sqnr) == ["key", "value"]
    assert found.output_sqnr[0] > 20


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


@pytest.mark.parametrize("pattern", [name for name in PATTERNS if name != "everything"])
@pytest.mark.parametrize("how", ["static", "dynamic"])
def test_pruned_weights_stay_exactly_zero(pattern: str, how: str) -> None:
    torch.manual_seed(0)
    model = Residual()
    names = ["stem.0.weight", "block.conv.weight", "gate.weight", "head.weight"]
    pruned(model, pattern, names)
    x = torch.randn(4, 3, 8, 8)
    way = Int8([x]) if how == "static" else Int8Dynamic([x])
    integers = list(stored(way.quantize(traced(model, x), (x,)).program))
    zeros = [weight == 0 for name, weight in model.named_parameters() if name in names]
    assert len(integers) >= len(names)
    for zero in zeros:
        assert 0 < int(zero.sum()) < zero.numel()
        assert any(one.shape == zero.shape and bool((one[zero] == 0).all()) for one in integers)


def test_a_layer_of_zeros_gives_its_bias() -> None:
    torch.manual_seed(0)
    model = pruned(Tokens(), "everything", ["down.weight"])
    x = torch.randn(4, 64)
    for way in (Int8([x]), Int8Dynamic(), Int4Groupwise()):
        found = way.quantize(traced(model, x), (x,))
        assert found.sqnr["down"] > 30


def test_four_bits_for_the_layers_that_fit() -> None:
    program, x = tokens()
    found = Int4Groupwise().quantize(program, (x,))
    assert list(found.sqnr) == ["up", "down"]
    assert found.kept_float == ("head",)
    assert all(ratio > 14 for ratio in found.sqnr.values())
    assert list(Int4Groupwise(group_size=64).quantize(program, (x,)).sqnr) == ["up"]


@pytest.mark.parametrize("pattern", [name for name in PATTERNS if name != "everything"])
def test_pruned_weights_of_four_bits_stay_exactly_zero(pattern: str) -> None:
    torch.manual_seed(0)
    model = pruned(Tokens(), pattern, ["up.weight", "down.weight"])
    x = torch.randn(4, 64)
    program = Int4Groupwise(min_output_sqnr=5).quantize(traced(model, x), (x,)).program
    integers = {tuple(one.shape): one for one in stored(program)}
    for name in ("up", "down"):
        weight = model.get_parameter(f"{name}.weight")
        zero, one = weight == 0, integers[tuple(weight.shape)]
        assert bool((one[zero] == 0).all())
        assert -8 <= int(one.min()) <= int(one.max()) <= 7


def test_scales_leave_no_more_error_than_the_range_does() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 64) * (torch.rand(6, 64) < 0.5)
    weight[0] = 0
    scales = best_scales(weight, 32)
    assert scales.shape == (6, 2)
    assert bool((scales > 0).all())

    def errors(s: Tensor) -> Tensor:
        groups = weight.view(6, 2, 32)
        return (groups - (groups / s[..., None]).round().clamp(-8, 7) * s[..., None]).square().sum(2)

    full = (weight.view(6, 2, 32).abs().amax(2) / 7.5).clamp(min=1e-30)
    assert bool((errors(scales) <= errors(full) + 1e-6).all())
    assert float(errors(scales).sum()) < 0.95 * float(errors(full).sum())


@pytest.mark.parametrize("way", [Int8([images(6)]), Int8Dynamic()], ids=str)
def test_dynamic_shapes_are_kept(way: Quantization) -> None:
    program = traced(small(), EXAMPLE, dynamic_shapes=(({0: Dim("batch", min=1, max=9)},),))
    found = way.quantize(program, (EXAMPLE,))
    for count in (1, 3, 9):
        assert found.program.module()(images(count))[0].shape == (count, 3)


def test_dynamic_activations_take_convolutions_with_and_without_relu() -> None:
    program, x, batches = residual()
    found = Int8Dynamic(batches).quantize(program, (x,))
    assert list(found.sqnr) == ["stem.0", "block.conv", "gate:conv2d_2", "gate:conv2d_3", "head"]
    assert found.output_sqnr[0] > 30


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield torch.zeros(1, 8, 8)


@pytest.mark.parametrize(
    ("batches", "runs"),
    [
        (loader(10), 3),
        ([images(1)], 1),
        ([(images(4), torch.zeros(4)), (images(1), torch.zeros(1))], 2),
        ([((images(9),), None)], 3),
        (DataLoader(Endless(), batch_size=7), 64),
    ],
    ids=["loader", "one", "targets", "nested", "endless"],
)
def test_batches_are_cut_and_filled_up(batches: Any, runs: int) -> None:
    found = calibration_samples(batches, (EXAMPLE,), 256)
    assert [x.shape for (x,) in found] == [EXAMPLE.shape] * runs


def test_only_so_many_samples_are_used() -> None:
    found = calibration_samples([images(10)], (EXAMPLE,), 6)
    assert len(found) == 2
    assert torch.equal(found[1][0], images(10)[[4, 5, 4, 5]])


@pytest.mark.parametrize(
    ("batches", "told"),
    [
        ([], "no batch"),
        ([torch.zeros(4, 1, 9, 9)], r"\(4, 1, 9, 9\) float32, the example inputs are \(N, 1, 8, 8\) float32"),
        ([torch.zeros(4, 1, 8, 8, dtype=torch.int64)], "int64"),
        ([torch.full((4, 1, 8, 8), math.nan)], "batch 0 holds NaN"),
        (["images"], "holds the inputs str"),
    ],
)
def test_batches_that_do_not_fit_are_refused(batches: Any, told: str) -> None:
    with pytest.raises(ValueError, match=f"calibration: .*{told}"):
        Int8(batches).quantize(traced(small(), EXAMPLE), (EXAMPLE,))


@pytest.mark.parametrize(
    ("make", "error", "told"),
    [
        (lambda: Int8(None), TypeError, "Int8Dynamic"),  # pyright: ignore[reportArgumentType]
        (lambda: Int8(iter([EXAMPLE])), TypeError, "more than once"),
        (lambda: Int8(EXAMPLE), TypeError, "DataLoader or a list"),
        (lambda: Int8([EXAMPLE], skip="head"), TypeError, "sequence of name patterns"),
        (lambda: Int8([EXAMPLE], min_sqnr=math.nan), ValueError, "min_sqnr"),
        (lambda: Int8([EXAMPLE], min_output_sqnr=math.inf), ValueError, "min_output_sqnr"),
        (lambda: Int8([EXAMPLE], samples=0), ValueError, "samples"),
        (lambda: Int4Groupwise(group_size=20), ValueError, "multiple of 32"),
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], object], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        make()


@pytest.mark.parametrize(
    ("way", "told"),
    [
        (Int8([images(4)], skip=("*",)), "leaves nothing to quantize.*conv.*head"),
        (Int8([images(4)], min_sqnr=200), "leaves nothing to quantize"),
        (Int4Groupwise(), "there are 8"),
    ],
    ids=["skip", "ratio", "widths"],
)
def test_nothing_to_quantize_is_an_error(way: Quantization, told: str) -> None:
    with pytest.raises(ExportError, match=told):
        way.quantize(traced(small(), EXAMPLE), (EXAMPLE,))


def test_a_model_without_linear_layers_has_no_four_bits() -> None:
    with pytest.raises(ExportError, match="no Linear"):
        Int4Groupwise().quantize(traced(nn.Conv2d(1, 2, 3), EXAMPLE), (EXAMPLE,))


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'stem' matches no layer; there are conv, .*head"):
        Int8([images(4)], skip=("stem",)).quantize(traced(small(), EXAMPLE), (EXAMPLE,))


def test_values_compare_and_print_without_their_loader() -> None:
    batches = [images(4)]
    one, same, other = Int8(batches), Int8(batches), Int8([images(4)])
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != Int8(batches, skip=("head",))
    assert Int8Dynamic() == Int8Dynamic()
    assert Int4Groupwise() != Int4Groupwise(group_size=64)
    assert repr(one) == "Int8(calibration=<list of 1 batches>)"
    assert repr(Int8(loader(), min_sqnr=20)) == "Int8(calibration=<DataLoader of 2 batches>, min_sqnr=20)"
    assert repr(Int8(DataLoader(Endless()))) == "Int8(calibration=<DataLoader>)"
    assert repr(Int4Groupwise(group_size=64)) == "Int4Groupwise(group_size=64)"


class Mixed(nn.Module):
    """A layer, and a product whose second factor is an input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return nn.functional.linear(self.layer(x), weight)


@pytest.mark.parametrize("way", [Int8([(torch.randn(8, 8), torch.randn(8, 8))]), Int8Dynamic()], ids=["int8", "dyn"])
def test_a_weight_that_is_an_input_stays_in_float(way: Quantization) -> None:
    """The kernels of XNNPACK end the process over such a weight in integers."""
    inputs = (torch.randn(8, 8), torch.randn(8, 8))
    program = torch.export.export(Mixed().eval(), inputs)
    assert list(way.quantize(program, inputs).sqnr) == ["layer"]
