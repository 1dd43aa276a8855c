"""Recipes under one budget: the same seeds, equal cost, and the small dense control beside them."""

import copy
import json
import math
import os
from typing import Any

import pytest
import torch
from study_cases import accuracy, untouched
from support import LinearNet, Net, loader
from torch import Tensor, nn

from lightning_prune import Channel, Recipe, Taylor, Wanda, summarize
from lightning_prune.schedules import Linear, OneShot
from lightning_prune.study import Comparison, InTurn, Processes, RayTune, compare
from lightning_prune.study._control import small_dense
from lightning_prune.study.comparison import by_side, levels, ranked
from lightning_prune.study.training import Contest, Outcome, Training, run

CPU = {"accelerator": "cpu"}
SCHEDULE = Linear(0.5, begin_step=2, end_step=0.6, frequency=2)
CHANNELS = Recipe(granularity=Channel(), count="macs", schedule=SCHEDULE)
ELEMENTS = Recipe(criterion=Wanda(), schedule=SCHEDULE)


def data() -> tuple[Any, Any]:
    return loader(), loader(2)


def compared(**options: Any) -> Comparison:
    given: Any = {
        "recipes": {"channels": CHANNELS, "elements": ELEMENTS},
        "budget_epochs": 2,
        "seeds": 2,
        "trainer": CPU,
    }
    return compare(Net, data, **(given | options))


def outcome(name: str, metric: float, macs: int, seed: int = 0) -> Outcome:
    return Outcome(name, seed, metric, macs, macs, 1, 1, 1.0)


@pytest.mark.slow
def test_recipes_a_dense_network_and_a_small_one() -> None:
    state = torch.get_rng_state()
    environment = dict(os.environ)
    found = compared(metric=accuracy)
    assert torch.equal(torch.get_rng_state(), state)
    assert dict(os.environ) == environment
    names = [row.name for row in found]
    assert sorted(names) == sorted(["channels", "dense", "elements", next(n for n in names if "small" in n)])
    assert all([one.seed for one in row.outcomes] == [0, 1] for row in found)
    channels, dense, elements = found["channels"], found["dense"], found["elements"]
    small = found.control_of("channels")
    assert small is not None
    assert small.name.startswith("small dense")
    assert small.is_control
    assert 0.8 * channels.cost < small.cost <= channels.cost * 1.0001
    assert channels.cost <= 0.5 * dense.cost
    assert (elements.level, elements.cost) == (dense.level, dense.cost)
    assert found.control_of("elements") == dense
    assert elements.outcomes[0].effective_macs is not None
    assert elements.outcomes[0].effective_macs < 0.8 * elements.cost
    assert {row.rank for row in found if row.level == 0} == {1, 2}
    assert all(0 <= row.mean <= 1 for row in found)
    assert str(found).count("\n") == 2 + len(found)
    assert json.loads(found.to_json())["rows"][0]["outcomes"][1]["seed"] == 1


def test_the_modules_own_loss_is_the_metric_where_none_is_given() -> None:
    found = compared(recipes={"elements": ELEMENTS}, seeds=(3,), budget_epochs=1)
    assert (found.metric, found.higher_is_better) == ("loss", False)
    best = min(found, key=lambda row: row.mean)
    assert next(row for row in found if row.level == best.level).name == best.name
    assert all(row.spread == 0 for row in found)


def test_a_run_is_the_same_run_again() -> None:
    contest = Contest(Net, data, 1, accuracy, CPU)
    trial = Training("channels", 5, CHANNELS)
    first, second = run(contest, trial), run(contest, trial)
    assert first.metric == second.metric
    assert first.macs == second.macs
    assert run(contest, Training("channels", 6, CHANNELS)) != first


@pytest.mark.slow
def test_processes_come_to_the_same_figures() -> None:
    both = [compared(metric=accuracy, runner=runner) for runner in (InTurn(), Processes(2))]
    figures = [[(row.name, row.rank, row.mean, row.spread, row.cost) for row in found] for found in both]
    assert figures[0] == figures[1]


@pytest.mark.slow
def test_ray_comes_to_the_same_figures() -> None:
    pytest.importorskip("ray")
    both = [compared(metric=accuracy, runner=runner, seeds=1) for runner in (InTurn(), RayTune())]
    figures = [[(row.name, row.rank, row.mean, row.cost) for row in found] for found in both]
    assert figures[0] == figures[1]


@pytest.mark.parametrize(("count", "share"), [("macs", 0.5), ("macs", 0.8), ("params", 0.6)])
def test_the_small_dense_network(count: str, share: float) -> None:
    whole = summarize(Net())
    model = Net()
    first = model.conv2.weight.detach().clone()
    with torch.no_grad():
        model.norm2.running_mean.fill_(7)  # type: ignore[union-attr]
    small = summarize(small_dense(model, count, share))
    left, dense = (small.macs, whole.macs) if count == "macs" else (small.parameters, whole.parameters)
    assert left is not None
    assert dense is not None
    assert 0.7 * (1 - share) * dense < left <= (1 - share) * dense
    assert small.zeros == sum(b.numel() for n, b in model.named_parameters() if "norm" in n and "bias" in n)
    assert float(model.norm2.running_mean.sum()) == 0  # type: ignore[union-attr]
    assert not bool(torch.isin(model.conv2.weight.detach(), first).any())
    bound = (model.conv2.in_channels * 9) ** -0.5
    assert 0.8 * bound < float(model.conv2.weight.detach().abs().max()) <= bound


def test_costs_that_hardly_differ_are_equal() -> None:
    assert levels({"a": 100, "b": 104.9, "c": 106, "d": 50}) == [["d"], ["a", "b"], ["c"]]
    sides = by_side([outcome("a", 0.5, 100), outcome("b", 0.7, 104), outcome("b", 0.9, 104, 1), outcome("d", 0.9, 50)])
    rows = list(ranked(sides, [["d"], ["a", "b"]], {"d"}, "macs", higher_is_better=True))
    assert [(row.name, row.level, row.rank, row.is_control) for row in rows] == [
        ("d", 0, 1, True),
        ("b", 1, 1, False),
        ("a", 1, 2, False),
    ]
    assert rows[1].mean == pytest.approx(0.8)
    assert rows[1].spread == pytest.approx(0.02**0.5)
    rows = list(ranked(sides, [["d"], ["a", "b"]], (), "macs", higher_is_better=False))
    assert [row.name for row in rows] == ["d", "a", "b"]
    sides |= {"a": (outcome("a", math.nan, 100),)}
    for is_higher in (True, False):
        rows_with_nan = ranked(sides, [["d"], ["a", "b"]], (), "macs", is_higher)
        assert [row.name for row in rows_with_nan] == ["d", "b", "a"]
    found = Comparison(tuple(rows), "macs", "loss", False, 1)
    assert found["a"] is rows[1]
    assert found[0] is rows[0]
    with pytest.raises(KeyError, match="no side is called 'x'; there are d, a, b"):
        found["x"]


class TestBadInput:
    def refused(self, error: type[Exception], text: str, make: Any = Net, given: Any = data, **options: Any) -> None:
        arguments: Any = {"recipes": {"a": CHANNELS}, "budget_epochs": 1, "trainer": CPU} | options
        with untouched(nn.Linear(1, 1)), pytest.raises(error, match=text):
            compare(make, given, **arguments)

    def test_recipes(self) -> None:
        self.refused(ValueError, "recipes must map names to recipes", recipes={})
        self.refused(ValueError, "recipes must map names to recipes", recipes=[CHANNELS])
        self.refused(TypeError, r"recipes\['a'\] must be a Recipe", recipes={"a": Taylor()})
        self.refused(ValueError, "recipes calls one 'dense'", recipes={"dense": CHANNELS})
        early = Recipe(criterion=Taylor(), schedule=OneShot(0.5))
        self.refused(ValueError, r"recipe 'a' does not fit Net: Taylor\(\) watches", recipes={"a": early})
        much = Recipe(granularity=Channel(min_share=0.9), count="macs", schedule=Linear(0.9, 0.1, 0.5, frequency=2))
        written = r"recipe 'a' does not fit Net: Linear\(final_sparsity=0\.9, begin_step=0\.1, end_step=0\.5,"
        self.refused(ValueError, written, recipes={"a": much})
        self.refused(ValueError, written, recipes={"a": much}, trainer={"limit_train_batches": 2})
        late = Recipe(granularity=Channel(), schedule=OneShot(0.5, begin_step=6))
        self.refused(ValueError, r"OneShot\(.* ends at step 6, and each run has 5: .*epochs", recipes={"a": late})

    def test_numbers(self) -> None:
        self.refused(ValueError, "budget_epochs must be at least 1", budget_epochs=0)
        self.refused(ValueError, "seeds must be at least 1", seeds=0)
        self.refused(ValueError, "seeds names one twice", seeds=(1, 1))
        self.refused(TypeError, "seeds must be a number of runs", seeds="ab")
        self.refused(ValueError, 'equal must be "macs"', equal="latency")
        with pytest.raises(ValueError, match=r"Processes\.count must be at least 1"):
            Processes(0)

    def test_runs(self) -> None:
        self.refused(TypeError, r"runner must be a value such as InTurn\(\)", runner=InTurn)
        self.refused(TypeError, "trainer must map arguments of Trainer", trainer=3)
        self.refused(ValueError, "trainer sets max_epochs; .* budget_epochs", trainer={"max_epochs": 3})

    def test_models_and_data(self) -> None:
        self.refused(
            TypeError, "make_model must return a fresh LightningModule, got Linear", make=lambda: nn.Linear(2, 2)
        )
        self.refused(TypeError, "make_model must be a function.*got a value of Net; pass the class", make=Net())
        one = Net()
        before = copy.deepcopy(one.state_dict())
        self.refused(ValueError, "make_model returned the same Net, or its weights, twice", make=lambda: one)
        assert all(torch.equal(tensor, before[name]) for name, tensor in one.state_dict().items())
        self.refused(ValueError, "LinearNet needs an example_input_array", make=LinearNet)
        self.refused(TypeError, "data must be a LightningDataModule", given=loader())
        once = (iter(list(loader())), loader())
        self.refused(ValueError, "the loader of the training data is an iterator", given=once)
        self.refused(TypeError, "metric must be a torchmetrics metric", metric="val_acc")

        def vector(model: nn.Module, batch: list[Tensor]) -> Tensor:
            return model(batch[0])

        def untaken(contest: object, trials: object) -> Any:
            raise AssertionError

        text = r"metric vector returned a tensor of shape \(4, 4\)"
        self.refused(ValueError, text, metric=vector, runner=untaken)
        self.refused(ValueError, "the loader is empty", given=(loader(), []), metric=accuracy)
