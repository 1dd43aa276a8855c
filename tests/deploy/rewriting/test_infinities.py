"""Fills with infinities become what the backend's file can hold."""

from collections import Counter

import pytest
import torch
from rewriting_cases import FOR_VULKAN, FOR_XNNPACK, Call, changed, operators, traced
from torch import Tensor, nn

from lightning_prune.deploy.rewriting import rewritten
from lightning_prune.deploy.rewriting.infinities import LOWEST


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
