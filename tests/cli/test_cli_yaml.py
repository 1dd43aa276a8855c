"""Recipes written in the YAML of LightningCLI, for the Trainer's callback and as a hyperparameter of the module."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from packages import NAME
from support import MixedNet, Net, loader, outputs
from torch import nn
from torch.utils.data import DataLoader

from lightning_prune import (
    Block,
    Channel,
    Each,
    Exponential,
    FromSensitivity,
    Guard,
    Iterative,
    Latency,
    LeastSquares,
    Linear,
    LRRewind,
    MACs,
    Magnitude,
    Memory,
    NOfM,
    OneCycle,
    OneShot,
    Params,
    Polynomial,
    PruningCallback,
    Random,
    Recipe,
    Reconstruction,
    Reset,
    Rewarm,
    RewindWeights,
    SampleCriterion,
    Size,
    Targets,
    Taylor,
    compensation,
    criteria,
    schedules,
)
from lightning_prune.model import masks
from lightning_prune.optimizer import policies
from lightning_prune.selection import allocation, granularity

if TYPE_CHECKING:
    from lightning.pytorch.cli import LightningCLI
else:
    LightningCLI = import_module(f"{NAME}.cli").LightningCLI

pytest.importorskip("jsonargparse")
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")

TRAINER = """seed_everything: 1
trainer:
  accelerator: cpu
  max_epochs: 2
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
"""


class Plain(Net):
    def __init__(self, width: int = 8) -> None:
        super().__init__(width)

    def train_dataloader(self) -> DataLoader[Any]:
        return loader()


class WithRecipe(MixedNet):
    def __init__(self, recipe: Recipe | None = None, several: list[Recipe] | None = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.given = recipe or several

    def configure_pruning(self) -> Any:
        return self.given

    def train_dataloader(self) -> DataLoader[Any]:
        return loader()


def weight_itself(name: str, weight: torch.Tensor) -> torch.Tensor:
    """Keep what is large and positive."""
    return weight


def cli(folder: Path, model: type[Any], text: str, *command: str) -> LightningCLI:
    config = folder / "config.yaml"
    config.write_text(TRAINER + text)
    return started(model, *command, "--config", str(config), "--trainer.default_root_dir", str(folder))


def started(model: type[Any], *arguments: str) -> LightningCLI:
    """As from a shell: a first argument without dashes is the subcommand to run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["main.py", *arguments])
        return LightningCLI(model, run=not arguments[0].startswith("--"), save_config_callback=None)


def callback_of(made: LightningCLI) -> PruningCallback:
    (callback,) = (c for c in made.trainer.callbacks if isinstance(c, PruningCallback))  # type: ignore[attr-defined]
    return callback


def recipe_yaml(**parts: str) -> str:
    lines = "".join(f"            {name}: {value}\n" for name, value in parts.items())
    return f"""  callbacks:
    - class_path: lightning_prune.PruningCallback
      init_args:
        recipe:
          class_path: lightning_prune.Recipe
          init_args:
{lines}"""


ONE_SHOT = "{class_path: lightning_prune.OneShot, init_args: {final_sparsity: 0.5, begin_step: 4}}"
WITH_ARGUMENTS: list[tuple[str, Any]] = [
    ("granularity", NOfM(2, 4)),
    ("granularity", Block((4, 1))),
    ("granularity", Channel(min_channels=2, round_to=2)),
    ("schedule", OneShot(0.5, begin_step=30)),
    ("schedule", Linear(0.5, begin_step=3, end_step=0.7, frequency=10)),
    ("schedule", Polynomial(0.5, exponent=2.0)),
    ("schedule", Exponential(0.5, rate=3.0)),
    ("schedule", OneCycle(0.5, alpha=10.0, beta=4.0)),
    ("schedule", Iterative(0.5, initial_sparsity=0.1)),
    ("criterion", Magnitude(norm=2)),
    ("criterion", Random(seed=3)),
    ("criterion", Reconstruction(samples=64)),
    ("allocation", FromSensitivity({"conv1": 0.5, "conv2": 0.25}, max_drop=0.1)),
    ("optimizer_policy", Rewarm(5)),
    ("optimizer_policy", LRRewind(2)),
    ("optimizer_policy", RewindWeights(3)),
    ("repair", LeastSquares(samples=64)),
]
KINDS: dict[str, tuple[type[Any], ...]] = {
    "granularity": granularity.BUILT_IN,
    "schedule": schedules.BUILT_IN,
    "criterion": (*criteria.BUILT_IN, *(kind for kind in compensation.BUILT_IN if issubclass(kind, SampleCriterion))),
    "allocation": allocation.BUILT_IN,
    "optimizer_policy": policies.BUILT_IN,
    "repair": tuple(kind for kind in compensation.BUILT_IN if not issubclass(kind, SampleCriterion)),
}
LISTED = {type(value) for _, value in WITH_ARGUMENTS}
REST = [(part, kind) for part, kinds in KINDS.items() for kind in kinds if kind not in LISTED]
VALUES = WITH_ARGUMENTS + [(part, kind(0.5) if part == "schedule" else kind()) for part, kind in REST]


def as_yaml(value: Any) -> str:
    if isinstance(value, Each):
        needs = ", ".join(as_yaml(need) for need in value.needs)
        return f"{{class_path: lightning_prune.Each, init_args: {{needs: [{needs}]}}}}"
    arguments = ", ".join(
        f"{k}: {'null' if v is None else list(v) if isinstance(v, tuple) else v}" for k, v in vars(value).items()
    )
    return f"{{class_path: lightning_prune.{type(value).__name__}, init_args: {{{arguments}}}}}"


@pytest.mark.parametrize(("part", "value"), VALUES, ids=lambda given: str(given))
def test_every_built_in_part(tmp_path: Path, part: str, value: Any) -> None:
    made = cli(tmp_path, Plain, recipe_yaml(**({"schedule": ONE_SHOT} | {part: as_yaml(value)})))
    (recipe,) = callback_of(made).recipes
    parts: dict[str, Any] = {"schedule": OneShot(0.5, begin_step=4)}
    assert recipe == Recipe(**(parts | {part: value}))
    assert type(getattr(recipe, part)) is type(value)


NEEDS = [
    *(MACs(0.5), Params(300), Size(2_000), Latency(8.0, "table.json"), Memory(9_000)),
    Each((MACs(0.6), Params(0.3))),
]


@pytest.mark.parametrize("need", NEEDS, ids=repr)
def test_every_need(tmp_path: Path, need: Any) -> None:
    parts = {"need": as_yaml(need), "granularity": as_yaml(Channel())}
    schedule = "{class_path: lightning_prune.OneShot, init_args: {begin_step: 4}}"
    made = cli(tmp_path, Plain, recipe_yaml(schedule=schedule, **parts))
    (recipe,) = callback_of(made).recipes
    assert recipe == Recipe(schedule=OneShot(begin_step=4), need=need, granularity=Channel())


def test_every_built_in_part_is_in_the_list() -> None:
    import lightning_prune
    from lightning_prune.checkpoints.state import VALUES as ALL

    needs = {type(need) for need in NEEDS}
    assert {type(value) for _, value in VALUES} | needs | {Recipe, Targets, Guard} == set(ALL)
    names = (getattr(lightning_prune, name) for name in lightning_prune.__all__)
    exported = {v for v in names if isinstance(v, type) and hasattr(v, "__dataclass_fields__")}
    abstract = {v for v in exported if getattr(v, "__abstractmethods__", None)}
    others = {
        lightning_prune.Candidates,
        lightning_prune.Compaction,
        lightning_prune.Distillation,
        lightning_prune.LeastSquares,
    }
    assert exported - abstract - others - {lightning_prune.Report} <= set(ALL)


def test_fit_with_the_callback_of_the_trainer(tmp_path: Path) -> None:
    text = recipe_yaml(
        granularity="{class_path: lightning_prune.Channel}",
        schedule=as_yaml(Polynomial(0.5, begin_step=2, end_step=8)),
        criterion="{class_path: lightning_prune.Taylor}",
        allocation="{class_path: lightning_prune.Global}",
        targets="{include: ['conv*'], exclude: [conv3]}",
        count="channels",
        optimizer_policy=f"[{as_yaml(Reset())}, {as_yaml(Rewarm(3))}]",
    )
    made = cli(tmp_path, Plain, text + "\nmodel:\n  width: 6\n", "fit")
    callback = callback_of(made)
    assert callback.recipes[0].optimizer_policy == [Reset(), Rewarm(3)]
    assert callback.recipes[0].targets == Targets(include=("conv*",), exclude=("conv3",))
    assert callback.events[-1].step == 8
    assert (made.model.conv1.out_channels, made.model.conv2.out_channels) == (6, 3)
    assert not masks.is_masked(made.model)


def test_several_recipes(tmp_path: Path) -> None:
    text = f"""  callbacks:
    - class_path: lightning_prune.PruningCallback
      init_args:
        finalize: false
        recipe:
          - class_path: lightning_prune.Recipe
            init_args:
              schedule: {ONE_SHOT}
              targets: {{include: [conv*]}}
          - class_path: lightning_prune.Recipe
            init_args:
              schedule: {ONE_SHOT}
              targets: {{include: [head]}}
              count: params
"""
    callback = callback_of(cli(tmp_path, Plain, text))
    assert [recipe.targets.include for recipe in callback.recipes] == [("conv*",), ("head",)]
    assert [recipe.count for recipe in callback.recipes] == [None, "params"]
    assert not callback.finalize


def test_recipe_without_a_class_path(tmp_path: Path) -> None:
    text = recipe_yaml(schedule=ONE_SHOT, optimizer_policy=as_yaml(LRRewind(2))).replace(
        "          class_path: lightning_prune.Recipe\n          init_args:\n", ""
    )
    expected = Recipe(schedule=OneShot(0.5, begin_step=4), optimizer_policy=LRRewind(2))
    assert callback_of(cli(tmp_path, Plain, text)).recipes == (expected,)


def test_function_of_the_users_own(tmp_path: Path) -> None:
    text = recipe_yaml(schedule=ONE_SHOT, criterion=f"{__name__}.weight_itself")
    criterion: Callable[..., Any] = callback_of(cli(tmp_path, Plain, text)).recipes[0].criterion  # type: ignore[assignment]
    assert criterion is weight_itself


def test_wrong_value_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ONE_SHOT.replace("0.5", "1.5")
    with pytest.raises((SystemExit, ValueError)) as caught:
        cli(tmp_path, Plain, recipe_yaml(schedule=wrong))
    said = capsys.readouterr().err + str(caught.value)
    assert "OneShot.final_sparsity must be a number at least 0 and below 1, got 1.5" in said


@pytest.mark.parametrize("is_list", [False, True])
def test_recipe_as_a_hyperparameter(tmp_path: Path, is_list: bool) -> None:
    granularity, targets = "{class_path: lightning_prune.Channel}", "{include: ['*']}"
    parts = f"{{schedule: {ONE_SHOT}, granularity: {granularity}, targets: {targets}}}"
    parts = f"{{class_path: lightning_prune.Recipe, init_args: {parts}}}"
    text = f"model:\n  several: [{parts}]\n" if is_list else f"model:\n  recipe: {parts}\n"
    made = cli(tmp_path, WithRecipe, text, "fit")
    model = made.model
    assert model.conv1.out_channels + model.conv2.out_channels == 8
    assert callback_of(made).recipes == (Recipe(schedule=OneShot(0.5, begin_step=4), granularity=Channel()),)
    made.trainer.save_checkpoint(tmp_path / "done.ckpt")
    torch.load(tmp_path / "done.ckpt", weights_only=True)
    loaded = WithRecipe.load_from_checkpoint(tmp_path / "done.ckpt")
    assert torch.equal(outputs(loaded), outputs(model))
    assert loaded.given == model.given
    assert isinstance(loaded.head, nn.Linear)


def test_saved_config_can_be_used_again(tmp_path: Path) -> None:
    text = recipe_yaml(schedule=ONE_SHOT, granularity=as_yaml(NOfM(2, 4)), criterion=as_yaml(Taylor()))
    made = cli(tmp_path, Plain, text)
    (tmp_path / "again.yaml").write_text(made.parser.dump(made.config))
    again = started(Plain, "--config", str(tmp_path / "again.yaml"))
    assert callback_of(again).recipes == callback_of(made).recipes
