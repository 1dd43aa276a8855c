"""Rules of one's own."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from graph_oracle import check_exact, sizes
from torch import Tensor, nn

from lightning_prune.graph import add_rule, channel_groups
from lightning_prune.graph.rules.table import RULES


@torch.library.custom_op("lightning_prune_tests::halved", mutates_args=())
def halved(x: Tensor) -> Tensor:
    return x / 2


@halved.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Halving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(halved(self.a(x)))


@pytest.fixture
def as_it_was() -> Iterator[None]:
    before = dict(RULES)
    yield
    RULES.clear()
    RULES.update(before)


@pytest.mark.usefixtures("as_it_was")
def test_a_rule_lets_channels_go() -> None:
    x = torch.randn(2, 4)
    with pytest.warns(UserWarning, match="no rule for lightning_prune_tests.halved"):
        assert sizes(channel_groups(Halving(), x)) == {}
    add_rule("halved", lambda call, flow: flow.of(call["x"]))
    assert sizes(check_exact(Halving(), x)) == {"a": 8}


@pytest.mark.usefixtures("as_it_was")
def test_a_rule_that_is_there_can_be_replaced() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    add_rule("relu", lambda call, flow: flow.give_up(call, "because I say so"))
    assert channel_groups(model, torch.randn(2, 4))["0"].reason == "because I say so"


@pytest.mark.usefixtures("as_it_was")
def test_a_rule_that_does_not_fit_freezes_and_says_so() -> None:
    add_rule("halved", lambda call, flow: flow.of(call["x"])[:1])
    groups = channel_groups(Halving(), torch.randn(2, 4))
    assert groups["a"].reason == "the rule for halved in the model's own forward does not fit its result"


@pytest.mark.parametrize("name", ["aten::relu", "relu.default", "relu_", "", "my op"])
def test_names_that_no_operator_can_have_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="operator must be a name without namespace"):
        add_rule(name, lambda call, flow: None)
    assert name not in RULES


def test_what_cannot_be_called_is_refused() -> None:
    wrong: Any = "pointwise"
    with pytest.raises(TypeError, match="the rule for halved must be a function"):
        add_rule("halved", wrong)
