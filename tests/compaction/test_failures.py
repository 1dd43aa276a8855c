"""Whenever compaction fails, nothing has changed."""

import copy
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from compaction_cases import (
    MLP_INPUT,
    RESIDUAL_INPUT,
    Mlp,
    everything,
    half_plan,
    hand_made_group,
    masked_residual,
    trained,
)
from torch import Tensor, nn

from lightning_prune.compaction import Compaction, Removal, compact
from lightning_prune.compaction._equivalence import relative_error
from lightning_prune.errors import CompactionError, OptimizerStateError
from lightning_prune.model import masks


@pytest.fixture
def busy() -> tuple[nn.Module, list[torch.optim.Optimizer], Compaction]:
    """A masked model in the midst of training, with gradients, two optimizers and an earlier compaction."""
    torch.manual_seed(0)
    model, groups, _ = masked_residual()
    compact(model, Compaction.from_masks(model, groups), RESIDUAL_INPUT)
    parameters = list(model.parameters())
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(parameters[:6]),
        torch.optim.SGD(parameters[6:], lr=0.1, momentum=0.9),
    ]
    model(RESIDUAL_INPUT).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    masks.zero_pruned(model)
    masks.zero_pruned(model)
    return model, optimizers, half_plan(model, RESIDUAL_INPUT)


CHANGING = tuple(
    f"lightning_prune/{name}.py"
    for name in ("compaction/resize", "compaction/plan", "compaction/apply", "optimizer/surgery", "model/masks")
)


@contextmanager
def interrupt_at(line: int) -> Iterator[list[int]]:
    """Raise KeyboardInterrupt at the n-th line that runs in the files that change something."""
    seen = [0]

    def local(frame: types.FrameType, event: str, _: Any) -> Any:
        if event == "line":
            seen[0] += 1
            if seen[0] == line:
                raise KeyboardInterrupt
        return local

    def trace(frame: types.FrameType, event: str, _: Any) -> Any:
        file = frame.f_code.co_filename
        mine = file.endswith(CHANGING)
        return local if mine and frame.f_code.co_name not in ("all_or_nothing", "put_back") else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield seen
    finally:
        sys.settrace(before)


def test_an_interrupt_at_any_moment_leaves_all_as_it_was(
    busy: tuple[nn.Module, list[torch.optim.Optimizer], Compaction],
) -> None:
    model, optimizers, plan = busy
    before = everything(model, *optimizers)
    with interrupt_at(-1) as seen:
        compact(*copy.deepcopy((model, plan, None, optimizers)))
    assert seen[0] > 1000
    for line in np.linspace(1, seen[0] - 1, 60, dtype=int):
        with pytest.raises(KeyboardInterrupt), interrupt_at(int(line)):
            compact(model, plan, None, optimizers)
        assert everything(model, *optimizers) == before
    compact(model, plan, RESIDUAL_INPUT, optimizers)
    assert everything(model, *optimizers) != before


def test_an_optimizer_that_cannot_be_sliced_leaves_all_as_it_was(
    busy: tuple[nn.Module, list[torch.optim.Optimizer], Compaction],
) -> None:
    model, optimizers, plan = busy
    last = optimizers[1].param_groups[0]["params"][0]
    optimizers[1].state[last]["factor"] = torch.eye(29)
    before = everything(model, *optimizers)
    with pytest.raises(OptimizerStateError, match=r"SGD keeps a tensor of shape .* 'factor'"):
        compact(model, plan, RESIDUAL_INPUT, optimizers)
    assert everything(model, *optimizers) == before


class Wrong(nn.Module):
    """Runs after a wrong cut, and computes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mixed, self.last = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + self.first(x).mean(dim=1, keepdim=True))


def test_a_plan_that_computes_something_else_is_refused_with_the_first_differing_module() -> None:
    model = trained(Wrong())
    groups = hand_made_group(model, "wrong", 6, {"first.weight": 0, "first.bias": 0})
    optimizer = torch.optim.Adam(model.parameters())
    before = everything(model, optimizer)
    with pytest.raises(CompactionError, match=r"relative error .* at float32.* first differs in last \(Linear\)"):
        compact(model, Compaction.from_keep(groups, {"wrong": [0, 3]}), torch.randn(2, 4), optimizer)
    assert everything(model, optimizer) == before


def test_the_second_batch_finds_what_a_zero_example_hides() -> None:
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.LayerNorm(6), nn.Linear(6, 2))
    groups = hand_made_group(model, "0", 6, {"0.weight": 0, "1.weight": 0, "1.bias": 0, "2.weight": 1})
    with pytest.raises(CompactionError, match=r"It first differs in 2 \(Linear\)"):
        compact(model, Compaction.from_keep(groups, {"0": [0, 3]}), torch.zeros(2, 4))


def test_a_compact_model_that_does_not_run_is_refused_with_the_module_that_raises() -> None:
    model = trained(Mlp())
    before = everything(model)
    plan = Compaction.from_keep(hand_made_group(model, "wrong", 8, {"2.weight": 1}), {"wrong": [0, 1]})
    with pytest.raises(CompactionError, match=r"does not run: 2 \(Linear\) raises RuntimeError: mat1 and mat2 shapes"):
        compact(model, plan, MLP_INPUT)
    assert everything(model) == before


def test_other_output_shapes_are_refused() -> None:
    model = nn.Sequential(nn.Linear(5, 3, bias=False))
    plan = Compaction.from_keep(hand_made_group(model, "wrong", 3, {"0.weight": 0}), {"wrong": [0]})
    with pytest.raises(CompactionError, match=r"relative error inf .* first differs in the shapes of its outputs"):
        compact(model, plan, MLP_INPUT)


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (lambda: nn.Linear(3, 3), "the plan is for another model: Linear has no 0.weight; make the plan from"),
        (lambda: nn.Sequential(nn.Linear(5, 9)), r"0.weight has shape \(9, 5\) in Sequential and \(8, 5\) in the plan"),
    ],
)
def test_a_plan_for_another_model_is_refused(other: Callable[[], nn.Module], text: str) -> None:
    plan, model = half_plan(Mlp(), MLP_INPUT), other()
    before = everything(model)
    for refused in (plan.mask, plan.rebuild, lambda model: compact(model, plan)):
        with pytest.raises(CompactionError, match=text):
            refused(model)
    assert everything(model) == before


def test_bad_arguments_are_refused() -> None:
    model = Mlp()
    plan = half_plan(model, MLP_INPUT)
    with pytest.raises(CompactionError, match=r"Mlp does not run on the example inputs .* RuntimeError"):
        compact(model, plan, torch.zeros(1, 4))
    wrong: Any = ["adam"]
    with pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer, .* got 'adam'"):
        compact(model, plan, None, wrong)


def test_convolution_groups_that_do_not_divide_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 1, groups=4))
    entries = {"0.weight": {0: (0,)}}
    plan = Compaction({"0.weight": (8, 1, 1, 1)}, {"0": Removal(8, 1, entries)}, {"0.groups": ("0.weight", 0)})
    before = everything(model)
    with pytest.raises(CompactionError, match=r"0.groups = 4 follows a length that goes from 8 to 7.*3.5"):
        plan.rebuild(model)
    wrong = Compaction({"0.weight": (8, 1, 1, 1)}, {}, {"0.padding": ("0.weight", 0)})
    with pytest.raises(CompactionError, match=r"0.padding follows a length of the model but is .*, not an int"):
        wrong.rebuild(model)
    assert everything(model) == before


def test_relative_error_against_numpy() -> None:
    left, right = torch.tensor([1.0, -4.0]), torch.tensor([1.5, -4.0])
    assert relative_error([left], [right]) == 0.125
    assert relative_error([left, left * 1e-9], [left, left * 0]) == pytest.approx(4e-9 / 4e-3)
    nan, inf = float("nan"), float("inf")
    assert relative_error([torch.tensor([nan, inf, 1])], [torch.tensor([nan, inf, 1])]) == 0
    assert relative_error([torch.tensor([nan, 1.0])], [torch.tensor([0.0, 1.0])]) == inf
    assert relative_error([torch.tensor([inf, 1.0])], [torch.tensor([-inf, 1.0])]) == inf
    assert relative_error([torch.zeros(2)], [torch.ones(2)]) == inf
    assert relative_error([torch.tensor([1, 2])], [torch.tensor([1, 3])]) == inf
    assert relative_error([torch.zeros(0)], [torch.zeros(0)]) == 0
    assert relative_error([torch.tensor([3 + 4j])], [torch.tensor([3 + 3j])]) == pytest.approx(0.2)


def test_an_interrupt_while_a_group_is_put_back_leaves_all_as_it_was() -> None:
    class Constant(Mlp):
        def forward(self, input: Tensor) -> Tensor:
            x = input
            return super().forward(x) + self[2](self[1](self[0](x))).reshape(-1, 7).mean(1, keepdim=True)

    model = trained(Constant())
    plan = half_plan(Mlp(), MLP_INPUT)
    optimizer = torch.optim.AdamW(model.parameters())
    model(MLP_INPUT).square().sum().backward()
    optimizer.step()
    before = everything(model, optimizer)
    with interrupt_at(-1) as seen:
        report = compact(*copy.deepcopy((model, plan, MLP_INPUT, optimizer)))
    assert list(report.put_back) == ["2"]
    for line in np.linspace(seen[0] // 2, seen[0] - 1, 60, dtype=int):
        with pytest.raises(KeyboardInterrupt), interrupt_at(int(line)):
            compact(model, plan, MLP_INPUT, optimizer)
        assert everything(model, optimizer) == before


def test_an_interrupt_between_a_block_without_gradients_and_its_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        torch.set_grad_enabled(False)
        raise KeyboardInterrupt

    model = trained(Mlp())
    monkeypatch.setattr(Compaction, "mask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compact(model, half_plan(Mlp(), MLP_INPUT), MLP_INPUT)
    assert torch.is_grad_enabled()
