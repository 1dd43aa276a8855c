"""Copies that a user's code updates from pruned parts shrink in step, and compute what they computed masked."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from packages import SAFELY, L, ModelCheckpoint
from support import AfterStep, loader, trainer
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from lightning_prune import (
    Channel,
    Guard,
    Linear,
    OneShot,
    PruningCallback,
    PruningRun,
    Recipe,
    Targets,
    Uniform,
    finalize,
    load,
)
from lightning_prune.model import masks

SCHEDULE = Linear(final_sparsity=0.5, begin_step=3, end_step=9, frequency=3)


class Byol(L.LightningModule):
    """BYOL as lightly's example has it: two copies, of which one is compared with the output of what has none."""

    def __init__(self, update: str = "data", momentum: float = 0.9) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(2, 1, 6, 6)
        self.backbone = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        )
        self.projection = nn.Sequential(nn.Linear(12, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 6))
        self.prediction = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 6))
        self.backbone_momentum = copy.deepcopy(self.backbone).requires_grad_(False)
        self.projection_momentum = copy.deepcopy(self.projection).requires_grad_(False)
        self.update, self.momentum = update, momentum

    def forward(self, x: Tensor) -> Tensor:
        return self.prediction(self.projection(self.backbone(x).flatten(1)))

    def forward_momentum(self, x: Tensor) -> Tensor:
        return self.projection_momentum(self.backbone_momentum(x).flatten(1)).detach()

    @torch.no_grad()
    def follow(self, step: int) -> None:
        for part in ("backbone", "projection"):
            original, copied = getattr(self, part), getattr(self, f"{part}_momentum")
            if self.update == "loaded":
                if step % 2 == 0:
                    copied.load_state_dict(original.state_dict())
                continue
            for own, other in zip(original.parameters(), copied.parameters(), strict=True):
                if self.update == "data":  # as lightly's update_momentum
                    other.data = other.data * self.momentum + own.data * (1 - self.momentum)
                elif self.update == "zip":
                    other.mul_(self.momentum).add_(own, alpha=1 - self.momentum)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.follow(batch_idx)
        noise = torch.randn(batch[0].shape, generator=torch.Generator().manual_seed(batch_idx))
        return 1 - cosine_similarity(self(batch[0]), self.forward_momentum(batch[0] + 0.1 * noise)).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


def fitted(folder: Path, model: Byol, schedule: Any = SCHEDULE, **options: Any) -> Byol:
    callback = PruningCallback(Recipe(schedule=schedule, granularity=Channel(), allocation=Uniform()), **options)
    trainer(folder, callback, max_epochs=3).fit(model, loader())
    return model


def shapes(module: nn.Module) -> list[torch.Size]:
    return [tensor.shape for tensor in module.state_dict().values()]


def both(model: Byol) -> list[Tensor]:
    images = torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    alone = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        return [alone(images), alone.forward_momentum(images)]


@pytest.fixture
def model(request: pytest.FixtureRequest) -> Byol:
    torch.manual_seed(0)
    return Byol(getattr(request, "param", "data"))


@pytest.mark.parametrize("model", ["data", "zip", "loaded"], indirect=True)
@pytest.mark.filterwarnings("ignore:these channel groups stay")
def test_a_copy_shrinks_with_its_original(tmp_path: Path, model: Byol) -> None:
    at_once = fitted(tmp_path, copy.deepcopy(model), compact_every_event=True)
    in_the_end = fitted(tmp_path, copy.deepcopy(model))
    for small in (at_once, in_the_end):
        assert shapes(small.backbone) == shapes(small.backbone_momentum)
        assert shapes(small.projection) == shapes(small.projection_momentum)
        assert small.backbone[3].weight.shape[0] < 12  # type: ignore[union-attr]
        assert small.projection_momentum[0].weight.shape == small.projection[0].weight.shape  # type: ignore[union-attr]
        # compared with the prediction, so it keeps its width
        assert small.projection_momentum[3].out_features == 6  # type: ignore[union-attr]
    for one, other in zip(both(at_once), both(in_the_end), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:these channel groups stay")
def test_a_copy_computes_what_it_computed_masked(tmp_path: Path, model: Byol) -> None:
    fitted(tmp_path, model, finalize=False)
    assert masks.is_masked(model)
    masked = both(model)
    finalize(model)
    assert shapes(model.backbone) == shapes(model.backbone_momentum) != shapes(Byol().backbone)
    for one, other in zip(masked, both(model), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shrinks", [False, True])
def test_what_has_no_copy_at_its_other_end_stays_and_is_named(tmp_path: Path, model: Byol, shrinks: bool) -> None:
    with pytest.warns(UserWarning, match=r"projection\.3: projection_momentum follows projection, and of what stands"):
        fitted(tmp_path, model, compact_every_event=shrinks)
    assert model.projection[3].weight.shape[0] == 6  # type: ignore[union-attr]


class Moco(Byol):
    """MoCo: two copies, and nothing stands behind the projection."""

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(self.backbone(x).flatten(1))


@pytest.mark.parametrize("shrinks", [False, True])
def test_where_everything_has_a_copy_all_of_it_goes(tmp_path: Path, shrinks: bool) -> None:
    torch.manual_seed(0)
    model = fitted(tmp_path, Moco("zip"), compact_every_event=shrinks)
    assert shapes(model.backbone) == shapes(model.backbone_momentum)
    assert shapes(model.projection) == shapes(model.projection_momentum)
    assert model.backbone[3].weight.shape[0] == 6  # type: ignore[union-attr]
    assert model.projection[0].weight.shape == (8, 6)  # type: ignore[union-attr]


@pytest.mark.parametrize("model", ["never"], indirect=True)
@pytest.mark.parametrize("shrinks", [False, True])
def test_a_teacher_keeps_its_shape(tmp_path: Path, model: Byol, shrinks: bool) -> None:
    before = both(model)[1]
    weights = [parameter.clone() for parameter in model.backbone_momentum.parameters()]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fitted(tmp_path, model, compact_every_event=shrinks)
    texts = [str(warning.message) for warning in told if "is taken for a teacher" in str(warning.message)]
    assert len(texts) == (2 if shrinks else 0)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.backbone_momentum.parameters(), strict=True))
    assert both(model)[1].shape == before.shape
    assert model.backbone[3].weight.shape[0] < 12  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore:these channel groups stay")
def test_before_it_is_known_nothing_leaves(tmp_path: Path, model: Byol) -> None:
    widths = []

    class Look(AfterStep):
        def __init__(self) -> None:
            super().__init__(lambda run, model: widths.append(model.backbone[3].weight.shape[0]))

    schedule = Linear(final_sparsity=0.5, initial_sparsity=0.25, begin_step=0, end_step=8, frequency=4)
    callback = PruningCallback(
        Recipe(schedule=schedule, granularity=Channel(), allocation=Uniform()), compact_every_event=True
    )
    trainer(tmp_path, callback, Look(), max_epochs=3).fit(model, loader())
    assert widths[:3] == [12, 12, 12]
    assert widths[3] < 12
    assert shapes(model.backbone) == shapes(model.backbone_momentum)


@pytest.mark.filterwarnings("ignore:these channel groups stay", "ignore:The dirpath has changed")
@pytest.mark.parametrize("shrinks", [False, True])
def test_a_copy_is_resumed(tmp_path: Path, model: Byol, shrinks: bool) -> None:
    recipe = Recipe(schedule=SCHEDULE, granularity=Channel(), allocation=Uniform())
    whole, again = copy.deepcopy(model), copy.deepcopy(model)
    saving = ModelCheckpoint(tmp_path / "kept", "{step}", every_n_train_steps=5, save_top_k=-1)
    trainer(tmp_path, PruningCallback(recipe, compact_every_event=shrinks), saving, max_epochs=3).fit(whole, loader())
    other = ModelCheckpoint(tmp_path / "again", "{step}", every_n_train_steps=5, save_top_k=-1)
    run = trainer(tmp_path, PruningCallback(recipe, compact_every_event=shrinks), other, max_epochs=3)
    run.fit(again, loader(), ckpt_path=str(tmp_path / "kept" / "step=5.ckpt"))
    for one, other in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    loaded = load(Byol, tmp_path / "kept" / "pruned.ckpt", **SAFELY)
    assert shapes(loaded) == shapes(whole)


class Judged(Byol):
    """Whatever is pruned makes it worse."""

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        rows = self.backbone_momentum[3].weight.flatten(1)  # type: ignore[union-attr]
        self.log("score", float(rows.any(dim=1).sum()))


@pytest.mark.filterwarnings("ignore:these channel groups stay")
def test_a_rollback_puts_a_copy_back(tmp_path: Path) -> None:
    model = Judged()
    recipe = Recipe(schedule=OneShot(0.5, begin_step=4), granularity=Channel(), allocation=Uniform())
    callback = PruningCallback(recipe, guard=Guard("score", "max", 0.5), compact_every_event=True)
    trainer(tmp_path, callback, max_epochs=3).fit(model, loader(), loader(1))
    assert {trial.outcome.value for trial in callback.trials} == {"roll back"}
    assert shapes(model.backbone_momentum) == shapes(Byol().backbone) == shapes(model.backbone)
    assert bool(model.backbone_momentum[3].weight.flatten(1).any(dim=1).all())  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore:these channel groups stay")
def test_a_fit_that_begins_pruned_at_once(tmp_path: Path, model: Byol) -> None:
    fitted(tmp_path, model, OneShot(0.5, begin_step=0))
    assert shapes(model.backbone) == shapes(model.backbone_momentum)
    assert model.backbone[3].weight.shape[0] < 12  # type: ignore[union-attr]


class Pair(L.LightningModule):
    """Two networks alike, each with a loss of its own; forward reaches the first."""

    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(2, 1, 6, 6)
        self.automatic_optimization = False
        self.first, self.second = (
            nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 2)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x)

    def loss(self, images: Tensor) -> Tensor:
        return (self.first(images) - 1).square().mean() + (self.second(images) + 1).square().mean()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        self.manual_backward(self.loss(batch[0]))
        optimizer.step()  # type: ignore[union-attr]
        optimizer.zero_grad()  # type: ignore[union-attr]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


FIRST = Recipe(schedule=SCHEDULE, granularity=Channel(), allocation=Uniform(), targets=Targets(include=("first.*",)))


@pytest.mark.parametrize("shrinks", [False, True])
def test_a_second_network_that_is_trained_stays_whole_and_is_not_warned_of(tmp_path: Path, shrinks: bool) -> None:
    model = Pair()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "second looks like a copy")
        trainer(tmp_path, PruningCallback(FIRST, compact_every_event=shrinks), max_epochs=3).fit(model, loader())
    assert model.first[1].out_features == 8
    assert model.second[1].out_features == 16
    assert bool(model.second[1].weight.all())  # type: ignore[operator]


@pytest.mark.parametrize("way", ["backward", "assigned", "unfrozen", "other optimizer"])
def test_a_network_that_ever_had_a_gradient_follows_none(way: str) -> None:
    model = Pair()
    model.second.requires_grad_(way != "unfrozen")
    optimizer = torch.optim.SGD((model.first if way == "other optimizer" else model).parameters(), 0.1)
    own = torch.optim.SGD(model.second.parameters(), 0.1)
    run = PruningRun([FIRST], model, (torch.zeros(2, 1, 6, 6),), total_steps=12)
    run.start([optimizer], [], model)
    model.second.requires_grad_(True)
    for _ in range(10):
        loss = model.loss(torch.randn(8, 1, 6, 6))
        if way != "assigned":
            loss.backward()
            if way == "other optimizer":
                own.step()
                own.zero_grad()
        else:
            for parameter, gradient in zip(
                model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
            ):
                parameter.grad = gradient
        run.observe(model, optimizer)
        optimizer.step()
        optimizer.zero_grad()
        run.prune_if_due(model)
    assert run.sparsity == 0.5
    assert bool(model.second[1].weight.all())  # type: ignore[operator]
    run.stop()
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())  # type: ignore[attr-defined]


class Normed(nn.Module):
    """Two parts alike with a layer norm over some of their channels; forward reaches the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Sequential(
                *(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8)),
                *(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 2)),
            )
            for _ in range(2)
        )
        self.second.load_state_dict(self.first.state_dict())
        self.second.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x)


@pytest.mark.parametrize("is_first_exact", [False, True])
def test_each_recipe_removes_what_it_may(is_first_exact: bool) -> None:
    model = Normed()
    schedule = OneShot(0.5, begin_step=3)
    exact = Recipe(granularity=Channel(), schedule=schedule, targets=Targets(include=("first.0",)))
    inexact = Recipe(granularity=Channel(allow_inexact=True), schedule=schedule, targets=Targets(include=("first.3",)))
    recipes = [exact, inexact] if is_first_exact else [inexact, exact]
    run = PruningRun(recipes, model, (torch.zeros(1, 4),), total_steps=6)
    optimizer = torch.optim.SGD(model.first.parameters(), 0.1)
    run.start([optimizer], [], model)
    for _ in range(4):
        optimizer.zero_grad()
        (model(torch.randn(8, 4)) - 1).square().mean().backward()
        run.observe(model, optimizer)
        optimizer.step()
        with torch.no_grad():
            for own, other in zip(model.second.parameters(), model.first.parameters(), strict=True):
                own.lerp_(other, 0.1)
        run.prune_if_due(model)
    plan = run.next_removal(model)
    assert plan is not None
    assert {name: removal.is_inexact for name, removal in plan.removals.items()} == {"first.0": False, "first.3": True}
    assert {name.split(".")[0] for name in plan.removed} == {"first", "second"}
    run.stop()
    finalize(model, torch.zeros(1, 4))
    for part in (model.first, model.second):
        assert [part[0].out_features, part[3].out_features] == [8, 8]
