"""Latency tables as values, and what a network takes by them."""

import copy
import io
import json
import math
import pickle
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_prune import Channel, Fisher, Global, Latency, OneShot, Params, Recipe, prune
from lightning_prune.run.binding import bind
from lightning_prune.selection.cell_cost import Anchor, Network
from lightning_prune.selection.cells import Cell, Kernel, Point, stepped
from lightning_prune.selection.latency import LatencyTable

SIZES = ((24, 8), (40, 24), (4, 40))
"""Output and input widths of the layers."""


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 4))


def layer_ms(out: float, into: float) -> float:
    """Return what a layer takes in these tests: a kernel of 8 channels at once."""
    return 0.01 + 1e-4 * into * float(stepped(out, (8, 8)))


def network_ms(first: int, second: int) -> float:
    """Return what the whole takes: cells are a fifth slower than by themselves, and there is something besides."""
    return 0.02 + 1.2 * (layer_ms(first, 8) + layer_ms(second, first) + layer_ms(4, second))


def measured() -> LatencyTable:
    """Return a table of exact times."""
    kernel = Kernel("point", 1.0, 1.0, 1.0)
    drawn = np.random.default_rng(0).integers(1, 41, (20, 2))
    points = tuple(Point(((int(o), int(i)),), layer_ms(o, i), 0.001) for o, i in drawn)
    anchors = [
        Anchor((((first, 8),), ((second, first),), ((4, second),)), network_ms(first, second), 0.001)
        for first, second in ((24, 40), (3, 5))
    ]
    names = ("0.weight", "2.weight", "4.weight")
    whole = Network(
        "Sequential",
        dict(zip(names, SIZES, strict=True)),
        tuple(("linear", ((name, 0, 1),)) for name in names),
        (anchors[0], anchors[1]),
        ((1, 8),),
    )
    cells = {"linear": Cell("linear to 1×*", (kernel,), points)}
    return LatencyTable("a phone", "executorch 1", "xnnpack", 1, "thread", 30, cells, (whole,), {"0": 0.1})


TABLE = measured()


def cost(need: Latency):
    recipe = Recipe(granularity=Channel(), need=need, schedule=OneShot())
    return bind(recipe, network(), (torch.zeros(2, 8),)).needs[0].cost


class TestCost:
    @pytest.mark.parametrize(("first", "second"), [(24, 40), (3, 5), (17, 40), (24, 9), (10, 31)])
    def test_a_network_takes_what_its_layers_take_at_both_widths(self, first: int, second: int):
        predicted = cost(Latency(0.1, TABLE)).left({"0": 24 - first, "2": 40 - second})
        assert predicted == pytest.approx(network_ms(first, second), rel=1e-6)

    def test_terms_add_up_to_it(self):
        own = cost(Latency(0.1, TABLE))
        widths = {"0": (5, 12, 24), "2": (1, 17, 40)}
        constant, terms = own.terms(widths, 0.1)
        for i, first in enumerate(widths["0"]):
            for j, second in enumerate(widths["2"]):
                places = {"0": i, "2": j}
                total = constant + sum(float(table[tuple(places[n] for n in names)]) for names, table in terms)
                assert total == pytest.approx(own.left({"0": 24 - first, "2": 40 - second}))
        assert own.total == pytest.approx(network_ms(24, 40))
        assert next(iter(own.holders({}))) == "2.weight"

    def test_between_whole_programs_it_is_interpolated_and_terms_are_above_a_limit_where_it_is(self):
        widths = [(first, second) for first in (3, 8, 12, 17, 24) for second in (5, 11, 25, 40)]
        dense, narrow = TABLE.networks[0].anchors
        # in the middle the network is faster than its cells tell
        middle = Anchor((((12, 8),), ((20, 12),), ((4, 20),)), 0.6 * network_ms(12, 20), 0.001)
        curved = replace(TABLE.networks[0], anchors=(dense, narrow, middle))
        own = cost(Latency(0.1, replace(TABLE, networks=(curved,))))
        for anchor, gone in ((dense, (0, 0)), (narrow, (21, 35)), (middle, (12, 20))):
            assert own.left({"0": gone[0], "2": gone[1]}) == pytest.approx(anchor.milliseconds)
        for limit in (0.03, middle.milliseconds, 0.08, 0.12):
            constant, terms = own.terms({"0": range(1, 25), "2": range(1, 41)}, limit)
            for first, second in widths:
                places = {"0": first - 1, "2": second - 1}
                total = constant + sum(float(table[tuple(places[n] for n in names)]) for names, table in terms)
                assert (total > limit) == (own.left({"0": 24 - first, "2": 40 - second}) > limit)

    def test_a_network_comes_down_to_it_and_keeps_whole_steps(self):
        model, data = network(), [torch.randn(64, 8) for _ in range(2)]
        recipe = Recipe(granularity=Channel(), need=Latency(0.1, TABLE), schedule=OneShot(), criterion=Fisher())
        loss = lambda model, batch: model(batch).square().mean()  # noqa: E731
        prune(model, recipe, data, loss=loss)
        first, second = (p.shape[0] for name, p in model.named_parameters() if name in ("0.weight", "2.weight"))
        assert 0.085 < network_ms(first, second) <= 0.1
        assert first % 8 == second % 8 == 0

    def test_a_checkpoint_of_it_is_read_without_code(self):
        need = Latency(np.float64(0.1), TABLE)
        own = cost(need)
        assert type(own.total) is type(own.left({"0": 3})) is float
        recipe, data = Recipe(granularity=Channel(), need=need, schedule=OneShot()), [torch.randn(64, 8)]
        (event,) = prune(network(), recipe, data).events
        torch.save(asdict(event), held := io.BytesIO())
        held.seek(0)
        assert torch.load(held, weights_only=True)["asked"] == event.asked

    def test_with_other_needs(self):
        model, data = network(), [torch.randn(64, 8) for _ in range(2)]
        needs = (Latency(0.12, TABLE), Params(500))
        prune(model, Recipe(granularity=Channel(), need=needs, schedule=OneShot()), data)
        first, second = (p.shape[0] for name, p in model.named_parameters() if name in ("0.weight", "2.weight"))
        assert network_ms(first, second) <= 0.12
        assert sum(p.numel() for p in model.parameters()) <= 500

    def test_too_little_is_refused_with_the_least_and_what_holds_it(self):
        least = r"0\.0\d+ ms is the least that can be reached .*held by"
        with pytest.raises(ValueError, match=least + r" what layers take at any width \(0\.056 ms\), \d\.weight"):
            cost(Latency(0.03, TABLE))
        own, gone = cost(Latency(0.1, TABLE)), {"0": 20, "2": 30}
        assert math.fsum(own.holders(gone).values()) == pytest.approx(own.left(gone))

    def test_a_table_of_another_model(self):
        shapes = {**TABLE.networks[0].shapes, "0.weight": (25, 8)}
        other = replace(TABLE, networks=(replace(TABLE.networks[0], shapes=shapes, name="Other"),))
        with pytest.raises(ValueError, match=r"of another model \(Other\)"):
            cost(Latency(0.1, other))
        with pytest.raises(ValueError, match="no network in it"):
            cost(Latency(0.1, replace(TABLE, networks=())))

    def test_this_model_at_another_size_of_its_input(self):
        other = replace(TABLE.networks[0], inputs=((1, 3, 96, 96),))
        with pytest.raises(ValueError, match=r"knows Sequential at inputs of 1×3×96×96, and the example input is 2×8,"):
            cost(Latency(0.1, replace(TABLE, networks=(other,))))
        anchors = tuple(replace(anchor, milliseconds=2 * anchor.milliseconds) for anchor in other.anchors)
        both = TABLE.merged(replace(TABLE, networks=(replace(other, anchors=(anchors[0], anchors[1])),)))
        assert len(both.networks) == 2
        assert cost(Latency(0.1, both)).total == pytest.approx(network_ms(24, 40))

    def test_a_file_of_before_the_shapes_of_inputs_were_kept(self):
        document = json.loads(TABLE.to_json())
        del document["networks"][0]["inputs"]
        old = LatencyTable.from_json(json.dumps(document))
        with pytest.warns(UserWarning, match="whether Sequential was measured at 2×8 cannot be checked"):
            assert cost(Latency(0.1, old)).total == pytest.approx(network_ms(24, 40))
        assert old.merged(TABLE).networks == TABLE.networks
        assert "Sequential at unknown inputs" in str(old)

    def test_times_that_tell_nothing(self):
        dense, narrow = TABLE.networks[0].anchors
        flat = replace(TABLE.networks[0], anchors=(dense, replace(narrow, milliseconds=dense.milliseconds)))
        with pytest.raises(ValueError, match="cannot tell Sequential from the narrow one"):
            cost(Latency(0.1, replace(TABLE, networks=(flat,))))

    @pytest.mark.parametrize("ms", [0, -1.0, math.nan, "8"])
    def test_bad_milliseconds(self, ms: float):
        with pytest.raises((TypeError, ValueError), match=r"Latency\.ms must be a number above 0"):
            Latency(ms, TABLE)

    def test_bad_table(self):
        with pytest.raises(TypeError, match=r"Latency\.table must be what latency_table\(\) returns"):
            Latency(8.0, {"0": 1.0})  # type: ignore[arg-type]


class TestFile:
    def test_copies(self, tmp_path: Path):
        assert LatencyTable.from_json(TABLE.to_json()) == TABLE
        assert pickle.loads(pickle.dumps(TABLE)) == copy.deepcopy(TABLE) == TABLE
        TABLE.save(tmp_path / "phone.json")
        assert LatencyTable.load(tmp_path / "phone.json") == TABLE
        assert cost(Latency(0.1, tmp_path / "phone.json")).total == pytest.approx(network_ms(24, 40))

    def test_version_1_holds_a_cost_for_each_group(self):
        curve = {"widths": [8, 4], "milliseconds": [2.0, 1.0], "resolution_ms": 0.01}
        old = {"format": "lightning_prune.latency_table", "version": 1, "threads": 2, "backend": "xnnpack"}
        table = LatencyTable.from_json(json.dumps({**old, "curves": {"conv": curve}}))
        assert dict(table.channels) == {"conv": 0.25}
        assert (table.threads, table.backend) == (2, "xnnpack")
        assert Global(cost=table.channels)

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"version": 3}, "of version 3"),
            ({"cells": {}}, "Sequential has 3 cells without a point: measure it again"),
            ({"cells": 3}, "the table is malformed: TypeError: cells: 3 is no"),
            ({"threads": None}, "the table is malformed: TypeError"),
            ({"networks": [{"name": "x"}]}, "the table is malformed: TypeError.*shapes"),
        ],
    )
    def test_bad_files(self, change: dict[str, object], text: str):
        with pytest.raises(ValueError, match=text):
            LatencyTable.from_json(json.dumps(json.loads(TABLE.to_json()) | change))

    def test_a_time_that_is_none(self):
        document = json.loads(TABLE.to_json())
        document["cells"]["linear"]["points"][0]["milliseconds"] = 0.0
        with pytest.raises(
            ValueError, match=r"malformed: ValueError: Point\.milliseconds must be a number .*above 1e-15"
        ):
            LatencyTable.from_json(json.dumps(document))

    @pytest.mark.parametrize(
        ("place", "value", "text"),
        [
            (("cells", "linear", "kernels", 0, "kind"), "round", "Kernel.kind must be one of window, point, grouped"),
            (("cells", "linear", "kernels", 0, "area"), float("nan"), "Kernel.area must be"),
            (("cells", "linear", "points", 0, "widths"), [], "a point with widths for another number of kernels"),
            (("cells", "linear", "points", 0, "milliseconds"), 1e300, "Point.milliseconds must be"),
            (("networks", 0, "shapes"), {}, "has no .* with the axes"),
            (("networks", 0, "inputs"), [[-1, 2]], "a size of Sequential must be at least 0"),
            (("networks", 0, "cells", 0, 1), [], "the widths at which Sequential was measured are not those"),
            (("networks", 0, "anchors", 0, "widths"), [], "the widths at which Sequential was measured are not those"),
            (("networks", 0, "anchors", 0, "spread"), -1, "Anchor.spread must be"),
        ],
    )
    def test_parts_that_do_not_fit_each_other_are_refused_as_a_file_is_read(
        self, place: tuple[str | int, ...], value: object, text: str
    ):
        document: Any = json.loads(TABLE.to_json())
        part = document
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] = value
        with pytest.raises(ValueError, match=f"the table is malformed: ValueError: .*{text}"):
            LatencyTable.from_json(json.dumps(document))

    def test_names_from_a_file_forge_no_row(self):
        forged = replace(TABLE, device="a\nphone\x1b[2J", backend="x\x1bn")
        cells = {key: replace(cell, label="lin\near") for key, cell in forged.cells.items()}
        texts = str(replace(forged, cells=cells)), repr(forged), str(replace(forged, cells=cells).compared(TABLE))
        assert not any("\x1b" in text for text in texts)
        assert len(texts[0].splitlines()) == len(str(TABLE).splitlines())
        assert r"a\nphone\x1b[2J" in texts[0]

    def test_text(self):
        head, *_, note = str(TABLE).splitlines()
        assert head.startswith("cell")
        assert "a phone, executorch 1, xnnpack, 1 thread, thread clock" in note
        assert "point 8" in note
        assert repr(TABLE).startswith("LatencyTable(xnnpack, 1 thread, 1 cells, ")
        assert repr(TABLE) == repr(copy.deepcopy(TABLE)) != repr(replace(TABLE, rounds=3))


class TestSeveral:
    def test_points_and_networks_of_both(self):
        half = replace(TABLE.cells["linear"], points=TABLE.cells["linear"].points[:10])
        first = replace(TABLE, cells={"linear": half, "other": half}, networks=())
        both = first.merged(TABLE)
        assert set(both.cells["linear"].points) == set(TABLE.cells["linear"].points)
        assert both.cells["other"] == half
        assert both.networks == TABLE.networks == both.merged(TABLE).networks

    @pytest.mark.parametrize("name", ["device", "runtime", "backend", "threads", "clock"])
    def test_what_was_measured_otherwise(self, name: str):
        with pytest.raises(ValueError, match=f"tables of another {name} do not go together"):
            TABLE.merged(replace(TABLE, **{name: "3"}))

    @pytest.mark.parametrize("other", [None, "table.json"])
    def test_with_what_is_no_table(self, other: Any):
        for call in (TABLE.merged, TABLE.compared):
            with pytest.raises(TypeError, match=r"the other must be a LatencyTable, as LatencyTable\.load"):
                call(other)

    def test_compared(self):
        cell = TABLE.cells["linear"]
        slower = replace(cell, points=tuple(replace(p, milliseconds=2 * p.milliseconds) for p in cell.points))
        (row,) = TABLE.compared(replace(TABLE, device="old", cells={"linear": slower})).rows
        assert row[-1] == "2.00"
