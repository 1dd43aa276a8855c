"""Channel groups are compared by what they are worth, over several events too, and none falls below its share."""

import copy
import math
from typing import Any

import pytest
import torch
from pruner_cases import X, network, ready, removed_in, scores_of
from torch import Tensor, nn

from lightning_prune.criteria import Fisher, Magnitude
from lightning_prune.model import masks
from lightning_prune.recipe import Recipe
from lightning_prune.run.binding import bind
from lightning_prune.run.pruner import Pruner, prune_step
from lightning_prune.schedules import OneShot
from lightning_prune.selection import ChannelUnits
from lightning_prune.selection.allocation import Global, Uniform
from lightning_prune.selection.granularity import Channel
from lightning_prune.selection.targets import Targets


class Chain(nn.Module):
    """Convolutions one after another, of which the inner ones are wider; inputs and outputs of each shrink."""

    def __init__(self, widths: tuple[int, ...] = (12, 12, 24, 24, 24)) -> None:
        super().__init__()
        pairs = zip((1, *widths), widths, strict=False)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairs)
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x).relu()
        return self.head(x.mean((2, 3)))


def chain(seed: int) -> Chain:
    torch.manual_seed(seed)
    return Chain()


def widths(pruner: Pruner, model: nn.Module) -> dict[str, int]:
    return {name: pruner.units.sizes[name] - gone for name, gone in removed_in(pruner, model).items()}


def recipe(final: float, granularity: Channel, **options: Any) -> Recipe:
    return Recipe(schedule=OneShot(final), granularity=granularity, count="macs", **options)


def after(steps: int, final: float, seed: int, **options: Any) -> dict[str, int]:
    model = chain(seed)
    pruner = bind(recipe(final, Channel(min_share=0), **options), model, X)
    pruner.attach(model)
    for step in range(1, steps + 1):
        prune_step(pruner, model, final * (1 - (1 - step / steps) ** 3))
    return widths(pruner, model)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_several_events_without_training_do_not_run_away(seed: int) -> None:
    at_once, slowly = after(1, 0.9, seed), after(11, 0.9, seed)
    for name, width in at_once.items():
        assert slowly[name] >= width / 3, (at_once, slowly)


def test_a_group_of_small_weights_is_worth_as_much_as_another() -> None:
    alike = []
    for scale in (1.0, 0.01):
        model = chain(0)
        with torch.no_grad():
            for parameter in (*model.convs[2].parameters(), *model.convs[3].parameters()):
                parameter.mul_(scale)
        pruner = bind(recipe(0.7, Channel(min_share=0), criterion=Magnitude()), model, X)
        pruner.attach(model)
        prune_step(pruner, model, 0.7)
        alike.append(widths(pruner, model)["convs.2"])
    assert alike[0] == alike[1]


def test_a_neighbour_that_left_takes_no_worth_along() -> None:
    """The rest of a slice counts as the mean of what is left of it."""
    model = Chain((4, 6))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    pruner = bind(recipe(0.5, Channel(), criterion=Magnitude()), model, X)
    pruner.attach(model)
    assert isinstance(pruner.units, ChannelUnits)
    before = pruner.units.candidates(scores_of(pruner, model), masks.read(model)).scores
    lost = masks.read(model)["convs.1.weight"].clone()
    lost[:, :2] = False
    first = {name: masks.read(model)[f"{name}"].clone() for name in ("convs.0.weight", "convs.0.bias")}
    for mask in first.values():
        mask[:2] = False
    masks.write(model, [*first.items(), ("convs.1.weight", lost)])
    now = pruner.units.candidates(scores_of(pruner, model), masks.read(model)).scores
    torch.testing.assert_close(now["convs.1"], before["convs.1"])
    torch.testing.assert_close(now["convs.0"][2:], before["convs.0"][2:])
    assert bool((now["convs.0"][:2] == -torch.inf).all())


def test_gradients_compare_as_they_are() -> None:
    model = network()
    pruner = ready(Recipe(schedule=OneShot(0.5, begin_step=1), granularity=Channel(), criterion=Fisher()), model)
    model(torch.randn(4, 1, 8, 8)).square().mean().backward()
    pruner.observe(masks.dense_parameters(model))
    assert pruner.candidates(scores_of(pruner, model), masks.read(model)).scales == {}


def test_scales_are_those_of_the_first_event_and_resume() -> None:
    first = chain(0)
    pruner = bind(recipe(0.8, Channel()), first, X)
    pruner.attach(first)
    prune_step(pruner, first, 0.4)
    state, scales = pruner.state_dict(), dict(pruner.progress.scales or {})
    assert set(scales) == set(pruner.units.sizes)
    assert all(scale > 0 for scale in scales.values())
    second = copy.deepcopy(first)
    resumed = bind(recipe(0.8, Channel()), second, X).restored(state, second)
    for one, model in ((pruner, first), (resumed, second)):
        prune_step(one, model, 0.8)
        assert one.progress.scales == scales
    assert resumed.units.most_removable() == pruner.units.most_removable()
    assert all(torch.equal(mask, masks.read(second)[name]) for name, mask in masks.read(first).items())


def test_a_run_from_before_there_was_a_floor_goes_on_without() -> None:
    model = chain(0)
    pruner = bind(recipe(0.8, Channel()), model, X)
    pruner.attach(model)
    state = {key: value for key, value in pruner.state_dict().items() if key not in ("scales", "min_share")}
    resumed = pruner.restored(state, model)
    assert isinstance(resumed.units, ChannelUnits)
    assert (resumed.units.granularity.min_share, resumed.progress.scales) == (0.0, {})


@pytest.mark.parametrize("final", [0.5, 0.9, 0.97])
def test_no_group_falls_below_half_of_what_the_same_share_would_leave(final: float) -> None:
    found = []
    for allocation in (Uniform(), lambda share, candidates: starving(share, candidates.sizes)):
        model = chain(0)
        pruner = bind(recipe(final, Channel(), allocation=allocation), model, X)
        pruner.attach(model)
        prune_step(pruner, model, final)
        found.append(widths(pruner, model))
    alike, starved = found
    share = math.sqrt(1 - final) / 2
    for name, width in alike.items():
        assert (width - 1) / 2 <= starved[name]
        assert starved[name] >= math.floor(share * pruner.units.sizes[name])


def starving(share: float, sizes: dict[str, int]) -> dict[str, float]:
    """The second group gives first."""
    return {name: share if name != "convs.1" else min(1.0, 50 * share) for name in sizes}


@pytest.mark.parametrize("count", [None, "channels"])
def test_of_channels_half_of_the_kept_share_stays(count: Any) -> None:
    pruner = bind(Recipe(schedule=OneShot(0.6), granularity=Channel(), count=count), chain(0), X)
    assert isinstance(pruner.units, ChannelUnits)
    assert pruner.units.granularity.min_share == pytest.approx(0.2, abs=5e-3)


def test_a_share_that_is_set_holds() -> None:
    model = chain(0)
    shared = Recipe(schedule=OneShot(0.6), granularity=Channel(min_share=0.35), allocation=Global())
    pruner = bind(shared, model, X)
    pruner.attach(model)
    prune_step(pruner, model, 0.6)
    assert all(width >= 0.35 * pruner.units.sizes[name] for name, width in widths(pruner, model).items())


@pytest.mark.parametrize("granularity", [Channel(), Channel(round_to=4), Channel(min_channels=3), Channel(round_to=5)])
@pytest.mark.parametrize("count", ["channels", "params", "macs"])
def test_the_floor_gives_way_to_the_budget(granularity: Channel, count: Any) -> None:
    """Whatever can be reached without a floor can be reached with the one that the budget says."""
    model = network()
    free = bind(Recipe(schedule=OneShot(0.01), granularity=granularity, count=count), model, X)
    assert isinstance(free.units, ChannelUnits)
    least = free.units.keeping(0.0).most_removable()
    if count == "channels":
        most = sum(least.values()) / sum(free.units.sizes.values())
    else:
        budget = free.budgets[count]
        most = 1 - budget.remaining(free.units.densities(least)) / budget.total
    for final in (most / 2, most - 1e-9):
        bind(Recipe(schedule=OneShot(final), granularity=granularity, count=count), model, X)


def test_fixed_widths_lower_the_floor() -> None:
    """Only the hidden units may go: costs fall with the width, not with its square."""
    model = nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 8))
    only = Recipe(schedule=OneShot(0.9), granularity=Channel(), count="params", targets=Targets(("0",)))
    pruner = bind(only, model, (torch.zeros(1, 8),))
    assert isinstance(pruner.units, ChannelUnits)
    share = pruner.units.granularity.min_share
    assert share is not None
    assert share < 0.06


def test_the_floor_gives_way_to_an_allocation_that_spares_a_group() -> None:
    model = chain(0)
    spare = lambda share, candidates: {name: 0.0 if name == "convs.4" else share for name in candidates.sizes}  # noqa: E731
    pruner = bind(Recipe(schedule=OneShot(0.7), granularity=Channel(), allocation=spare), model, X)
    pruner.attach(model)
    prune_step(pruner, model, 0.7)
    assert widths(pruner, model)["convs.4"] == 24
    assert min(widths(pruner, model).values()) < 0.15 * 12
