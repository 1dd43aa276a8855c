"""Latency tables: values, what they refuse, and the parts of networks that they are measured on."""

import copy
import json
import math
import pickle
from typing import Any

import pytest
import torch
from compaction_cases import everything, trained
from deploy_models import EXAMPLE, Small, TwoInputs, small
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_prune import Channel, Global, NoRepair, OneShot, Recipe, channel_groups, prune
from lightning_prune.deploy import LatencyTable, WidthCurve, latency_table
from lightning_prune.deploy.program.network_part import part_reading
from lightning_prune.model import masks
from lightning_prune.run.binding import bind
from lightning_prune.run.pruner import prune_step

needs_executorch = pytest.mark.usefixtures("_executorch")


@pytest.fixture(scope="session")
def _executorch() -> None:
    pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")


CURVE = WidthCurve((8, 4, 2), (2.0, 1.0, 0.5), 0.01)
TABLE = LatencyTable({"conv": CURVE, "stem#2": WidthCurve((16, 8), (1.0, 1.5), 0.08)}, threads=1, backend="xnnpack")


class TestCurve:
    def test_cost_is_the_mean_down_to_the_smallest_width(self):
        assert CURVE.cost == (2.0 - 0.5) / 6

    @given(saved=st.floats(-10, 10), resolution=st.floats(1e-6, 1))
    def test_what_cannot_be_measured_costs_the_resolution(self, saved: float, resolution: float):
        curve = WidthCurve((8, 4), (10.0, 10.0 - saved), resolution)
        assert curve.cost == pytest.approx(max(saved, resolution) / 4, abs=1e-12)
        assert Global(cost={"a": curve.cost})

    @given(times=st.lists(st.floats(0.1, 9), min_size=2, max_size=9), resolution=st.floats(1e-3, 1))
    def test_best_widths_against_all_pairs(self, times: list[float], resolution: float):
        curve = WidthCurve(tuple(range(len(times), 0, -1)), tuple(times), resolution)
        faster = [
            width
            for index, width in enumerate(curve.widths)
            if all(times[index] < wider - resolution for wider in times[:index])
        ]
        assert list(curve.best_widths) == faster
        assert curve.best_widths[0] == curve.widths[0]

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (((8,), (1.0,), 0.1), "widths must be two or more falling numbers"),
            (((4, 8), (1.0, 2.0), 0.1), "widths must be two or more falling numbers"),
            (((8, 8), (1.0, 2.0), 0.1), "widths must be two or more falling numbers"),
            (((8, 0), (1.0, 2.0), 0.1), "widths must be two or more falling numbers"),
            (((8, 4), (1.0,), 0.1), r"one finite number for each of \(8, 4\)"),
            (((8, 4), (1.0, math.nan), 0.1), r"one finite number for each of \(8, 4\)"),
            (((8, 4), (1.0, 0.5), 0.0), "resolution_ms must be a positive number, got 0.0"),
        ],
    )
    def test_bad_values(self, arguments: Any, text: str):
        with pytest.raises(ValueError, match=text):
            WidthCurve(*arguments)


class TestTable:
    def test_mapping(self):
        assert dict(TABLE) == {"conv": 0.25, "stem#2": 0.01}
        assert Global(cost=TABLE) == Global(cost={"conv": 0.25, "stem#2": 0.01})
        with pytest.raises(KeyError):
            TABLE["other"]

    def test_copies(self):
        assert LatencyTable.from_json(TABLE.to_json()) == TABLE
        assert pickle.loads(pickle.dumps(TABLE)) == copy.deepcopy(TABLE) == TABLE

    def test_text(self):
        head, _, first, second = str(TABLE).splitlines()
        assert head.endswith("(xnnpack, 1 thread)")
        assert first.startswith("conv")
        assert "250.000  8: 2.0000  4: 1.0000  2: 0.5000" in first
        assert second.split()[:2] == ["stem#2", "10.000"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "the table is no JSON text: .*pass what to_json"),
            ("[]", "the JSON text is no table"),
            (json.dumps({"format": "lightning_prune.compaction"}), "the JSON text is no table"),
            (json.dumps(json.loads(TABLE.to_json()) | {"version": 2}), "of version 2, this package reads 1"),
            (json.dumps(json.loads(TABLE.to_json()) | {"curves": 3}), "the table is malformed: TypeError: 3 is no"),
            (
                json.dumps(json.loads(TABLE.to_json()) | {"curves": {"a": {}}}),
                "the table is malformed: TypeError.*widths",
            ),
            (json.dumps({**json.loads(TABLE.to_json()), "curves": {"a": [3]}}), "the table is malformed: TypeError"),
            (json.dumps(json.loads(TABLE.to_json()) | {"threads": None}), "the table is malformed: TypeError"),
        ],
    )
    def test_bad_json(self, text: str, message: str):
        with pytest.raises(ValueError, match=message):
            LatencyTable.from_json(text)


class Wide(nn.Module):
    """Two wide convolutions, a narrow one beside them, in-place activations, and a part that changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.narrow = nn.Conv2d(64, 4, 1)
        self.back = nn.Conv2d(4, 64, 1)
        self.last = nn.Conv2d(64, 8, 3, padding=1)
        self.head = nn.Linear(8, 2)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).relu_()
        x += self.back(self.narrow(x).relu_())
        return self.head(self.last(x).relu_().amax((2, 3)))


WIDE_INPUT = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(3))


class Splitting(nn.Module):
    """Tuples and views cross every border that one could draw through it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(4, 8)
        self.third, self.fourth = nn.Linear(8, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        left, right = self.first(x).relu().chunk(2, -1)
        y = self.second(left.add_(1)) + self.second(right)
        y.view(-1)[:1].mul_(2)
        return {"out": self.fourth(self.third(y).relu()), "sum": y.sum()}


class TestPart:
    @pytest.mark.parametrize(
        ("model", "inputs"),
        [
            (small().eval(), (EXAMPLE,)),
            (trained(Wide()), (WIDE_INPUT,)),
            (trained(Splitting()), (torch.randn(2, 6),)),
            (TwoInputs(), (torch.randint(0, 10, (2, 3)), torch.randn(2, 3, 4))),
        ],
        ids=lambda value: type(value).__name__,
    )
    @torch.no_grad()
    def test_it_computes_what_the_network_computes_there(self, model: nn.Module, inputs: tuple[Tensor, ...]):
        whole, same = part_reading(model, [], inputs)
        made = whole(*(x.clone() for x in same))
        for expected in tree_leaves(model(*(x.clone() for x in inputs))):
            assert any(torch.equal(one, expected) for one in made)
        for parameter in model.parameters():
            part, given_inputs = part_reading(model, [parameter], inputs)
            used = {id(p) for p in (*part.parameters(), *part.buffers())}
            assert id(parameter) in used
            for one in part(*given_inputs):
                assert torch.isfinite(one.float()).all()

    @torch.no_grad()
    def test_it_ends_where_the_group_ends(self):
        model = trained(Wide())
        part, inputs = part_reading(model, [model.narrow.weight, model.back.weight], (WIDE_INPUT,))
        assert {tuple(p.shape) for p in part.parameters() if p.dim() > 1} == {(4, 64, 1, 1), (64, 4, 1, 1)}
        x = model.stem(WIDE_INPUT).relu()
        (made,) = (value for value in part(*inputs) if value.shape == (1, 64, 24, 24))
        torch.testing.assert_close(made, model.back(model.narrow(x).relu()), rtol=0, atol=0)


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")
    return latency_table(Wide(), WIDE_INPUT, widths=lambda size: (size // 4, size, 99, 0), rounds=15)


@pytest.mark.slow
@needs_executorch
class TestMeasured:
    def test_every_channel_group_has_a_positive_cost(self, table: LatencyTable):
        prunable = [group.name for group in channel_groups(Wide(), WIDE_INPUT) if group.prunable]
        assert list(table) == prunable == ["stem", "narrow", "last"]
        assert all(cost > 0 for cost in table.values())
        assert [curve.widths for curve in table.curves.values()] == [(64, 16), (4, 1), (8, 2)]

    def test_a_quarter_of_the_wide_group_is_faster_than_all_of_it(self, table: LatencyTable):
        curve = table.curves["stem"]
        assert curve.milliseconds[1] < curve.milliseconds[0] - curve.resolution_ms

    def test_it_is_a_cost_to_prune_by(self, table: LatencyTable):
        model = trained(Wide())
        recipe = Recipe(
            schedule=OneShot(0.5), granularity=Channel(round_to=8), allocation=Global(cost=table), count="macs"
        )
        pruner = bind(recipe, model, (WIDE_INPUT,))
        pruner.attach(model)
        event = prune_step(pruner, model, 0.5)
        assert event.sparsity >= 0.5

    def test_a_width_rule_that_leaves_nothing_measures_half(self):
        table = latency_table(small(), EXAMPLE, rounds=3, widths=Channel(round_to=16).widths)
        assert table.curves["conv"].widths == (8, 4)


class Attending(nn.Module):
    """Two heads of a width that an attribute holds, before a mean over places."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.query, self.both, self.value = 2, *(nn.Linear(6, 16) for _ in range(3))
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.both, self.value))
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).mean(1))


@pytest.mark.slow
@needs_executorch
def test_the_width_of_query_key_and_value_is_measured_in_place_of_heads():
    model, x = Attending(), torch.randn(1, 5, 6)
    heads, widths = (latency_table(model, x, rounds=3, attention=way) for way in ("heads", "width"))
    assert {name: curve.widths for name, curve in heads.curves.items()} == {"query": (2, 1)}
    assert {name: curve.widths for name, curve in widths.curves.items()} == {"query": (8, 4), "value": (8, 4)}
    recipe = Recipe(
        granularity=Channel(attention="width"), allocation=Global(cost=widths), schedule=OneShot(0.5), repair=NoRepair()
    )
    prune(model, recipe, [torch.randn(32, 5, 6)], progress=False)
    assert model.query.out_features < 16 or model.value.out_features < 16


@needs_executorch
def test_model_stays_as_it_was():
    model = small().train()
    masks.attach(model, ["conv.weight"])
    before, state = everything(model), torch.random.get_rng_state()
    table = latency_table(model, EXAMPLE, rounds=3, groups=["conv"])
    assert list(table) == ["conv"]
    assert everything(model) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(module.training for module in model.modules())


class Fixed(Small):
    """Holds the width of its convolution in its code."""

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.pool(self.conv(image)).view(-1, 8))


class Bare(nn.Module):
    """Nothing can go."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.only(x)


@needs_executorch
@pytest.mark.parametrize(
    ("model", "example", "options", "text"),
    [
        (Small(), EXAMPLE, {"rounds": 2}, "rounds must be at least 3, got 2"),
        (Small(), EXAMPLE, {"threads": 0}, "threads must be at least 1, got 0"),
        (Small(), EXAMPLE, {"groups": ["head"]}, r"'head' is none that can be pruned; those of Small: \['conv'\]"),
        (Small(), EXAMPLE, {"groups": ["nowhere"]}, "'nowhere' is none that can be pruned"),
        (Small(), EXAMPLE, {"groups": []}, "nothing to measure"),
        (Small(), EXAMPLE, {"widths": lambda size: (0.5,)}, "widths: gives 0.5 for conv of 8 channels; return whole"),
        (Small(), None, {}, "Small has no example_input_array"),
        (Fixed(), EXAMPLE, {}, "nothing to measure, or not all of it, on Fixed: conv: "),
        (Bare(), torch.zeros(1, 4), {}, "on Bare: it has no prunable channel group"),
    ],
)
def test_bad_arguments(model: nn.Module, example: Any, options: dict[str, Any], text: str):
    with pytest.raises(ValueError, match=text):
        latency_table(model, example, **options)


@pytest.mark.slow
@needs_executorch
def test_a_group_that_the_code_holds_fast_is_left_out():
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fixed, self.free = Fixed(), nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))

        def forward(self, image: Tensor) -> Tensor:
            return self.free(self.fixed(image))

    table = latency_table(Half(), EXAMPLE, rounds=3)
    assert list(table) == ["fixed.head", "free.0"]
