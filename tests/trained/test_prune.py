"""A trained model pruned in one call."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from support import Net, loader
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy
from trained_cases import HALF, UNREPAIRED, batches, redundant

from lightning_prune import (
    Channel,
    Fisher,
    LeastSquares,
    Linear,
    Magnitude,
    NoRepair,
    OneShot,
    Polynomial,
    Recipe,
    Reconstruction,
    Wanda,
    prune,
)
from lightning_prune.errors import ScoringError
from lightning_prune.model.example import example_of


def test_what_others_can_make_is_made_by_them() -> None:
    net, data = redundant(), batches()
    dense = copy.deepcopy(net)
    pruned = prune(net, HALF, data, progress=False)
    assert net[0].out_features == 8
    x = torch.randn(64, 8)
    error = (net(x) - dense(x)).abs().max() / dense(x).abs().max()
    assert error < 0.01
    assert pruned.after.parameters < pruned.before.parameters
    assert [event.sparsity for event in pruned.events] == [0.5]
    assert not any("mask" in name for name, _ in net.named_buffers())
    assert "repaired" in str(pruned)


def test_what_repair_can_make_up_for_goes_where_the_recipe_leaves_it_open() -> None:
    """The large units all repeat the first one here, and weights alone would keep them."""
    net, data = redundant(), batches()
    first = net[0]
    assert isinstance(first, nn.Linear)
    with torch.no_grad():
        first.weight[8:], first.bias[8:] = 9 * first.weight[0], 9 * first.bias[0]
    nets = {name: copy.deepcopy(net) for name in ("open", "named", "weights")}
    prune(nets["open"], HALF, data, progress=False)
    prune(nets["named"], replace(HALF, criterion=Reconstruction(samples=512)), data, progress=False)
    prune(nets["weights"], replace(HALF, criterion=Magnitude()), data, progress=False)
    kept = {name: dict(net.named_parameters())["0.weight"] for name, net in nets.items()}
    assert torch.equal(kept["open"], kept["named"])
    assert not torch.equal(kept["open"], kept["weights"])


class BareReader(nn.Module):
    """Channels that no layer reads, so that what enters their reader is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.reader = nn.Linear(8, 16), nn.Parameter(torch.randn(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.first(x)) @ self.reader


def test_where_what_is_read_cannot_be_seen_the_weights_choose() -> None:
    net, data = BareReader(), [torch.randn(64, 8)]
    by_weights = copy.deepcopy(net)
    pruned = prune(net, HALF, data, progress=False)
    prune(by_weights, replace(HALF, criterion=Magnitude()), data, progress=False)
    assert net.first.out_features == 8
    assert "chosen by   Magnitude(norm=1), for Reconstruction(samples=512" in str(pruned)
    assert "cannot score first: no Linear" in str(pruned)
    assert torch.equal(net.first.weight, by_weights.first.weight)
    with pytest.raises(ScoringError, match="cannot score"):
        prune(BareReader(), replace(HALF, criterion=Reconstruction()), data, progress=False)


def test_without_repair_it_is_the_cut_alone() -> None:
    net, data = redundant(), batches()
    mended = copy.deepcopy(net)
    dense = copy.deepcopy(net)
    prune(net, UNREPAIRED, data, progress=False)
    prune(mended, HALF, data, progress=False)
    x = torch.randn(64, 8)
    assert (net(x) - dense(x)).abs().max() > 20 * (mended(x) - dense(x)).abs().max()


def test_rounds_metric_and_a_criterion_that_watches() -> None:
    net, data = redundant(), batches()
    recipe = Recipe(granularity=Channel(), schedule=Linear(0.5, end_step=0.9, frequency=30), criterion=Fisher())
    metric = MulticlassAccuracy(4, average="micro")
    pruned = prune(net, recipe, data, loss=lambda m, b: cross_entropy(m(b[0]), b[1]), metric=metric, progress=False)
    assert [event.step for event in pruned.events] == [30, 60, 90]
    assert pruned.metric == "MulticlassAccuracy"
    assert pruned.metric_before is not None
    assert pruned.metric_after is not None
    assert metric.update_count == 0


@pytest.mark.parametrize("recipe", [Recipe(schedule=OneShot(0.75)), Recipe(schedule=OneShot(0.5), criterion=Wanda())])
def test_single_weights(recipe: Recipe) -> None:
    net, data = redundant(), batches()
    dense, cut = copy.deepcopy(net), copy.deepcopy(net)
    prune(net, recipe, data, progress=False)
    prune(cut, replace(recipe, repair=NoRepair()), data, progress=False)
    zeros = [int((p == 0).sum()) for p in net.parameters() if p.dim() > 1]
    assert zeros == [int((p == 0).sum()) for p in cut.parameters() if p.dim() > 1]
    x = torch.cat([x for x, _ in batches()])
    assert (net(x) - dense(x)).square().mean() < 0.8 * (cut(x) - dense(x)).square().mean()


def test_a_lightning_module_with_batch_norm() -> None:
    model = Net()
    data = list(loader(8))
    mode, requires = model.training, [p.requires_grad for p in model.parameters()]
    random = torch.get_rng_state()
    pruned = prune(
        model, Recipe(granularity=Channel(), schedule=OneShot(0.5), criterion=Fisher()), data, progress=False
    )
    assert model.training == mode
    assert [p.requires_grad for p in model.parameters()] == requires
    assert torch.equal(torch.get_rng_state(), random)
    assert sum(parameter.numel() for parameter in model.parameters()) == pruned.after.parameters
    assert pruned.stayed


class Named(nn.Module):
    """Takes its input by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.net = redundant()

    def forward(self, *, x: Tensor) -> Tensor:
        return self.net(x)


def test_dicts_and_frozen_weights() -> None:
    model = Named().requires_grad_(False)
    prune(model, HALF, [{"x": x, "label": y} for x, y in batches()], progress=False)
    assert model.net[0].out_features == 8
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_biases_of_zeros_count_on_both_sides() -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    nn.init.zeros_(dict(net.named_parameters())["0.bias"])
    pruned = prune(net, UNREPAIRED, batches(), progress=False)
    left = sum(parameter.numel() for parameter in net.parameters())
    assert f"{8 * 16 + 16 + 16 * 4 + 4} -> {left}\n" in str(pruned)


class Viewed(nn.Module):
    """Holds a size that no graph shows, so that the channels before it are refused."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.dense, self.last = nn.Linear(512, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x)))).view(-1, 512)
        return self.last(torch.relu(self.dense(x)))


def test_what_is_refused_is_told_and_what_is_a_matter_of_course_is_not() -> None:
    with pytest.warns(UserWarning, match="channels of 1 groups stay"):
        pruned = prune(Viewed(), HALF, [torch.rand(32, 3, 8, 8)], progress=False)
    assert "second" in pruned.stayed
    stays = str(pruned).splitlines()[-1]
    assert stays.startswith("1 channel group stays: ")
    assert stays.endswith("(second)")
    assert {"model output", "input of the model"} & set(pruned.stayed.values())


def test_repair_is_a_value() -> None:
    assert LeastSquares(samples=64) != LeastSquares()


def test_repair_and_criterion_look_at_as_many_samples_as_they_say() -> None:
    seen: list[int] = []

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))

        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return self.net(x)

    data = [torch.randn(64, 6) for _ in range(4)]
    recipe = Recipe(granularity=Channel(), schedule=OneShot(0.5))
    prune(Counting(), replace(recipe, repair=LeastSquares(samples=40)), data, progress=False)
    assert max(seen) == 40
    seen.clear()
    prune(Counting(), recipe, data, samples=24, progress=False)
    assert max(seen) == 24


def test_layers_that_were_repaired_in_an_earlier_round_count_as_repaired() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    recipe = Recipe(granularity=Channel(), schedule=Polynomial(0.5, begin_step=0.2, end_step=0.7, frequency=5))
    pruned = prune(net, recipe, [torch.randn(64, 6) for _ in range(4)], progress=False)
    done = {repair.name for event in pruned.events for repair in event.repairs if repair.is_done}
    assert not any(repair.is_done for repair in pruned.repairs)  # the last round has nothing left to cut
    assert done
    assert f"repaired    {len(done)} of 3 layers" in str(pruned)


def test_batches_of_several_shapes_are_looked_at_as_far_as_they_are_alike() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    small, large = torch.rand(8, 3, 8, 8), [torch.rand(64, 3, 10, 10) for _ in range(2)]
    with pytest.warns(UserWarning, match=r"look at 128 of the 136 samples, those of .* shape \(\(128, 3, 10, 10\)\)"):
        pruned = prune(net, HALF, [small, *large], progress=False)
    assert pruned.repairs[-1].is_done


def test_what_was_pruned_knows_an_example() -> None:
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    prune(net, Recipe(granularity=Channel(), schedule=OneShot(0.5)), [torch.randn(64, 6)], progress=False)
    example = example_of(net)
    assert example is not None
    assert example(net).shape[1] == 3


def test_macs_are_of_one_sample_of_the_data_and_of_all_of_an_example_given() -> None:
    def pruned(**options: Any) -> Any:
        net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
        recipe = Recipe(granularity=Channel(), schedule=OneShot(0.5), count="macs")
        return prune(net, recipe, [torch.randn(64, 6)], progress=False, **options)

    learnt, own = pruned(), pruned(example_inputs=torch.zeros(4, 6))
    assert (learnt.before.macs, own.before.macs) == (6 * 12 + 12 * 3, 4 * (6 * 12 + 12 * 3))
    assert learnt.after.macs == learnt.events[0].macs == (6 + 3) * 6
    assert own.after.macs == own.events[0].macs == 4 * (6 + 3) * 6
