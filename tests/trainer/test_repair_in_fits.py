"""Repair at the events of a fit: on whatever inputs training gives, with nothing else touched by it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from packages import L
from support import AfterStep, Net, Resumable, loader, momentum_sgd, trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_prune import (
    Channel,
    Element,
    Fisher,
    Global,
    LeastSquares,
    Linear,
    NOfM,
    NoRepair,
    OneShot,
    PruningCallback,
    Recipe,
    Reconstruction,
    RewindWeights,
    Targets,
    Uniform,
)
from lightning_prune.compensation import reconstruction
from lightning_prune.errors import NonFiniteError, PruningError
from lightning_prune.model import masks

LATE = OneShot(0.5, begin_step=6)
REPAIRED = Recipe(schedule=LATE, granularity=Channel(), repair=LeastSquares(samples=24))


def fitted(folder: Path, recipe: Any, *callbacks: Any, model: Any = None, **options: Any) -> Any:
    pruning = {name: options.pop(name) for name in ("compact_every_event", "finalize") if name in options}
    model = Net() if model is None else model
    callback = PruningCallback(recipe, **pruning)
    trainer(folder, callback, *callbacks, **options).fit(model, Resumable())
    return model, callback


def mended(callback: PruningCallback) -> list[str]:
    return [repair.name for event in callback.events for repair in event.repairs if repair.damping is not None]


@pytest.mark.parametrize(
    "recipe",
    [
        REPAIRED,
        Recipe(schedule=LATE, granularity=Element(), repair=LeastSquares(samples=24)),
        Recipe(schedule=LATE, granularity=NOfM(2, 4), repair=LeastSquares(samples=24), targets=Targets(("conv[23]",))),
        Recipe(schedule=LATE, granularity=Channel(), criterion=Reconstruction(samples=24), repair=LeastSquares()),
    ],
    ids=str,
)
def test_errors_fall_on_samples_held_out_and_it_is_told(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, callback = fitted(tmp_path, recipe)
    (event,) = callback.events
    repaired = [repair for repair in event.repairs if repair.damping is not None]
    assert repaired
    assert all(repair.after < repair.before for repair in repaired)
    assert f"left, {len(repaired)} of {len(event.repairs)} layers repaired" in capsys.readouterr().out
    assert "forward" not in vars(model)
    assert not masks.is_masked(model)


def test_an_event_touches_kept_weights_and_biases_alone(tmp_path: Path) -> None:
    """Statistics, modes, the random state and the momentum of kept weights stay; pruned ones have none."""
    seen: dict[tuple[int, int], Any] = {}

    def look(fit: Any, model: Any) -> None:
        if fit.global_step in (6, 7):
            momentum = {n: fit.optimizers[0].state[p] for n, p in masks.dense_parameters(model).items()}
            seen[fit.global_step, len(callback.events)] = {
                "buffers": {name: buffer.clone() for name, buffer in model.named_buffers()},
                "random": torch.get_rng_state(),
                "training": {name: module.training for name, module in model.named_modules()},
                "momentum": {n: state["momentum_buffer"].clone() for n, state in momentum.items()},
                "weights": {n: p.detach().clone() for n, p in masks.dense_parameters(model).items()},
            }

    callback = PruningCallback(REPAIRED, finalize=False)
    model = Net()
    fit = trainer(tmp_path, AfterStep(look), callback, AfterStep(look))
    fit.fit(model, Resumable())
    before, after = seen[6, 0], seen[6, 1]
    assert all(torch.equal(before["buffers"][name], buffer) for name, buffer in after["buffers"].items())
    assert torch.equal(before["random"], after["random"])
    assert before["training"] == after["training"]
    live = masks.read(model)
    for name, momentum in after["momentum"].items():
        kept = live.get(name, torch.ones_like(momentum, dtype=torch.bool))
        assert torch.equal(momentum, torch.where(kept, before["momentum"][name], 0))
        assert bool((after["weights"][name][~kept] == 0).all())
    assert any(not torch.equal(before["weights"][name], after["weights"][name] * 1) for name in mended(callback))


@pytest.mark.parametrize("shrinks", [False, True])
def test_it_goes_along_with_accumulation_several_recipes_and_removal(shrinks: bool, tmp_path: Path) -> None:
    recipes = [
        Recipe(
            schedule=Linear(0.5, 1, 7, 2),
            granularity=Channel(),
            repair=LeastSquares(samples=24),
            targets=Targets(("conv1", "conv2", "conv3")),
        ),
        Recipe(schedule=OneShot(0.5, begin_step=4), targets=Targets(("head",))),
    ]
    _, callback = fitted(tmp_path, recipes, accumulate_grad_batches=2, max_epochs=4, compact_every_event=shrinks)
    assert mended(callback)
    assert any(not event.repairs for event in callback.events)


class Inside(Net):
    """Calls what holds all of its parameters, and never itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 4))
        for name in ("conv1", "norm1", "conv2", "norm2", "conv3", "head"):
            delattr(self, name)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])


class Parts(Inside):
    """Calls parts of the network alone."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self.net[3](self.net[2](self.net[1](batch[0].flatten(1)))), batch[1])


def test_the_network_inside_may_be_called_in_place_of_the_module(tmp_path: Path) -> None:
    _, callback = fitted(tmp_path, REPAIRED, model=Inside())
    assert mended(callback) == ["net.3.weight"]


def test_where_no_call_is_seen_the_event_goes_on_without(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"step 6: the event is not repaired, since forward of Parts was not called"):
        _, callback = fitted(tmp_path, REPAIRED, model=Parts())
    assert [event.repairs for event in callback.events] == [()]


def test_too_few_samples_are_told_once(tmp_path: Path) -> None:
    recipe = Recipe(schedule=Linear(0.5, 1, 3, 1), granularity=Channel(), repair=LeastSquares())
    with pytest.warns(UserWarning, match=r"the 8 samples of the last forward passes are too few") as told:
        _, callback = fitted(tmp_path, recipe)
    assert sum("too few" in str(one.message) for one in told) == 1
    assert [event.repairs for event in callback.events] == [(), ()]


def test_a_criterion_by_reconstruction_takes_what_there_is(tmp_path: Path) -> None:
    looking = Recipe(schedule=LATE, granularity=Channel(), criterion=Reconstruction())
    _, callback = fitted(tmp_path, looking, fast_dev_run=True)
    assert [event.repairs for event in callback.events] == [()]
    with pytest.raises(PruningError, match=r"looks at inputs of the last steps before an event, and has none"):
        fitted(tmp_path, looking, model=Parts())


def test_channels_are_repaired_where_nothing_is_said(tmp_path: Path) -> None:
    _, plain = fitted(tmp_path, Recipe(schedule=LATE, granularity=Channel()))
    assert mended(plain)
    for without in (
        Recipe(schedule=LATE, granularity=Channel(), repair=NoRepair()),
        Recipe(schedule=LATE, granularity=Channel(), optimizer_policy=RewindWeights(1)),
        Recipe(schedule=LATE),
    ):
        _, callback = fitted(tmp_path, without)
        assert [(event.repairs, event.unrepaired) for event in callback.events] == [((), "")]


def widths(recipe: Recipe, folder: Path) -> list[tuple[torch.Tensor, ...]]:
    """The channels that each layer keeps, and what they compute with, after a fit from the same start."""
    torch.manual_seed(0)
    model, _ = fitted(folder, recipe)
    return [tuple(parameter.detach() for parameter in model.parameters())]


def test_what_repair_makes_up_for_least_goes_where_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Reconstruction, unless it takes long, cannot score, or the recipe names an allocation: then by Fisher."""

    def same(recipe: Recipe, other: Recipe) -> bool:
        pairs = zip(*(widths(one, tmp_path)[0] for one in (recipe, other)), strict=True)
        return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)

    plain = Recipe(schedule=LATE, granularity=Channel())
    fisher = replace(plain, criterion=Fisher(), allocation=Global(cost=None))
    assert same(plain, replace(plain, criterion=Reconstruction()))
    assert not same(plain, fisher)
    assert same(replace(plain, allocation=Uniform()), replace(plain, criterion=Fisher(), allocation=Uniform()))
    monkeypatch.setattr(reconstruction, "_TURNS", 1)
    assert same(plain, replace(plain, criterion=Fisher()))
    monkeypatch.undo()
    monkeypatch.setattr(reconstruction, "MAX_COLUMNS", 1)
    assert same(plain, replace(plain, criterion=Fisher()))


class Overflowing(Net):
    """Gives finite outputs while one of its layers meets infinite inputs in eval mode."""

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            self.head(images.new_full((len(images), 8), torch.inf))
        return super().forward(images)


class Picky(Net):
    """Cannot be evaluated on what it is trained on."""

    def forward(self, images: Tensor) -> Tensor:
        if not self.training and len(images) > 3:
            raise RuntimeError("one image at a time")
        return super().forward(images)


class Frugal(Net):
    """One of its layers gives so much that few samples go through it at once: 8 of 32 MB."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Upsample((2048, 4096))

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            self.large(images)
        return super().forward(images)


@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [
        (Overflowing, NonFiniteError, r"what enters head is NaN or infinite on the samples for repair"),
        (Picky, PruningError, r"forward of Picky cannot run in eval mode on the \d+ samples that repair and criteria"),
    ],
)
def test_what_cannot_be_looked_at_is_refused_before_anything_is_written(
    kind: type[Net], error: type[Exception], text: str, tmp_path: Path
) -> None:
    states = []
    note = AfterStep(lambda fit, model: states.append({n: p.detach().clone() for n, p in model.named_parameters()}))
    model = kind(make_optimizer=momentum_sgd)
    fit = trainer(tmp_path, note, PruningCallback(REPAIRED))
    with pytest.raises(error, match=text):
        fit.fit(model, loader())
    assert len(states) == 6
    assert all(torch.equal(states[-1][name], p) for name, p in model.named_parameters())
    assert all(bool(mask.all()) for mask in masks.read(model).values())


def test_a_policy_that_sets_weights_back_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"Recipe.repair changes weights, and optimizer_policy=RewindWeights\(step=1\)"
    ):
        Recipe(schedule=LATE, repair=LeastSquares(), optimizer_policy=RewindWeights(1))
    with pytest.raises(TypeError, match=r"Recipe.repair must be LeastSquares\(\), NoRepair\(\) or None"):
        Recipe(schedule=LATE, repair=True)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Parts, "forward of Parts was not called in the steps before it"),
        (Overflowing, "what enters head is NaN or infinite on the samples for repair. Look at the data. Repair can"),
        (Picky, "forward of Picky cannot run in eval mode on the 4 samples that repair and criteria look at"),
        (Frugal, "the 8 samples that megabytes=32 allows are too few, 16 are the least"),
    ],
)
def test_where_nobody_asked_for_it_a_line_says_why_it_is_left_out(
    model: type[Net], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Warnings are errors here."""
    _, callback = fitted(tmp_path, Recipe(schedule=LATE, granularity=Channel()), model=model())
    (event,) = callback.events
    assert event.repairs == ()
    assert event.unrepaired.startswith(reason)
    assert f"\nnot repaired: 1 of 1 event, for {reason}" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*treespec")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_what_is_compiled_stays_so_where_nobody_asked_for_repair(tmp_path: Path) -> None:
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    for way in ("around", "in place"):
        model, callback = Net(), PruningCallback(Recipe(schedule=LATE, granularity=Channel()))
        if way == "in place":
            model.compile(backend=backend)
        whole: Any = torch.compile(model, backend=backend) if way == "around" else model
        trainer(tmp_path, callback).fit(whole, Resumable())
        torch._dynamo.reset()
        assert [event.unrepaired for event in callback.events] == ["Net is compiled"]
    assert len(graphs) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*treespec")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_compiled_modules_are_repaired_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    _, plain = fitted(tmp_path, REPAIRED)
    torch.manual_seed(0)
    model, callback = Net(), PruningCallback(REPAIRED)
    compiled: L.LightningModule = torch.compile(model, backend="aot_eager")  # pyright: ignore[reportAssignmentType]
    trainer(tmp_path, callback).fit(compiled, Resumable())
    torch._dynamo.reset()
    assert mended(callback) == mended(plain)
