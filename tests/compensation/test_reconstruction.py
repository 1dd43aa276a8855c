"""What a layer misses least once the others have taken over: against brute force, in fits and without."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_prune import (
    Channel,
    LeastSquares,
    NoRepair,
    OneShot,
    PruningRun,
    Recipe,
    Reconstruction,
    Targets,
    Uniform,
    prune,
)
from lightning_prune.compensation import Call
from lightning_prune.compensation.reconstruction import removal_losses
from lightning_prune.errors import NonFiniteError, PruningError
from lightning_prune.model import masks
from lightning_prune.model.example import Example
from lightning_prune.run.binding import bind
from lightning_prune.run.pruner import prune_step

DAMPING = 1e-3


def problem(outputs: int, columns: int) -> tuple[Tensor, Tensor]:
    """Weights, and the second moments of inputs that have much in common."""
    x = torch.randn(300, columns, dtype=torch.float64) @ torch.randn(columns, columns, dtype=torch.float64)
    return torch.randn(outputs, columns, dtype=torch.float64), x.mT @ x / len(x)


def error_without(weight: Tensor, moments: Tensor, gone: list[int]) -> float:
    """What is left of the error, by a fit of all other columns."""
    w, g = weight.numpy(), moments.numpy()
    g = g + DAMPING * np.diag(g).mean() * np.eye(len(g))
    kept = [column for column in range(len(g)) if column not in gone]
    lost = w.copy()
    lost[:, kept] -= np.linalg.solve(g[np.ix_(kept, kept)], g[kept] @ w.T).T
    return float(((lost @ g) * lost).sum())


@pytest.mark.parametrize("size", [1, 3])
def test_each_turn_takes_the_block_that_brute_force_takes(size: int) -> None:
    weight, moments = problem(5, 12)
    number = torch.arange(12) // size
    losses = removal_losses(weight, moments, number, torch.ones(12, dtype=torch.bool), DAMPING)
    assert len(losses) == 12 // size
    energy = float(((weight @ moments) * weight).sum())
    gone: list[int] = []
    so_far = highest = 0.0
    for block, loss in losses.items():
        errors = {
            other: error_without(weight, moments, [*gone, *torch.nonzero(number == other).flatten().tolist()])
            for other in set(number.tolist()) - set(number[gone].tolist())
        }
        assert errors[block] == pytest.approx(min(errors.values()), rel=1e-3)
        highest = max(highest, (errors[block] - so_far) / energy)
        assert loss == pytest.approx(highest, rel=5e-3)
        so_far = errors[block]
        gone += torch.nonzero(number == block).flatten().tolist()


def test_columns_of_nobody_take_over_and_those_that_are_gone_do_not() -> None:
    weight, moments = problem(4, 6)
    number = torch.tensor([0, 1, 2, -1, -1, -1])
    live = torch.tensor([True, True, True, True, False, False])
    weight[:, 4:] = 0
    losses = removal_losses(weight, moments, number, live, DAMPING)
    assert set(losses) == {0, 1, 2}
    part = removal_losses(weight[:, :4], moments[:4, :4], number[:4], live[:4], DAMPING)
    assert losses == pytest.approx(part)


class Net(nn.Module):
    """Units whose second half repeats the first, behind a layer whose weights would not tell."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 12), nn.Linear(12, 4)
        with torch.no_grad():
            for tensor in (self.first.weight, self.first.bias):
                tensor[6:] = 2 * tensor[:6]

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


def recipe(sparsity: float, **more: Any) -> Recipe:
    schedule = OneShot(sparsity, begin_step=1)
    return Recipe(**({"granularity": Channel(), "schedule": schedule, "criterion": Reconstruction()} | more))


def test_units_that_others_can_make_go_first() -> None:
    net = Net()
    rows = {tuple((row / row.norm()).tolist()) for row in net.first.weight}
    x = torch.randn(64, 8)
    before = net(x).detach()
    prune(net, recipe(0.5, repair=LeastSquares()), [torch.randn(64, 8) for _ in range(4)], progress=False)
    left = {tuple((row / row.norm()).tolist()) for row in net.first.weight}
    assert len(left) == len(rows) == 6
    assert torch.allclose(net(x), before, atol=1e-3)


def test_single_weights_score_by_what_the_rest_of_a_row_cannot_make() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 3), torch.randn(256, 6)
    x[:, 1] = x[:, 0]
    net = nn.Sequential(layer)
    weight = layer.weight.detach().clone()
    rows = torch.cat([x, torch.ones(256, 1)], 1).double()
    moments = (rows.mT @ rows / 256).numpy()
    inverse = np.linalg.inv(moments + DAMPING * np.diag(moments).mean() * np.eye(7)).diagonal()[:6]
    scores = weight.numpy() ** 2 / inverse
    only = {"granularity": Recipe(schedule=OneShot(0.5)).granularity}
    prune(net, recipe(0.5, repair=NoRepair(), **only), [x], progress=False)
    lowest = np.sort(scores.flatten())[8]
    assert np.array_equal(layer.weight.detach().numpy() == 0, scores <= lowest)
    assert int((layer.weight[:, :2] == 0).sum()) == 6  # either can make the other


def test_convolutions_count_channels_with_all_their_taps() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 6, 3), nn.Flatten(),
        nn.Linear(24, 3),
    )  # fmt: skip
    pruned = prune(
        net, recipe(0.4, allocation=Uniform(), repair=LeastSquares()), [torch.randn(64, 1, 6, 6)], progress=False
    )
    assert pruned.events[0].sparsity == pytest.approx(0.4, abs=0.1)
    first, last = net[0], net[3]
    assert isinstance(first, nn.Conv2d)
    assert isinstance(last, nn.Conv2d)
    assert first.out_channels < 8
    assert last.out_channels < 6


def test_taps_that_another_recipe_has_taken_leave_the_channel_whole() -> None:
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    pruner = bind(recipe(0.4, targets=Targets(("0",)), allocation=Uniform()), net, (torch.zeros(1, 1, 6, 6),))
    pruner.attach(net)
    mask = torch.ones(4, 6, 3, 3, dtype=torch.bool)
    mask[:, 2, 0] = False
    masks.write(net, [("2.weight", mask)])
    event = prune_step(pruner, net, 0.4, step=1, inputs=Call("", Example((torch.randn(64, 1, 6, 6),))))
    assert event.sparsity == pytest.approx(1 / 3)


def test_what_cannot_be_scored_is_named_before_anything_changes() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 12)
            self.second = nn.Parameter(torch.randn(4, 12))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.first(x)) @ self.second.T

    net, data = Table(), [torch.randn(64, 8)]
    before = net.first.weight.detach().clone()
    with pytest.raises(PruningError, match=r"cannot score first: no Linear, convolution or recurrent layer was seen"):
        prune(net, recipe(0.5), data, progress=False)
    assert torch.equal(net.first.weight, before)
    net = Net()
    before = net.first.weight.detach().clone()
    with pytest.raises(NonFiniteError, match=r"what enters second.weight is NaN or infinite"):
        prune(net, recipe(0.5, repair=NoRepair()), [torch.randn(64, 8).mul_(1e30) * 1e30], progress=False)
    assert torch.equal(net.first.weight, before)
    with pytest.raises(PruningError, match=r"scores second.weight by what it sees of samples"):
        Reconstruction()("second.weight", torch.ones(2, 2))


def test_an_event_before_the_first_step_is_refused() -> None:
    at_once = Recipe(granularity=Channel(), schedule=OneShot(0.5), criterion=Reconstruction())
    with pytest.raises(ValueError, match=r"watches the inputs of the steps before an event, and OneShot"):
        PruningRun([at_once], Net(), (torch.zeros(1, 8),), 10)


@pytest.mark.parametrize(("field", "value"), [("samples", 8), ("rows", 1), ("damping", 0.0)])
def test_bad_arguments(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"Reconstruction.{field} must be"):
        Reconstruction(**{field: value})


def test_targets_are_left_to_the_recipe() -> None:
    net = Net()
    prune(net, recipe(0.5, targets=Targets(("first",))), [torch.randn(64, 8)], progress=False)
    assert net.first.out_features == 6


def test_heads_of_torchs_attention_that_nothing_reads_go_first() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(12, 4, batch_first=True), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.attention(x, x, x)[0].mean(1))

    model = Net()
    with torch.no_grad():
        model.attention.out_proj.weight.view(12, 4, 3)[:, [0, 2]] *= 1e-3
    values = model.attention.in_proj_weight.detach().clone()[-12:].unflatten(0, (4, 3))
    recipe = Recipe(
        schedule=OneShot(0.5),
        granularity=Channel(),
        criterion=Reconstruction(),
        targets=Targets(include=("attention*",)),
    )
    prune(model, recipe, [torch.randn(64, 5, 12)], progress=False)
    assert model.attention.num_heads == 2
    torch.testing.assert_close(model.attention.in_proj_weight[-6:], values[[1, 3]].flatten(0, 1))
