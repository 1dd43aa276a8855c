"""What is said of a run is made of values: figures, shares of the dense network, what changed most, what stays."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lightning_prune.compensation import Repair
from lightning_prune.recipe import Recipe
from lightning_prune.run.binding import bind
from lightning_prune.run.event import Event
from lightning_prune.run.lines import Size, closing, event_line, reached_line, stay_line, staying
from lightning_prune.schedules import OneShot
from lightning_prune.selection import ChannelUnits
from lightning_prune.selection.granularity import Channel, NOfM
from lightning_prune.selection.targets import Targets

EVENT = Event(30, 0.5, 0.5125, {"a.weight": 0.75, "b.weight": 0.5}, 400, 1500)
DENSE = Size(1000, 6000, 4000)


def test_an_event_tells_shares_of_the_dense_network() -> None:
    line = event_line(EVENT, DENSE, {})
    assert line == (
        "step 30: sparsity 0.5125 (asked 0.5000), 400 parameters (40%), 1,500 MACs (25%) left;"
        " most from a (0% -> 75% gone)"
    )
    assert "\n" not in line


def test_what_changed_most_is_no_layer_that_had_gone_before() -> None:
    assert "; most from b (10% -> 50% gone)" in event_line(EVENT, DENSE, {"a.weight": 0.7, "b.weight": 0.1})


@pytest.mark.parametrize(
    ("event", "dense", "layers", "text"),
    [
        (EVENT, DENSE, None, "400 parameters (40%), 1,500 MACs (25%) left"),
        (replace(EVENT, macs=None), DENSE, None, "400 parameters (40%) left"),
        (EVENT, Size(1000, None, 4000), None, "400 parameters (40%), 1,500 MACs left"),
        (EVENT, DENSE, EVENT.layers, "400 parameters (40%), 1,500 MACs (25%) left"),
        (replace(EVENT, layers={}), DENSE, {}, "400 parameters (40%), 1,500 MACs (25%) left"),
    ],
    ids=["resumed", "no example", "dense not measured", "nothing changed", "no layer"],
)
def test_what_nobody_knows_is_left_out(event: Event, dense: Size, layers: dict[str, float] | None, text: str) -> None:
    assert event_line(event, dense, layers) == f"step 30: sparsity 0.5125 (asked 0.5000), {text}"


def test_repairs_are_counted() -> None:
    done, left = Repair("a", 0.5, 0.1, 10), Repair("b", 0.5, 0.5, None, "no better")
    assert (done.is_done, left.is_done) == (True, False)
    assert "left, 1 of 2 layers repaired" in event_line(replace(EVENT, repairs=(done, left)), DENSE, {})


@pytest.mark.parametrize(
    ("recipe", "counted"),
    [
        (Recipe(schedule=OneShot(0.5)), "weights"),
        (Recipe(schedule=OneShot(0.5), granularity=NOfM(2, 4)), "weights"),
        (Recipe(schedule=OneShot(0.5), granularity=Channel()), "channels"),
        (Recipe(schedule=OneShot(0.5), granularity=Channel(), count="params"), "parameters"),
    ],
    ids=str,
)
def test_the_end_names_what_the_sparsity_counts(recipe: Recipe, counted: str) -> None:
    assert reached_line(recipe, 0.5, 0.25) == f"sparsity 0.2500 of the {counted} (asked 0.5000)"


def test_the_closing_table_has_what_was_measured() -> None:
    before, after = Size(1000, 6000, 4000, {"val_acc": 0.91}), Size(500, 2000, 2400, {"val_acc": 0.9, "val_loss": 0.4})
    rows = [line.split() for line in closing("done", before, after, ["", "a note"]).splitlines()]
    assert rows[0] == ["done"]
    assert rows[3:] == [
        ["parameters", "1,000", "500", "50%"],
        ["MACs", "6,000", "2,000", "33%"],
        ["bytes", "4,000", "2,400", "60%"],
        ["val_acc", "0.91", "0.9"],
        ["val_loss", "-", "0.4"],
        ["a", "note"],
    ]
    assert "MACs" not in closing("done", replace(before, macs=None), after)


def test_many_groups_that_stay_make_one_line() -> None:
    stay = {f"block{index}": "layer norm" for index in range(7)} | {"in": "input of the model", "head": "model output"}
    assert stay_line(stay) == "7 channel groups stay: layer norm (block0, block1, block2 and 4 more)"
    assert stay_line({"head": "model output"}) == ""


class TestStaying:
    def units(self, targets: Targets = Targets()) -> ChannelUnits:  # noqa: B008  a frozen value
        model = nn.Sequential(
            nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)
        )
        found = bind(Recipe(schedule=OneShot(0.3), granularity=Channel(), targets=targets), model, torch.zeros(1, 4))
        assert isinstance(found.units, ChannelUnits)
        return found.units

    def test_reasons_are_those_of_the_graph_the_targets_and_the_ranking(self) -> None:
        units = self.units(Targets(exclude=("4",)))
        stay = staying([units], {"0": 0}, {"0"})
        assert stay["0"] == "none of its channels ranked low enough"
        assert stay["4"] == "no target"
        assert "norm" in stay["2"]

    def test_what_another_recipe_has_removed_does_not_stay(self) -> None:
        first, second = self.units(Targets(include=("0",))), self.units(Targets(include=("4",)))
        assert first.stay.keys() == {"4"}
        assert not {"0", "4"} & staying([first, second], {"0": 2, "4": 3}, {"0", "4"}).keys()

    def test_channels_that_finalize_could_not_remove_are_told(self) -> None:
        units = self.units()
        assert "0" not in staying([units], {"0": 2, "4": 1}, None)
        assert staying([units], {"0": 2, "4": 1}, {"4"})["0"] == "its channels are zero, and removing them is not exact"
