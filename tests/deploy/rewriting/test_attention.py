"""Attention, products of stacks and softmax are written out as what XNNPACK computes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rewriting_cases import FOR_VULKAN, FOR_XNNPACK, IMAGE, TOKENS, Call, changed, operators, traced
from torch import Tensor, nn

from lightning_prune.deploy.backends import CoreML
from lightning_prune.deploy.rewriting import rewritten


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

    @pytest.mark.parametrize(
        "causal",
        [torch.ones(7, 7, dtype=torch.bool).tril(), torch.full((7, 7), -torch.inf).triu(1)],
        ids=["bool", "float"],
    )
    def test_rows_of_a_mask_that_leaves_something_in_each(self, causal: Tensor):
        """As a decoder with a cache picks them, by the places of its tokens."""
        model = Call(lambda q, k, v, at: F.scaled_dot_product_attention(q, k, v, attn_mask=causal[at]))
        left = changed(model, (*QKV, torch.tensor([2, 0, 6, 3, 3])))
        assert "index.Tensor" in left
        assert not left & {"scaled_dot_product_attention.default", "where.self", "gt.Scalar"}

    def test_rows_of_a_mask_that_leaves_nothing_in_one_stay(self):
        nothing = torch.ones(7, 7, dtype=torch.bool).tril(-1)
        model = Call(lambda q, k, v, at: F.scaled_dot_product_attention(q, k, v, attn_mask=nothing[at]))
        left = changed(model, (*QKV, torch.tensor([2, 1, 6, 3, 3])))
        assert "scaled_dot_product_attention.default" in left

    def test_a_computed_mask_that_is_finite(self):
        """Finite numbers leave something in each row, so nothing has to be asked of them."""

        def model(q: Tensor, k: Tensor, v: Tensor, at: Tensor) -> Tensor:
            mask = torch.where(torch.arange(7) <= at.unsqueeze(1), 0.0, -1e9)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

        left = changed(Call(model), (*QKV, torch.tensor([2, 0, 6, 3, 3])))
        assert not left & {"scaled_dot_product_attention.default", "gt.Scalar", "clamp.default"}

    @pytest.mark.parametrize("low", [-torch.inf, False])
    def test_heads_that_share_keys_do_so_under_any_mask(self, low: float):
        """A row that a mask leaves nothing of is 0, as torch's is."""
        model = Call(lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True))
        mask = torch.zeros(5, 7) if low else torch.ones(5, 7, dtype=torch.bool)
        mask[1, 2:], mask[3] = low, low
        left = changed(model, (*heads((2, 6, 5, 8), (2, 2, 7, 8), (2, 2, 7, 8)), mask))
        assert not left & {"scaled_dot_product_attention.default", "expand.default", "repeat_interleave.self_int"}

    def test_a_mask_from_an_input_stays(self):
        """Its rows may leave nothing, where a softmax of finite numbers would give something else."""
        model = Call(lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, mask))
        mask = torch.zeros(5, 7)
        mask[0] = -torch.inf
        assert "scaled_dot_product_attention.default" in changed(model, (*QKV, mask))

    @pytest.mark.parametrize("mask", [MASK, PENALTY, PENALTY[:1]], ids=["bool", "float", "of one row"])
    def test_vulkan_gets_it_without_infinities_whatever_the_mask_holds(self, mask: Tensor):
        """An empty row gives 0, as torch's own attention does."""
        model = Call(lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, mask))
        empty = mask.clone()
        empty[0] = False if mask.dtype is torch.bool else -torch.inf
        program = rewritten(traced(model, (*QKV, mask)), FOR_VULKAN)
        assert "scaled_dot_product_attention.default" not in operators(program)
        for given in (mask, empty):
            torch.testing.assert_close(program.module()(*QKV, given), model(*QKV, given), rtol=1e-5, atol=1e-6)
        assert not any(-torch.inf in node.args for node in program.graph.nodes)

    def test_vulkan_gets_a_padding_mask_without_infinities(self):
        layer = nn.MultiheadAttention(8, 2, batch_first=True)
        model = Call(lambda layer, x, padding: layer(x, x, x, padding, need_weights=False)[0], layer)
        x, padding = torch.randn(2, 5, 8), torch.arange(5) >= torch.tensor([[3], [5]])
        program = rewritten(traced(model, (x, padding)), FOR_VULKAN)
        assert not any(-torch.inf in node.args for node in program.graph.nodes)
        torch.testing.assert_close(program.module()(x, padding), model(x, padding), rtol=1e-5, atol=1e-6)

    def test_core_ml_has_it_whole_and_laid_out_as_its_shape_says(self):
        """Its own result is laid out otherwise than the CPU's, and views of that cannot be taken of its own."""
        layer = nn.MultiheadAttention(8, 2, batch_first=True)
        inputs = (torch.randn(TOKENS),)
        rewrites = (*CoreML().rewrites(), *CoreML().late_rewrites())
        program = rewritten(
            traced(Call(lambda layer, x: layer(x, x, x, need_weights=False)[0], layer), inputs), rewrites
        )
        (whole,) = [n for n in program.graph.nodes if "scaled_dot_product" in str(n.target)]
        (user,) = whole.users
        assert str(user.target) == "aten.clone.default"
        assert user.meta["val"].is_contiguous()

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
