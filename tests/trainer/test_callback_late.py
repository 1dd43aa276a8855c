"""Modules that make their layers and loaders in setup or configure_model, after the callback's own setup."""

from pathlib import Path
from typing import Any

import pytest
import torch
from packages import L, ModelCheckpoint
from support import Resumable, trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_prune import Channel, Linear, PruningCallback, Recipe
from lightning_prune.model import masks

STEPS = Linear(final_sparsity=0.6, begin_step=2, end_step=9, frequency=3)


class BornLate(L.LightningModule):
    """Makes layers and data only when Lightning asks for them."""

    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(2, 1, 6, 6)

    def make(self) -> None:
        if not hasattr(self, "net"):
            self.net, self.data = (
                nn.Sequential(nn.Flatten(0, 0), nn.Conv2d(1, 8, 6), nn.Flatten(), nn.Linear(8, 4)),
                Resumable(),
            )

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def train_dataloader(self) -> Resumable:
        return self.data

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters())


class BornInSetup(BornLate):
    def setup(self, stage: str) -> None:
        self.make()


class BornInConfigureModel(BornLate):
    def configure_model(self) -> None:
        self.make()


@pytest.mark.parametrize("late", [BornInSetup, BornInConfigureModel])
@pytest.mark.parametrize("precision", [None, "64-true"])
def test_layers_and_loaders_born_late(tmp_path: Path, late: Any, precision: Any) -> None:
    model, recipe = late(), Recipe(schedule=STEPS, granularity=Channel())
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=6, save_top_k=-1)
    trainer(tmp_path, PruningCallback(recipe), saving, precision=precision).fit(model)
    assert not masks.is_masked(model)
    assert model.net[1].out_channels == 3
    if precision is not None:
        return  # Lightning loads weights before it makes them double, so that a resumed run differs
    again = late()
    trainer(tmp_path, PruningCallback(recipe), saving, precision=precision).fit(
        again, ckpt_path=tmp_path / "step=6.ckpt"
    )
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
