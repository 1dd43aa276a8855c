"""Scores of every unit, proven by deletion, and a model that is left as it was."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from study_cases import Chatty, accuracy, batches, plain_loss, untouched
from support import LinearNet, Net
from torch import Tensor, nn

from lightning_prune import Block, Channel, Element, Magnitude, NOfM, Random, Recipe, Targets, Taylor, Wanda
from lightning_prune.errors import NonFiniteError, PruningError
from lightning_prune.model import masks
from lightning_prune.schedules import OneShot
from lightning_prune.study import significance
from lightning_prune.study.deletion import spearman


def taylor_by_hand(model: nn.Module, name: str) -> np.ndarray:
    model.eval()
    terms = []
    for batch in batches():
        model.zero_grad()
        plain_loss(model, batch).backward()
        weight = model.get_parameter(name)
        assert weight.grad is not None
        terms.append((weight.detach().numpy() * weight.grad.numpy()) ** 2)
    return np.mean(terms, axis=0)


def test_scores_are_those_of_the_batches() -> None:
    model = Net()
    table = significance(model, batches(), criteria=Taylor())
    assert list(table) == [f"{name}.weight" for name in ("conv1", "conv2", "conv3", "head")]
    np.testing.assert_allclose(table["conv2.weight"].numpy(), taylor_by_hand(model, "conv2.weight"), rtol=1e-4)


def test_a_channel_scores_the_sum_over_all_that_goes_with_it() -> None:
    model = Net()
    table = significance(model, batches(), criteria=Taylor(), granularity=Channel())
    own = {name: taylor_by_hand(model, name) for name, _ in model.named_parameters()}
    expected = own["conv2.weight"].sum((1, 2, 3)) + own["conv2.bias"] + own["norm2.weight"] + own["norm2.bias"]
    expected += own["conv3.weight"].sum((0, 2, 3))
    np.testing.assert_allclose(table["conv2"].numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("granularity", [Element(), Channel(), NOfM(2, 4), Block((2, 1))], ids=str)
def test_the_model_is_untouched(granularity: Any) -> None:
    model = Chatty()
    model.conv2.eval()
    with untouched(model):
        table = significance(model, batches(), granularity=granularity, validate=4)
    assert model.outputs == []
    assert table.deletion is not None
    assert table.deletion.dtype == torch.float64
    assert set(table.deletion.correlations) == {"Taylor()", "Fisher()", "Wanda()", "Magnitude(norm=1)"}
    assert str(table).count("Magnitude(norm=1)") == 1


def test_a_model_with_a_trainer_of_its_own(tmp_path: Any) -> None:
    from support import loader, trainer

    model = Chatty()
    trainer(tmp_path, max_epochs=1).fit(model, loader())
    model.outputs.clear()
    with untouched(model):
        significance(model, batches(), granularity=Channel())


class Attending(LinearNet):
    """Holds the projection of an attention, whose inputs nobody sees."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2)

    def forward(self, features: Tensor) -> Tensor:
        rows = features.flatten(1).view(len(features), -1, 6)
        return super().forward(self.attention(rows, rows, rows)[0])


def test_without_a_choice_the_criteria_are_those_that_can_score_every_target() -> None:
    table = significance(Attending(), batches())
    assert list(table.tables) == ["Taylor()", "Fisher()"]
    assert list(table.left_out) == ["Wanda()"]
    assert "left out: Wanda() watches" in str(table)
    assert significance(Net(), batches()).left_out == {}
    with pytest.raises(ValueError, match=r"attention\.in_proj_weight belongs to none"):
        significance(Attending(), batches(), criteria=Wanda())


def test_deletion_measures_what_zeroing_does() -> None:
    model = Net()
    table = significance(model, batches(), granularity=Channel(), validate=5, criteria=[Taylor(), Random()])
    deletion = table.deletion
    assert deletion is not None
    double = Net().double().eval()
    double.load_state_dict(model.state_dict())
    data = [[x.double(), y] for x, y in batches()]

    def loss() -> float:
        with torch.no_grad():
            return float(np.mean([float(plain_loss(double, batch)) for batch in data]))

    whole = loss()
    assert deletion.loss == pytest.approx(whole, rel=1e-12)
    for (group, index), change in zip(deletion.units, deletion.changes, strict=True):
        double.load_state_dict(model.state_dict())
        with torch.no_grad():
            if group == "conv2":
                double.conv3.weight[:, index] = 0
            else:
                double.conv2.weight[:, index] = 0
                double.head.weight[:, index] = 0
        assert change == pytest.approx(loss() - whole, rel=1e-9)
    scores = [float(table[name][index]) for name, index in deletion.units]
    expected = spearman(scores, [abs(change) for change in deletion.changes])
    assert deletion.correlations["Taylor()"] == expected


def test_units_are_drawn_once_each_and_the_same_again() -> None:
    model = Net()
    first, again, other = (
        significance(model, batches(), granularity=Channel(), criteria=Magnitude(), validate=100, seed=seed).deletion
        for seed in (0, 0, 1)
    )
    assert first is not None
    assert again is not None
    assert other is not None
    assert len(set(first.units)) == len(first.units) == 16
    assert (first.units, first.changes) == (again.units, again.changes)
    assert set(other.units) == set(first.units)
    assert other.units != first.units


def test_what_is_pruned_already_is_not_drawn() -> None:
    model = Net()
    masks.attach(model, ["conv1.weight"])
    gone = torch.zeros_like(model.conv1.weight, dtype=torch.bool)  # type: ignore[arg-type]
    gone[:6] = True
    masks.write(model, [("conv1.weight", ~gone)])
    with untouched(model):
        table = significance(model, batches(), targets=Targets(("conv1",)), validate=1000)
    assert bool((table["conv1.weight"][gone] == -math.inf).all())
    assert table.deletion is not None
    assert len(table.deletion.units) == int((~gone).sum())


def test_plain_modules_and_a_loss_of_ones_own() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 6), nn.ReLU(), nn.Linear(6, 4))
    with untouched(net):
        table = significance(net, batches(), loss=plain_loss, granularity=Channel(), example_inputs=batches()[0][0])
    assert table["1"].shape == (6,)


def test_the_table_is_a_criterion() -> None:
    model = Net()
    table = significance(model, batches())
    scores = table("conv1.weight", model.conv1.weight)
    assert torch.equal(scores, table["conv1.weight"])
    assert Recipe(criterion=table, schedule=OneShot(0.5)).criterion is table
    assert float(table("norm1.weight", model.norm1.weight).abs().sum()) == 0
    with pytest.raises(ValueError, match=r"conv1.weight has shape \(2, 2\) and had \(8, 1, 3, 3\).*measure it again"):
        table("conv1.weight", torch.zeros(2, 2))
    with pytest.raises(KeyError, match=r"nothing was measured of 'stem'; there are conv1.weight"):
        table["stem"]


@pytest.mark.parametrize(("a", "b"), [([1, 2, 3, 4], [1, 4, 9, 16]), ([3, 1, 2], [-3, -1, -2]), ([1, 1, 2], [0, 5, 5])])
def test_spearman(a: list[float], b: list[float]) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert math.isnan(spearman(a, [1.0] * len(a)))


class TestBadInput:
    def refused(self, error: type[Exception], text: str, model: Any = None, data: Any = None, **options: Any) -> None:
        model = Net() if model is None else model
        with untouched(model), pytest.raises(error, match=text):
            significance(model, batches() if data is None else data, **options)

    def test_loaders(self) -> None:
        self.refused(ValueError, "the loader is empty", data=[])
        self.refused(TypeError, "data must give batches", data=3)
        once = iter(batches())
        self.refused(PruningError, r"ended early: it gave 0 batches in pass 2 where 3", data=once, validate=3)

        class Short(list[Any]):
            def __len__(self) -> int:
                return 9

        self.refused(PruningError, r"gave 3 batches in pass 1 where 9 were expected", data=Short(batches()))

    def test_losses(self) -> None:
        plain = nn.Linear(36, 4)
        self.refused(ValueError, "Linear is no LightningModule, so its loss is not known: pass loss=", model=plain)
        self.refused(TypeError, "loss must be a function", loss=0.5)
        vector = lambda model, batch: model(batch[0])  # noqa: E731
        self.refused(
            ValueError, r"returned a tensor of shape \(4, 4\) for batch 0; it must return a scalar", loss=vector
        )
        self.refused(ValueError, "returned None for batch 0", loss=lambda model, batch: None)
        infinite = lambda model, batch: plain_loss(model, batch) * math.inf  # noqa: E731
        self.refused(NonFiniteError, "returned inf for batch 0", loss=infinite)

    def test_modules_that_need_their_trainer(self) -> None:
        class Manual(Net):
            def __init__(self) -> None:
                super().__init__()
                self.automatic_optimization = False

        class Asks(Net):
            def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
                return super().training_step(batch, batch_idx) * self.trainer.world_size

        self.refused(ValueError, r"Manual optimizes by hand.*pass loss=", model=Manual())
        self.refused(ValueError, r"training_step of Asks asks for its Trainer.*pass loss=", model=Asks())

    def test_a_loss_without_gradients(self) -> None:
        cut = lambda model, batch: plain_loss(model, batch).detach()  # noqa: E731
        self.refused(ValueError, "the loss of batch 0 does not depend on any weight", loss=cut)

    def test_units(self) -> None:
        self.refused(TypeError, r"granularity must be Element\(\)", granularity="channel")
        self.refused(TypeError, r"targets must be Targets\(", targets="conv1")

    def test_an_interrupt_in_the_middle_of_deletion(self) -> None:
        count = iter(range(100))

        def stopped(model: nn.Module, batch: list[Tensor]) -> Tensor:
            if next(count) == 10:
                raise KeyboardInterrupt
            return plain_loss(model, batch)

        with untouched(model := Net()), pytest.raises(KeyboardInterrupt):
            significance(model, batches(), loss=stopped, validate=8, granularity=Channel())

    def test_arguments(self) -> None:
        self.refused(ValueError, "validate must be at least 3", validate=2)
        self.refused(TypeError, "validate must be an int", validate=True)
        self.refused(ValueError, "criteria is empty", criteria=())
        self.refused(TypeError, r"criteria must be values such as Taylor\(\)", criteria=Taylor)
        self.refused(ValueError, "criteria names one twice", criteria=(Wanda(), Wanda()))
        self.refused(ValueError, "target pattern 'nothing.*' matches no", targets=Targets(("nothing*",)))
        self.refused(ValueError, "needs an example input of LinearNet", model=LinearNet(), granularity=Channel())
        self.refused(ValueError, r"returned tensor|scalar", loss=lambda m, b: accuracy(m, b).expand(2))
