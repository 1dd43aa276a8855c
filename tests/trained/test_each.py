"""A trained model pruned to several needs: nested networks."""

import copy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from compaction_cases import everything
from torch import Tensor, nn
from trained_cases import batches

from lightning_prune import (
    Channel,
    Global,
    Latency,
    MACs,
    Magnitude,
    NoRepair,
    OneShot,
    Params,
    Polynomial,
    Recipe,
    prune,
    prune_each,
)
from lightning_prune.compaction import applied_plan
from lightning_prune.errors import PruningError
from lightning_prune.model.example import example_of

RECIPE = Recipe(granularity=Channel(), need=(Params(0.3), Params(0.8), Params(0.5)), schedule=OneShot())


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 4)
    return nn.Sequential(*layers).eval()


def gone(model: nn.Module) -> dict[tuple[str, int], set[int]]:
    plan = applied_plan(model)
    assert plan is not None
    return {(name, axis): {*map(int, lost)} for name, axes in plan.removed.items() for axis, lost in axes.items()}


def agree(net: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))


def test_each_meets_its_need_and_a_smaller_one_keeps_what_the_larger_ones_keep() -> None:
    model, data = network(), batches()
    before = everything(model)
    found = prune_each(model, RECIPE, data, progress=False)
    assert everything(model) == before
    assert [each.need for each in found] == [Params(0.3), Params(0.8), Params(0.5)]
    dense = sum(p.numel() for p in model.parameters())
    for each, share in zip(found, (0.3, 0.8, 0.5), strict=True):
        left = sum(p.numel() for p in each.model.parameters())
        assert left == each.pruned.after.parameters
        assert 0.8 * share * dense < left <= share * dense
    small, large, middle = (gone(each.model) for each in found)
    for less, more in pairwise((large, middle, small)):
        assert less.keys() <= more.keys()
        assert all(lost <= more[place] for place, lost in less.items())
        assert sum(map(len, less.values())) < sum(map(len, more.values()))


def test_the_largest_is_what_prune_makes_of_that_need_alone() -> None:
    model, data = network(), batches()
    alone = copy.deepcopy(model)
    prune(alone, replace(RECIPE, need=Params(0.8)), data, progress=False)
    assert agree(prune_each(model, RECIPE, data, progress=False)[1].model, alone)


def test_they_can_be_exported_as_they_are_and_frozen_ones_stay_frozen() -> None:
    for each in prune_each(network().requires_grad_(False), RECIPE, batches(), progress=False):
        assert example_of(each.model) is not None
        assert not any(parameter.requires_grad for parameter in each.model.parameters())


@pytest.mark.slow
def test_two_tables_that_differ_make_two_networks_whose_files_run(tmp_path: Path) -> None:
    """The one was measured here; on the other device the slowest kind of layer takes three times as long as others."""
    pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")
    from lightning_prune.deploy import export, latency_table

    torch.manual_seed(0)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4)
    net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), *head).eval()
    image = torch.randn(1, 3, 48, 48)
    here = latency_table(net, image, points=4, rounds=10)
    most = {key: max(point.milliseconds for point in cell.points) for key, cell in here.cells.items()}

    def slower(key: str, milliseconds: float) -> float:
        return milliseconds * (9 if most[key] == max(most.values()) else 3)

    cells = {
        key: replace(cell, points=tuple(replace(p, milliseconds=slower(key, p.milliseconds)) for p in cell.points))
        for key, cell in here.cells.items()
    }
    (network,) = here.networks
    taken = tuple(replace(anchor, milliseconds=9 * anchor.milliseconds) for anchor in network.anchors)
    old = replace(here, device="an old one", cells=cells, networks=(replace(network, anchors=taken),))
    dense = network.anchors[0].milliseconds
    need = Latency(0.4 * 9 * dense, old), Latency(0.7 * dense, here)
    recipe = Recipe(granularity=Channel(), need=need, schedule=OneShot())
    small, large = prune_each(net, recipe, [torch.randn(32, 3, 48, 48)], progress=False)
    assert small.pruned.after.parameters < large.pruned.after.parameters < small.pruned.before.parameters
    assert all(own <= gone(small.model)[name] for name, own in gone(large.model).items())
    for name, made in (("small", small), ("large", large)):
        artifact = export(made.model, tmp_path / f"{name}.pte", example_inputs=image)
        assert artifact.parameters == made.pruned.after.parameters


def test_without_repair_the_weights_are_shared_too() -> None:
    model = network()
    recipe = replace(RECIPE, repair=NoRepair(), criterion=Magnitude())
    for each in prune_each(model, recipe, batches(), progress=False):
        kept = dict(each.model.named_parameters())
        for name, parameter in model.named_parameters():
            whole: Tensor = parameter.detach()
            for axis in range(whole.dim()):
                lost = gone(each.model).get((name, axis), set())
                whole = whole.index_select(axis, torch.tensor([i for i in range(whole.shape[axis]) if i not in lost]))
            assert torch.equal(kept[name], whole)


def test_what_a_larger_one_meets_already_is_the_same_network() -> None:
    recipe = replace(RECIPE, need=(MACs(0.9), Params(0.4), MACs(0.85)))
    first, second, third = prune_each(network(), recipe, batches(), progress=False)
    assert first.model is not second.model
    assert second.pruned.after.parameters < first.pruned.after.parameters
    wide, same = prune_each(network(), replace(RECIPE, need=(Params(0.5), Params(0.5))), batches(), progress=False)
    assert wide.model is same.model
    macs = [each.pruned.after.macs for each in (first, third)]
    assert macs[1] is not None
    assert macs[0] is not None
    assert macs[1] < macs[0]


def test_the_smaller_ones_are_chosen_by_the_scales_of_the_dense_network() -> None:
    """As the rounds of one run are: two needs are two rounds to the smaller one."""
    recipe = replace(RECIPE, repair=NoRepair(), criterion=Magnitude(), allocation=Global())
    schedule = Polynomial(begin_step=1, end_step=3, frequency=1)
    # of a polynomial of power 3 half of the way takes seven eighths of what goes
    final = 0.8
    needs = Params(1 - 7 / 8 * final), Params(1 - final)
    model = network()
    with torch.no_grad():  # where the first round takes the small ones, the mean of the others is another
        model.get_parameter("0.weight").mul_(torch.linspace(0.1, 3, 24)[:, None])
    small = prune_each(model, replace(recipe, need=needs), batches(), progress=False)[1].model
    prune(model, replace(recipe, need=needs[1], schedule=schedule), batches(), progress=False)
    assert agree(small, model)


def test_rounds_and_a_metric() -> None:
    def error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (model(batch[0]) ** 2).mean()

    schedule = Polynomial(begin_step=1, end_step=3, frequency=1)
    small, *_ = prune_each(network(), replace(RECIPE, schedule=schedule), batches(), metric=error, progress=False)
    assert small.pruned.metric_after is not None
    # two rounds with more than nothing to go; those of the larger two are its own history
    assert len(small.pruned.events) == 6
    shares = [event.params for event in small.pruned.events]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize(
    ("recipe", "kind", "text"),
    [
        (Recipe(granularity=Channel(), schedule=OneShot(0.5)), ValueError, "and the recipe has none"),
        (replace(RECIPE, need=(Params(0.5), Params(10))), ValueError, "Params.left=10. cannot be met"),
        (replace(RECIPE, need=(Params(0.5), Params(10**6))), ValueError, "as it is: nothing has to be pruned"),
    ],
)
def test_what_cannot_be_had(recipe: Recipe, kind: type[Exception], text: str) -> None:
    model = network()
    before = everything(model)
    with pytest.raises(kind, match=text):
        prune_each(model, recipe, batches(), progress=False)
    assert everything(model) == before


def test_data_for_a_metric_that_is_not_named_are_refused() -> None:
    with pytest.raises(ValueError, match="measure_on is data for a metric, and none is named"):
        prune_each(network(), RECIPE, batches(), measure_on=batches(), progress=False)


def test_a_masked_model_is_refused() -> None:
    from lightning_prune.model import masks

    model = network()
    masks.attach(model, ["0.weight"])
    with pytest.raises(PruningError, match="carries masks of another run"):
        prune_each(model, RECIPE, batches(), progress=False)
