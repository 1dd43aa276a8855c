"""A plain torch training loop around a pruning run."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from lightning_prune.compensation import LeastSquares, Reconstruction
from lightning_prune.criteria import Fisher, Random, Taylor, Wanda
from lightning_prune.model import masks
from lightning_prune.optimizer.policies import Keep, Mask, Reset, Rewarm, RewindWeights
from lightning_prune.recipe import Recipe
from lightning_prune.run.pruner import Event
from lightning_prune.run.run import PruningRun
from lightning_prune.schedules import Linear, Polynomial
from lightning_prune.selection.granularity import Block, Channel, NOfM
from lightning_prune.selection.targets import Targets

OPTIMIZERS: dict[str, Callable[[nn.Module], list[Optimizer]]] = {
    "SGD": lambda m: [SGD(m.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01)],
    "Adam": lambda m: [Adam(m.parameters(), lr=0.01, weight_decay=0.01)],
    "AdamW": lambda m: [torch.optim.AdamW(m.parameters(), lr=0.01, weight_decay=0.1, amsgrad=True)],
    "Muon": lambda m: [
        torch.optim.Muon([p for p in m.parameters() if p.dim() == 2], lr=0.01),
        SGD([p for p in m.parameters() if p.dim() != 2], lr=0.01),
    ],
}


EXAMPLE = (torch.zeros(1, 6),)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)
    )


def batches(begin: int, end: int) -> Iterator[tuple[Tensor, Tensor]]:
    for step in range(begin, end):
        generator = torch.Generator().manual_seed(step)
        yield torch.randn(8, 6, generator=generator), torch.randn(8, 3, generator=generator)


class Loop:
    """Plain torch training in the order of Lightning: observe, step, schedule, prune."""

    def __init__(
        self, recipes: Any, optimizer: str = "SGD", total_steps: int = 100, with_scheduler: bool = False
    ) -> None:
        self.model = network()
        several = recipes if isinstance(recipes, list) else [recipes]
        self.run = PruningRun(several, self.model, EXAMPLE, total_steps)
        self.optimizers = OPTIMIZERS[optimizer](self.model)
        self.schedulers = [CosineAnnealingLR(o, T_max=40) for o in self.optimizers] if with_scheduler else []
        self.events: list[Event] = []
        self.steps = 0

    def start(self) -> "Loop":
        self.run.start(self.optimizers, self.schedulers, self.model)
        self.events += self.run.prune_if_due(self.model)
        return self

    def train(self, until: int, every: int = 1) -> "Loop":
        for x, y in batches(self.steps, until):
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            nn.functional.mse_loss(self.model(x), y).backward()
            for optimizer in self.optimizers:
                self.run.observe(self.model, optimizer)
                optimizer.step()
            for scheduler in self.schedulers:
                scheduler.step()
            self.steps += 1
            if self.steps % every == 0:
                self.events += self.run.prune_if_due(self.model)
            self.check()
        return self

    def check(self) -> None:
        """What is pruned is exactly zero, in the live weight and in what the layer used."""
        for parameter, mask in masks.masks_by_parameter(self.model).items():
            assert bool((parameter[~mask] == 0).all())

    def save(self) -> bytes:
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "schedulers": [s.state_dict() for s in self.schedulers],
            "run": self.run.state_dict(self.model),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return buffer.getvalue()

    def load(self, saved: bytes, steps: int, start_first: bool = False) -> "Loop":
        state = torch.load(io.BytesIO(saved), weights_only=True)
        if start_first:
            self.run.start(self.optimizers, self.schedulers, self.model)
        self.model.load_state_dict(state["model"])
        for held, given in ((self.optimizers, "optimizers"), (self.schedulers, "schedulers")):
            for one, its_state in zip(held, state[given], strict=True):
                one.load_state_dict(its_state)
        self.run.load_state_dict(state["run"], self.model)
        self.steps = steps
        return self if start_first else self.start()


def weights(loop: Loop) -> dict[str, bytes]:
    return {name: value.detach().numpy().tobytes() for name, value in loop.model.state_dict().items()}


RISE = Polynomial(0.75, begin_step=4, end_step=20, frequency=4)


RECIPES: dict[str, Callable[[], Recipe]] = {
    "element": lambda: Recipe(schedule=RISE),
    "taylor": lambda: Recipe(schedule=RISE, criterion=Taylor()),
    "random": lambda: Recipe(schedule=RISE, criterion=Random(3), optimizer_policy=Reset()),
    "n of m": lambda: Recipe(schedule=Linear(0.5, 4, 20, 4), granularity=NOfM(2, 4)),
    "block": lambda: Recipe(schedule=RISE, granularity=Block((2, 1)), targets=Targets(("0", "3"))),
    "channel": lambda: Recipe(schedule=RISE, granularity=Channel(), criterion=Taylor(), count="params"),
    "fisher": lambda: Recipe(schedule=RISE, criterion=Fisher()),
    "wanda": lambda: Recipe(schedule=RISE, criterion=Wanda()),
    "wanda channel": lambda: Recipe(schedule=RISE, granularity=Channel(), criterion=Wanda(), count="params"),
    "repair": lambda: Recipe(schedule=RISE, repair=LeastSquares(samples=64)),
    "repair channel": lambda: Recipe(schedule=RISE, granularity=Channel(), repair=LeastSquares(samples=24)),
    "reconstruction": lambda: Recipe(schedule=RISE, granularity=Channel(), criterion=Reconstruction(samples=24)),
    "keep": lambda: Recipe(schedule=RISE, optimizer_policy=Keep()),
    "rewarm": lambda: Recipe(schedule=RISE, optimizer_policy=(Mask(), Rewarm(5))),
    "rewind": lambda: Recipe(schedule=RISE, optimizer_policy=(RewindWeights(3), Reset())),
}
