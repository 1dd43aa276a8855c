"""Modules that distil by hand in their training_step, and the same without, for the tests of distillation."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support import Net, loader, trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from lightning_prune import Channel, Distillation, Linear, Recipe, Taylor

T, WEIGHT = 3.0, 0.7
STEPS = Linear(final_sparsity=0.6, begin_step=2, end_step=6, frequency=2)
SPARSE = Recipe(schedule=STEPS)
THIN = Recipe(schedule=STEPS, granularity=Channel(), criterion=Taylor())
TAUGHT = Distillation(temperature=T, weight=WEIGHT)


class Taught(Net):
    """Is taught by a copy of itself as it is when the first step begins."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.teacher: list[nn.Module] = []

    def distilled(self, images: Tensor, targets: Tensor) -> Tensor:
        if not self.teacher:
            trainer, self._trainer = self._trainer, None
            self.teacher.append(copy.deepcopy(self).eval().requires_grad_(False))
            self._trainer = trainer
        logits = self(images)
        with torch.no_grad():
            taught = self.teacher[0](images)
        soft = kl_div(log_softmax(logits / T, 1), log_softmax(taught / T, 1), reduction="batchmean", log_target=True)
        return (1 - WEIGHT) * cross_entropy(logits, targets) + WEIGHT * T**2 * soft


class ByHand(Taught):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.distilled(*batch)


class Manual(Net):
    """Optimizes by hand, two batches to a step."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.automatic_optimization = False

    def loss(self, batch: list[Tensor]) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        optimizer: Any = self.optimizers()
        self.manual_backward(self.loss(batch))
        if batch_idx % 2:
            optimizer.step()
            optimizer.zero_grad()


class ManualByHand(Manual, Taught):
    def loss(self, batch: list[Tensor]) -> Tensor:
        return self.distilled(*batch)


class Inner(Net):
    """Calls a submodule that holds the network, in place of its own forward."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.net = Net(**options)
        for name in ("conv1", "norm1", "conv2", "norm2", "conv3", "head"):
            delattr(self, name)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        with torch.no_grad():
            self.net(batch[0][:1])  # a call without gradients teaches nothing
        return cross_entropy(self.net(batch[0]), batch[1])


def weights(model: nn.Module) -> dict[str, Any]:
    return {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}


def fitted(folder: Path, model: Any, *callbacks: Any, **options: Any) -> Any:
    trainer(folder, *callbacks, **options).fit(model, loader())
    return model


def seeded(net: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return net(**options)


def assert_close(model: nn.Module, other: nn.Module) -> None:
    ours, theirs = weights(model), weights(other)
    assert all(np.allclose(ours[name], theirs[name], rtol=1e-10, atol=1e-12) for name in theirs)
