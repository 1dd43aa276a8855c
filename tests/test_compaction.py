"""Compaction: plans against NumPy, exactness against the masked model, and nothing changed whenever it fails."""

import copy
import json
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lightning_prune import masks
from lightning_prune.compaction import Compaction, Removal, applied_plan, compact, reshape_like
from lightning_prune.compaction.equivalence import relative_error
from lightning_prune.errors import CompactionError, OptimizerStateError
from lightning_prune.graph import ChannelGroup, ChannelGroups, Member, channel_groups


class Residual(nn.Module):
    """Convolutions with batch norm, a residual add, a depthwise and a grouped convolution, a concatenation, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.back = nn.Conv2d(6, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 12, 1, groups=4)
        self.head = nn.Linear(20 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.back(self.inner(x)))
        x = torch.cat([torch.relu(self.grouped(x)), self.depthwise(x)], dim=1)
        return self.head(x.flatten(1))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.PReLU(8), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 2))


def trained(model: nn.Module, seed: int = 0) -> Any:
    """Weights and batch norm statistics that are not at their start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator).to(tensor)
                tensor.copy_(noise.abs() + 0.5 if name.endswith("running_var") else 0.5 * noise)
    return model


RESIDUAL_INPUT = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(1))
MLP_INPUT = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))


def half_of(groups: ChannelGroups, seed: int = 0) -> dict[str, list[int]]:
    """A random half of every prunable channel group."""
    rng = np.random.default_rng(seed)
    return {g.name: sorted(rng.permutation(g.size)[: (g.size + 1) // 2].tolist()) for g in groups if g.prunable}


def half_plan(model: nn.Module, example: Any, seed: int = 0) -> Compaction:
    groups = channel_groups(model, example)
    return Compaction.from_keep(groups, half_of(groups, seed))


def hand_made() -> ChannelGroups:
    """Two channel groups on three tensors; the second owns two entries per channel and shares an axis."""
    first = Member("a.weight", 0, np.arange(4)[:, None], "output")
    second = Member("b.weight", 1, np.array([[0, 3], [1, 4], [2, 5]]), "input")
    also = Member("a.weight", 0, np.arange(4, 7)[:, None], "output")
    fixed = Member("c.weight", 0, np.arange(2)[:, None], "output")
    return ChannelGroups(
        [
            ChannelGroup("a", 4, (first,), prunable=True, reason=""),
            ChannelGroup("b", 3, (second, also), prunable=True, reason=""),
            ChannelGroup("c", 2, (fixed,), prunable=False, reason="model output"),
        ],
        {"a.weight": (7, 2), "b.weight": (3, 6), "c.weight": (2,)},
    )


def hand_made_group(model: nn.Module, name: str, size: int, axes: dict[str, int]) -> ChannelGroups:
    """One channel group of one entry per channel, right or wrong."""
    shapes = {name: tuple(tensor.shape) for name, tensor in masks.dense_names(model).items()}
    members = tuple(Member(parameter, axis, np.arange(size)[:, None], "output") for parameter, axis in axes.items())
    return ChannelGroups([ChannelGroup(name, size, members, prunable=True, reason="")], shapes)


# --- the plan as a value --------------------------------------------------------------------------------------------


def test_from_keep_against_numpy() -> None:
    plan = Compaction.from_keep(hand_made(), {"a": [3, 0], "b": torch.tensor([1])})
    assert plan.removals["a"] == Removal(4, 2, {"a.weight": {0: (1, 2)}})
    assert plan.removals["b"].entries == {"b.weight": {1: (0, 2, 3, 5)}, "a.weight": {0: (4, 6)}}
    assert plan.keep == {"a.weight": {0: (0, 3, 5)}, "b.weight": {1: (1, 4)}}
    assert plan.shapes_after == {"a.weight": (3, 2), "b.weight": (3, 2), "c.weight": (2,)}


def test_keeping_all_removes_nothing() -> None:
    plan = Compaction.from_keep(hand_made(), {"a": range(4)})
    assert (plan.removals, plan.keep) == ({}, {})


@pytest.mark.parametrize(
    ("keep", "error", "text"),
    [
        ({"d": [0]}, ValueError, r"no channel group 'd'; print\(channel_groups"),
        ({"c": [0]}, ValueError, "'c' cannot be pruned: model output; leave it out"),
        ({"a": []}, ValueError, r"'a' are none, so nothing of it would be left; keep at least one, .*\[0, 4\)"),
        ({"a": [0, 4]}, ValueError, r"must be distinct ints in \[0, 4\), got 4"),
        ({"a": [-1]}, ValueError, "got -1"),
        ({"a": [2, 2]}, ValueError, "got one of them twice"),
        ({"a": [0.5]}, TypeError, r"got \[0.5\]"),
        ({"a": [True, False, True, True]}, TypeError, "must be distinct ints"),
    ],
)
def test_bad_channels_are_refused(keep: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Compaction.from_keep(hand_made(), keep)


def test_json_round_trip() -> None:
    plan = half_plan(Residual(), RESIDUAL_INPUT)
    again = Compaction.from_json(plan.to_json())
    assert again == plan
    assert again.attributes == {"depthwise.groups": ("depthwise.weight", 0), "grouped.groups": ("grouped.weight", 0)}


def changed(**new: Any) -> str:
    return json.dumps({**json.loads(Compaction.from_keep(hand_made(), {"a": [1]}).to_json()), **new})


BROKEN = {"size": 4, "removed": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "the plan is no JSON text: .*pass what Compaction.to_json"),
        ("[1]", "the JSON text is no plan"),
        ('{"format": "other"}', "the JSON text is no plan"),
        (changed(version=2), "of version 2, this package reads up to 1; upgrade lightning_prune"),
        (changed(version="x"), "of version 'x'"),
        (changed(shapes=3), "the plan is malformed: AttributeError"),
        (changed(removals={"a": {"size": 4}}), "the plan is malformed: KeyError: 'removed'"),
        (changed(removals={"a": {**BROKEN, "entries": {"d": {"0": [1]}}}}), "axis 0 of d, which is not among"),
        (changed(removals={"a": {**BROKEN, "entries": {"a.weight": {"2": [1]}}}}), "axis 2 of a.weight"),
        (changed(removals={"a": {**BROKEN, "entries": {"a.weight": {"0": [7]}}}}), r"in \[0, 7\), got \(7,\)"),
        (changed(removals={"a": {**BROKEN, "entries": {"a.weight": {"0": [2, 1]}}}}), "sorted, distinct"),
        (changed(removals={"a": {**BROKEN, "entries": {"a.weight": {"0": []}}}}), "sorted, distinct"),
        (changed(removals={"a": {**BROKEN, "entries": {"c.weight": {"0": [0, 1]}}}}), "keeps nothing of c.weight"),
    ],
)
def test_bad_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Compaction.from_json(text)


def random_plan(shapes: dict[str, tuple[int, ...]], rng: np.random.Generator) -> Compaction:
    removals = {}
    for name, shape in shapes.items():
        axes = {a: tuple(np.flatnonzero(rng.random(n) < 0.4)[: n - 1].tolist()) for a, n in enumerate(shape)}
        entries = {name: {axis: gone for axis, gone in axes.items() if gone}}
        if entries[name]:
            removals[f"group of {name}"] = Removal(10, 1, entries)
    return Compaction(shapes, removals, {})


def applied(plan: Compaction, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    cut = {}
    for name, array in arrays.items():
        axes = [plan.keep.get(name, {}).get(axis, range(size)) for axis, size in enumerate(array.shape)]
        cut[name] = array[np.ix_(*axes)]
    return cut


@pytest.mark.parametrize("seed", range(20))
def test_composed_plans_do_what_one_after_the_other_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrays = {"p": rng.random((9, 8)), "q": rng.random(7), "r": rng.random((5, 4, 6))}
    first = random_plan({name: array.shape for name, array in arrays.items()}, rng)
    once = applied(first, arrays)
    second = random_plan({name: array.shape for name, array in once.items()}, rng)
    both = first.then(second)
    for name, array in applied(second, once).items():
        np.testing.assert_array_equal(applied(both, arrays)[name], array)
    assert both.shapes_after == second.shapes_after
    assert Compaction.from_json(both.to_json()) == both


def test_composing_counts_channels_of_the_same_group_together_and_keeps_others_apart() -> None:
    one = Compaction({"w": (8,)}, {"g": Removal(8, 2, {"w": {0: (0, 1)}})}, {})
    two = Compaction({"w": (6,)}, {"g": Removal(6, 3, {"w": {0: (0, 1, 5)}})}, {"m.groups": ("w", 0)})
    assert one.then(two).removals == {"g": Removal(8, 5, {"w": {0: (0, 1, 2, 3, 7)}})}
    assert one.then(two).attributes == two.attributes
    other = Compaction({"w": (6,)}, {"g": Removal(3, 1, {"w": {0: (0, 1)}})}, {})
    assert one.then(other).removals == {**one.removals, "g#2": Removal(3, 1, {"w": {0: (2, 3)}})}
    with pytest.raises(CompactionError, match=r"do not follow each other: w is of shape \(6,\) .* of shape \(8,\)"):
        one.then(one)


# --- from masks -----------------------------------------------------------------------------------------------------


def masked_residual(keep: dict[str, list[int]] | None = None) -> tuple[nn.Module, ChannelGroups, dict[str, list[int]]]:
    """A model whose parameters carry the masks of a random half of its channels."""
    model = trained(Residual())
    groups = channel_groups(model, RESIDUAL_INPUT)
    keep = half_of(groups) if keep is None else keep
    masks.attach(model, [n for n in masks.dense_parameters(model) if not n.startswith("head.b")], is_structured=True)
    new = {name: torch.ones_like(mask) for name, mask in masks.read(model).items()}
    for name, removed in Compaction.from_keep(groups, keep).removed.items():
        for axis, gone in removed.items():
            if name in new:
                new[name].index_fill_(axis, torch.tensor(gone), False)
    masks.write(model, new.items())
    return model, groups, keep


def test_from_masks_finds_the_channels_that_are_out_everywhere() -> None:
    model, groups, keep = masked_residual()
    assert Compaction.from_masks(model, groups) == Compaction.from_keep(groups, keep)
    assert Compaction.from_masks(Residual(), groups).keep == {}


def test_a_channel_stays_when_one_slice_of_it_is_not_masked_or_has_no_mask() -> None:
    model, groups, keep = masked_residual()
    gone = sorted(set(range(groups["inner.0"].size)) - set(keep["inner.0"]))
    masks.mask_of(model.get_submodule("back"), "weight")[0, gone[0]] = True
    plan = Compaction.from_masks(model, groups)
    assert plan.removals["inner.0"].removed == len(gone) - 1
    masks.detach(model, ["inner.1.bias"])
    assert "inner.0" not in Compaction.from_masks(model, groups).removals


def test_of_a_group_that_is_masked_out_entirely_the_first_channel_stays() -> None:
    model, groups, _ = masked_residual({})
    layers = ("inner.0.weight", "inner.1.weight", "inner.1.bias", "back.weight")
    masks.write(model, [(name, torch.zeros_like(masks.read(model)[name])) for name in layers])
    plan = Compaction.from_masks(model, groups)
    assert plan.removals["inner.0"].entries["inner.0.weight"] == {0: (1, 2, 3, 4, 5)}
    assert compact(model, plan, RESIDUAL_INPUT).errors["float64"] <= 1e-12


# --- applying it ----------------------------------------------------------------------------------------------------


def outputs(model: nn.Module, example: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).double().eval()(example.double())


CASES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "residual": (Residual, RESIDUAL_INPUT),
    "residual, zeros": (Residual, torch.zeros(1, 2, 4, 4)),
    "mlp": (mlp, MLP_INPUT),
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
    model = trained(mlp())
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
    keep = {g.name: list(range(g.size // 2)) for g in channel_groups(model, RESIDUAL_INPUT) if g.prunable}
    compact(model, Compaction.from_keep(channel_groups(model, RESIDUAL_INPUT), keep), RESIDUAL_INPUT)
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
    plan = Compaction.from_masks(small, channel_groups(small, example))
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
    masks.refresh(model)
    before = masks.read(model)
    folded = masks.fold(copy.deepcopy(model))
    compact(model, plan, RESIDUAL_INPUT)
    for name, mask in masks.read(model).items():
        axes = [plan.keep.get(name, {}).get(axis, range(size)) for axis, size in enumerate(before[name].shape)]
        np.testing.assert_array_equal(mask, before[name].numpy()[np.ix_(*axes)])
    stem: Any = model.get_submodule("stem")
    assert torch.equal(stem.weight, torch.where(stem.weight_mask, stem.weight_orig, 0))
    assert (stem.weight_mask == 0).sum() == 1
    np.testing.assert_allclose(outputs(model, RESIDUAL_INPUT), outputs(folded, RESIDUAL_INPUT), rtol=1e-10, atol=1e-12)
    model(RESIDUAL_INPUT).sum().backward()
    assert stem.weight_orig.grad.shape == stem.weight_mask.shape
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
        self.inner: nn.Module = mlp()

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
    assert first.weight_orig is second.weight_orig
    assert first.weight_mask.shape == second.weight_mask.shape == first.weight.shape == (2, 6)
    assert first.out_features == second.out_features == 2


def test_outputs_of_a_dataclass_are_compared_and_no_output_is_refused() -> None:
    model = trained(AsDataclass())
    plan = half_plan(mlp(), MLP_INPUT)
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
    model = trained(mlp()).to(dtype)
    plan = half_plan(mlp(), MLP_INPUT)
    report = compact(model, plan, MLP_INPUT.to(dtype))
    assert list(report.errors) == precisions
    assert all(parameter.dtype is dtype for parameter in model.parameters())


def test_a_model_with_a_fixed_type_is_compared_at_float32_alone() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.to(torch.float32))

    model = trained(Fixed())
    assert list(compact(model, half_plan(model, MLP_INPUT), MLP_INPUT).errors) == ["float32"]


def test_parametrized_weights_shrink() -> None:
    model = trained(mlp())
    parametrizations.weight_norm(model.get_submodule("2"))
    names = {"0.weight": 0, "0.bias": 0, "1.weight": 0, "2.parametrizations.weight.original1": 1}
    groups = hand_made_group(model, "0", 8, names)
    report = compact(model, Compaction.from_keep(groups, {"0": [0, 3, 4]}), MLP_INPUT)
    assert report.errors["float64"] <= 1e-12
    layer: Any = model.get_submodule("2")
    assert (layer.out_features, layer.in_features) == layer.weight.shape == (7, 3)


def test_a_graph_that_is_still_alive_is_no_hindrance() -> None:
    model, plan = trained(mlp()), half_plan(mlp(), MLP_INPUT)
    alive = model(MLP_INPUT).sum()
    compact(model, plan, MLP_INPUT)
    model(MLP_INPUT).sum().backward()
    assert alive.grad_fn is not None
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


def test_memory_format_survives() -> None:
    model = trained(Residual()).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    compact(model, half_plan(Residual(), RESIDUAL_INPUT), RESIDUAL_INPUT)
    assert model.get_submodule("stem").weight.is_contiguous(memory_format=torch.channels_last)


# --- nothing changes when it fails ----------------------------------------------------------------------------------


def everything(model: nn.Module, *optimizers: torch.optim.Optimizer) -> Any:
    """Identity, address and bytes of all that compaction touches."""

    def of(value: Any) -> Any:
        if isinstance(value, Tensor):
            raw = value.detach().contiguous().view(torch.uint8).numpy().tobytes() if value.dim() else value.item()
            grad = of(value.grad) if value.is_leaf and value.grad is not None else None
            return id(value), value.data_ptr(), value.shape, raw, grad
        if isinstance(value, dict):
            return {key: of(item) for key, item in value.items()}
        return id(value) if isinstance(value, nn.Module) else repr(value)

    plain = {path: {k: v for k, v in m.__dict__.items() if k[0] != "_"} for path, m in model.named_modules()}
    tensors = {path: of({**m._parameters, **m._buffers}) for path, m in model.named_modules()}
    weights = {path: {k: of(v) for k, v in d.items()} for path, d in plain.items()}
    states = [{id(p): of(s) for p, s in optimizer.state.items()} for optimizer in optimizers]
    return tensors, weights, states, applied_plan(model)


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
    masks.refresh(model)
    return model, optimizers, half_plan(model, RESIDUAL_INPUT)


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
        mine = file.endswith(("resize.py", "optimizer_surgery.py", "masks.py", "plan.py", "apply.py"))
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
    model = trained(mlp())
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
    plan, model = half_plan(mlp(), MLP_INPUT), other()
    before = everything(model)
    for refused in (plan.mask, plan.rebuild, lambda model: compact(model, plan)):
        with pytest.raises(CompactionError, match=text):
            refused(model)
    assert everything(model) == before


def test_bad_arguments_are_refused() -> None:
    model = mlp()
    plan = half_plan(model, MLP_INPUT)
    with pytest.raises(CompactionError, match=r"Sequential does not run on the example inputs .* RuntimeError"):
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


# --- reshaping before weights load ----------------------------------------------------------------------------------


def test_reshape_like_takes_the_shape_of_a_checkpoint_and_back() -> None:
    dense, small = trained(Residual()), trained(Residual())
    plan = half_plan(small, RESIDUAL_INPUT)
    compact(small, plan, RESIDUAL_INPUT)
    model = Residual()
    for source in (small, dense, small):
        assert reshape_like(model, source.state_dict(), plan.attributes) is model
        model.load_state_dict(source.state_dict())
        assert repr(model) == repr(source)
        assert torch.equal(outputs(model, RESIDUAL_INPUT), outputs(source, RESIDUAL_INPUT))


def test_reshape_like_for_masked_models_and_masked_checkpoints() -> None:
    masked, groups, _ = masked_residual()
    compact(masked, Compaction.from_masks(masked, groups), RESIDUAL_INPUT)
    plan = applied_plan(masked)
    assert plan is not None
    model = Residual()
    masks.attach(model, masks.read(masked))
    model(RESIDUAL_INPUT).sum().backward()
    reshape_like(model, masked.state_dict(), plan.attributes)
    assert all(mask.all() for mask in masks.read(model).values())
    assert all(parameter.grad is None or parameter.grad.shape == parameter.shape for parameter in model.parameters())
    model.load_state_dict(masked.state_dict())
    assert torch.equal(outputs(model, RESIDUAL_INPUT), outputs(masked, RESIDUAL_INPUT))


def test_reshape_like_leaves_what_the_state_dict_lacks() -> None:
    model = mlp()
    before = everything(model)
    reshape_like(model, {"0.weight": torch.zeros(8), "1.weight": torch.zeros(8), "other": torch.zeros(3)})
    assert everything(model) == before


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "Conv1d": (lambda: nn.Conv1d(4, 8, 3), lambda: nn.Conv1d(3, 5, 3)),
    "Conv2d": (lambda: nn.Conv2d(4, 8, 3, bias=False), lambda: nn.Conv2d(3, 5, 3, bias=False)),
    "Conv3d": (lambda: nn.Conv3d(4, 8, 1), lambda: nn.Conv3d(3, 5, 1)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 8, 3), lambda: nn.ConvTranspose1d(3, 5, 3)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 8, 3), lambda: nn.ConvTranspose2d(3, 5, 3)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(4, 8, 1), lambda: nn.ConvTranspose3d(3, 5, 1)),
    "Linear": (lambda: nn.Linear(4, 8), lambda: nn.Linear(3, 5)),
    "Bilinear": (lambda: nn.Bilinear(4, 5, 8), lambda: nn.Bilinear(3, 2, 5)),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(8), lambda: nn.BatchNorm1d(5)),
    "BatchNorm2d without affine": (lambda: nn.BatchNorm2d(8, affine=False), lambda: nn.BatchNorm2d(5, affine=False)),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(8), lambda: nn.BatchNorm3d(5)),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(8, affine=True), lambda: nn.InstanceNorm2d(5, affine=True)),
    "InstanceNorm1d with statistics": (
        lambda: nn.InstanceNorm1d(8, track_running_stats=True),
        lambda: nn.InstanceNorm1d(5, track_running_stats=True),
    ),
    "LayerNorm": (lambda: nn.LayerNorm([8, 2]), lambda: nn.LayerNorm([5, 2])),
    "RMSNorm": (lambda: nn.RMSNorm(8), lambda: nn.RMSNorm(5)),
    "GroupNorm": (lambda: nn.GroupNorm(2, 8), lambda: nn.GroupNorm(2, 6)),
    "Embedding": (lambda: nn.Embedding(9, 8), lambda: nn.Embedding(9, 5)),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(9, 8), lambda: nn.EmbeddingBag(9, 5)),
    "PReLU": (lambda: nn.PReLU(8), lambda: nn.PReLU(5)),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_reshaped_layer_is_the_layer_built_at_that_size(layer: str) -> None:
    large, small = (make() for make in LAYERS[layer])
    fresh, reshaped = copy.deepcopy(small), reshape_like(copy.deepcopy(large), small.state_dict())
    reshaped.load_state_dict(fresh.state_dict())
    public = {name: value for name, value in vars(fresh).items() if name[0] != "_"}
    assert {name: vars(reshaped)[name] for name in public} == public
    assert repr(reshape_like(small, large.state_dict())) == repr(large)
