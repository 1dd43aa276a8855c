import importlib.util
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from packages import Callback, EarlyStopping, L, ModelCheckpoint, Timer
from support import AfterStep, MixedNet, Net, loader, outputs, trainer, zeros
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import (
    Channel,
    Global,
    Mask,
    OneShot,
    Polynomial,
    PruningCallback,
    PruningMixin,
    Recipe,
    Targets,
    Taylor,
    summarize,
)
from lightning_prune.checkpoints import earlier
from lightning_prune.errors import PruningError
from lightning_prune.model import masks

HALF = Recipe(schedule=OneShot(0.5, begin_step=4))
CONVOLUTIONS = Recipe(schedule=OneShot(0.5, begin_step=4), targets=Targets(include=("conv*",)))
HEAD = Recipe(schedule=OneShot(0.25, begin_step=6), targets=Targets(include=("head",)))


class Own(MixedNet):
    """Returns from configure_pruning what it is given."""

    def __init__(self, given: Any = HALF) -> None:
        super().__init__()
        self.given = given
        self.asked = 0

    def configure_pruning(self) -> Any:
        self.asked += 1
        return self.given


def pruning_callbacks(run: L.Trainer) -> list[PruningCallback]:
    return [c for c in run.callbacks if isinstance(c, PruningCallback)]  # type: ignore[attr-defined]


def test_code_of_the_readme_as_written(tmp_path: Path) -> None:
    recipe = Recipe(
        granularity=Channel(),
        schedule=Polynomial(final_sparsity=0.6, begin_step=1, end_step=9, frequency=2),
        criterion=Taylor(),
        allocation=Global(),
        targets=Targets(include=("*",), exclude=()),
        count="channels",
        optimizer_policy=Mask(),
    )
    model = MixedNet()
    run = trainer(tmp_path, PruningCallback(recipe))
    run.fit(model, loader(), loader(batches=1))
    assert [type(m) for m in model.modules()] == [type(m) for m in MixedNet().modules()]
    assert list(model.state_dict()) == list(MixedNet().state_dict())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    loading = [getattr(h, "hook", h) for m in model.modules() for h in m._load_state_dict_pre_hooks.values()]
    assert all(isinstance(hook, earlier.Earlier) for hook in loading)  # for states from before the end
    summary = summarize(model)
    assert summary.parameters == sum(p.numel() for p in model.parameters())
    assert summary.sparsity == 0
    assert model.conv1.out_channels + model.conv2.out_channels == 16 - round(0.6 * 16)


@pytest.mark.parametrize(
    ("given", "pruned"),
    [
        (HALF, round(0.5 * (72 + 2 * 576 + 32))),
        ([CONVOLUTIONS, HEAD], round(0.5 * (72 + 2 * 576)) + 8),
        (PruningCallback(HEAD), 8),
        (None, 0),
    ],
)
def test_what_configure_pruning_may_return(tmp_path: Path, given: Any, pruned: int) -> None:
    model, seen = Own(given), []
    look = AfterStep(lambda run, m: seen.append((zeros(m), len(pruning_callbacks(run)))))
    trainer(tmp_path, look).fit(model, loader())
    assert seen[-1] == (pruned, 0 if given is None else 1)
    assert sum(int((p == 0).sum()) for n, p in model.named_parameters() if p.dim() > 1) == pruned
    assert not masks.is_masked(model)


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ("half", TypeError, "PruningCallback takes a Recipe or a list of them, got 'half'"),
        ([], ValueError, "empty list of recipes"),
    ],
)
def test_what_it_may_not_return(tmp_path: Path, given: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        trainer(tmp_path).fit(Own(given), loader())


@pytest.mark.filterwarnings("ignore:pruning of this model is done and its masks are folded")
def test_one_callback_through_fits_validate_and_test(tmp_path: Path) -> None:
    model, run = Own(), trainer(tmp_path)
    run.validate(model, loader(batches=1), verbose=False)
    (callback,) = pruning_callbacks(run)
    assert not masks.is_masked(model)
    run.fit(model, loader())
    run.validate(model, loader(batches=1), verbose=False)
    run.test(model, loader(batches=1), verbose=False)
    run.predict(model, loader(batches=1))
    run.fit_loop.max_epochs = 3
    run.fit(model, loader())
    other = trainer(tmp_path)
    other.fit(model, loader())
    assert pruning_callbacks(run) == pruning_callbacks(other) == [callback]
    assert [event.step for event in callback.events] == [4]
    assert model.asked == 1


def test_each_model_has_its_own_callback_in_one_trainer(tmp_path: Path) -> None:
    kept: list[Callback] = []  # Lightning leaves the callback of the first model in the Trainer
    for model in (Own(), Own()):
        run = trainer(tmp_path, *kept)
        run.fit(model, loader())
        assert pruning_callbacks(run) == [model._pruning_callback]
        assert [event.step for event in pruning_callbacks(run)[0].events] == [4]
        kept = pruning_callbacks(run)  # type: ignore[assignment]


def test_given_both_ways(tmp_path: Path) -> None:
    model = Own()
    with pytest.raises(PruningError, match=r"Own\.configure_pruning returns it and the Trainer has a PruningCallback"):
        trainer(tmp_path, PruningCallback(HALF)).fit(model, loader())
    assert not masks.is_masked(model)


def test_trainer_callback_serves_a_module_that_configures_none(tmp_path: Path) -> None:
    callback = PruningCallback(HALF)
    trainer(tmp_path, callback).fit(Own(None), loader())
    assert callback.sparsity == 0.5


class Forgetful(Own):
    def configure_callbacks(self) -> list[Callback]:
        return [Timer()]


class Heir(Forgetful):
    """Inherits the override."""


class Careful(Own):
    def configure_callbacks(self) -> list[Any]:
        return [*super().configure_callbacks(), Timer()]  # type: ignore[misc]


class Between:
    def configure_callbacks(self) -> Timer:
        return Timer()


class FromAnotherBase(Between, Own):
    """The override comes from a class that knows nothing of pruning."""


class Stopping(Net):
    def configure_callbacks(self) -> EarlyStopping:
        return EarlyStopping("val_loss")


class Below(PruningMixin, Stopping):  # type: ignore[misc]
    def configure_pruning(self) -> Recipe:
        return HALF


@pytest.mark.parametrize("net", [Forgetful, Heir, FromAnotherBase])
def test_override_without_super_is_refused(tmp_path: Path, net: Any) -> None:
    text = rf"{net.__name__}\.configure_callbacks leaves out what configure_pruning returns: .*super\(\)"
    with pytest.raises(PruningError, match=text):
        trainer(tmp_path).fit(net(), loader())
    trainer(tmp_path).fit(net(None), loader())


@pytest.mark.filterwarnings("ignore:EarlyStopping.monitor=.val_loss")
@pytest.mark.parametrize(("net", "other"), [(Careful, Timer), (Below, EarlyStopping)])
def test_other_callbacks_stay(tmp_path: Path, net: Any, other: type[Callback]) -> None:
    run = trainer(tmp_path)
    run.fit(net(), loader(), loader(batches=1))
    assert len(pruning_callbacks(run)) == 1
    assert any(isinstance(c, other) for c in run.callbacks)  # type: ignore[attr-defined]
    assert pruning_callbacks(run)[0].events


def test_mixin_must_stand_first() -> None:
    with pytest.raises(TypeError, match=r"PruningMixin must stand first: class Wrong\(PruningMixin, LightningModule\)"):

        class Wrong(Net, PruningMixin):  # type: ignore[misc]
            pass


def test_load_from_checkpoint_takes_no_callback_along(tmp_path: Path) -> None:
    model = Own()
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=6)
    trainer(tmp_path, saving).fit(model, loader())
    loaded = Own.load_from_checkpoint(tmp_path / "step=6.ckpt")
    assert loaded._pruning_callback is None
    assert zeros(loaded) == round(0.5 * (72 + 2 * 576 + 32))


class WithRecipe(MixedNet):
    """Takes its recipe as a hyperparameter."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.recipe = recipe

    def configure_pruning(self) -> Recipe:
        return self.recipe


def test_recipe_as_a_hyperparameter(tmp_path: Path) -> None:
    recipe = Recipe(schedule=OneShot(0.5, begin_step=4), granularity=Channel(), criterion=Taylor())
    model = WithRecipe(recipe)
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=6)
    run = trainer(tmp_path, saving)
    run.fit(model, loader())
    run.save_checkpoint(tmp_path / "done.ckpt")
    for name in ("step=6", "done"):
        torch.load(tmp_path / f"{name}.ckpt", weights_only=True)
        loaded = WithRecipe.load_from_checkpoint(tmp_path / f"{name}.ckpt")
        assert loaded.recipe == recipe
    assert torch.equal(outputs(loaded), outputs(model))


def test_to_executorch_passes_the_model_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_prune import deploy

    calls: list[Any] = []
    monkeypatch.setattr(deploy, "export", lambda *args, **options: calls.append((args, options)))
    model = MixedNet()
    model.to_executorch(tmp_path / "net.pte", tolerance=1e-3)
    ((args, options),) = calls
    assert args == (model, tmp_path / "net.pte")
    assert options == {"backend": deploy.XNNPACK(), "tolerance": 1e-3}


def test_to_executorch_names_all_that_export_takes() -> None:
    from lightning_prune import deploy

    options = inspect.signature(deploy.export).parameters.keys() - {"model", "path", "backend"}
    told = MixedNet.to_executorch.__doc__ or ""
    assert not {name for name in options if f"``{name}``" not in told}


class Bytes(MixedNet):
    """Takes bytes from its data, which a hook turns into what forward takes."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0].float() / 255, *batch[1:]]


@pytest.mark.skipif(importlib.util.find_spec("executorch") is None, reason="needs the extra 'mobile' (executorch)")
def test_to_executorch_compares_on_the_validation_loader(tmp_path: Path) -> None:
    first = next(iter(loader()))
    images = (first[0].abs() * 50).clamp(max=255).to(torch.uint8)
    generator = torch.Generator().manual_seed(3)
    data = DataLoader(TensorDataset(images, *first[1:]), batch_size=3, generator=generator)
    model = Bytes()
    trainer(tmp_path).fit(model, data, data)
    states = generator.get_state(), torch.get_rng_state()
    artifact = model.to_executorch(tmp_path / "net.pte", example_inputs=torch.zeros_like(images[:1]).float())
    assert artifact.verification.inputs == "3 samples of the validation loader"
    assert "3 samples of the validation loader" in str(artifact)
    assert torch.equal(states[0], generator.get_state())
    assert torch.equal(states[1], torch.get_rng_state())


def test_mixin_adds_nothing_to_a_plain_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = Net()
    torch.manual_seed(0)
    mixed = MixedNet()
    for model in (plain, mixed):
        trainer(tmp_path).fit(model, loader())
    pairs: Any = zip(plain.parameters(), mixed.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert isinstance(mixed.head, nn.Linear)
