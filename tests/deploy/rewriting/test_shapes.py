"""Views, parts and joins compute what they computed, for sizes that vary too."""

from collections.abc import Callable

import pytest
import torch
from rewriting_cases import FOR_XNNPACK, IMAGE, TOKENS, Call, changed, operators, traced
from torch import Tensor, nn
from torch.export import Dim

from lightning_prune.deploy.rewriting import rewritten


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
