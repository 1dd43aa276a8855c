"""Averaged weights keep the zeros, lose the channels, and resume; whatever the order of the callbacks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from packages import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from support import AfterStep, Net, Resumable, trainer

from lightning_prune import Channel, Linear, PruningCallback, Recipe
from lightning_prune.model import masks
from lightning_prune.trainer.internals import averages_of

RISE = Linear(final_sparsity=0.5, begin_step=2, end_step=8, frequency=2)
RECIPES = {"element": Recipe(schedule=RISE), "channel": Recipe(schedule=RISE, granularity=Channel())}
AVERAGES: dict[str, Any] = {
    "ema": lambda: EMAWeightAveraging(decay=0.8),
    "mean of parameters": lambda: WeightAveraging(use_buffers=False),
    "swa": lambda: StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1, annealing_epochs=1),
}


def fitted(folder: Path, kind: str, recipe: str, first: bool, *others: Any, shrinks: bool = False, **how: Any) -> Any:
    average = AVERAGES[kind]()
    pruning = PruningCallback(RECIPES[recipe], compact_every_event=shrinks)
    model = Net()
    callbacks = [average, pruning] if first else [pruning, average]
    run = trainer(folder, *callbacks, *others, max_epochs=3)
    run.fit(model, Resumable(), **how)
    return model, pruning, run


def zeros(model: Any) -> int:
    return sum(int((p == 0).sum()) for p in model.parameters())


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("kind", AVERAGES)
@pytest.mark.filterwarnings("ignore:Swapping scheduler")
def test_averages_have_the_zeros_of_the_model(kind: str, recipe: str, first: bool, tmp_path: Path) -> None:
    compared = []

    def look(run: Any, model: Any) -> None:
        for average in averages_of(run):
            expected = masks.read(model)
            found = masks.read(average)
            assert found.keys() == expected.keys()
            for name, weight in masks.dense_parameters(average).items():
                if name in expected:
                    assert torch.equal(found[name], expected[name])
                    assert bool((weight[~expected[name]] == 0).all())
            compared.append(sum(int((~mask).sum()) for mask in found.values()))

    torch.manual_seed(0)
    model, pruning, _ = fitted(tmp_path, kind, recipe, first, AfterStep(look))
    assert pruning.events[-1].sparsity == 0.5
    assert compared[-1] > compared[0] == 0
    assert not masks.is_masked(model)
    if recipe == "element":
        assert zeros(model) >= 0.5 * sum(p.numel() for p in model.parameters() if p.dim() > 1) - 1
    else:
        assert model.conv1.out_channels + model.conv2.out_channels == 8


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("kind", ["ema", "mean of parameters"])
def test_averages_of_a_shrinking_model_are_those_of_a_masked_one(kind: str, first: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    masked, _, _ = fitted(tmp_path, kind, "channel", first)
    torch.manual_seed(0)
    shrunk, _, _ = fitted(tmp_path, kind, "channel", first, shrinks=True)
    for a, b in zip(masked.parameters(), shrunk.parameters(), strict=True):
        assert a.shape == b.shape
        assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("shrinks", [False, True])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("kind", ["ema", "mean of parameters"])
def test_a_stopped_run_goes_on_with_its_averages(kind: str, first: bool, shrinks: bool, tmp_path: Path) -> None:
    def every(folder: Path) -> ModelCheckpoint:
        return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)

    torch.manual_seed(0)
    whole, _, _ = fitted(tmp_path, kind, "channel", first, every(tmp_path), shrinks=shrinks)
    for step in (3, 6, 11):
        torch.manual_seed(step)
        path = tmp_path / f"step={step}.ckpt"
        again, _, _ = fitted(tmp_path, kind, "channel", first, every(tmp_path / "x"), shrinks=shrinks, ckpt_path=path)
        for (name, a), b in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
            assert torch.equal(a, b), (step, name)
