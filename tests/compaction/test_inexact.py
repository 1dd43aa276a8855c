"""Removing channels under a normalisation: the exact part is proved, the change of the rest is measured and told."""

import copy
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from compaction_cases import everything, half_of, trained
from support import trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import Channel, PruningCallback, Recipe, Targets, Uniform, finalize
from lightning_prune.compaction import Compaction, Removal, applied_plan, compact
from lightning_prune.errors import CompactionError
from lightning_prune.graph import ChannelGroups, channel_groups
from lightning_prune.model import masks
from lightning_prune.schedules import OneShot

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Layer(nn.Module):
    """One block of a transformer."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (
            layer(y).view(len(y), -1, self.heads, self.head_dim).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Classifier(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = X

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]).transpose(1, -1), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class Vit(Classifier):
    """A vision transformer with a class token and positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.token, self.places = nn.Parameter(torch.zeros(1, 1, 16)), nn.Parameter(torch.zeros(1, 5, 16))
        self.layers, self.norm, self.head = nn.Sequential(Layer(), Layer()), nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        return self.head(self.norm(self.layers(x))[:, 0])


class GroupNet(Classifier):
    """A residual network of convolutions with group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(3, 12)
        self.body, self.norm2 = nn.Conv2d(12, 12, 3, padding=1), nn.GroupNorm(3, 12)
        self.squeeze, self.head = nn.Conv2d(12, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.stem(x)))
        x = torch.relu(x + self.norm2(self.body(x)))
        return self.head(torch.relu(self.squeeze(x)).mean((2, 3)))


class Bert(Classifier):
    """Tokens, with the table of words tied to the output."""

    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = torch.randint(11, (2, 5), generator=torch.Generator().manual_seed(1))
        self.words, self.places = nn.Embedding(11, 16), nn.Embedding(5, 16)
        self.layers, self.norm = nn.Sequential(Layer(), Layer()), nn.LayerNorm(16)
        self.out = nn.Linear(16, 11, bias=False)
        self.out.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.layers(self.words(x) + self.places(torch.arange(5)))))


class Convnext(Classifier):
    """Depthwise convolution, layer norm over the channels, and a layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep, self.norm = nn.Conv2d(3, 16, 2, 2), nn.Conv2d(16, 16, 3, 1, 1, 1, 16), nn.LayerNorm(16)
        self.up, self.down, self.scale = nn.Linear(16, 64), nn.Linear(64, 16), nn.Parameter(torch.ones(16, 1, 1))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.down(F.gelu(self.up(self.norm(self.deep(x).permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)
        return self.head((x + self.scale * y).mean((2, 3)))


def drawn(kind: type[Classifier]) -> tuple[Any, ChannelGroups]:
    torch.manual_seed(0)
    model = trained(kind()).eval()
    return model, channel_groups(model, model.example_input_array, allow_inexact=True)


KINDS = [Vit, Bert, Convnext, GroupNet]


@pytest.mark.parametrize("kind", KINDS)
def test_the_exact_part_is_exact_and_the_change_is_what_the_outputs_show(kind: type[Classifier]) -> None:
    model, groups = drawn(kind)
    x = model.example_input_array
    plan = Compaction.from_keep(groups, half_of(groups))
    assert {name: bool(groups[name].inexact) for name in plan.removals} == {
        name: removal.is_inexact for name, removal in plan.removals.items()
    }
    assert any(removal.is_inexact for removal in plan.removals.values())
    masked = copy.deepcopy(model)
    plan.mask(masked)
    before = masked(x).detach()
    report = compact(model, plan, x)
    assert report.put_back == {}
    assert set(report.removed) == set(plan.removals)
    assert report.errors["float64"] <= 1e-12
    difference = float((model(x).detach() - before).abs().max() / before.abs().max())
    assert 1e-4 < difference <= report.changes["float32"] * 1.001
    assert report.changes["float64"] == pytest.approx(report.changes["float32"], rel=1e-3)
    assert report.parameters_after < 0.45 * report.parameters_before
    fresh = Compaction.from_json(plan.to_json()).rebuild(kind())
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh.eval()(x), model(x))


def test_a_plan_without_inexact_groups_changes_nothing() -> None:
    model, groups = drawn(Vit)
    names = [group.name for group in groups if group.prunable and not group.inexact]
    report = compact(model, Compaction.from_keep(groups, {name: [0, 2] for name in names}), X)
    assert report.changes == {}
    assert report.errors["float64"] <= 1e-12


def test_inexactness_survives_json_parts_and_composition() -> None:
    model, groups = drawn(Vit)
    first = Compaction.from_keep(groups, half_of(groups))
    assert Compaction.from_json(first.to_json()) == first
    assert first.only(["patches"]).removals["patches"].is_inexact
    compact(model, first, X)
    again = channel_groups(model, X, allow_inexact=True)
    compact(model, Compaction.from_keep(again, {"patches": [0, 3]}), X)
    plan = applied_plan(model)
    assert plan is not None
    assert (plan.removals["patches"].removed, plan.removals["patches"].is_inexact) == (14, True)
    assert not plan.removals["layers.0.up"].is_inexact
    exact = Compaction({"w": (4,)}, {"g": Removal(4, 1, {"w": {0: (0,)}})}, {})
    loose = Compaction({"w": (3,)}, {"g": Removal(3, 1, {"w": {0: (0,)}}, is_inexact=True)}, {})
    assert exact.then(loose).removals["g"].is_inexact
    old = exact.to_json().replace(', "inexact": false', "")
    assert old != exact.to_json()
    assert Compaction.from_json(old) == exact


class Constant(Vit):
    """The code names the normalised width."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.layers(x)).mean(1).reshape(-1, 16))


def test_a_normalised_width_that_the_code_names_is_put_back_and_the_rest_goes() -> None:
    model, groups = drawn(Constant)
    plan = Compaction.from_keep(groups, half_of(groups))
    masked = copy.deepcopy(model)
    plan.mask(masked)
    report = compact(model, plan, X)
    assert list(report.put_back) == ["patches"]
    assert "size that the removal changes" in report.put_back["patches"]
    assert (report.changes, model.layers[0].up.out_features) == ({}, 32)
    torch.testing.assert_close(model(X), masked(X))


def test_when_only_such_a_width_was_to_go_it_raises_and_all_is_as_it_was() -> None:
    model, groups = drawn(Constant)
    before = everything(model)
    with pytest.raises(CompactionError, match="size that the removal changes"):
        compact(model, Compaction.from_keep(groups, {"patches": range(8)}), X)
    assert everything(model) == before


def fitted(model: Classifier, tmp_path: Path, recipe: Recipe, **options: Any) -> PruningCallback:
    callback = PruningCallback(recipe, **options)
    inputs = torch.randint(11, (16, 5)) if isinstance(model, Bert) else torch.randn(16, 3, 8, 8)
    labels = torch.randint(11, (16, 5)) if isinstance(model, Bert) else torch.randint(4, (16,))
    trainer(tmp_path, callback).fit(model, DataLoader(TensorDataset(inputs, labels), 4))
    return callback


HALF = Recipe(schedule=OneShot(0.5, 4), granularity=Channel(allow_inexact=True), allocation=Uniform())


@pytest.mark.parametrize("kind", [Vit, Convnext, GroupNet])
def test_a_training_run_makes_the_normalised_width_smaller_and_tells_the_change(
    kind: type[Classifier], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    model = kind()
    callback = fitted(model, tmp_path, HALF)
    assert callback.events[-1].params == sum(p.numel() for p in model.parameters())
    made = [parameter for name, parameter in model.named_parameters() if name.startswith(("stem.w", "patches.w"))]
    assert [len(weight) for weight in made] == [6 if kind is GroupNet else 8]
    assert not masks.is_masked(model)
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("under a normalisation are gone: the outputs changed by up to" in text for text in told)
    plan = applied_plan(model)
    assert plan is not None
    assert any(removal.is_inexact for removal in plan.removals.values())
    assert torch.isfinite(model(X)).all()


def test_without_leave_the_normalised_width_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = Vit()
    fitted(model, tmp_path, Recipe(schedule=OneShot(0.5, 4), granularity=Channel()))
    assert model.head.in_features == 16
    assert model.layers[0].up.out_features < 64  # type: ignore[union-attr]
    assert not [record for record in caplog.records if "normalisation" in record.getMessage()]


def test_finalize_later_finds_out_by_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = Vit()
    fitted(model, tmp_path, HALF, finalize=False)
    optimizer = torch.optim.AdamW(model.parameters())
    finalize(model, optimizer=optimizer)
    assert model.head.in_features == 8
    assert "normalisation" in caplog.text


def test_an_embedding_goes_along_only_when_it_is_named(tmp_path: Path) -> None:
    for targets, is_smaller in ((Targets(), False), (Targets(include=("*", "words.weight", "places.weight")), True)):
        torch.manual_seed(0)
        model = Bert()
        fitted(model, tmp_path, replace(HALF, targets=targets))
        assert (model.words.embedding_dim < 16) == is_smaller
        assert model.out.weight is model.words.weight


def test_the_choice_is_a_truth_value() -> None:
    wrong: Any = "yes"
    with pytest.raises(TypeError, match="allow_inexact must be True or False, got 'yes'"):
        Channel(allow_inexact=wrong)
