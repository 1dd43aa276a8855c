"""What changes in place is replaced by what gives a new tensor, where nothing else sees it."""

from collections.abc import Callable

import pytest
import torch
from rewriting_cases import IMAGE, TOKENS, Call, changed
from torch import Tensor, nn


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
