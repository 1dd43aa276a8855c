"""Bad input: a clear error, and the model as it was, byte for byte."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from compaction_cases import RESIDUAL_INPUT, Mlp, Residual, everything, groups_of, half_plan, trained
from torch import nn

from lightning_prune.compaction import Compaction, compact
from lightning_prune.errors import CompactionError


def _changed(**changes: Any) -> Callable[[Compaction], object]:
    return lambda plan: Compaction.from_json(json.dumps({**json.loads(plan.to_json()), **changes}))


def _keep(keep: dict[str, list[int]]) -> Callable[[Compaction], object]:
    return lambda _: Compaction.from_keep(groups_of(Residual), keep)


def _entry(plan: Compaction) -> object:
    text = plan.to_json().replace('"stem.weight": {"0": [', '"stem.weight": {"0": [99, ')
    assert text != plan.to_json()
    return Compaction.from_json(text)


def _cut_off(plan: Compaction) -> object:
    return Compaction.from_json(plan.to_json()[:-3])


BAD: dict[str, tuple[Callable[[Compaction], object], type[Exception], str]] = {
    "group": (_keep({"nothing": [0]}), ValueError, "no channel group 'nothing'.*print"),
    "frozen group": (_keep({"head": [0]}), ValueError, "'head' cannot be pruned: model output"),
    "index": (_keep({"stem": [0, 8]}), ValueError, r"'stem' must be distinct ints in \[0, 4\), got 8"),
    "nothing kept": (_keep({"stem": []}), ValueError, "nothing of it would be left"),
    "version": (_changed(version=99), ValueError, "version 99.*upgrade"),
    "format": (_changed(format="other"), ValueError, "is no plan"),
    "no shapes": (_changed(shapes=None), ValueError, "malformed"),
    "removals": (_changed(removals={"stem": 3}), ValueError, "malformed"),
    "attributes": (_changed(attributes={"stem.groups": 3}), ValueError, "malformed"),
    "entry": (_entry, ValueError, "removes entries from"),
    "no JSON": (_cut_off, ValueError, "no JSON text"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_plan_is_refused_before_anything_changes(case: str) -> None:
    make, error, text = BAD[case]
    model = trained(Residual())
    plan, before = half_plan(model, RESIDUAL_INPUT), everything(model)
    with pytest.raises(error, match=text):
        make(plan)
    assert everything(model) == before


def test_a_plan_for_another_model_changes_neither_shape_nor_value() -> None:
    plan, model = half_plan(trained(Residual()), RESIDUAL_INPUT), trained(Mlp())
    before = everything(model)
    for use in (plan.mask, plan.rebuild, lambda one: compact(one, plan)):
        with pytest.raises(CompactionError, match="the plan is for another model: Mlp has no"):
            use(model)
        assert everything(model) == before


def test_an_attribute_that_the_model_lacks_leaves_all_as_it_was() -> None:
    model = trained(Residual())
    plan = half_plan(model, RESIDUAL_INPUT)
    wrong = Compaction(plan.shapes, plan.removals, {"stem.heads": ("stem.weight", 0)})
    before = everything(model)
    for use in (wrong.rebuild, lambda one: compact(one, wrong)):
        with pytest.raises(CompactionError, match=r"stem.heads follows a length of the model but is None"):
            use(model)
        assert everything(model) == before


def test_a_model_without_values_is_refused_and_takes_the_shape() -> None:
    plan = half_plan(trained(Residual()), RESIDUAL_INPUT)
    model = Residual().to("meta")
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    with pytest.raises(CompactionError, match=r"stem.weight is on the meta device.*plan.rebuild"):
        compact(model, plan, RESIDUAL_INPUT)
    assert {name: parameter.shape for name, parameter in model.named_parameters()} == shapes
    assert plan.rebuild(model).stem.weight.shape[0] == 4  # type: ignore[union-attr]


@pytest.mark.gpu
def test_a_model_on_two_devices_is_refused() -> None:
    model = trained(Residual())
    model.head.to("cuda")
    plan, before = half_plan(model, RESIDUAL_INPUT), [parameter.data_ptr() for parameter in model.parameters()]
    values = [parameter.detach().cpu().clone() for parameter in model.parameters()]
    with pytest.raises(CompactionError, match=r"Residual is on 2 devices \(stem.weight on cpu, head.weight on cuda"):
        compact(model, plan, RESIDUAL_INPUT)
    assert all(torch.equal(p.detach().cpu(), value) for p, value in zip(model.parameters(), values, strict=True))
    assert [parameter.data_ptr() for parameter in model.parameters()] == before


def test_a_model_that_is_partly_without_values_is_refused() -> None:
    model, plan = trained(Mlp()), half_plan(trained(Mlp()), torch.zeros(1, 5))
    model[2] = nn.Linear(8, 7, device="meta")
    identities, before = [id(parameter) for parameter in model.parameters()], everything(model[0])
    with pytest.raises(CompactionError, match=r"2.weight is on the meta device"):
        compact(model, plan)
    assert [id(parameter) for parameter in model.parameters()] == identities
    assert [tuple(parameter.shape) for parameter in model[2].parameters()] == [(7, 8), (7,)]
    assert everything(model[0]) == before
