"""What cannot be removed exactly keeps its width, masked; the rest goes."""

import copy
from typing import Any

import pytest
import torch
from compaction_cases import everything, half_of, trained
from torch import Tensor, nn

from lightning_prune.compaction import Compaction, applied_plan, compact
from lightning_prune.compaction._equivalence import Comparison
from lightning_prune.compaction.trial import at_fault
from lightning_prune.errors import CompactionError, OptimizerStateError
from lightning_prune.graph import channel_groups
from lightning_prune.model import masks


class Constants(nn.Module):
    """A chain of layers; the code names the width of the second one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(torch.relu(self.a(x))).reshape(-1, 8)
        return self.d(torch.relu(self.c(torch.relu(x))))


INPUT = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def constants() -> tuple[nn.Module, Compaction]:
    model = trained(Constants())
    groups = channel_groups(model, INPUT)
    return model, Compaction.from_keep(groups, half_of(groups))


def test_the_group_at_fault_is_put_back_masked_and_named() -> None:
    model, plan = constants()
    masked = copy.deepcopy(model)
    plan.mask(masked)
    optimizer = torch.optim.AdamW(model.parameters())
    model(INPUT).sum().backward()
    optimizer.step()
    plan.mask(masked := copy.deepcopy(model))
    report = compact(model, plan, INPUT, optimizer)
    assert list(report.put_back) == ["b"]
    assert "size that the removal changes" in report.put_back["b"]
    assert report.removed == {"a": (3, 6), "c": (5, 10)}
    assert [tuple(weight.shape) for weight in model.parameters() if weight.dim() > 1] == [
        (3, 4),
        (8, 3),
        (5, 8),
        (2, 5),
    ]
    gone = plan.removals["b"].entries["b.bias"][0]
    assert not masks.dense_parameters(model)["b.bias"][list(gone)].any()
    torch.testing.assert_close(model(INPUT), masked(INPUT))
    assert applied_plan(model) == plan.only(["a", "c"])
    model(INPUT).sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    "make",
    [
        torch.optim.AdamW,
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        lambda parameters: torch.optim.Adafactor(parameters),
        lambda parameters: torch.optim.LBFGS(parameters, max_iter=2),
    ],
)
def test_what_optimizers_remember_of_it_is_zero_and_the_rest_is_sliced(make: Any) -> None:
    model, plan = constants()
    optimizer = make(model.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(INPUT).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    before = copy.deepcopy(optimizer.state_dict()["state"])
    compact(model, plan, INPUT, optimizer)
    bias, weight = (masks.dense_parameters(model)[name] for name in ("b.bias", "b.weight"))
    gone, kept = list(plan.removals["b"].entries["b.bias"][0]), list(plan.keep["b.bias"][0])
    number = [id(p) for p in model.parameters()].index(id(bias))
    if isinstance(optimizer, torch.optim.LBFGS):
        assert not optimizer.state
    for key, value in optimizer.state[bias].items() if bias in optimizer.state else ():
        if value is not None and value.dim():
            assert not value[gone].any()
            assert torch.equal(value[kept], before[number][key][kept])
    for value in optimizer.state[weight].values() if weight in optimizer.state else ():
        if value is not None and value.shape == weight.shape:
            assert not value[gone].any()
    optimizer.step(closure)


def test_when_the_optimizer_cannot_follow_all_is_as_it_was() -> None:
    model, plan = constants()
    first = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.dim() > 1])
    second = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.dim() == 1])
    model(INPUT).square().sum().backward()
    first.step()
    second.step()
    held = second.param_groups[0]["params"][1]
    second.state[held]["factor"] = torch.eye(5)
    before = everything(model, first, second)
    with pytest.raises(OptimizerStateError, match="factor"):
        compact(model, plan, INPUT, [first, second])
    assert everything(model, first, second) == before


def test_a_masked_model_keeps_its_masks_on_what_is_put_back() -> None:
    model, plan = constants()
    masks.attach(model, [name for name, p in masks.dense_parameters(model).items() if p.dim() > 1], is_structured=True)
    report = compact(model, plan, INPUT)
    assert list(report.put_back) == ["b"]
    assert masks.read(model)["b.weight"].shape == (8, 3)


def test_only_when_nothing_can_go_it_raises_and_all_is_as_it_was() -> None:
    model, plan = constants()
    before = everything(model)
    with pytest.raises(CompactionError, match="size that the removal changes"):
        compact(model, plan.only(["b"]), INPUT)
    assert everything(model) == before


def test_the_part_of_a_plan_is_a_plan() -> None:
    _, plan = constants()
    assert set(plan.only(["a"]).keep) == {"a.weight", "a.bias", "b.weight"}
    assert Compaction.from_json(plan.only(["a", "c"]).to_json()) == plan.only(["a", "c"])


class Block(nn.Module):
    """Gives a width as a constant, or not."""

    def __init__(self, width: int | None) -> None:
        super().__init__()
        self.width, self.up, self.down = width, nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.up(x))
        return x + self.down(hidden if self.width is None else hidden.reshape(len(x), int(str(self.width))))


class Averaging(nn.Module):
    """Runs at any width and computes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.up(x))
        return x + self.down(hidden / hidden.shape[-1])


def put_back_of(monkeypatch: pytest.MonkeyPatch, *blocks: nn.Module) -> tuple[list[str], int]:
    """Return which groups are put back, and how many trials it took."""
    trials = []
    errors = Comparison.errors

    def counted(self: Comparison, cut: Compaction, tolerance: float) -> dict[str, float]:
        trials.append(cut)
        return errors(self, cut, tolerance)

    monkeypatch.setattr(Comparison, "errors", counted)
    model = trained(nn.Sequential(*blocks, nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    groups = channel_groups(model, INPUT)
    report = compact(model, Compaction.from_keep(groups, half_of(groups)), INPUT)
    return list(report.put_back), len(trials)


def test_a_trial_that_raises_names_the_groups_of_all_modules_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    put_back, trials = put_back_of(monkeypatch, *(Block(8) for _ in range(9)))
    assert put_back == [f"{number}.up" for number in range(9)]
    assert trials <= 3


def test_two_kinds_of_fault_take_two_trials_and_two_more(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [Block(8), Averaging(), nn.Linear(4, 4), Averaging(), Block(8), Averaging()]
    put_back, trials = put_back_of(monkeypatch, *blocks)
    assert sorted(put_back) == ["0.up", "1.up", "3.up", "4.up", "5.up"]
    assert trials <= 4


def test_a_module_of_the_same_class_without_the_fault_loses_its_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    put_back, trials = put_back_of(monkeypatch, Block(None), Block(8), Block(None))
    assert put_back == ["1.up"]
    assert trials <= 3


@pytest.mark.parametrize("bad", [set(), {"c"}, {"a", "h"}, set("abcdefgh")])
def test_bisecting_finds_exactly_what_fails_in_few_trials(bad: set[str]) -> None:
    trials = []

    def trial(some: object) -> str:
        trials.append(some)
        return "fails" if bad & set(some) else ""  # type: ignore[call-overload]

    assert set(at_fault("abcdefgh", trial)) == bad
    assert len(trials) <= 1 + 2 * 3 * max(1, len(bad))


def test_groups_that_fail_only_with_each_other_all_stay() -> None:
    found = at_fault("abc", lambda some: "both" if {"a", "c"} <= set(some) else "")
    assert found == dict.fromkeys("abc", "only together with others: both")
