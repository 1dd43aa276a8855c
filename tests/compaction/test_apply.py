"""Compaction computes what the masked model computes, and trains on as it would."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from compaction_cases import (
    MLP_INPUT,
    RESIDUAL_INPUT,
    Mlp,
    Residual,
    groups_of,
    half_plan,
    hand_made_group,
    masked_residual,
    outputs,
    trained,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lightning_prune.compaction import Compaction, Removal, applied_plan, compact
from lightning_prune.errors import CompactionError
from lightning_prune.graph import channel_groups
from lightning_prune.model import masks

CASES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "residual": (Residual, RESIDUAL_INPUT),
    "residual, zeros": (Residual, torch.zeros(1, 2, 4, 4)),
    "mlp": (Mlp, MLP_INPUT),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 2, 3)),
        torch.randn(2, 2, 9),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_compact_computes_what_the_masked_model_computes(case: str) -> None:
    make, example = CASES[case]
    model = trained(make())
    plan = half_plan(model, example)
    masked = copy.deepcopy(model)
    plan.mask(masked)
    before, identities = dict(model.named_parameters()), {name: id(p) for name, p in model.named_parameters()}
    report = compact(model, plan, example)
    fresh = torch.randn(4, *example.shape[1:])
    np.testing.assert_allclose(outputs(model, fresh), outputs(masked, fresh), rtol=1e-10, atol=1e-12)
    assert {name: id(p) for name, p in model.named_parameters()} == identities
    assert report.parameters_before == sum(p.numel() for p in make().parameters())
    assert report.parameters_after == sum(p.numel() for p in before.values()) < report.parameters_before
    assert report.removed == {name: (r.removed, r.size) for name, r in plan.removals.items()}
    assert report.errors["float64"] <= 1e-12
    assert report.errors["float32"] <= 1e-4


def test_mask_is_what_numpy_zeroes() -> None:
    model = trained(Mlp())
    plan = half_plan(model, MLP_INPUT)
    expected = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    for name, axes in plan.removed.items():
        for axis, gone in axes.items():
            expected[name][tuple([slice(None)] * axis + [list(gone)])] = 0
    plan.mask(model)
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(parameter.detach(), expected[name])


def test_attributes_are_those_of_a_model_built_small() -> None:
    model = trained(Residual())
    keep = {g.name: range(g.size // 2) for g in groups_of(Residual) if g.prunable}
    compact(model, Compaction.from_keep(groups_of(Residual), keep), RESIDUAL_INPUT)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            made = type(module)(
                module.in_channels, module.out_channels, module.kernel_size, groups=module.groups  # type: ignore[arg-type]
            )  # fmt: skip
            assert made.weight.shape == module.weight.shape
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.num_features == module.weight.shape[0] == module.running_mean.shape[0]
        elif isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == module.weight.shape
    depthwise, grouped = model.get_submodule("depthwise"), model.get_submodule("grouped")
    assert (depthwise.groups, grouped.groups) == (depthwise.weight.shape[0], grouped.weight.shape[0] // 3)


@pytest.mark.parametrize("make", [torch.optim.AdamW, lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)])
def test_masked_and_compact_training_agree(make: Callable[[Any], torch.optim.Optimizer]) -> None:
    """Two float64 runs from one state: one goes on masked, one compact, both in training mode."""
    torch.manual_seed(0)
    small, _, _ = masked_residual()
    small = small.double()
    optimizer = make(small.parameters())
    example = RESIDUAL_INPUT.double()

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
        losses = []
        for seed in range(steps):
            batch = torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            loss = model(batch).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    train(small, optimizer, 2)
    large, large_optimizer = copy.deepcopy((small, optimizer))
    plan = Compaction.from_masks(small, groups_of(Residual))
    compact(small, plan, example, optimizer)
    np.testing.assert_allclose(train(small, optimizer, 5), train(large, large_optimizer, 5), rtol=1e-9)
    for parameter in small.parameters():
        assert parameter.grad is not None
        assert parameter.grad.shape == parameter.shape
        assert all(v.shape == parameter.shape for v in optimizer.state[parameter].values() if v is not None and v.dim())


def test_masks_stay_attached_and_shrink_with_their_weights() -> None:
    model, groups, _ = masked_residual()
    plan = Compaction.from_masks(model, groups)
    masks.mask_of(model.get_submodule("stem"), "weight")[plan.keep["stem.weight"][0][0], 0, 1, 1] = False
    masks.zero_pruned(model)
    masks.zero_pruned(model)
    before = masks.read(model)
    folded = masks.fold(copy.deepcopy(model))
    compact(model, plan, RESIDUAL_INPUT)
    for name, mask in masks.read(model).items():
        axes = [plan.keep.get(name, {}).get(axis, range(size)) for axis, size in enumerate(before[name].shape)]
        np.testing.assert_array_equal(mask, before[name].numpy()[np.ix_(*axes)])
    stem: Any = model.get_submodule("stem")
    assert torch.equal(stem.weight, torch.where(masks.mask_of(stem, "weight"), stem.weight, 0))
    assert (masks.mask_of(stem, "weight") == 0).sum() == 1
    np.testing.assert_allclose(outputs(model, RESIDUAL_INPUT), outputs(folded, RESIDUAL_INPUT), rtol=1e-10, atol=1e-12)
    model(RESIDUAL_INPUT).sum().backward()
    assert stem.weight.grad.shape == masks.mask_of(stem, "weight").shape
    copy.deepcopy(model)


def test_compacting_twice_composes_and_a_fresh_model_takes_the_shape() -> None:
    model = trained(Residual())
    for seed in (1, 2):
        compact(model, half_plan(model, RESIDUAL_INPUT, seed), RESIDUAL_INPUT)
    plan = applied_plan(model)
    assert plan is not None
    assert (plan.removals["stem"].size, plan.removals["stem"].removed) == (4, 3)  # in pairs, by the grouped convolution
    fresh = Compaction.from_json(plan.to_json()).rebuild(Residual())
    assert repr(fresh) == repr(model)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(outputs(fresh, RESIDUAL_INPUT), outputs(model, RESIDUAL_INPUT))
    assert applied_plan(fresh) == plan
    assert applied_plan(Residual()) is None
    assert applied_plan(copy.deepcopy(model)) == plan


def test_the_callers_model_mode_and_random_generator_are_left_alone() -> None:
    model = trained(Residual()).train()
    plan = half_plan(model, RESIDUAL_INPUT)
    state, example = torch.get_rng_state(), RESIDUAL_INPUT.clone()
    compact(model, plan, RESIDUAL_INPUT)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(RESIDUAL_INPUT, example)
    assert all(module.training for module in model.modules())


class Odd(nn.Module):
    """Several inputs, an integer one, a keyword, an in-place forward, tied weights, nested outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.first, self.second = nn.Linear(6, 8), nn.Linear(4, 8)
        self.out = nn.Linear(8, 6)
        self.decoder = nn.Linear(6, 11, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens: Tensor, other: Tensor, *, scale: Tensor | None = None) -> dict[str, Any]:
        other.mul_(2)
        hidden = torch.relu(self.first(self.embedding(tokens)) * self.second(other))
        out = self.out(hidden) if scale is None else self.out(hidden) * scale
        return {"logits": self.decoder(out), "more": (out, [tokens + 1], "text")}


@dataclass
class Result:
    value: Tensor
    extra: Any = None


class AsDataclass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner: nn.Module = Mlp()

    def forward(self, x: Tensor) -> Any:
        return Result(self.inner(x), extra=Result(x))


def test_several_inputs_tied_weights_and_nested_outputs() -> None:
    torch.manual_seed(0)
    model = trained(Odd())
    example = (torch.randint(11, (2, 5)), torch.randn(2, 5, 4))
    kwargs = {"scale": torch.rand(2, 5, 1)}
    groups = channel_groups(model, tuple(t.clone() for t in example), kwargs)
    name = next(group.name for group in groups if group.prunable and group.size == 8)
    plan = Compaction.from_keep(groups, {name: [1, 4, 6]})
    assert compact(model, plan, example, example_kwargs=kwargs).errors["float64"] <= 1e-12
    assert model.decoder.weight is model.embedding.weight
    assert (model.first.out_features, model.second.out_features, model.out.in_features) == (3, 3, 3)


def test_tied_weights_that_shrink_stay_tied() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3))
    model[1].weight = model[0].weight
    groups = hand_made_group(model, "0", 6, {"0.weight": 0})
    masks.attach(model, ["0.weight"])
    compact(model, Compaction.from_keep(groups, {"0": [0, 5]}))
    first, second = model[:2]
    assert first.weight is second.weight
    assert masks.mask_of(first, "weight").shape == masks.mask_of(second, "weight").shape == first.weight.shape == (2, 6)
    assert first.out_features == second.out_features == 2


def test_outputs_of_a_dataclass_are_compared_and_no_output_is_refused() -> None:
    model = trained(AsDataclass())
    plan = half_plan(Mlp(), MLP_INPUT)
    inner = {f"inner.{name}": shape for name, shape in plan.shapes.items()}
    removals = {
        group: Removal(r.size, r.removed, {f"inner.{name}": axes for name, axes in r.entries.items()})
        for group, r in plan.removals.items()
    }
    assert compact(model, Compaction(inner, removals, {}), MLP_INPUT).errors["float64"] <= 1e-12

    class Silent(AsDataclass):
        def forward(self, x: Tensor) -> Any:
            return str(self.inner(x))

    with pytest.raises(CompactionError, match="returns no tensor that could be compared"):
        compact(Silent(), Compaction(inner, removals, {}), MLP_INPUT)


@pytest.mark.parametrize(
    ("dtype", "precisions"),
    [
        (torch.float16, ["float32", "float64"]),
        (torch.bfloat16, ["float32", "float64"]),
        (torch.float32, ["float32", "float64"]),
        (torch.float64, ["float64"]),
    ],
)
def test_precisions(dtype: torch.dtype, precisions: list[str]) -> None:
    model = trained(Mlp()).to(dtype)
    plan = half_plan(Mlp(), MLP_INPUT)
    report = compact(model, plan, MLP_INPUT.to(dtype))
    assert list(report.errors) == precisions
    assert all(parameter.dtype is dtype for parameter in model.parameters())


class Fixed(nn.Module):
    def __init__(self, cast: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.cast = Mlp(), cast

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.cast(x))


def test_what_is_cast_to_float32_stays_at_float64_in_the_proof() -> None:
    model = trained(Fixed(lambda x: x.to(torch.float32)))
    report = compact(model, half_plan(model, MLP_INPUT), MLP_INPUT)
    assert list(report.errors) == ["float32", "float64"]
    assert report.errors["float64"] < 1e-12


def test_a_model_with_a_fixed_type_is_compared_at_float32_alone() -> None:
    def strict(x: Tensor) -> Tensor:
        if x.dtype is not torch.float32:
            raise TypeError("float32 alone")
        return x

    model = trained(Fixed(strict))
    assert list(compact(model, half_plan(model, MLP_INPUT), MLP_INPUT).errors) == ["float32"]


def test_parametrized_weights_shrink() -> None:
    model = trained(Mlp())
    parametrizations.weight_norm(model.get_submodule("2"))
    names = {"0.weight": 0, "0.bias": 0, "1.weight": 0, "2.parametrizations.weight.original1": 1}
    groups = hand_made_group(model, "0", 8, names)
    report = compact(model, Compaction.from_keep(groups, {"0": [0, 3, 4]}), MLP_INPUT)
    assert report.errors["float64"] <= 1e-12
    layer: Any = model.get_submodule("2")
    assert (layer.out_features, layer.in_features) == layer.weight.shape == (7, 3)


def test_a_graph_that_is_still_alive_is_no_hindrance() -> None:
    model, plan = trained(Mlp()), half_plan(Mlp(), MLP_INPUT)
    alive = model(MLP_INPUT).sum()
    compact(model, plan, MLP_INPUT)
    model(MLP_INPUT).sum().backward()
    assert alive.grad_fn is not None
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


def test_memory_format_survives() -> None:
    model = trained(Residual()).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    compact(model, half_plan(Residual(), RESIDUAL_INPUT), RESIDUAL_INPUT)
    assert model.get_submodule("stem").weight.is_contiguous(memory_format=torch.channels_last)
