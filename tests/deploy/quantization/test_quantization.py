"""Int8 and Int8Dynamic: what they say and refuse, and that zeros stay zeros."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from deploy_models import EXAMPLE, images, loader, small
from quantization_cases import PATTERNS, RESIDUAL_LAYERS, Residual, Tokens, pruned, residual, stored, traced
from torch import Tensor, nn
from torch.export import Dim
from torch.utils.data import DataLoader, IterableDataset

from lightning_prune.deploy import XNNPACK, RuntimeModel, export
from lightning_prune.deploy.quantization import Int4Groupwise, Int8, Int8Dynamic, Quantization
from lightning_prune.deploy.quantization.calibration import calibration_samples
from lightning_prune.deploy.quantization.noise import sqnr_db
from lightning_prune.errors import ExportError, VerificationError


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


class Shifted(nn.Module):
    """Reads by indices that are computed with numbers, as the masks of Hugging Face's encoders are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[:, torch.arange(3) * 2 + 1]


def test_indices_that_are_computed_with_numbers_stay_integers(tmp_path: Path) -> None:
    model, x = Shifted(), torch.randn(16, 4)
    found, wanted = Int8Dynamic().quantize(traced(model, x), (x,)), model(x).detach()
    assert sqnr_db(wanted, found.program.module()(x)[0].detach()) > 20
    artifact = export(model, tmp_path / "shifted.pte", example_inputs=x, backend=XNNPACK(quantization=Int8Dynamic()))
    assert sqnr_db(wanted, RuntimeModel(artifact.path)(x)[0]) > 20


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
    """Attention with a mask of −∞, or of another low number."""

    def __init__(self, low: float = -math.inf) -> None:
        super().__init__()
        self.low = low
        self.key = nn.Linear(8, 8)
        self.value = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.full((x.shape[1], x.shape[1]), self.low).triu(1)
        scores = (x @ self.key(x).transpose(1, 2) + mask).softmax(-1)
        return scores @ self.value(x)


@pytest.mark.parametrize(("low", "in_float"), [(-1e9, True), (-1e4, True), (-1.0, False)])
def test_a_sum_in_which_8_bits_would_lose_the_smaller_stays_in_float(low: float, in_float: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 8)
    found = Int8([torch.randn(2, 6, 8)]).quantize(traced(Masked(low), x), (x,))
    assert ("add" in found.kept_float) == in_float
    assert found.output_sqnr[0] >= 20


class Scaled(nn.Module):
    """A convolution, and arithmetic with numbers, as attention and batch-free scaling have it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y * 0.25 + 1.0 + y


def test_arithmetic_with_a_number_stays_in_float_and_that_of_two_tensors_does_not() -> None:
    torch.manual_seed(0)
    found = Int8([images(4)]).quantize(traced(Scaled(), EXAMPLE), (EXAMPLE,))
    assert [name.split("_")[0] for name in found.sqnr] == ["conv", "add"]


class Head(nn.Module):
    """Boxes in pixels beside scores below one."""

    def __init__(self) -> None:
        super().__init__()
        self.box, self.score = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([100 + 50 * self.box(x), self.score(x).sigmoid() / 100], 1)


def test_a_concatenation_that_is_skipped_leaves_small_values_beside_large_ones() -> None:
    torch.manual_seed(0)
    program, x = traced(Head(), EXAMPLE), images(4)
    ways = {"together": Int8([x]), "apart": Int8([x], skip=("cat*",))}
    wanted = program.module()(x)[0][:, 4:].detach()
    graphs = {k: way.quantize(program, (EXAMPLE,)).program.module() for k, way in ways.items()}
    ratios = {k: sqnr_db(wanted, graph(x)[0][:, 4:].detach()) for k, graph in graphs.items()}
    assert ratios["together"] < 5
    assert ratios["apart"] > 30


def test_a_mask_of_infinities_stays_in_float() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    found = Int8([torch.randn(4, 5, 8)]).quantize(traced(Masked(), x), (x,))
    assert list(found.sqnr) == ["key", "value"]
    assert found.output_sqnr[0] > 20


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
