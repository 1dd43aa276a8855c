"""Every optimizer of torch.optim that Lightning drives: what is pruned stays zero, and its momentum too."""

import inspect
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from packages import L
from support import AfterStep, LinearNet, Net, loader, trainer
from torch import nn, optim

from lightning_prune import Channel, Keep, Linear, OneShot, PruningCallback, Recipe, Reset, Rewarm
from lightning_prune.model import masks

OPTIMIZERS: dict[str, Any] = {
    "ASGD": partial(optim.ASGD, lr=0.01, weight_decay=0.1),
    "Adadelta": partial(optim.Adadelta, weight_decay=0.1),
    "Adafactor": partial(optim.Adafactor, weight_decay=0.1),
    "Adagrad": partial(optim.Adagrad, weight_decay=0.1, initial_accumulator_value=0.1),
    "Adam": partial(optim.Adam, amsgrad=True, weight_decay=0.1),
    "AdamW": partial(optim.AdamW, weight_decay=0.1),
    "Adamax": partial(optim.Adamax, weight_decay=0.1),
    "LBFGS": partial(optim.LBFGS, lr=0.1, max_iter=3, history_size=4),
    "Muon": partial(optim.Muon, lr=0.01, weight_decay=0.1),
    "NAdam": partial(optim.NAdam, weight_decay=0.1, decoupled_weight_decay=True),
    "RAdam": partial(optim.RAdam, weight_decay=0.1),
    "RMSprop": partial(optim.RMSprop, momentum=0.9, centered=True, weight_decay=0.1),
    "Rprop": optim.Rprop,
    "SGD": partial(optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
}


def test_none_is_left_out() -> None:
    known = {n for n, o in vars(optim).items() if inspect.isclass(o) and issubclass(o, optim.Optimizer)}
    assert known - {"Optimizer", "SparseAdam"} == set(OPTIMIZERS)  # SparseAdam takes sparse gradients alone


class Watch(L.Callback):
    """Looks at the live weights and the optimizer state after each step."""

    def __init__(self) -> None:
        self.pruned: list[int] = []
        self.weights: list[float] = []
        self.states: list[float] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        live = masks.masks_by_parameter(pl_module)
        self.pruned.append(sum(int((~mask).sum()) for mask in live.values()))
        self.weights += [float(p.detach()[~mask].abs().sum()) for p, mask in live.items()]
        (optimizer,) = trainer.optimizers
        for parameter, mask in live.items():
            states = optimizer.state[parameter].values()
            alike = [s[~mask].abs() for s in states if getattr(s, "shape", None) == mask.shape and not mask.all()]
            self.states += [float(s.max()) for s in alike]


# what a gradient of zero leaves in these two: eps in the running maximum, the smallest step size
FLOORS = {"Adamax": 1e-8, "Rprop": 1e-6}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("event", [1, 4])
def test_pruned_weights_and_momentum_stay_zero(tmp_path: Path, name: str, event: int) -> None:
    watch, model = Watch(), LinearNet(OPTIMIZERS[name], bias=name != "Muon")
    recipe = Recipe(schedule=OneShot(0.5, begin_step=event))
    trainer(tmp_path, PruningCallback(recipe), watch).fit(model, loader())
    assert watch.pruned == [0] * (event - 1) + [128] * (11 - event)
    assert set(watch.weights) == {0.0}
    assert max(watch.states, default=0.0) <= FLOORS.get(name, 0.0) * 1.001
    assert sum(int((p == 0).sum()) for p in (model.first.weight, model.second.weight)) == 128


@pytest.mark.parametrize("policy", [Keep(), Reset(), Rewarm(3)])
@pytest.mark.parametrize("name", ["Muon", "SGD", "Adam"])
def test_weights_stay_zero_under_every_policy(tmp_path: Path, name: str, policy: Any) -> None:
    moved: list[float] = []

    def look(_: L.Trainer, model: Any) -> None:
        live = masks.masks_by_parameter(model)
        moved.append(sum(float(p.detach()[~mask].abs().sum()) for p, mask in live.items()))

    model = LinearNet(OPTIMIZERS[name], bias=name != "Muon")
    recipe = Recipe(schedule=Linear(0.6, 1, 7, 2), optimizer_policy=policy)
    trainer(tmp_path, PruningCallback(recipe), AfterStep(look)).fit(model, loader())
    assert moved == [0.0] * 10


@pytest.mark.parametrize("name", sorted(OPTIMIZERS.keys() - {"Muon"}))
def test_channels_go_with_their_state(tmp_path: Path, name: str) -> None:
    model, callback = (
        Net(make_optimizer=OPTIMIZERS[name]),
        PruningCallback(Recipe(schedule=OneShot(0.5, 4), granularity=Channel())),
    )
    run = trainer(tmp_path, callback)
    run.fit(model, loader())
    assert model.conv1.out_channels + model.conv2.out_channels == 8
    (optimizer,) = run.optimizers
    for images, labels in loader(batches=2):

        def closure(images: Any = images, labels: Any = labels) -> Any:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            return loss

        optimizer.step(closure)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
