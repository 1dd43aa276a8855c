"""Bad input and interruptions: an error before the first step that says what to do, and nothing lost."""

import copy
import pickle
import signal
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import packages
import pytest
import torch
from packages import L, ModelCheckpoint
from support import AfterStep, LinearNet, MixedNet, Net, Resumable, loader, outputs, trainer, zeros
from torch import nn

from lightning_prune import (
    Channel,
    Element,
    Linear,
    LRRewind,
    NOfM,
    OneShot,
    PruningCallback,
    Recipe,
    RewindWeights,
    Targets,
    Taylor,
    finalize,
)
from lightning_prune.errors import GraphError, NonFiniteError, PruningError
from lightning_prune.model import masks
from lightning_prune.trainer.strategy import check_strategy

HALF = OneShot(0.5, begin_step=4)
RECIPE = Recipe(schedule=HALF)


class WrongExample(Net):
    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(1, 3, 6, 6)


class Replacing(LinearNet):
    def __init__(self, hook: str) -> None:
        super().__init__()
        self.hook = hook

    def setup(self, stage: str) -> None:
        self._replace("setup")

    def on_fit_start(self) -> None:
        self._replace("on_fit_start")

    def on_train_start(self) -> None:
        self._replace("on_train_start")

    def _replace(self, hook: str) -> None:
        if hook == self.hook:
            self.second = nn.Linear(16, 4)


class Replacement(L.Callback):
    """Replaces a layer by one of another size before the pruning callback's own hook of the same name."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.first, pl_module.second = nn.Linear(12, 24), nn.Linear(24, 4)


def fit(folder: Path, model: Any, *callbacks: Any, **options: Any) -> None:
    trainer(folder, *callbacks, **options).fit(model, loader())


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ([], ValueError, "PruningCallback got an empty list of recipes; pass at least one"),
        (None, TypeError, "PruningCallback takes a Recipe or a list of them, got None"),
        (HALF, TypeError, r"PruningCallback takes a Recipe or a list of them, got OneShot"),
        ([RECIPE, "half"], TypeError, "PruningCallback takes a Recipe or a list of them, got 'half'"),
        (Recipe, TypeError, "PruningCallback takes a Recipe or a list of them, got <class"),
    ],
)
def test_arguments(wrong: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        PruningCallback(wrong)


def test_two_callbacks_in_one_trainer(tmp_path: Path) -> None:
    model, one = LinearNet(), PruningCallback(RECIPE)
    for pair in ((one, one), (one, PruningCallback(RECIPE))):
        with pytest.raises(PruningError, match=r"2 PruningCallbacks; .* PruningCallback\(\[a, b\]\)"):
            fit(tmp_path, model, *pair)
    assert not masks.is_masked(model)


def test_overlapping_recipes(tmp_path: Path) -> None:
    model = LinearNet()
    recipes = [RECIPE, Recipe(schedule=HALF, targets=Targets(include=("second",)))]
    with pytest.raises(ValueError, match=r"target second\.weight is given twice, by recipe 0 and recipe 1"):
        fit(tmp_path, model, PruningCallback(recipes))
    assert not masks.is_masked(model)


def test_example_input_that_the_model_rejects(tmp_path: Path) -> None:
    model = WrongExample()
    for granularity in (Channel(), Element()):
        with pytest.raises((GraphError, ValueError), match=r"WrongExample .*\(1, 3, 6, 6\)"):
            fit(tmp_path, model, PruningCallback(Recipe(schedule=HALF, granularity=granularity)))
    assert not masks.is_masked(model)


def test_targets_that_match_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"target pattern 'third\*' matches no prunable parameter"):
        fit(tmp_path, LinearNet(), PruningCallback(Recipe(schedule=HALF, targets=Targets(include=("third*",)))))


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start"])
def test_module_replaced_after_setup(tmp_path: Path, hook: str) -> None:
    steps: list[int] = []
    look = AfterStep(lambda run, _: steps.append(run.global_step))
    text = r"second\.weight .* its module was replaced"
    with pytest.raises(PruningError, match=text):
        fit(tmp_path, Replacing(hook), PruningCallback(RECIPE), look)
    assert steps == [] if hook == "on_fit_start" else len(steps) < 4


def test_module_replaced_by_one_of_another_size(tmp_path: Path) -> None:
    with pytest.raises(PruningError, match=r"first\.weight .* its module was replaced"):
        fit(tmp_path, LinearNet(), Replacement(), PruningCallback(RECIPE))


def test_module_replaced_in_setup_is_pruned(tmp_path: Path) -> None:
    model, callback = Replacing("setup"), PruningCallback(RECIPE)
    fit(tmp_path, model, callback)
    assert callback.sparsity == 0.5


def test_no_optimizer_holds_a_target(tmp_path: Path) -> None:
    model = LinearNet(lambda _: torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1))
    with pytest.raises(ValueError, match=r"no optimizer holds any of the pruned parameters; let configure_optimizers"):
        fit(tmp_path, model, PruningCallback(RECIPE))


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (LRRewind(), r"optimizer_policy=LRRewind\(\) sets a learning rate scheduler back"),
        (RewindWeights(7), r"goes back to step 7, which comes after the first event at step 4"),
    ],
)
def test_policies_that_cannot_work(tmp_path: Path, policy: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        fit(tmp_path, LinearNet(), PruningCallback(Recipe(schedule=HALF, optimizer_policy=policy)))


def test_gradient_criterion_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"prunes before the first step; let begin_step be at least 1"):
        fit(tmp_path, LinearNet(), PruningCallback(Recipe(schedule=OneShot(0.5, begin_step=0), criterion=Taylor())))


def test_event_before_the_first_step(tmp_path: Path) -> None:
    pruned: list[int] = []
    look = AfterStep(lambda _, model: pruned.append(zeros(model)))
    fit(tmp_path, LinearNet(), PruningCallback(Recipe(schedule=OneShot(0.5, begin_step=0))), look)
    assert pruned == [128] * 10


def test_broken_weights_are_named(tmp_path: Path) -> None:
    model = LinearNet()

    def spoil(run: L.Trainer, module: Any) -> None:
        if run.global_step == 4:
            masks.dense_parameters(module)["second.weight"].data[0, 0] = torch.nan

    with pytest.raises(NonFiniteError, match=r"second\.weight has 1 weights that are NaN or infinite"):
        fit(tmp_path, model, AfterStep(spoil), PruningCallback(RECIPE))
    assert zeros(model) == 0


def test_no_name_of_a_module_is_in_the_way(tmp_path: Path) -> None:
    model = LinearNet()
    model.first.register_buffer("weight_mask", torch.ones(1))
    fit(tmp_path, model, PruningCallback(RECIPE))
    assert int((model.first.weight == 0).sum()) > 0
    assert model.first.get_buffer("weight_mask").tolist() == [1.0]


class Stop(Exception):
    """Something goes wrong in the user's code."""


def interrupt(at: int, exception: type[BaseException]) -> AfterStep:
    def stop(run: L.Trainer, _: Any) -> None:
        if run.global_step == at:
            raise exception

    return AfterStep(stop)


@pytest.fixture
def _keeps_sigint() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_keeps_sigint")
@pytest.mark.parametrize(("exception", "raised"), [(Stop, Stop), (KeyboardInterrupt, SystemExit)])
def test_interrupted_run_stays_masked_and_can_be_resumed(tmp_path: Path, exception: Any, raised: Any) -> None:
    recipe = Recipe(schedule=Linear(0.6, 2, 9, 3), granularity=Channel(), criterion=Taylor())
    torch.manual_seed(0)
    whole = Net()
    trainer(tmp_path, PruningCallback(recipe)).fit(whole, Resumable())

    torch.manual_seed(0)
    model, callback = Net(), PruningCallback(recipe)
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=6, save_top_k=-1)
    with pytest.raises(raised):
        trainer(tmp_path, callback, interrupt(7, exception), saving).fit(model, Resumable())
    assert zeros(model) > 0
    assert masks.structured_names(model)
    assert not model._load_state_dict_pre_hooks
    # the same objects once more, as in a notebook, and new ones, as in a new process
    for module, again in ((model, callback), (Net(), PruningCallback(recipe))):
        trainer(tmp_path, again, saving).fit(module, Resumable(), ckpt_path=tmp_path / "step=6.ckpt")
        assert all(torch.equal(a, b) for a, b in zip(module.parameters(), whole.parameters(), strict=True))
        assert not masks.is_masked(module)


def test_interrupted_run_goes_on_without_a_checkpoint(tmp_path: Path) -> None:
    model, callback = LinearNet(), PruningCallback(Recipe(schedule=Linear(0.6, 2, 9, 3)))
    with pytest.raises(Stop):
        fit(tmp_path, model, callback, interrupt(7, Stop))
    pruned = zeros(model)
    seen: list[int] = []
    fit(tmp_path, model, callback, AfterStep(lambda _, m: seen.append(zeros(m))), max_epochs=1)
    assert seen == [pruned, *[round(0.6 * 256)] * 4][1:] or seen == [132, *[154] * 4]
    assert [event.step for event in callback.events] == [5, 8, 9]


def test_interrupted_run_can_be_finalized(tmp_path: Path) -> None:
    model = Net()
    recipe = Recipe(schedule=OneShot(0.5, begin_step=5), granularity=Channel())
    with pytest.raises(Stop):
        fit(tmp_path, model, PruningCallback(recipe), interrupt(5, Stop))
    before = outputs(model)
    finalize(model)
    torch.testing.assert_close(outputs(model), before, rtol=1e-5, atol=1e-6)
    assert model.conv1.out_channels + model.conv2.out_channels == 8


@pytest.mark.parametrize("net", [Net, MixedNet])
@pytest.mark.parametrize("stage", ["before", "after"])
def test_copies_in_the_middle_of_a_fit(tmp_path: Path, net: Any, stage: str) -> None:
    copies: list[Any] = []

    def copy_all(run: L.Trainer, model: Any) -> None:
        if run.global_step == (2 if stage == "before" else 6):
            copies.extend((copy.deepcopy(model), pickle.loads(pickle.dumps(model)), outputs(model)))

    recipe = Recipe(schedule=OneShot(0.5, begin_step=4), granularity=Channel())
    model = net()
    fit(tmp_path, model, PruningCallback(recipe), AfterStep(copy_all))
    *models, expected = copies
    for other in models:
        assert other._trainer is None
        assert torch.equal(outputs(other), expected)
        assert zeros(other) > 0 or stage == "before"
        (hook,) = other._load_state_dict_pre_hooks.values()
        assert not any(isinstance(held, L.Trainer | PruningCallback) for held in vars(hook.hook).values())
        fit(tmp_path, finalize(other), PruningCallback(recipe), max_epochs=1)


class OwnRecipe(MixedNet):
    def configure_pruning(self) -> Recipe:
        return Recipe(schedule=OneShot(0.5, begin_step=4))


def test_copy_of_a_module_with_its_own_recipe(tmp_path: Path) -> None:
    copies: list[Any] = []
    look = AfterStep(lambda run, m: copies.append(copy.deepcopy(m)) if run.global_step == 6 else None)
    model = OwnRecipe()
    fit(tmp_path, model, look)
    (other,) = copies
    assert other._trainer is other._pruning_callback is None
    finalize(other)
    fit(tmp_path, other)
    assert other._pruning_callback is not model._pruning_callback
    assert other._pruning_callback.events[0].step == 4


def test_broken_weights_are_named_before_the_first_step(tmp_path: Path) -> None:
    model = LinearNet()
    with torch.no_grad():
        model.second.weight[0, 0] = torch.nan
    recipe = Recipe(schedule=OneShot(0.5, begin_step=6))
    with pytest.raises(NonFiniteError, match=r"second\.weight of LinearNet is NaN or infinite before the first step"):
        trainer(tmp_path, PruningCallback(recipe)).fit(model, loader())


def test_channels_of_one_recipe_in_blocks_of_another(tmp_path: Path) -> None:
    thin = Recipe(schedule=OneShot(0.5, begin_step=2), granularity=Channel(), targets=Targets(include=("conv2",)))
    blocks = Recipe(schedule=OneShot(0.5, begin_step=2), granularity=NOfM(2, 4), targets=Targets(include=("conv3",)))
    with pytest.raises(ValueError, match=r"removes channels out of conv3\.weight, which would cut the units of NOfM"):
        trainer(tmp_path, PruningCallback([thin, blocks])).fit(Net(), loader())


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy"])
def test_a_strategy_without_a_place_for_masks_is_refused_with_what_to_write(name: str) -> None:
    kind = getattr(import_module(f"{packages.NAME}.strategies"), name)
    run = SimpleNamespace(strategy=kind.__new__(kind))  # it takes no CPU, or is not installed
    with pytest.raises(PruningError, match=rf"{name} flattens .*Write Trainer.*tensor_parallel_size=1"):
        check_strategy(run, Net())  # type: ignore[arg-type]
