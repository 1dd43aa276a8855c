"""Optimizer policies as values."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from lightning_prune.optimizer.context import PolicyContext
from lightning_prune.optimizer.policies import (
    BUILT_IN,
    Keep,
    LRRewind,
    Mask,
    OptimizerPolicy,
    Reset,
    Rewarm,
    RewindWeights,
    as_policies,
)
from lightning_prune.recipe import Recipe
from lightning_prune.run.run import PruningRun
from lightning_prune.schedules import Linear


def bad(value: Any) -> Any:
    """A value of a wrong type, which a type checker would not let through."""
    return value


def test_policies_are_values() -> None:
    assert Rewarm(5) == Rewarm(steps=5)
    assert LRRewind() == LRRewind(step=0)
    assert repr((Mask(), RewindWeights(3))) == "(Mask(), RewindWeights(step=3))"
    assert len({Mask(), Mask(), Keep(), Reset()}) == 3


@pytest.mark.parametrize(
    ("build", "error", "text"),
    [
        (lambda: Rewarm(0), ValueError, "Rewarm.steps must be at least 1, got 0"),
        (lambda: Rewarm(bad(2.5)), TypeError, "Rewarm.steps must be an int, a number of optimizer steps, got 2.5"),
        (lambda: Rewarm(True), TypeError, "Rewarm.steps must be an int"),
        (lambda: LRRewind(-1), ValueError, "LRRewind.step must be at least 0, got -1"),
        (lambda: RewindWeights(-3), ValueError, "RewindWeights.step must be at least 0, got -3"),
        (lambda: as_policies(bad("mask")), TypeError, "must be of Mask, Keep, .* or a tuple of them, got 'mask'"),
        (lambda: as_policies((Mask(), bad(5))), TypeError, "got 5"),
        (lambda: as_policies((Mask(), Keep())), ValueError, "more than one of Mask, Keep and Reset: .*choose one"),
        (lambda: as_policies((LRRewind(1), LRRewind(2))), ValueError, "a policy twice: .*name each once"),
    ],
)
def test_bad_policies_are_refused(build: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        build()


def test_one_or_several() -> None:
    assert as_policies(Mask()) == (Mask(),)
    assert as_policies([LRRewind(), RewindWeights(3)]) == (LRRewind(), RewindWeights(3))


@dataclass(frozen=True)
class Cool(OptimizerPolicy):
    """Multiply the learning rate by ``factor`` after each of the first ``times`` events."""

    factor: float = 0.5
    times: int = 3

    def after_event(self, context: PolicyContext) -> None:
        done = context.kept.get("cooled", 0)
        if done < self.times:
            for group in (group for optimizer in context.optimizers for group in optimizer.param_groups):
                group["lr"] *= self.factor
            context.kept["cooled"] = done + 1


def rates(run: PruningRun, net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """Train so many steps; return the learning rate after each."""
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.ones(2, 8)).square().sum().backward()
        optimizer.step()
        run.prune_if_due(net)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_a_policy_of_ones_own_is_carried_out_and_goes_on_from_a_checkpoint() -> None:
    recipe = Recipe(schedule=Linear(0.8, begin_step=1, end_step=6, frequency=1), optimizer_policy=(Cool(times=3),))
    assert pickle.loads(pickle.dumps(recipe)) == recipe

    def begun(net: nn.Module, state: Any = None) -> tuple[PruningRun, nn.Module, torch.optim.Optimizer]:
        run, optimizer = PruningRun([recipe], net, None, None), torch.optim.SGD(net.parameters(), lr=1e-3)
        if state is not None:
            net.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            run.load_state_dict(state["run"], net)
        run.start([optimizer], [], net)
        return run, net, optimizer

    first = begun(nn.Linear(8, 8))
    assert rates(*first, steps=3) == [1e-3, 5e-4, 2.5e-4]
    run, net, optimizer = first
    state = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "run": run.state_dict()}
    assert rates(*begun(nn.Linear(8, 8), copy.deepcopy(state)), steps=3) == [1.25e-4] * 3


@pytest.mark.parametrize("policy", [Mask(), Keep(), Reset(), Rewarm(3), LRRewind(2), RewindWeights(2)])
def test_what_a_policy_answers_hangs_on_its_kind_alone(policy: OptimizerPolicy) -> None:
    assert type(policy) in BUILT_IN
    assert policy.rules_state == isinstance(policy, Mask | Keep | Reset)
    assert policy.goes_back_to == (2 if isinstance(policy, LRRewind | RewindWeights) else None)
    assert policy.rehearsed().goes_back_to in (None, 0)
