"""Pruning beside whatever else a Trainer does: each feature works, bit for bit where it can be said, or is refused."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from packages import BackboneFinetuning, BatchSizeFinder, LearningRateFinder
from support import AfterStep, LinearNet, Net, loader, momentum_sgd, outputs, trainer, zeros
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_prune import Channel, Element, Linear, NoRepair, OneShot, PruningCallback, Recipe, Taylor, finalize
from lightning_prune.model import masks

RISE = Linear(final_sparsity=0.5, begin_step=2, end_step=6, frequency=2)
CHANNELS = Recipe(schedule=RISE, granularity=Channel(), criterion=Taylor())
WEIGHTS = Recipe(schedule=RISE, granularity=Element(), criterion=Taylor())
BOTH = pytest.mark.parametrize("recipe", [WEIGHTS, CHANNELS], ids=["element", "channel"])
SHRINKS = pytest.mark.parametrize("shrinks", [False, True])


def is_half(model: Net, recipe: Recipe) -> bool:
    if recipe.is_structured:
        return model.conv1.out_channels + model.conv2.out_channels == 8
    weights = [m.weight for m in (model.conv1, model.conv2, model.conv3, model.head)]
    return abs(sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights) - 0.5) < 0.01


def fitted(folder: Path, recipe: Recipe, *callbacks: Any, model: Any = None, shrinks: bool = False, **how: Any) -> Any:
    model = Net() if model is None else model
    callback = PruningCallback(recipe, compact_every_event=shrinks and recipe.is_structured)
    trainer(folder, callback, *callbacks, **how).fit(model, loader())
    return model, callback


@BOTH
@pytest.mark.parametrize(
    "how",
    [
        {"gradient_clip_val": 0.1},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"accumulate_grad_batches": 2, "max_epochs": 3},
        {"limit_train_batches": 4},
        {"overfit_batches": 3, "max_epochs": 3},
        {"max_steps": 8, "max_epochs": -1},
        {"deterministic": True, "benchmark": False},
        {"detect_anomaly": True},
        {"barebones": True, "default_root_dir": None, "enable_checkpointing": False},
    ],
    ids=lambda how: next(iter(how)),
)
def test_arguments_of_the_trainer(tmp_path: Path, recipe: Recipe, how: dict[str, Any]) -> None:
    model, callback = fitted(tmp_path, recipe, **how)
    assert callback.events[-1].sparsity == pytest.approx(0.5, abs=0.01)
    assert is_half(model, recipe)


@BOTH
@pytest.mark.parametrize(
    "how", [{"val_check_interval": 2}, {"limit_val_batches": 0}, {"check_val_every_n_epoch": 2}], ids=str
)
def test_validation_between_events_changes_nothing(tmp_path: Path, recipe: Recipe, how: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plain, _ = fitted(tmp_path, recipe)
    torch.manual_seed(0)
    model = Net()
    trainer(tmp_path, PruningCallback(recipe), **how).fit(model, loader(), loader(2))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))


@BOTH
def test_stages_on_a_masked_model(tmp_path: Path, recipe: Recipe) -> None:
    model, callback = Net(), PruningCallback(recipe, finalize=False)
    run = trainer(tmp_path, callback)
    run.fit(model, loader())
    masked, expected = zeros(model), outputs(model)
    run.validate(model, loader(1), verbose=False)
    run.test(model, loader(1), verbose=False)
    assert len(run.predict(model, loader(2)) or ()) == 2
    assert zeros(model) == masked > 0
    assert torch.equal(outputs(model), expected)
    trainer(tmp_path).test(model, loader(1), verbose=False)  # without the callback
    assert torch.allclose(outputs(finalize(model)), expected, atol=1e-5)


class Manual(Net):
    """Two optimizers that step by hand, each every other batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        several: Any = self.optimizers()
        optimizer = several[batch_idx % 2]
        self.toggle_optimizer(optimizer)
        optimizer.zero_grad()
        self.manual_backward(cross_entropy(self(batch[0]), batch[1]))
        optimizer.step()
        self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        body = [p for n, p in self.named_parameters() if not n.startswith("head")]
        return momentum_sgd(body), torch.optim.AdamW(self.head.parameters())


@BOTH
@SHRINKS
def test_several_optimizers_by_hand(tmp_path: Path, recipe: Recipe, shrinks: bool) -> None:
    model, callback = fitted(tmp_path, recipe, model=Manual(), shrinks=shrinks)
    assert [event.step for event in callback.events] == [4, 6]
    assert is_half(model, recipe)


@BOTH
@SHRINKS
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*treespec")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch 2.13 hides it, unless warnings are errors
def test_compiled_models(tmp_path: Path, recipe: Recipe, shrinks: bool, whole: bool) -> None:
    recipe = replace(recipe, repair=NoRepair())  # which a compiled model is left without as it comes
    torch.manual_seed(0)
    plain, _ = fitted(tmp_path, recipe, shrinks=shrinks)
    torch.manual_seed(0)
    model = Net()
    if whole:
        compiled: Any = torch.compile(model, backend="aot_eager")
        callback = PruningCallback(recipe, compact_every_event=shrinks and recipe.is_structured)
        trainer(tmp_path, callback).fit(compiled, loader())
    else:
        model.conv2.compile(backend="aot_eager")
        fitted(tmp_path, recipe, model=model, shrinks=shrinks)
    torch._dynamo.reset()
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        assert a.shape == b.shape
        assert torch.allclose(a, b, atol=1e-4)
    after = torch.compile(model.eval(), backend="aot_eager")
    assert torch.allclose(after(torch.ones(2, 1, 6, 6)), model(torch.ones(2, 1, 6, 6)), atol=1e-6)


class Inside(LinearNet):
    """A part of it is compiled."""

    def __init__(self, backend: Any) -> None:
        super().__init__()
        part = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16))
        self.first: Any = torch.compile(part, backend=backend)


@pytest.mark.parametrize("granularity", [Element(), Channel()], ids=str)
@pytest.mark.parametrize("way", ["in place", "around", "inside"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*treespec")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_an_event_compiles_nothing_anew(tmp_path: Path, granularity: Any, way: str) -> None:
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(
            sum(f"{node.target}".count("linear") + f"{node.target}".count("conv2d") for node in graph.graph.nodes)
        )
        return graph.forward

    model: Any = Inside(backend) if way == "inside" else Net()
    if way == "in place":
        model.compile(backend=backend)
    whole: Any = torch.compile(model, backend=backend) if way == "around" else model
    recipe = Recipe(schedule=Linear(final_sparsity=0.5, begin_step=1, end_step=9, frequency=2), granularity=granularity)
    callback = PruningCallback(recipe)
    try:
        trainer(tmp_path, callback).fit(whole, loader())
    finally:
        torch._dynamo.reset()
    assert len(callback.events) > 2
    assert graphs == [2 if way == "inside" else 4]


class WithBackbone(LinearNet):
    """Its first layer is frozen at the beginning."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16))

    def forward(self, features: Tensor) -> Tensor:
        return self.second(torch.relu(self.backbone(features.flatten(1)[:, :12])))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(filter(lambda p: p.requires_grad, self.parameters()), lr=0.05, momentum=0.9)


@pytest.mark.filterwarnings("ignore:The provided params to be frozen", "ignore:The provided params to be unfrozen")
def test_a_backbone_that_thaws(tmp_path: Path) -> None:
    thawing = BackboneFinetuning(unfreeze_backbone_at_epoch=1, verbose=False)
    model, callback = WithBackbone(), PruningCallback(Recipe(schedule=OneShot(0.5, begin_step=7)))
    trainer(tmp_path, callback, thawing, max_epochs=3).fit(model, loader())
    assert callback.events[0].sparsity == 0.5
    assert sum(p.numel() - int(p.count_nonzero()) for p in model.parameters() if p.dim() > 1) >= 128


@pytest.mark.parametrize(
    "tuner", [lambda: LearningRateFinder(num_training_steps=6), lambda: BatchSizeFinder(max_trials=1)]
)
def test_tuners_leave_no_trace(tmp_path: Path, tuner: Any) -> None:
    model: Any = LinearNet(momentum_sgd)
    model.lr, model.batch_size = 0.05, 4
    model.train_dataloader = lambda: loader()
    callback = PruningCallback(Recipe(schedule=OneShot(0.5, begin_step=4)))
    run = trainer(tmp_path, tuner(), callback, max_epochs=2)
    run.fit(model)
    assert [event.step for event in callback.events] == [4]
    weights = (model.first.weight, model.second.weight)
    assert sum(int((w == 0).sum()) for w in weights) == 128


def test_half_precision_with_a_scaler_becomes_bfloat_on_a_cpu(tmp_path: Path) -> None:
    # Lightning itself puts bf16-mixed in its place there; what the scaler leaves out is tested in test_callback.py
    with pytest.warns(UserWarning, match="Using `precision='bf16-mixed'` instead"):
        trainer(tmp_path, PruningCallback(WEIGHTS), precision="16-mixed").fit(Net(), loader())


@BOTH
@SHRINKS
def test_copies_train_on_their_own(tmp_path: Path, recipe: Recipe, shrinks: bool) -> None:
    copies: list[Any] = []
    look = AfterStep(lambda _, model: copies.append((copy.deepcopy(model), outputs(model))))
    fitted(tmp_path, recipe, look, shrinks=shrinks)
    for copied, expected in copies:
        assert torch.equal(outputs(copied), expected)
    trainer(tmp_path, max_epochs=1).fit(copies[5][0], loader())
    assert masks.is_masked(copies[5][0])
