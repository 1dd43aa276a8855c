"""A run that is resumed knows which copies follow, to the last bit."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_prune import (
    Channel,
    Linear,
    PruningRun,
    Recipe,
    Targets,
    Uniform,
)


class Target(nn.Module):
    """As Q-learning has it: a target network that takes over the weights now and then, or a teacher that never does."""

    def __init__(self) -> None:
        super().__init__()
        self.online, self.target, self.teacher = (
            nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)) for _ in range(3)
        )
        self.target.load_state_dict(self.online.state_dict())
        self.target.requires_grad_(False)
        self.teacher.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.online(x)


class TargetRun:
    def __init__(self, state: Any = None) -> None:
        torch.manual_seed(0)
        self.model = Target()
        self.optimizer = torch.optim.SGD(self.model.online.parameters(), 0.1)
        schedule = Linear(0.5, begin_step=4, end_step=16, frequency=4)
        online = Targets(include=("online.*",))
        recipe = Recipe(granularity=Channel(), schedule=schedule, allocation=Uniform(), targets=online)
        self.run = PruningRun([recipe], self.model, (torch.zeros(1, 4),), total_steps=20)
        if state is not None:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.run.load_state_dict(state["run"], self.model)
        self.run.start([self.optimizer], [], self.model)

    def go(self, first: int, last: int) -> None:
        for step in range(first, last):
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            self.optimizer.zero_grad()
            (self.model(x) - 1 - 0.1 * self.model.target(x)).square().mean().backward()
            self.run.observe(self.model, self.optimizer)
            self.optimizer.step()
            if step % 6 == 5:
                self.model.target.load_state_dict(self.model.online.state_dict())
            self.run.prune_if_due(self.model)

    def state(self) -> dict[str, Any]:
        state = {"optimizer": self.optimizer.state_dict(), "run": self.run.state_dict(self.model)}
        return copy.deepcopy({"model": self.model.state_dict(), **state})


@pytest.mark.parametrize("stop", [3, 7, 14])
def test_a_target_network_is_resumed_to_the_last_bit(stop: int) -> None:
    whole = TargetRun()
    whole.go(0, stop)
    saved = whole.state()
    whole.go(stop, 16)
    again = TargetRun(saved)
    again.go(stop, 16)
    online, target = (dict(whole.model.named_parameters())[f"{part}.0.weight"] for part in ("online", "target"))
    assert int((target == 0).sum()) == int((online == 0).sum()) == 32
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert bool(again.model.teacher[0].weight.all())  # type: ignore[operator]


def test_a_state_from_before_copies_were_kept_begins_with_them() -> None:
    whole = TargetRun()
    whole.go(0, 15)
    saved = whole.state()
    del saved["run"]["copies"]
    again = TargetRun(saved)
    again.go(15, 16)
    assert again.run.next_removal(again.model) is None  # one step is too few to tell
    again.go(16, 17)
    with pytest.warns(UserWarning, match="looks like a copy of online"):
        assert again.run.next_removal(again.model) is not None
