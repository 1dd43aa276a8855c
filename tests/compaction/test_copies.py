"""Copies of pruned parts that forward does not reach are found, and lose what their originals lose where known."""

import copy

import pytest
import torch
from torch import Tensor, nn

from lightning_prune import Channel, channel_groups
from lightning_prune.compaction import Compaction
from lightning_prune.compaction.copies import copies_in, following_copies, with_copies
from lightning_prune.run.binding import units_of
from lightning_prune.selection import ChannelUnits
from lightning_prune.selection.targets import Targets

X = torch.rand(2, 6)


class Byol(nn.Module):
    def __init__(self, is_frozen: bool = True) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
        self.head = nn.Linear(4, 3)
        self.target = copy.deepcopy(self.backbone).requires_grad_(not is_frozen)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


@pytest.mark.parametrize("is_frozen", [True, False])
def test_copies_that_forward_does_not_reach(is_frozen: bool) -> None:
    model = Byol(is_frozen)
    units = units_of(Channel(), Targets(include=("backbone*",)), model, X)
    assert isinstance(units, ChannelUnits)
    assert copies_in(model, units.shapes, units.found.shapes) == {"target": "backbone"}
    assert copies_in(model, ["head.weight"], units.found.shapes) == {}
    assert copies_in(model, units.shapes, model.state_dict()) == {}
    assert "target" not in str(channel_groups(model, X))


def test_the_nearest_of_several_alike_is_the_original() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)
            self.copied = copy.deepcopy(self.right)

    reached = ["left.weight", "left.bias", "right.weight", "right.bias"]
    assert copies_in(Two(), ["left.weight", "right.weight"], reached) == {"copied": "right"}


def test_a_tied_weight_is_no_copy() -> None:
    model = Byol()
    model.target = nn.Sequential(model.backbone[0], nn.ReLU(), copy.deepcopy(model.backbone[2]))
    groups = channel_groups(model, X)
    assert copies_in(model, ["backbone.0.weight"], groups.shapes) == {}


def test_what_crosses_the_border_of_copies_stays() -> None:
    model = Byol()
    groups = channel_groups(model, X)
    plan = Compaction.from_keep(groups, {"backbone.0": range(3), "backbone.2": range(2)})
    both, stay = with_copies(plan, groups, {"target": "backbone"})
    assert list(both.removals) == ["backbone.0"]
    assert both.removed["target.0.weight"] == both.removed["backbone.0.weight"] == {0: (3, 4, 5, 6, 7)}
    assert both.removed["target.2.weight"] == {1: (3, 4, 5, 6, 7)}
    assert list(stay) == ["backbone.2"]
    assert stay["backbone.2"].startswith("target follows backbone")
    alone, none = with_copies(plan, groups, {})
    assert (alone, none) == (plan, {})


def test_a_copy_follows_when_what_goes_is_zero_in_it() -> None:
    model = Byol()
    groups = channel_groups(model, X)
    plan = Compaction.from_keep(groups, {"backbone.0": range(3)})
    assert following_copies(model, plan, groups) == {}
    with_copies(plan, groups, {"target": "backbone"})[0].mask(model)
    assert following_copies(model, plan, groups) == {"target": "backbone"}
    masked = model.target(X)
    with_copies(plan, groups, {"target": "backbone"})[0].rebuild(model)
    assert model.target[0].out_features == 3
    torch.testing.assert_close(model.target(X), masked)
