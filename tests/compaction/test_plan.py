"""Compaction plans as values, against NumPy."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from compaction_cases import RESIDUAL_INPUT, Residual, half_plan, masked_residual
from torch import nn

from lightning_prune.compaction import Compaction, Removal, compact
from lightning_prune.errors import CompactionError
from lightning_prune.graph import ChannelGroup, ChannelGroups, Member
from lightning_prune.model import masks


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


WRITTEN_BEFORE = (
    '{"format": "lightning_prune.compaction", "version": 1, "shapes": {"conv.weight": [4, 1, 3, 3], "conv.bias": [4],'
    ' "depth.weight": [4, 1, 3, 3], "depth.bias": [4], "head.weight": [2, 4], "head.bias": [2]}, "removals": {"conv":'
    ' {"size": 4, "removed": 2, "entries": {"conv.weight": {"0": [1, 3]}, "conv.bias": {"0": [1, 3]}, "depth.weight":'
    ' {"0": [1, 3]}, "depth.bias": {"0": [1, 3]}, "head.weight": {"1": [1, 3]}}, "inexact": false}}, "attributes":'
    ' {"depth.groups": ["depth.weight", 0]}}'
)
"""What ``to_json`` returned in November 2026."""


def test_a_plan_written_before_loads() -> None:
    plan = Compaction.from_json(WRITTEN_BEFORE)
    assert plan.to_json() == WRITTEN_BEFORE.replace('"version": 1', '"version": 2')
    assert plan.removals["conv"] == Removal(4, 2, plan.removed)
    assert plan.shapes_after == {
        **{"conv.weight": (2, 1, 3, 3), "conv.bias": (2,), "depth.weight": (2, 1, 3, 3), "depth.bias": (2,)},
        **{"head.weight": (2, 2), "head.bias": (2,)},
    }
    assert plan.attributes == {"depth.groups": ("depth.weight", 0)}


def changed(**new: Any) -> str:
    return json.dumps({**json.loads(Compaction.from_keep(hand_made(), {"a": [1]}).to_json()), **new})


BROKEN = {"size": 4, "removed": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "the plan is no JSON text: .*pass what to_json"),
        ("[1]", "the JSON text is no plan"),
        ('{"format": "other"}', "the JSON text is no plan"),
        (changed(version=3), "of version 3, this package reads up to 2; upgrade lightning_prune"),
        (changed(version="x"), "of version 'x'"),
        (changed(shapes=3), "the plan is malformed: AttributeError"),
        (changed(removals={"a": {"size": 4}}), "the plan is malformed: KeyError: 'removed'"),
        (changed(removals={"a": {**BROKEN, "entries": {"d": {"0": [1]}}}}), "axis 0 of d, which is not among"),
        (changed(removals={"a": {**BROKEN, "entries": {"a.weight": {"2": [1]}}}}), "axis 2 of a.weight"),
        (changed(removals={"a": {**BROKEN, "entries": {"a.weight": {"0": [7]}}}}), r"in \[0, 7\), got \(7,\)"),
        (changed(removals={"a": {**BROKEN, "entries": {"a.weight": {"0": [2, 1]}}}}), "sorted, distinct"),
        (changed(removals={"a": {**BROKEN, "entries": {"a.weight": {"0": []}}}}), "sorted, distinct"),
        (changed(removals={"a": {**BROKEN, "entries": {"c.weight": {"0": [0, 1]}}}}), "keeps nothing of c.weight"),
        *(
            (changed(shapes={"a.weight": [size, 2]}), f"{size!r} is no size")
            for size in (math.inf, -1, 1.5, True, 2**63)
        ),
        (changed(removals={"a": {"size": 4, "removed": 4, "entries": {}}}), "4 of 4 channels are removed"),
        (changed(removals={"a": {**BROKEN, "entries": {"a.weight": {"0": [1.5]}}}}), "1.5 is no size"),
        (changed(removals={"a": {**BROKEN, "entries": {}, "scales": {"a": [math.nan, 0]}}}), "power must be .* finite"),
    ],
)
def test_bad_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Compaction.from_json(text)


def test_a_plan_of_petabytes_is_read_and_fits_no_model() -> None:
    entries = {"weight": {"0": [3]}}
    text = changed(shapes={"weight": [2**50, 1]}, removals={"a": {"size": 9, "removed": 1, "entries": entries}})
    plan = Compaction.from_json(text)
    assert plan.shapes_after["weight"] == (2**50 - 1, 1)
    with pytest.raises(CompactionError, match=r"weight has shape \(2, 3\) in Linear and \(1125899906842624, 1\) in"):
        plan.rebuild(nn.Linear(3, 2))


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
