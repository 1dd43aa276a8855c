"""How far a trained model goes within a drop of its metric."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support import Net
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy
from trained_cases import batches, redundant

from lightning_prune import (
    Block,
    Channel,
    Element,
    Fisher,
    Linear,
    MACs,
    NOfM,
    NoRepair,
    OneShot,
    Params,
    PruningError,
    Recipe,
    Size,
    Taylor,
    prune,
)
from lightning_prune.errors import NonFiniteError
from lightning_prune.study import Attempt, Tried
from lightning_prune.trained import Pruned

FAR = Recipe(granularity=Channel(), need=MACs(0.05), schedule=OneShot())
NEAR = replace(FAR, need=MACs(0.3))


def likeness(net: nn.Module) -> Callable[[nn.Module, Any], float]:
    """How much of what a network gives is what this one, as it is now, gives: 1 where all is."""
    dense = copy.deepcopy(net).eval()

    def measured(model: nn.Module, batch: Any) -> float:
        wanted = dense(batch[0])
        return 1 - float((model(batch[0]) - wanted).norm() / wanted.norm())

    return measured


def width(net: nn.Module) -> int:
    first = net.get_submodule("0")
    assert isinstance(first, nn.Linear)
    return first.out_features


def tried_of(pruned: Pruned) -> tuple[Tried, Attempt]:
    """What was tried, and what was chosen of it."""
    assert pruned.tried is not None
    assert pruned.tried.best is not None
    return pruned.tried, pruned.tried.best


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_it_goes_as_far_as_the_drop_lets_it() -> None:
    """Half of the units can be made by the others, so that these go; then the metric falls."""
    net, data = redundant(64), batches()
    dense = copy.deepcopy(net)
    pruned = prune(net, FAR, data, metric=likeness(dense), max_drop=0.02, progress=False)
    tried, best = tried_of(pruned)
    assert width(net) <= 32
    assert best.metric == pruned.metric_after
    assert tried.base == pruned.metric_before == pytest.approx(1)
    assert best.metric >= tried.base - 0.02
    assert best.parameters == pruned.left == sum(p.numel() for p in net.parameters())
    assert [one.is_kept for one in tried.attempts] == [one.metric >= tried.base - 0.02 for one in tried.attempts]
    # the way is halved between what was kept last and what was too much last
    too_much = min(one.share for one in tried.attempts if not one.is_kept)
    assert len(tried.attempts) == 8
    assert too_much - best.share == pytest.approx(0.5**7, rel=1e-3)
    # and the next network on it is too much indeed
    other = copy.deepcopy(dense)
    smaller = replace(FAR, need=MACs((width(net) - 1) * (8 + 4)))
    worse = prune(other, smaller, data, metric=likeness(dense), progress=False)
    assert width(other) == width(net) - 1
    assert (worse.metric_after or 0) < tried.base - 0.02


def test_what_was_chosen_is_bit_for_bit_what_it_is_alone() -> None:
    net, data = Net(), [(torch.randn(64, 1, 6, 6), torch.randint(0, 4, (64,)))]
    dense = copy.deepcopy(net)
    pruned = prune(net, NEAR, data, metric=likeness(dense), max_drop=0.3, progress=False)
    _, best = tried_of(pruned)
    again = copy.deepcopy(dense)
    left = round((pruned.before.macs or 0) * (1 - best.asked))
    prune(again, replace(FAR, need=MACs(left)), data, progress=False)
    assert_same(again, state(net))


def test_a_drop_that_nothing_could_exceed_is_told() -> None:
    net, data = redundant(16), batches()
    with pytest.warns(UserWarning, match="max_drop=2 lets all of metric go, which is 1: a drop is in the metric's own"):
        prune(net, NEAR, data, metric=lambda *_: 1.0, max_drop=2, trials=1, progress=False)


def test_a_need_within_the_drop_is_met_at_once() -> None:
    net, data = redundant(), batches()
    pruned = prune(net, replace(FAR, need=Params(0.7)), data, metric=likeness(net), max_drop=0.5)
    assert len(tried_of(pruned)[0].attempts) == 1
    assert pruned.after.parameters <= 0.7 * pruned.before.parameters


@pytest.mark.parametrize("criterion", [Fisher(), Taylor()], ids=repr)
def test_a_need_by_gradients_within_a_drop(criterion: Fisher | Taylor) -> None:
    """The schedule begins before the first step, which criteria that watch cannot: it is put off by one."""
    net, data = redundant(), [(x, torch.zeros(len(x), dtype=torch.long)) for x, *_ in batches()]
    recipe = replace(FAR, need=Params(0.7), criterion=criterion)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    pruned = prune(net, recipe, data, loss=loss, metric=lambda *_: 1.0, max_drop=0.5, progress=False)
    assert pruned.after.parameters <= 0.7 * pruned.before.parameters


def test_a_metric_that_says_nothing_is_told_where_nothing_is_bounded_by_it() -> None:
    net, data = redundant(), batches()
    with pytest.warns(UserWarning, match="of the dense model is nan, so it cannot say what pruning costs"):
        pruned = prune(net, replace(FAR, need=Params(0.7)), data, metric=lambda *_: float("nan"), progress=False)
    assert pruned.after.parameters <= 0.7 * pruned.before.parameters


def test_where_a_need_lies_beyond_what_can_go_the_least_is_tried_first() -> None:
    net, data = redundant(), batches()
    with pytest.warns(UserWarning, match="left with a single channel"):
        pruned = prune(net, replace(FAR, need=MACs(1)), data, metric=lambda *_: 1.0, max_drop=0.0, progress=False)
    assert width(net) == 1
    assert len(tried_of(pruned)[0].attempts) == 1


@pytest.mark.parametrize(
    "recipe",
    [
        replace(FAR, need=(MACs(0.1), Size(bytes=200))),
        Recipe(granularity=Channel(), schedule=OneShot(0.9), count="params"),
        Recipe(granularity=Channel(), schedule=Linear(0.9, begin_step=0, end_step=3, frequency=1)),
        Recipe(granularity=Element(), schedule=OneShot(0.95)),
        Recipe(granularity=Block((1, 4)), schedule=OneShot(0.9), repair=NoRepair()),
    ],
    ids=["two needs", "count", "rounds", "weights", "blocks"],
)
def test_with_whatever_the_recipe_counts(recipe: Recipe) -> None:
    net, data = redundant(), batches()
    pruned = prune(net, recipe, data, metric=likeness(net), max_drop=0.4, trials=5, progress=False)
    tried, best = tried_of(pruned)
    assert best.metric >= tried.base - 0.4
    assert 1 < len(tried.attempts) <= 5
    asked = [one.asked for one in sorted(tried.attempts, key=lambda one: one.share)]
    assert asked == sorted(set(asked))


def test_the_metric_is_of_the_data_that_are_measured_on() -> None:
    net, data, others = redundant(), batches(), batches(2, 16)
    seen: list[Tensor] = []

    def metric(model: nn.Module, batch: Any) -> float:
        seen.append(batch[0])
        return 1.0 if width(model) >= 8 else 0.0

    pruned = prune(net, FAR, data, metric=metric, measure_on=others, max_drop=0.1, trials=4, progress=False)
    assert width(net) >= 8
    assert len(seen) == len(others) * (1 + len(tried_of(pruned)[0].attempts))
    assert all(any(torch.equal(inputs, other) for other, _ in others) for inputs in seen)


def test_a_metric_that_is_better_when_lower() -> None:
    net, data = redundant(), batches()
    better = likeness(net)

    def distance(model: nn.Module, batch: Any) -> float:
        return 1 - better(model, batch)

    pruned = prune(net, FAR, data, metric=distance, max_drop=0.05, higher_is_better=False, trials=5, progress=False)
    assert pruned.metric == "distance"
    tried, best = tried_of(pruned)
    assert best.metric == pruned.metric_after
    assert best.metric <= tried.base + 0.05
    assert max(one.metric for one in tried.attempts) > tried.base + 0.05


def test_a_network_whose_metric_is_nan_counts_as_failed() -> None:
    net, data = redundant(), batches()

    def brittle(model: nn.Module, _: Any) -> float:
        return math.nan if width(model) < 12 else 1.0

    pruned = prune(net, FAR, data, metric=brittle, max_drop=0.01, progress=False)
    assert width(net) == 12
    tried, _ = tried_of(pruned)
    assert any(math.isnan(one.metric) and "counts as failed" in one.reason for one in tried.attempts)
    assert "nan" in str(tried)


@pytest.mark.parametrize("fails", ["always too much", "in the third", "interrupted"])
def test_the_model_is_whole_after_a_failure(fails: str) -> None:
    net, data, seen = redundant(), batches(), []
    net.train()
    net[2].bias.requires_grad_(False)
    dense, before, hooks = copy.deepcopy(net), state(net), len(net[0]._forward_pre_hooks)

    def metric(model: nn.Module, _: Any) -> float:
        is_dense = width(model) == 16
        seen.append(is_dense)
        if fails == "in the third" and len(seen) > 3 * len(data):
            raise ZeroDivisionError
        if fails == "interrupted" and not is_dense:
            raise KeyboardInterrupt
        return 1.0 if is_dense else 0.0

    error = {"always too much": PruningError, "in the third": ZeroDivisionError}.get(fails, KeyboardInterrupt)
    with pytest.raises(error) as caught:
        prune(net, FAR, data, metric=metric, max_drop=0.01, trials=3, progress=False)
    assert_same(net, before)
    assert net.training
    assert [p.requires_grad for p in net.parameters()] == [p.requires_grad for p in dense.parameters()]
    assert len(net[0]._forward_pre_hooks) == hooks
    if fails == "always too much":
        assert "none of 3 networks keeps metric within 0.01 of 1" in str(caught.value)
        assert "too much" in str(caught.value)


def test_between_the_networks_the_model_is_dense() -> None:
    """Whatever a network leaves behind would show in the next one, which is pruned from the same weights."""
    net, data = Net(), [(torch.randn(64, 1, 6, 6), torch.randint(0, 4, (64,)))]
    metric = likeness(net)
    alone = []
    pruned = prune(copy.deepcopy(net), NEAR, data, metric=metric, max_drop=0.3, trials=4, progress=False)
    for one in tried_of(pruned)[0].attempts:
        left = round((pruned.before.macs or 0) * (1 - one.asked))
        alone.append(prune(copy.deepcopy(net), replace(FAR, need=MACs(left)), data, metric=metric, progress=False))
    assert [one.metric for one in tried_of(pruned)[0].attempts] == [one.metric_after for one in alone]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"max_drop": -0.1}, ValueError, "max_drop must be a number at least 0"),
        ({"max_drop": "1%"}, TypeError, "max_drop must be a number"),
        ({"max_drop": math.nan}, ValueError, "max_drop must be"),
        ({"max_drop": 0.1, "metric": None}, ValueError, "is a drop of a metric, and none is named"),
        ({"trials": 0}, ValueError, "trials must be at least 1"),
        ({"higher_is_better": 1}, TypeError, "higher_is_better must be True or False"),
        ({"metric": lambda model, batch: math.nan}, NonFiniteError, "of the dense model is nan, and no drop can be"),
        ({"measure_on": torch.zeros(3, 8)}, TypeError, "got one tensor: pass"),
        ({"measure_on": [], "metric": None, "max_drop": None}, ValueError, "measure_on is data for a metric, and none"),
        ({"measure_on": []}, ValueError, "the loader is empty"),
        ({"measure_on": 3}, TypeError, "data must give batches"),
        ({"metric": "accuracy"}, TypeError, "metric must be a torchmetrics metric"),
        ({"metric": MulticlassAccuracy(4), "recipe": replace(FAR, need=Params(10_000))}, ValueError, "as it is"),
        (
            {"recipe": Recipe(granularity=NOfM(2, 4), schedule=OneShot(0.5), repair=NoRepair())},
            ValueError,
            r"NOfM\(n=2, m=4\) ends at 0.5 or not at all",
        ),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    net, data = redundant(), batches()
    before = state(net)
    given = {"metric": likeness(net), "max_drop": 0.1, "recipe": FAR, "progress": False} | arguments
    with pytest.raises(error, match=text):
        prune(net, data=data, **given)
    assert_same(net, before)


def test_what_was_tried_is_a_table() -> None:
    net, data = redundant(), batches()
    pruned = prune(net, FAR, data, metric=likeness(net), max_drop=0.05, progress=False)
    tried, _ = tried_of(pruned)
    lines = str(tried).splitlines()
    assert lines[0].split() == ["MACs", "left", "parameters", "MACs", "measured"]
    assert lines[2].split()[:3] == ["100%", f"{pruned.before.parameters:,}", f"{pruned.before.macs:,}"]
    assert sum("chosen" in line for line in lines) == 1
    assert "<table>" in tried._repr_html_()
    assert f"tried       {len(tried.attempts)} networks" in str(pruned)
