"""A criterion of the user's own that looks at samples: in a fit, without one, for weights and for channels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_prune import (
    Channel,
    Global,
    NoRepair,
    OneShot,
    PruningRun,
    Recipe,
    SampleCriterion,
    Targets,
    Uniform,
    prune,
)
from lightning_prune.criteria import Run, Seen, watched
from lightning_prune.errors import NonFiniteError, PruningError
from lightning_prune.model.masks import dense_parameters

Columns = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class OutputSize(SampleCriterion):
    """How much of the outputs' squares hangs on a weight."""

    samples: int = 32

    def seen(self, model: nn.Module, inputs: Run, names: Sequence[str], columns: Columns) -> Any:
        assert not any(module.training for module in model.modules())
        assert not columns
        weights = dense_parameters(model)
        gradients = torch.autograd.grad(inputs(model).square().sum(), [weights[name] for name in names])
        known = dict(zip(names, gradients, strict=True))
        return lambda name, weight: (weight * known[name]).abs()


@dataclass(frozen=True)
class Loudness(SampleCriterion):
    """The mean size of what comes in by a channel."""

    def seen(self, model: nn.Module, inputs: Run, names: Sequence[str], columns: Columns) -> Any:
        channels: dict[str, dict[int, float]] = {}
        layers = dict(watched(model))

        def note(layer: nn.Module, args: tuple[Tensor]) -> None:
            (name,) = (name for name, own in layers.items() if own is layer)
            for group, number in columns.get(name, {}).items():
                sizes = args[0].detach().abs().mean(0).tolist()
                channels[group] = dict(zip(number[0].tolist(), sizes, strict=True))

        hooks = [layer.register_forward_pre_hook(note) for layer in layers.values()]
        inputs(model)
        for hook in hooks:
            hook.remove()
        assert list(channels) == list(names)
        return Seen(channels=channels)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.second = nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.drop(torch.relu(self.first(x))))


def recipe(**parts: Any) -> Recipe:
    return Recipe(schedule=OneShot(0.5, begin_step=2), repair=NoRepair(), **parts)


def test_weights_are_scored_by_the_samples() -> None:
    net = Net().eval()
    x = torch.rand(32, 6)
    weights = [net.first.weight, net.second.weight]
    gradients = torch.autograd.grad(net(x).square().sum(), weights)
    scores = [(weight * gradient).abs().detach() for weight, gradient in zip(weights, gradients, strict=True)]
    cut = torch.cat([score.flatten() for score in scores]).sort().values[36]
    prune(net, recipe(criterion=OutputSize(), allocation=Global()), [x], progress=False)
    for weight, score in zip(weights, scores, strict=True):
        assert torch.equal(weight != 0, score >= cut)


def test_channels_are_scored_by_the_samples() -> None:
    net = Net()
    with torch.no_grad():
        net.first.bias.copy_(torch.tensor([5.0, 0, 5, 0, 0, 5, 5, 0]))
        net.first.weight.mul_(0.1)
    bias = net.first.bias.detach().clone()
    chosen = recipe(criterion=Loudness(), granularity=Channel(), targets=Targets(("first*",)), allocation=Uniform())
    prune(net, chosen, [torch.rand(32, 6)], progress=False)
    assert torch.equal(net.first.bias, bias[[0, 2, 5, 6]])


def test_in_a_fit_it_sees_the_last_steps_and_leaves_the_modes_alone() -> None:
    net = Net().train()
    counts: list[int] = []

    @dataclass(frozen=True)
    class Counting(OutputSize):
        def seen(self, model: nn.Module, inputs: Run, names: Sequence[str], columns: Columns) -> Any:
            counts.append(len(inputs(model)))
            return super().seen(model, inputs, names, columns)

    run = PruningRun([recipe(criterion=Counting())], net, None, total_steps=4)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    run.start([optimizer], [], net)
    for _ in range(4):
        net(torch.rand(12, 6)).square().mean().backward()
        optimizer.step()
        run.prune_if_due(net)
    assert counts == [24]
    assert run.sparsity == pytest.approx(0.5)
    assert all(module.training for module in net.modules())


def test_without_samples_it_is_refused() -> None:
    net = Net()
    run = PruningRun([recipe(criterion=OutputSize())], net, None, total_steps=4)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    run.start([optimizer], [], net)
    optimizer.step()
    optimizer.step()
    with pytest.raises(PruningError, match=r"OutputSize\(samples=32\) looks at inputs of the last steps .* has none"):
        run.prune_if_due(net)
    with pytest.raises(ValueError, match=r"OutputSize\(samples=32\) watches the inputs of the steps before an event"):
        PruningRun([Recipe(schedule=OneShot(0.5, begin_step=0), criterion=OutputSize())], net, None, total_steps=4)
    with pytest.raises(PruningError, match=r"scores first.weight by what it sees of samples"):
        OutputSize()("first.weight", net.first.weight)


def test_what_does_not_score_is_refused_before_anything_changes() -> None:
    class Mute(SampleCriterion):
        def seen(self, model: nn.Module, inputs: Run, names: Sequence[str], columns: Columns) -> Any:
            return {name: torch.ones(1) for name in names}

    net = Net()
    before = net.first.weight.detach().clone()
    with pytest.raises(TypeError, match=r"seen\(…\) must return a function of name and weight, or Seen\(…\), got \{"):
        prune(net, recipe(criterion=Mute()), [torch.rand(32, 6)], progress=False)
    assert torch.equal(net.first.weight, before)


@pytest.mark.parametrize(
    ("channels", "error", "message"),
    [
        ({"first": {number: float("nan") for number in range(8)}}, NonFiniteError, "scores channel 0 with nan; scores"),
        ({"first": {1: float("-inf")}}, NonFiniteError, "scores channel 1 with -inf"),
        ({"first": {99: 1.0}}, ValueError, r"\['first'\] scores channel 99; first has the numbers 0 to 7"),
        ({"first": {-1: 1.0}}, ValueError, r"\['first'\] scores channel -1"),
        ({"nobody": {0: 1.0}}, ValueError, r"\['nobody'\] is of no channel group that is to be scored; .* first"),
        ({"first": torch.rand(8)}, TypeError, r"got Tensor; .* dict\(enumerate\(scores.tolist\(\)\)\)"),
        ({"first": [1.0] * 8}, TypeError, "got list"),
        ([1.0], TypeError, r"Seen.channels must be \{group: \{number: score\}\}, got list"),
    ],
)
def test_scores_of_channels_that_cannot_be_are_refused(channels: Any, error: type[Exception], message: str) -> None:
    class Told(SampleCriterion):
        def seen(self, model: nn.Module, inputs: Run, names: Sequence[str], columns: Columns) -> Any:
            return Seen(channels=channels)

    net = Net()
    before = net.first.weight.detach().clone()
    with pytest.raises(error, match=message):
        prune(net, recipe(criterion=Told(), granularity=Channel()), [torch.rand(32, 6)], progress=False)
    assert torch.equal(net.first.weight, before)


def zero(model: nn.Module, inputs: Run) -> None:
    with torch.no_grad():
        next(model.parameters()).zero_()


def backward(model: nn.Module, inputs: Run) -> None:
    inputs(model).sum().backward()


def train(model: nn.Module, inputs: Run) -> None:
    inputs(model.train())


@pytest.mark.parametrize(
    ("change", "what"),
    [(zero, "0.weight"), (backward, "the gradient of 0.weight"), (train, "1.(running_mean|num_batches_tracked)")],
)
def test_a_model_that_was_changed_is_refused(change: Callable[[nn.Module, Run], None], what: str) -> None:
    class Careless(SampleCriterion):
        def seen(self, model: nn.Module, inputs: Run, names: Sequence[str], columns: Columns) -> Any:
            change(model, inputs)
            return lambda name, weight: weight.abs()

    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(PruningError, match=rf"seen\(…\) changed {what}, and must leave the model as it is"):
        prune(net, recipe(criterion=Careless()), [torch.rand(32, 6)], progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_how_many_samples_is_checked_with_the_recipe() -> None:
    with pytest.raises(TypeError, match=r"OutputSize.samples must be an int"):
        recipe(criterion=OutputSize(samples="many"))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"OutputSize.samples must be at least 1, got 0"):
        recipe(criterion=OutputSize(samples=0))


def test_what_is_known_of_some_channels_leaves_the_others() -> None:
    seen = Seen(channels={"a": {0: 2.0, 2: 1.0}})
    others = {"a": torch.tensor([7.0, 7.0, 7.0, -torch.inf]), "b": torch.tensor([3.0])}
    assert {name: scores.tolist() for name, scores in seen.of_channels(others).items()} == {
        "a": [2.0, 0.0, 1.0, -torch.inf],
        "b": [3.0],
    }
