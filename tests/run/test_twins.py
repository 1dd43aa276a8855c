"""Frozen copies of pruned parts are told by name before the first step."""

import copy
import warnings
from pathlib import Path

import pytest
import torch
from packages import L
from support import loader, trainer
from torch import Tensor, nn

from lightning_prune import Channel, OneShot, PruningCallback, Recipe, channel_groups
from lightning_prune.run.binding import units_of
from lightning_prune.run.twins import twins
from lightning_prune.selection import ChannelUnits
from lightning_prune.selection.targets import Targets


class Byol(L.LightningModule):
    def __init__(self, is_frozen: bool = True) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
        self.target = copy.deepcopy(self.backbone).requires_grad_(not is_frozen)
        self.example_input_array = torch.rand(2, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x = torch.rand(4, 6)
        return (self(x) - self.target(x)).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.backbone.parameters(), 0.1)


@pytest.mark.parametrize(("is_frozen", "expected"), [(True, {"target": "backbone"}), (False, {})])
def test_twins(is_frozen: bool, expected: dict[str, str]) -> None:
    model = Byol(is_frozen)
    units = units_of(Channel(), Targets(include=("backbone*",)), model, torch.rand(2, 6))
    assert isinstance(units, ChannelUnits)
    assert twins(model, [units]) == expected
    assert "target" not in str(channel_groups(model, torch.rand(2, 6)))


@pytest.mark.parametrize("is_removing", [True, False])
def test_told_before_the_first_step(tmp_path: Path, is_removing: bool) -> None:
    recipe = Recipe(schedule=OneShot(0.5, 2), granularity=Channel(), targets=Targets(include=("backbone*",)))
    run = trainer(tmp_path, PruningCallback(recipe, compact_every_event=is_removing))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run.fit(Byol(), loader())
    texts = [str(warning.message) for warning in told]
    assert any(text.startswith("target looks like a frozen copy of backbone") for text in texts) == is_removing
