"""Rewritten graphs compute what they computed, and hold what the backend takes."""

import importlib.util
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from lightning_prune.deploy import export
from lightning_prune.deploy.backends import XNNPACK, Vulkan
from lightning_prune.deploy.rewriting import Rewrite, by_operator, rewritten
from lightning_prune.deploy.rewriting.constants import fold_constants
from lightning_prune.deploy.rewriting.infinities import LOWEST
from lightning_prune.errors import ExportError

needs_executorch = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="needs the extra 'mobile' (executorch)"
)
FOR_XNNPACK = (*XNNPACK().rewrites(), *XNNPACK().late_rewrites())
FOR_VULKAN = (*Vulkan().rewrites(), *Vulkan().late_rewrites())
IMAGE, TOKENS = (2, 6, 4, 4), (2, 5, 8)


class Call(nn.Module):
    def __init__(self, function: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*self.parts, *inputs)


def traced(model: nn.Module, inputs: tuple[Tensor, ...], shapes: Any = None) -> torch.export.ExportedProgram:
    return torch.export.export(model.eval(), inputs, dynamic_shapes=shapes)


def operators(program: torch.export.ExportedProgram) -> set[str]:
    return {str(n.target).removeprefix("aten.") for n in program.graph.nodes if n.op == "call_function"}


def changed(
    model: nn.Module, inputs: tuple[Tensor, ...], rewrites: tuple[Rewrite, ...] = FOR_XNNPACK, shapes: Any = None
) -> set[str]:
    """Rewrite a model, check that it computes the same before and after torch's own decompositions, and return what
    operators are left."""
    expected = model.eval()(*inputs)
    program = rewritten(traced(model, inputs, None if shapes is None else (shapes,)), rewrites)
    names = [n.name for n in next(n for n in program.graph.nodes if n.op == "output").args[0]]
    assert [spec.arg.name for spec in program.graph_signature.output_specs] == names
    for graph in (program, program.run_decompositions()):
        torch.testing.assert_close(graph.module(check_guards=False)(*inputs), expected, rtol=1e-5, atol=2e-6)
    return operators(program)


def attention(**options: Any) -> Callable[..., Tensor]:
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options)


def heads(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


QKV = heads((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 6))
MASK = torch.rand(5, 7, generator=torch.Generator().manual_seed(1)) > 0.4
PENALTY = torch.where(MASK, 0.5, -torch.inf)


class TestAttention:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"scale": 0.3},
            {"is_causal": True},
            {"attn_mask": MASK},
            {"attn_mask": torch.where(MASK, 0.5, -torch.inf)},
        ],
        ids=["plain", "scale", "causal", "bool mask", "float mask"],
    )
    def test_it_is_written_out_whole(self, options: dict[str, Any]):
        left = changed(Call(attention(**options)), QKV)
        assert left == {"reshape.default", "mul.Tensor", "permute.default", "bmm.default", "softmax.int"} | (
            {"add.Tensor"} if options.keys() & {"is_causal", "attn_mask"} else set()
        )

    def test_heads_that_share_keys(self):
        inputs = heads((2, 6, 5, 8), (2, 2, 7, 8), (2, 2, 7, 8))
        assert "scaled_dot_product_attention.default" not in changed(Call(attention(enable_gqa=True)), inputs)

    def test_a_mask_from_an_input_stays(self):
        """Its rows may leave nothing, where a softmax of finite numbers would give something else."""
        model = Call(lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, mask))
        mask = torch.zeros(5, 7)
        mask[0] = -torch.inf
        assert "scaled_dot_product_attention.default" in changed(model, (*QKV, mask))

    def test_a_mask_that_leaves_nothing_of_a_row_stays(self):
        nothing = MASK.clone()
        nothing[2] = False
        assert "scaled_dot_product_attention.default" in changed(Call(attention(attn_mask=nothing)), QKV)

    def test_modules_of_torch(self):
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        left = changed(layer, (torch.randn(TOKENS),))
        assert not left & {"scaled_dot_product_attention.default", "layer_norm.default", "select.int", "squeeze.dim"}

    def test_products_of_stacks(self):
        assert changed(Call(torch.matmul), heads((2, 3, 4, 5), (2, 3, 5, 6))) == {"reshape.default", "bmm.default"}
        assert "matmul.default" in changed(Call(torch.matmul), heads((3, 4, 5), (2, 3, 5, 6)))

    def test_softmax_over_another_dimension(self):
        left = changed(Call(lambda x: x.softmax(1)), (torch.randn(TOKENS),))
        assert left == {"permute.default", "softmax.int"}

    @pytest.mark.parametrize("dim", [1, 2, 3, -1])
    def test_softmax_of_an_image_is_one_of_a_stack_of_matrices(self, dim: int):
        left = changed(Call(lambda x: x.softmax(dim)), (torch.randn(IMAGE),))
        assert left - {"permute.default"} == {"reshape.default", "softmax.int"}

    @pytest.mark.parametrize("shape", [(5, 6), TOKENS, (2, 6, 3, 4, 5)], ids=str)
    def test_prelu_of_anything_but_an_image(self, shape: tuple[int, ...]):
        slopes = nn.PReLU(shape[1])
        slopes.weight.data.uniform_(-1, 1)
        assert "prelu.default" not in changed(Call(lambda m, x: m(x), slopes), (torch.randn(shape),))

    def test_max_pooling_gets_a_stride(self):
        for window in (2, (2, 3)):
            program = rewritten(traced(Call(lambda x: F.max_pool2d(x, window)), (torch.randn(IMAGE),)), FOR_XNNPACK)  # noqa: B023
            (call,) = (n for n in program.graph.nodes if "max_pool2d" in str(n.target))
            assert call.args[1] == call.args[2] != []


class TestReductions:
    @pytest.mark.parametrize("dims", [(2, 3), (-1, -2), (1,), (0, 2), (1, 2, 3), (3,), -1])
    @pytest.mark.parametrize("keepdim", [False, True])
    @pytest.mark.parametrize("reduce", [torch.mean, torch.sum])
    def test_means_and_sums(self, reduce: Callable[..., Tensor], dims: Any, keepdim: bool):
        left = changed(Call(lambda x: reduce(x, dims, keepdim)), (torch.randn(IMAGE),))
        is_kept = reduce is torch.mean and dims == (2, 3) and keepdim
        assert not (left & {"sum.dim_IntList"} or (left & {"mean.dim"} and dims not in [(2, 3), (-1, -2)])) or is_kept

    def test_an_image_is_pooled_for_every_backend(self):
        model = Call(lambda x: x.mean((2, 3)))
        assert changed(model, (torch.randn(IMAGE),), tuple(XNNPACK().rewrites())) == {
            "adaptive_avg_pool2d.default",
            "reshape.default",
        }

    @pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.AvgPool2d(3, 1, 1), nn.AvgPool2d((3, 2), 2, (1, 0))])
    def test_average_pooling_without_counting_its_padding(self, pool: nn.AvgPool2d):
        program = rewritten(traced(pool, (x := torch.randn(IMAGE),)), FOR_XNNPACK)
        (node,) = [n for n in program.graph.nodes if str(n.target) == "aten.avg_pool2d.default"]
        assert node.args[3:] == ([0, 0], False, False)
        torch.testing.assert_close(program.module()(x), pool(x))

    def test_one_window_over_everything_is_a_mean(self):
        assert changed(nn.AvgPool2d(9, ceil_mode=True), (torch.randn(IMAGE),)) == {"mean.dim"}
        assert changed(nn.AvgPool2d(3, ceil_mode=True), (torch.randn(IMAGE),)) == {"avg_pool2d.default"}

    @pytest.mark.parametrize("rewrites", [FOR_XNNPACK, FOR_VULKAN])
    @pytest.mark.parametrize("count", [1, 3, 5, 8])
    def test_adaptive_pooling_of_a_sequence(self, rewrites: tuple[Rewrite, ...], count: int):
        x = torch.randn(2, 3, 8)
        left = changed(Call(lambda x: F.adaptive_avg_pool1d(x, count)), (x,), rewrites)
        assert "linear.default" in left
        assert not any("adaptive" in name for name in left)

    def test_integers_and_other_dtypes_stay(self):
        assert changed(Call(lambda x: x.sum(1)), (torch.arange(12).reshape(3, 4),)) == {"sum.dim_IntList"}
        assert changed(Call(lambda x: x.mean(1, dtype=torch.float64)), (torch.randn(3, 4),)) == {"mean.dim"}

    @pytest.mark.parametrize("shape", [(8,), (5, 8)])
    @pytest.mark.parametrize("affine", [True, False])
    def test_layer_norms(self, shape: tuple[int, ...], affine: bool):
        norm = nn.LayerNorm(list(shape), elementwise_affine=affine, eps=0.1)
        for parameter in norm.parameters():
            nn.init.normal_(parameter)
        assert "layer_norm.default" not in changed(norm, (10 + 3 * torch.randn(TOKENS),))


class TestShapes:
    @pytest.mark.parametrize(
        "function",
        [
            lambda x: x[:, -1],
            lambda x: x.unbind(2)[1],
            lambda x: torch.cat(x.chunk(3, 1)[::-1], 1),
            lambda x: torch.cat(x.split([1, 5], 1)[::-1], 1),
            lambda x: x[:, 1::2] + x[:, ::2],
            lambda x: torch.stack([x, 2 * x], -2),
            lambda x: x.roll((1, -1), (2, 3)),
            lambda x: x[:, :1].expand(-1, 6, -1, -1) + 1,
            lambda x: x.permute(0, 2, 3, 1)[:, 0].unsqueeze(1).squeeze(1).flatten(1),
        ],
        ids=["select", "unbind", "chunk", "split", "strides", "stack", "roll", "expand", "views"],
    )
    def test_what_xnnpack_has_not(self, function: Callable[[Tensor], Tensor]):
        left = changed(Call(function), (torch.randn(IMAGE),))
        assert left <= {f"{name}.default" for name in ("reshape", "cat", "permute")} | {
            *("slice.Tensor", "mul.Tensor", "add.Tensor")
        }

    def test_an_expand_that_changes_nothing_goes(self):
        assert changed(Call(lambda x: x.expand(2, 6, 4, 4) * 2), (torch.randn(IMAGE),)) == {"mul.Tensor"}

    def test_integers_stay(self):
        assert changed(Call(lambda x: x[:, 1]), (torch.arange(12).reshape(3, 4),)) == {"select.int"}

    def test_an_input_given_back(self):
        changed(Call(lambda x: (x.expand(2, 5, 8), x.view(2, 5, 8), x)), (torch.randn(TOKENS),))


class TestDynamicShapes:
    SHAPES = ({0: Dim("batch", min=1, max=8)},)

    def test_one_size_that_varies_becomes_minus_one(self):
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        program = rewritten(traced(layer, (torch.randn(TOKENS),), self.SHAPES), FOR_XNNPACK)
        x = torch.randn(7, 5, 8)
        for graph in (program, program.run_decompositions()):
            torch.testing.assert_close(graph.module()(x), layer(x), rtol=1e-5, atol=2e-6)
        assert not operators(program) & {"scaled_dot_product_attention.default", "layer_norm.default"}

    def test_two_sizes_that_vary(self):
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        shapes = ({0: Dim("batch", min=1, max=8), 1: Dim("length", min=2, max=9)},)
        program = rewritten(traced(layer, (torch.randn(TOKENS),), shapes), FOR_XNNPACK)
        x = torch.randn(3, 7, 8)
        torch.testing.assert_close(program.run_decompositions().module()(x), layer(x), rtol=1e-5, atol=2e-6)

    @pytest.mark.parametrize(
        "function",
        [
            lambda x: x[:, 0],
            lambda x: x[0],
            lambda x: x.mean(1),
            lambda x: x.mean(0),
            lambda x: x.unbind(1)[2],
            lambda x: x.flatten(1),
            lambda x: x.flatten(),
            lambda x: x[:, :1].expand(x.shape[0], 5, 8) + x,
            lambda x: torch.arange(x.shape[0])[:, None, None] + x,
            lambda x: x.roll(1, 0),
        ],
    )
    def test_they_are_kept_or_left_alone(self, function: Callable[[Tensor], Tensor]):
        program = rewritten(traced(Call(function), (torch.randn(TOKENS),), (self.SHAPES,)), FOR_XNNPACK)
        for size in (2, 6):
            x = torch.randn(size, 5, 8)
            torch.testing.assert_close(program.run_decompositions().module()(x), function(x), rtol=1e-5, atol=2e-6)


class Table(nn.Module):
    """A constant table, read at places that the code works out, and a weight used twice."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.table, self.weight = nn.Parameter(torch.randn(9, 5)), nn.Parameter(torch.randn(5, size))

    def forward(self, x: Tensor) -> Tensor:
        places = (torch.arange(5)[:, None] - torch.arange(4)[None]).clamp(min=0)
        return x @ self.weight + self.table[places].sum(0)[:1, :4].sum() + (x @ self.weight @ self.weight.T).sum()


class TestConstants:
    def test_what_depends_on_no_input_is_stored(self):
        model, x = Table(), torch.randn(3, 5)
        program = rewritten(traced(model, (x,)), (fold_constants,))
        torch.testing.assert_close(program.module()(x), model(x))
        assert not operators(program) & {"arange.default", "index.Tensor", "clamp.default", "arange.start"}
        assert "table" not in program.graph_signature.parameters

    def test_large_results_are_not_stored(self):
        model = Call(lambda x: x + torch.zeros(1, 1).expand(300, 300))
        assert "expand.default" in changed(model, (torch.randn(300, 300),), (fold_constants,))

    def test_a_buffer_that_changes_is_no_constant(self):
        class Counting(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.count: Tensor
                self.register_buffer("count", torch.zeros(2))

            def forward(self, x: Tensor) -> Tensor:
                self.count.add_(1)
                return x + self.count * 2

        program = rewritten(traced(Counting(), (torch.zeros(2),)), (fold_constants,))
        assert "mul.Tensor" in operators(program)
        assert program.graph_signature.buffers_to_mutate

    def test_random_numbers_are_drawn_each_time(self):
        program = rewritten(traced(Call(lambda x: x + torch.rand(3)), (torch.zeros(3),)), (fold_constants,))
        assert "rand.default" in operators(program)

    def test_a_constant_output(self):
        changed(Call(lambda part, x: (x, part.weight * 2, part.weight), nn.Linear(2, 2)), (torch.zeros(3),))


class TestInPlace:
    def test_what_nothing_else_sees_is_replaced_on_the_spot(self):
        model = nn.Sequential(nn.Conv2d(6, 4, 1), nn.ReLU(inplace=True), nn.Hardswish(inplace=True))
        assert changed(model, (torch.randn(IMAGE),)) == {"conv2d.default", "relu.default", "hardswish.default"}

    @pytest.mark.parametrize(
        "function",
        [
            lambda x: [y := x * 2, z := y.view(-1), z.add_(1), y[:, 0].expand(3, 2, 8)],
            lambda x: [y := x * 2, y[:, 0].zero_(), y.mean(1)],
            lambda x: [y := x.clone(), y.relu_(), x + y],
            lambda x: [y := (x * 2).relu_(), y + x],
        ],
        ids=["through a view", "of a part", "of a copy", "alone"],
    )
    def test_views_of_what_changes(self, function: Callable[[Tensor], list[Tensor]]):
        changed(Call(lambda x: function(x)[-1]), (torch.randn(TOKENS),))


class Masked(nn.Module):
    def forward(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        later = torch.ones(4, 4, dtype=torch.bool).triu(1)
        return scores.masked_fill(later, -torch.inf).softmax(-1), scores.masked_fill(later, -torch.inf)


class TestInfinities:
    def test_only_what_ends_in_softmax_becomes_finite(self):
        program = rewritten(traced(Masked(), (torch.randn(2, 4, 4),)), FOR_VULKAN)
        fills = [n.args[2] for n in program.graph.nodes if str(n.target) == "aten.masked_fill.Scalar"]
        assert Counter(fills) == {LOWEST: 1, -torch.inf: 1}
        x = torch.randn(2, 4, 4)
        assert all(map(torch.equal, program.module()(x), Masked()(x)))

    def test_xnnpack_gets_a_product_and_a_sum_for_a_mask_that_is_known(self):
        program = rewritten(traced(Masked(), (x := torch.randn(2, 4, 4),)), FOR_XNNPACK)
        assert {"mul.Tensor", "add.Tensor"} <= operators(program)
        assert "masked_fill.Scalar" not in operators(program)
        assert all(map(torch.equal, program.module()(x), Masked()(x)))

    def test_a_fill_whose_mask_comes_from_an_input_or_leaves_nothing_of_a_row_stays_what_it_is(self):
        given = lambda x, mask: x.masked_fill(mask, -torch.inf).softmax(-1)  # noqa: E731
        mask = torch.ones(4, 4, dtype=torch.bool).triu(1)
        assert "masked_fill.Scalar" in changed(Call(given), (torch.randn(2, 4, 4), mask))
        nothing = Call(lambda x: x.masked_fill(torch.ones(4, dtype=torch.bool), -torch.inf).softmax(-1).nan_to_num(7.0))
        assert torch.equal(
            rewritten(traced(nothing, (torch.randn(2, 4),)), FOR_XNNPACK).module()(torch.randn(2, 4)),
            torch.full((2, 4), 7.0),
        )

    @pytest.mark.parametrize("value", [0.0, 3.5, -1e9, torch.inf])
    def test_any_value_is_filled_in(self, value: float):
        mask = torch.tensor([True, False, True, False])
        assert "masked_fill.Scalar" not in changed(
            Call(lambda x: x.masked_fill(mask, value).relu()), (torch.randn(3, 4),)
        )


def test_a_rule_may_find_nothing():
    program = traced(nn.ReLU(), (torch.zeros(2),))
    assert by_operator({torch.ops.aten.relu.default: lambda editor, node: None})(program) == 0
    assert rewritten(program, ()) is program


@pytest.mark.parametrize(
    "layer",
    [nn.Conv3d(2, 4, 3), nn.ConvTranspose3d(2, 4, 3), nn.Conv3d(2, 4, 3, padding="same")],
    ids=["conv", "transposed", "same"],
)
def test_convolutions_that_no_kernel_computes_are_refused_by_name(layer: nn.Module):
    model = nn.ModuleDict({"stem": layer, "after": nn.ReLU()})
    program = traced(Call(lambda parts, x: parts["after"](parts["stem"](x)), model), (torch.randn(1, 2, 5, 5, 5),))
    with pytest.raises(ExportError, match=r"parts\.0\.stem: ExecuTorch has no kernel for convolutions of three"):
        rewritten(program, XNNPACK().rewrites())


def behind_a_convolution(function: Callable[..., Any], *parts: nn.Module) -> nn.Module:
    return Call(lambda conv, *rest: function(*rest[:-1], conv(rest[-1])), nn.Conv2d(3, 6, 3, padding=1), *parts)


@needs_executorch
@pytest.mark.parametrize(
    "model",
    [
        pytest.param(behind_a_convolution(lambda y: y.softmax(1)), id="softmax over channels"),
        pytest.param(behind_a_convolution(lambda y: y.softmax(3)), id="softmax over columns"),
        pytest.param(behind_a_convolution(lambda y: F.max_pool2d(y, 2)), id="max pooling without a stride"),
        pytest.param(
            behind_a_convolution(lambda m, y: m(y.permute(0, 2, 3, 1).view(2, -1, 6)), nn.PReLU()), id="permute, view"
        ),
    ],
)
def test_a_file_computes_what_stands_behind_a_convolution(model: nn.Module, tmp_path: Path):
    artifact = export(model.eval(), tmp_path / "m.pte", example_inputs=torch.randn(2, 3, 8, 8))
    assert artifact.max_abs_error < 1e-5
    assert not artifact.notes  # nothing of it stays outside


@needs_executorch
@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_a_sequence_convolution_whose_weight_is_computed(norm: Callable[..., nn.Module], tmp_path: Path):
    model = nn.Sequential(norm(nn.Conv1d(3, 4, 3)), nn.ReLU(), norm(nn.Conv1d(4, 2, 1))).eval()
    assert export(model, tmp_path / "m.pte", example_inputs=torch.randn(2, 3, 8)).max_abs_error < 1e-5
