"""Checkpoints written before, during and after pruning: loading and resuming lose nothing, bit for bit."""

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from packages import L, ModelCheckpoint
from support import AfterStep, LinearNet, MixedNet, Net, Resumable, loader, momentum_sgd, outputs, trainer, zeros
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import (
    ERK,
    Channel,
    Global,
    Linear,
    LRRewind,
    NOfM,
    OneShot,
    PruningCallback,
    Recipe,
    Reset,
    Rewarm,
    RewindWeights,
    Targets,
    Taylor,
    finalize,
)
from lightning_prune.checkpoints import state as checkpoints
from lightning_prune.errors import CheckpointError
from lightning_prune.model import masks

STEPS = Linear(final_sparsity=0.6, begin_step=2, end_step=8, frequency=3)
THIN = Recipe(schedule=STEPS, granularity=Channel(), criterion=Taylor())
SPARSE = Recipe(schedule=STEPS)


def every_step(folder: Path, **options: Any) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1, **options)


class Outputs(ModelCheckpoint):
    """Notes the outputs of the model whenever it writes a checkpoint."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1, **options)
        self.at: dict[int, Tensor] = {}

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        self.at[trainer.global_step] = outputs(trainer.lightning_module)


class Custom(MixedNet):
    """Overrides both checkpoint hooks."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["note"] = "mine"

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        assert checkpoint["note"] == "mine"


@pytest.mark.parametrize("net", [MixedNet, Custom])
@pytest.mark.parametrize("recipe", [SPARSE, THIN])
@pytest.mark.parametrize("save_weights_only", [False, True])
def test_loads_what_was_saved(tmp_path: Path, net: Any, recipe: Recipe, save_weights_only: bool) -> None:
    saving, model = Outputs(tmp_path, save_weights_only=save_weights_only), net(width=6)
    model.attn_mask.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    run = trainer(tmp_path, PruningCallback(recipe), saving)
    run.fit(model, loader())
    run.save_checkpoint(tmp_path / "step=99.ckpt", weights_only=save_weights_only)
    saving.at[99] = outputs(model)
    for step, expected in saving.at.items():
        path = tmp_path / f"step={step}.ckpt"
        torch.load(path, weights_only=True)
        loaded = net.load_from_checkpoint(path)
        assert torch.equal(outputs(loaded), expected)
        assert torch.equal(loaded.attn_mask, model.attn_mask)
        assert masks.is_masked(loaded) == (step != 99)
        if 5 <= step < 99:
            assert zeros(loaded) > 0
            assert bool(masks.structured_names(loaded)) == (recipe is THIN)


def test_loaded_masked_model_is_finalized_as_the_run_does_it(tmp_path: Path) -> None:
    saving, model = Outputs(tmp_path), MixedNet()
    trainer(tmp_path, PruningCallback(THIN), saving).fit(model, loader())
    loaded = finalize(MixedNet.load_from_checkpoint(tmp_path / "step=10.ckpt"))
    assert [(n, p.shape) for n, p in loaded.named_parameters()] == [(n, p.shape) for n, p in model.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    assert torch.equal(outputs(loaded), outputs(model))


def test_finalizing_a_loaded_element_model_changes_no_output(tmp_path: Path) -> None:
    saving = Outputs(tmp_path)
    trainer(tmp_path, PruningCallback(Recipe(schedule=OneShot(0.5, 2), granularity=NOfM(2, 4))), saving).fit(
        MixedNet(), loader()
    )
    loaded = MixedNet.load_from_checkpoint(tmp_path / "step=7.ckpt")
    assert torch.equal(outputs(finalize(loaded)), saving.at[7])
    assert not masks.is_masked(loaded)


def test_compact_model_can_be_pruned_and_saved_again(tmp_path: Path) -> None:
    model = MixedNet()
    for name in ("once", "twice"):
        run = trainer(tmp_path, PruningCallback(Recipe(schedule=OneShot(0.25, 4), granularity=Channel())))
        run.fit(model, loader())
        run.save_checkpoint(tmp_path / f"{name}.ckpt")
        loaded = MixedNet.load_from_checkpoint(tmp_path / f"{name}.ckpt")
        assert torch.equal(outputs(loaded), outputs(model))
    assert model.conv1.out_channels + model.conv2.out_channels == 9


def warming(parameters: Any) -> Any:
    optimizer = optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.01)
    scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


RESUMED: dict[str, tuple[Callable[[], Any], Recipe]] = {
    "plain element": (LinearNet, SPARSE),
    "mixin element": (lambda: MixedNet(make_optimizer=optim.AdamW), SPARSE),
    "plain channel taylor": (lambda: Net(make_optimizer=optim.AdamW), THIN),
    "mixin channel taylor": (MixedNet, THIN),
    "rewarm": (lambda: LinearNet(warming), Recipe(schedule=STEPS, optimizer_policy=Rewarm(2))),
    "lr rewind": (lambda: LinearNet(warming), Recipe(schedule=STEPS, optimizer_policy=(LRRewind(1), Reset()))),
    "rewind weights": (
        lambda: LinearNet(warming),
        Recipe(schedule=STEPS, optimizer_policy=(LRRewind(), RewindWeights(2))),
    ),
}


@pytest.mark.parametrize("case", RESUMED)
def test_resumed_run_ends_as_one_never_stopped(tmp_path: Path, case: str) -> None:
    make, recipe = RESUMED[case]
    whole = make()
    trainer(tmp_path, PruningCallback(recipe), every_step(tmp_path)).fit(whole, Resumable())
    # before, at and between the events at 5 and 8, and after the last
    for step in (1, 4, 5, 6, 8, 9, 10):
        model, callback = make(), PruningCallback(recipe)
        run = trainer(tmp_path, callback, every_step(tmp_path / "again"))
        run.fit(model, Resumable(), ckpt_path=tmp_path / f"step={step}.ckpt", weights_only=True)
        assert [event.step for event in callback.events] == [5, 8]  # those from before stand, none comes twice
        for (name, a), b in zip(whole.state_dict().items(), model.state_dict().values(), strict=True):
            assert torch.equal(a, b), (step, name)


def test_resume_of_a_finished_run_trains_the_compact_model(tmp_path: Path) -> None:
    model, saving = Net(), every_step(tmp_path / "rest")
    first = PruningCallback(THIN)
    run = trainer(tmp_path, first, saving)
    run.fit(model, Resumable())
    run.save_checkpoint(tmp_path / "done.ckpt")
    again, callback, seen = Net(), PruningCallback(THIN), []
    look = AfterStep(lambda _, m: seen.append((m.conv1.out_channels, zeros(m))))
    longer = trainer(tmp_path, callback, saving, look, max_epochs=3)
    longer.fit(again, Resumable(), ckpt_path=tmp_path / "done.ckpt")
    assert seen == [(model.conv1.out_channels, 0)] * 5
    assert callback.events == first.events != []
    assert not masks.is_masked(again)


def test_checkpoint_without_pruning_starts_a_pruning_run(tmp_path: Path) -> None:
    trainer(tmp_path, every_step(tmp_path), max_epochs=1).fit(LinearNet(), Resumable())
    callback, saving = PruningCallback(Recipe(schedule=OneShot(0.5, 3))), every_step(tmp_path)
    model = LinearNet()
    for _ in range(2):  # the second time model and callback have a run behind them
        trainer(tmp_path, callback, saving).fit(model, Resumable(), ckpt_path=tmp_path / "step=5.ckpt")
        assert [event.step for event in callback.events] == [3]
        assert int((model.first.weight == 0).sum() + (model.second.weight == 0).sum()) == 128
    too_late = PruningCallback(Recipe(schedule=OneShot(0.5, 6)))
    with pytest.raises(ValueError, match="ends at step 6, but this run has only 5 optimizer steps"):
        trainer(tmp_path, too_late, saving).fit(LinearNet(), Resumable(), ckpt_path=tmp_path / "step=5.ckpt")


def test_resume_with_other_recipes_is_refused(tmp_path: Path) -> None:
    saving = every_step(tmp_path)
    trainer(tmp_path, PruningCallback(SPARSE), saving).fit(Net(), Resumable())
    two = [Recipe(schedule=STEPS, targets=Targets(include=(f"{name}*",))) for name in ("conv", "head")]
    with pytest.raises(CheckpointError, match="recipes: it has 1, this run has 2"):
        trainer(tmp_path, PruningCallback(two), saving).fit(Net(), Resumable(), ckpt_path=tmp_path / "step=6.ckpt")


@pytest.mark.parametrize("net", [Net, MixedNet])
def test_model_takes_the_shape_of_the_checkpoint(tmp_path: Path, net: Any) -> None:
    saving, model, callback = Outputs(tmp_path), net(), PruningCallback(THIN)
    dense = trainer(tmp_path, max_epochs=1)
    dense.fit(net(), loader())
    dense.save_checkpoint(tmp_path / "dense.ckpt")
    run = trainer(tmp_path, callback, saving)
    run.fit(model, loader())
    run.save_checkpoint(tmp_path / "compact.ckpt")
    saving.at[99] = outputs(model)
    thin = [p.shape for p in model.parameters()]
    images = torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(2))

    def predict(path: Path) -> Any:
        (predicted,) = run.predict(model, DataLoader(TensorDataset(images), 3), ckpt_path=path)  # type: ignore[misc]
        return predicted

    assert torch.equal(predict(tmp_path / "step=6.ckpt"), saving.at[6])
    assert zeros(model) > 0
    assert torch.equal(predict(tmp_path / "compact.ckpt"), saving.at[99])
    assert not masks.is_masked(model)
    assert [p.shape for p in model.parameters()] == thin
    predict(tmp_path / "dense.ckpt")
    assert (model.conv1.out_channels, masks.is_masked(model)) == (8, False)
    run.validate(model, loader(), ckpt_path=tmp_path / "step=8.ckpt", verbose=False)
    run.test(model, loader(), ckpt_path=tmp_path / "compact.ckpt", verbose=False)
    assert [p.shape for p in model.parameters()] == thin
    run.test(model, loader(), ckpt_path="best", verbose=False)
    assert masks.is_masked(model)
    assert torch.equal(outputs(model), saving.at[10])


class Pickled(Net):
    """Hyperparameters that weights_only=True refuses must not stand in the way."""

    def __init__(self, maker: Any = momentum_sgd) -> None:
        super().__init__()
        self.save_hyperparameters()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_shapes_fit_beside_hyperparameters_of_any_kind(tmp_path: Path) -> None:
    run = trainer(tmp_path, PruningCallback(THIN))
    model = Pickled()
    run.fit(model, loader())
    run.save_checkpoint(tmp_path / "compact.ckpt")
    other = Pickled()
    run.validate(other, loader(), ckpt_path=tmp_path / "compact.ckpt", verbose=False, weights_only=False)
    assert torch.equal(outputs(other), outputs(model))


FORMER = {
    "lightning_prune.allocation": (Global, ERK),
    "lightning_prune.granularity": (Channel, NOfM),
    "lightning_prune.policies": (Reset, Rewarm),
    "lightning_prune.targets": (Targets,),
}


@pytest.mark.slow
@pytest.mark.parametrize("weights_only", [True, False])
def test_recipes_pickled_under_the_modules_before_the_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights_only: bool
) -> None:
    recipes = [
        Recipe(schedule=OneShot(0.5, 2), granularity=Channel(), allocation=Global(), targets=Targets(include=("a",))),
        Recipe(schedule=OneShot(0.5, 2), granularity=NOfM(2, 4), optimizer_policy=(Reset(), Rewarm(2))),
        Recipe(schedule=OneShot(0.5, 2), allocation=ERK()),
    ]
    with monkeypatch.context() as written_then:
        for module, kinds in FORMER.items():
            for kind in kinds:
                written_then.setattr(kind, "__module__", module)
        torch.save({"hyper_parameters": {"recipes": recipes}}, tmp_path / "old.ckpt")
    names = zipfile.ZipFile(tmp_path / "old.ckpt").read("old/data.pkl")
    assert all(module.encode() in names for module in FORMER)
    code = "import lightning_prune, sys, torch; lightning_prune.Recipe; "
    code += f"print(torch.load(sys.argv[1], weights_only={weights_only}))"
    read = subprocess.run([sys.executable, "-c", code, tmp_path / "old.ckpt"], capture_output=True, text=True)
    assert read.stdout.strip() == repr({"hyper_parameters": {"recipes": recipes}}), read.stderr


def test_load_state_dict_by_hand_in_a_fit(tmp_path: Path) -> None:
    dense = {name: value.clone() for name, value in LinearNet().state_dict().items()}
    look = AfterStep(lambda run, m: m.load_state_dict(dense) if run.global_step == 3 else None)
    model = LinearNet()
    trainer(tmp_path, PruningCallback(Recipe(schedule=OneShot(0.5, 5))), look).fit(model, loader())
    assert int((model.first.weight == 0).sum() + (model.second.weight == 0).sum()) == 128


def test_describe_holds_plain_values_only() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    masks.attach(model, ["0.weight"], is_structured=True)
    assert torch.equal(checkpoints.describe(model)["masks"]["0.weight"], torch.ones(4, 4, dtype=torch.bool))
    assert checkpoints.describe(model) | {"masks": {}} == {
        "version": 2,
        "masks": {},
        "structured": ["0.weight"],
        "compaction": None,
        "example": None,
    }


def test_newer_version_is_refused() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match="lightning_prune version 3, this package reads up to 2; upgrade it"):
        checkpoints.adapt(model, model.state_dict(), {"version": 3})


def test_buffer_called_mask_beside_a_parameter_called_orig_is_the_users_own() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn_orig = nn.Parameter(torch.ones(3))
            self.register_buffer("attn_mask", torch.ones(3, dtype=torch.bool))
            self.query = nn.Parameter(torch.ones(3))
            self.register_buffer("query_mask", torch.ones(3, dtype=torch.bool))
            self.layer = nn.Linear(3, 3)

    odd, old = Odd(), Odd().state_dict()
    assert checkpoints.masked_in(old, odd) == ()
    old["layer.weight_orig"], old["layer.weight_mask"] = old.pop("layer.weight"), torch.eye(3).bool()
    assert checkpoints.masked_in(old, odd) == ("layer.weight",)
    checkpoints.adapt(odd, old, None)
    odd.load_state_dict(old)
    assert list(masks.read(odd)) == ["layer.weight"]
    assert odd.layer.weight.count_nonzero() == 3


def test_a_dense_state_loads_and_the_masks_hold() -> None:
    masked, dense = nn.Linear(3, 2), nn.Linear(3, 2)
    masks.attach(masked, ["weight"])
    masks.write(masked, [("weight", torch.eye(2, 3).bool())])
    with pytest.warns(UserWarning, match=r"weights that are pruned by now, Linear.weight among them: they stay zero"):
        masked.load_state_dict(dense.state_dict())
    masked.load_state_dict(dense.state_dict())  # it is said once
    assert torch.equal(masked.weight, dense.weight * torch.eye(2, 3))
