"""One event of a recipe on a model: scores, several recipes, and records that agree with the weights."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pruner_cases import Net, X, bytes_of, costs, network, pruned, ready, removed_in, scores_of
from torch import Tensor, nn

from lightning_prune.criteria import Magnitude, Random, Taylor
from lightning_prune.model import masks
from lightning_prune.recipe import Recipe
from lightning_prune.run.binding import bind
from lightning_prune.run.pruner import Event, describe, prune_step
from lightning_prune.schedules import Iterative, OneShot
from lightning_prune.selection import ChannelUnits
from lightning_prune.selection.granularity import Channel, NOfM
from lightning_prune.selection.targets import Targets


def test_two_recipes_never_disturb_each_other() -> None:
    model = network()
    a = ready(Recipe(schedule=OneShot(0.9), targets=Targets(("inner", "outer"))), model)
    b = ready(Recipe(schedule=OneShot(0.5), granularity=NOfM(2, 4), targets=Targets(("fc", "head"))), model)
    prune_step(a, model, 0.5)
    first = pruned(model)
    assert not first["fc.weight"].any()
    prune_step(b, model, 0.5)
    second = pruned(model)
    assert all(np.array_equal(second[name], first[name]) for name in a.units.shapes)
    assert {int(second[name].sum()) for name in b.units.shapes} == {12 * 32, 10 * 6}
    prune_step(a, model, 0.9)
    assert all(np.array_equal(pruned(model)[name], second[name]) for name in b.units.shapes)
    assert sum(int(pruned(model)[name].sum()) for name in a.units.shapes) == round(0.9 * 2 * 384)


def test_channels_and_single_weights_of_one_network() -> None:
    model = network()
    channels = ready(Recipe(schedule=OneShot(0.5), granularity=Channel(), targets=Targets(("stem", "outer"))), model)
    single = ready(Recipe(schedule=OneShot(0.9), targets=Targets(("inner", "deep", "fc"))), model)
    prune_step(single, model, 0.9)
    prune_step(channels, model, 0.5)
    assert sum(removed_in(channels, model).values()) == 8
    assert masks.structured_names(model) == tuple(n for n in masks.read(model) if n in channels.units.shapes)


def test_any_function_will_do_as_a_criterion() -> None:
    def largest_first(name: str, weight: Tensor) -> Tensor:
        return -weight.abs()

    model = network()
    flat = np.concatenate(
        [p.detach().abs().numpy().flatten() for n, p in masks.dense_parameters(model).items() if n in _WEIGHTS]
    )
    pruner = ready(Recipe(schedule=OneShot(0.3), criterion=largest_first), model)
    prune_step(pruner, model, 0.1)
    prune_step(pruner, model, 0.3)
    kept = np.concatenate([~gone.flatten() for gone in pruned(model).values()])
    assert (~kept).sum() == round(0.3 * flat.size)
    assert flat[kept].max() <= np.sort(flat)[-round(0.3 * flat.size)]


_WEIGHTS = [target.name for target in Targets().resolve(Net())]


def test_scores_that_are_negative_leave_an_unpruned_layer_alone() -> None:
    model = network()
    recipe = Recipe(
        schedule=OneShot(0.3),
        criterion=lambda name, w: -w.abs() - 1,
        allocation=lambda share, of: {name: 0.0 if name == "fc.weight" else share for name in of.sizes},
    )
    prune_step(ready(recipe, model), model, 0.3)
    assert not pruned(model)["fc.weight"].any()


def test_an_event_stays_on_one_thread_from_its_scores_to_the_optimizer() -> None:
    """Beside busy processes, threads that come and go between its parts wait for each other."""
    threads: list[int] = []

    def counting(name: str, weight: Tensor) -> Tensor:
        threads.append(torch.get_num_threads())
        return weight.abs()

    model, before = network(), torch.get_num_threads()
    pruner = ready(Recipe(schedule=OneShot(0.5), criterion=counting), model)
    torch.set_num_threads(3)
    try:
        prune_step(pruner, model, 0.5, carry=lambda _: threads.append(torch.get_num_threads()))
        after = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    assert set(threads) == {1}
    assert after == 3


def test_random_prunes_the_same_on_every_rank() -> None:
    found = []
    for rank in range(2):
        model = network()
        torch.manual_seed(rank)
        pruner = ready(Recipe(schedule=OneShot(0.7), criterion=Random(seed=5)), model)
        torch.rand(rank + 3)
        for sparsity in (0.3, 0.7):
            prune_step(pruner, model, sparsity)
        found.append(pruned(model))
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])


def test_taylor_scores_a_channel_by_the_mean_over_the_steps() -> None:
    model = network()
    pruner = ready(
        Recipe(schedule=OneShot(0.5, begin_step=1), granularity=Channel(min_share=0), criterion=Taylor()), model
    )
    assert isinstance(pruner.units, ChannelUnits)
    sums = {name: np.zeros(shape) for name, shape in pruner.units.shapes.items()}
    for _ in range(3):
        model.zero_grad()
        model(torch.randn(4, 1, 8, 8)).square().mean().backward()
        pruner.observe(masks.dense_parameters(model))
        for name, parameter in masks.dense_parameters(model).items():
            if name in sums:
                assert parameter.grad is not None
                sums[name] += (parameter.detach().double().numpy() * parameter.grad.double().numpy()) ** 2
    expected = {group.name: np.zeros(group.size) for group in pruner.units.groups}
    for group in pruner.units.groups:
        for member in group.members:
            if member.parameter in sums:
                along = np.moveaxis(sums[member.parameter] / 3, member.axis, 0)
                along = along.reshape(len(along), -1).sum(1)
                expected[group.name] += along[member.indices].sum(1)
    for name, found in pruner.units.candidates(scores_of(pruner, model), masks.read(model)).scores.items():
        np.testing.assert_allclose(found.numpy(), expected[name], rtol=1e-4)
    prune_step(pruner, model, 0.5)
    assert pruner.observed.steps == {}
    together = np.concatenate(list(expected.values()))
    gone = np.concatenate([g.numpy() for g in pruner.units.gone(masks.read(model)).values()])
    assert set(np.flatnonzero(gone)) == set(np.argsort(together, kind="stable")[:26])


def test_observing_is_over_when_the_final_sparsity_was_asked_for() -> None:
    model = network()
    pruner = ready(Recipe(schedule=OneShot(0.5, begin_step=1), criterion=Taylor()), model)
    assert pruner.is_watching
    pruner.progress.asked = 0.5
    assert pruner.is_finished
    assert not pruner.is_watching
    assert not ready(Recipe(schedule=OneShot(0.5), criterion=Magnitude()), network()).is_watching


def test_the_record_of_an_event() -> None:
    model = network()
    pruner = ready(Recipe(schedule=OneShot(0.5), granularity=Channel(), targets=Targets(("inner", "deep"))), model)
    seen: list[Mapping[nn.Parameter, Tensor]] = []
    event = prune_step(pruner, model, 0.5, seen.append, step=7)
    left = costs(16, 12, 12)
    layers = {"inner.weight": 0.5, "deep.weight": 0.5, "outer.weight": 0.5}
    assert event == Event(7, 0.5, 0.5, layers, left["params"], left["macs"])
    assert {id(p) for p in seen[0]} == {id(masks.dense_parameters(model)[n]) for n in pruner.units.shapes}
    assert all(not bool(p[~mask].any()) for p, mask in seen[0].items())
    assert describe(pruner, model, 7) == event


def test_a_tied_weight_is_pruned_and_recorded_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 6, bias=False)
            self.b = nn.Linear(6, 6, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    counts: tuple[tuple[Any, int], ...] = (("params", 18), ("macs", 36))
    for count, left in counts:
        model = Tied()
        pruner = bind(Recipe(schedule=OneShot(0.5), count=count, targets=Targets(("b",))), model, (torch.zeros(1, 6),))
        pruner.attach(model)
        event = prune_step(pruner, model, 0.5)
        assert (event.sparsity, event.params, event.macs) == (0.5, 18, 36)
        assert dict(event.layers) == {"a.weight": 0.5}
        assert left == {"params": event.params, "macs": event.macs}[count]


def test_without_an_example_input_single_weights_work_all_the_same() -> None:
    model = network()
    pruner = bind(Recipe(schedule=OneShot(0.5)), model, None)
    pruner.attach(model)
    assert prune_step(pruner, model, 0.5).macs is None
    lazy = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    assert bind(Recipe(schedule=OneShot(0.5)), lazy, None).parameters == 10
    assert bind(Recipe(schedule=OneShot(0.5)), lazy, (torch.zeros(1, 3),)).macs is not None


def test_binding_leaves_the_model_as_it_is() -> None:
    model = network()
    model(torch.randn(4, 1, 8, 8))
    before, modes, random = bytes_of(model), [m.training for m in model.modules()], torch.get_rng_state()
    pruner = bind(Recipe(schedule=Iterative(0.5, end_step=0.5), granularity=Channel(), count="macs"), model, X, 1000)
    assert pruner.schedule == Iterative(0.5, end_step=500)
    assert bytes_of(model) == before
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert not masks.is_masked(model)


def test_frozen_weights_stay_out_of_channel_groups() -> None:
    model = network()
    model.inner.requires_grad_(False)
    pruner = bind(Recipe(schedule=OneShot(0.5), granularity=Channel()), model, X)
    assert sorted(pruner.units.sizes.values()) == [12, 16]
    assert "inner.weight" in pruner.units.shapes
    pruner.attach(model)
    prune_step(pruner, model, 0.5)
    assert not bool((masks.dense_parameters(model)["inner.weight"] != 0).flatten(1).all())
