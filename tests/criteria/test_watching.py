"""Fisher and Wanda: against brute force, in a training loop, through copies, compaction and the callback."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_cases import RISE, Loop
from support import LinearNet, Net, loader, trainer
from torch import Tensor, nn

from lightning_prune import Channel, PruningCallback, Recipe, Targets
from lightning_prune.criteria import ActivationCriterion, Fisher, Observations, Scores, Taylor, Wanda
from lightning_prune.errors import PruningError
from lightning_prune.model import masks
from lightning_prune.run.binding import bind
from lightning_prune.schedules import Linear, OneShot

LAYERS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(3, 2), (4, 5, 3)),
    (nn.Linear(3, 2), (3,)),
    (nn.Conv1d(2, 3, 3, padding="same", padding_mode="circular"), (2, 2, 6)),
    (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 7, 7)),
    (nn.Conv2d(4, 4, 3, groups=4, dilation=2), (4, 9, 9)),
    (nn.Conv3d(2, 2, 2), (1, 2, 3, 3, 3)),
    (nn.ConvTranspose1d(4, 2, 3), (4, 5)),
    (nn.ConvTranspose2d(4, 2, 3, stride=2, groups=2), (2, 4, 5, 5)),
]


def met(layer: Any, inputs: Tensor) -> Tensor:
    """The sum of the squares that each weight is multiplied with: what a layer of that weight alone, at 1, gives."""
    found = torch.zeros(layer.weight.numel(), dtype=inputs.dtype)
    for index in range(len(found)):
        alone = torch.zeros_like(found)
        alone[index] = 1
        parameters = {"weight": alone.view_as(layer.weight), "bias": torch.zeros_like(layer.bias)}
        found[index] = torch.func.functional_call(layer, parameters, (inputs,)).square().sum()
    return found.view_as(layer.weight)


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda value: str(value))
def test_wanda_sees_what_each_weight_meets(layer: Any, shape: tuple[int, ...]) -> None:
    layer, inputs = copy.deepcopy(layer).double(), torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        expected, found = met(layer, inputs), Wanda().observe(layer, inputs)
        score = Wanda().score(layer.weight, found)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-12)
    np.testing.assert_allclose(
        score.numpy(), layer.weight.detach().abs().numpy() * np.sqrt(expected.numpy()), rtol=1e-12
    )


def test_fisher_is_the_mean_square_of_the_gradient_with_the_weight_of_the_event() -> None:
    weight, observed, gradients = nn.Parameter(torch.randn(3, 4)), Observations(), torch.randn(5, 3, 4)
    for gradient in gradients:
        weight.grad = gradient
        observed.add(Fisher(), "w", weight)
        with torch.no_grad():
            weight.mul_(0.5)
    expected = weight.detach().numpy() ** 2 * (gradients.numpy() ** 2).mean(axis=0) / 2
    scores = Scores(Fisher(), {"w": weight}, observed, {})
    np.testing.assert_allclose(scores["w"].numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(torch.cat(list(scores.chunks("w"))).numpy(), expected.flatten(), rtol=1e-5)


def test_on_fixed_weights_fisher_is_half_of_taylor() -> None:
    weight, taylor, fisher = nn.Parameter(torch.randn(3, 4)), Observations(), Observations()
    for _ in range(3):
        weight.grad = torch.randn(3, 4)
        taylor.add(Taylor(), "w", weight)
        fisher.add(Fisher(), "w", weight)
    both = [Scores(c, {"w": weight}, o, {})["w"] for c, o in ((Taylor(), taylor), (Fisher(), fisher))]
    np.testing.assert_allclose(both[0].numpy(), 2 * both[1].numpy(), rtol=1e-5)


def test_an_evaluation_in_between_does_not_count() -> None:
    loop = Loop(Recipe(schedule=RISE, criterion=Wanda())).start().train(3)
    observed = loop.run.pruners[0].observed
    before = {name: total.clone() for name, total in observed.sums.items()}
    with torch.no_grad():
        loop.model(torch.randn(8, 6))
    assert observed.steps == dict.fromkeys(before, 3)
    assert all(torch.equal(observed.sums[name], total) for name, total in before.items())


def test_copies_of_the_model_show_nothing() -> None:
    loop = Loop(Recipe(schedule=RISE, criterion=Wanda())).start().train(2)
    copied = copy.deepcopy(loop.model)
    copied(torch.randn(8, 6)).sum().backward()
    assert set(loop.run.pruners[0].observed.steps.values()) == {2}


def test_hooks_go_when_the_run_stops() -> None:
    loop = Loop(Recipe(schedule=RISE, criterion=Wanda()))
    held = [len(module._forward_pre_hooks) for module in loop.model.modules()]
    loop.start()
    assert sum(len(module._forward_pre_hooks) for module in loop.model.modules()) == sum(held) + 3
    loop.run.stop()
    assert [len(module._forward_pre_hooks) for module in loop.model.modules()] == held


@pytest.mark.parametrize("criterion", [Wanda(), Fisher()], ids=str)
@pytest.mark.parametrize("every_event", [False, True])
def test_in_the_callback_with_channels(tmp_path: Path, criterion: Any, every_event: bool) -> None:
    recipe = Recipe(
        granularity=Channel(), criterion=criterion, schedule=Linear(0.5, begin_step=2, end_step=6, frequency=2)
    )
    model = Net()
    trainer(tmp_path, PruningCallback(recipe, compact_every_event=every_event)).fit(model, loader())
    # 16 channels in two groups
    assert model.conv2.out_channels + model.conv3.out_channels == 8


def test_what_wanda_keeps_meets_the_large_inputs(tmp_path: Path) -> None:
    class Scaled(LinearNet):
        def forward(self, features: Tensor) -> Tensor:
            return super().forward(features.flatten(1)[:, :12] * torch.tensor([100.0] * 6 + [1e-6] * 6))

    model = Scaled()
    with torch.no_grad():
        model.first.weight.fill_(0.1)
    recipe = Recipe(criterion=Wanda(), schedule=OneShot(0.5, begin_step=1), targets=Targets(("first",)))
    trainer(tmp_path, PruningCallback(recipe, finalize=False), max_epochs=1).fit(model, loader())
    (mask,) = masks.read(model).values()
    assert bool(mask[:, :6].all())
    assert not bool(mask[:, 6:].any())


def test_layers_that_never_ran_and_targets_that_no_input_reaches() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle, self.words = nn.Linear(4, 4), nn.Linear(4, 4), nn.Embedding(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = Idle()
    recipe = Recipe(criterion=Wanda(), schedule=OneShot(0.5, begin_step=1), targets=Targets(("used", "words")))
    with pytest.raises(ValueError, match=r"Wanda\(\) watches what enters .* words.weight belongs to none"):
        bind(recipe, model, None)
    observed = Observations()
    observed.see(Wanda(), "used.weight", model.used, torch.randn(2, 4))
    weights: dict[str, Tensor] = {"used.weight": model.used.weight, "idle.weight": model.idle.weight}
    with pytest.raises(PruningError, match=r"idle.weight has had no input yet.*exclude this parameter"):
        Scores(Wanda(), weights, observed, {}).check()
    with pytest.raises(ValueError, match=r"Wanda\(\) watches the inputs of the steps .*let begin_step be at least 1"):
        bind(Recipe(criterion=Wanda(), schedule=OneShot(0.5)), model, None)


def test_a_criterion_of_ones_own() -> None:
    class Largest(ActivationCriterion):
        def observe(self, layer: nn.Module, inputs: Tensor) -> Tensor:
            return inputs.abs().amax(0).expand_as(layer.weight)  # pyright: ignore[reportArgumentType]

    loop = Loop(Recipe(schedule=RISE, criterion=Largest())).start().train(22)
    assert loop.run.sparsity == pytest.approx(0.75, abs=0.01)
