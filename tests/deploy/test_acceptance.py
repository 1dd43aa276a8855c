"""The loop that measures what came of a latency need, with a clock that the test holds."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_prune import Latency, MACs
from lightning_prune.deploy import XNNPACK, Int8, Portable, accepted
from lightning_prune.deploy.acceptance import Aim
from lightning_prune.deploy.designs import Program
from lightning_prune.deploy.latency_table import Bench
from lightning_prune.errors import PruningError
from lightning_prune.selection.cell_cost import Anchor, Network
from lightning_prune.selection.cells import Cell, Kernel, Point
from lightning_prune.selection.latency import LatencyTable

pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")

INPUT = torch.zeros(1, 4)
LOWERED = Bench.lowered


def layer(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, width))


@pytest.fixture
def need(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Latency:
    """Return 5 ms of a network that takes 10 at width 1000: a millisecond for 100 outputs, and half of one besides."""

    def lowered(self: Bench, programs: Sequence[Program]) -> list[dict[str, Any]]:
        return [{"width": next(each.module.parameters()).shape[0]} for each in programs]

    def timed(self: Bench, turns: Sequence[Sequence[dict[str, Any]]], rounds: int) -> list[list[list[float]]]:
        # by now the machine is twice as fast
        return [[[0.5 * (0.5 + 0.0095 * each["width"])] * rounds] for (each,) in turns]

    monkeypatch.setattr(Bench, "lowered", lowered)
    monkeypatch.setattr(Bench, "timed", timed)
    cell = Cell("linear", (Kernel("point", 1.0, 1.0, 1.0),), (Point(((1000, 4),), 10.0, 0.0),))
    anchors = Anchor((((1000, 4),),), 10.0, 0.0), Anchor((((10, 4),),), 1.0, 0.0)
    network = Network("Sequential", {"0.weight": (1000, 4)}, (("linear", (("0.weight", 0, 1),)),), anchors, ((1, 4),))
    empty = Bench(backend=XNNPACK(), threads=1, rounds=60, folder=tmp_path).table(None)
    return Latency(5.0, replace(empty, cells={"linear": cell}, networks=(network,)))


def test_it_asks_again_until_the_measured_time_is_close_below(need: Latency):
    asked = []

    def make(wished: Latency) -> nn.Module:
        asked.append(wished.ms)
        return layer(round(100 * wished.ms * 1.2))  # predicts a fifth too little

    found = accepted(make, need, layer(1000), INPUT)
    assert len(found.rounds) == len(asked) <= 3
    assert found.rounds[0].milliseconds > 5.0
    assert 0.97 <= found.rounds[found.chosen].milliseconds / 5.0 <= 1.0
    assert next(found.model.parameters()).shape[0] == round(120 * asked[found.chosen])
    assert str(found).endswith(f"round {found.chosen + 1} is kept")


def test_of_several_that_are_not_close_the_closest_below_is_kept(need: Latency):
    widths = iter((300, 420, 900))
    found = accepted(lambda wished: layer(next(widths)), need, layer(1000), INPUT, tries=3)
    assert found.chosen == 1
    assert str(found).endswith("round 2 is kept; the next larger one that was tried takes 1.810 of the need")
    assert next(found.model.parameters()).shape[0] == 420
    assert [round(each.milliseconds, 3) for each in found.rounds] == [3.35, 4.49, 9.05]


def test_none_takes_as_little(need: Latency):
    with pytest.raises(PruningError, match=r"not met in 2 rounds: 8\.1 ms is the least that was measured"):
        accepted(lambda wished: layer(800), need, layer(1000), INPUT, tries=2)


def test_where_kernels_step_what_is_asked_closes_in_on_the_step():
    aim, places, taken = Aim(limit=1.0, dense=2.0), list[float](), list[float]()
    while not aim.is_over:
        places.append(aim.asked)
        taken.append(0.9 if aim.asked < 1.17 else 1.7)  # no network takes what lies between
        aim.tell(taken)
    assert len(places) <= 9
    assert places[0] < 1.17 < max(places)
    below, above = (max(p for p in places if p < 1.17), min(p for p in places if p > 1.17))
    assert above / below < 1.005
    assert aim.chosen is not None
    assert taken[aim.chosen] == 0.9


def test_a_part_that_does_not_shrink_is_told_from_two_networks():
    aim, taken = Aim(limit=0.7, dense=2.0), list[float]()
    while not aim.is_over:
        taken.append(0.6 + 0.4 * aim.asked)
        aim.tell(taken)
    assert len(taken) <= 4
    assert 0.97 * 0.7 <= taken[-1] <= 0.7


def test_what_a_later_session_measures_counts():
    """The first was slow in one session: beside those after it, it is fast enough and close."""
    aim = Aim(limit=1.0, dense=2.0)
    aim.tell([1.1])
    assert aim.chosen is None
    assert aim.asked < 0.95
    aim.tell([0.99, 0.8])
    assert (aim.chosen, aim.is_over) == (0, True)


def test_all_that_were_tried_are_timed_together(need: Latency, monkeypatch: pytest.MonkeyPatch):
    sessions, timed, widths = list[int](), Bench.timed, iter((300, 600, 420))

    def noted(self: Bench, turns: Sequence[Sequence[dict[str, Any]]], rounds: int) -> list[list[list[float]]]:
        sessions.append(len(turns))
        slow = 2.0 if len(sessions) == 1 else 1.0  # for a moment the first one is slow
        return [[[slow * each if place else each for each in own[0]]]
                for place, own in enumerate(timed(self, turns, rounds))]  # fmt: skip

    monkeypatch.setattr(Bench, "timed", noted)
    found = accepted(lambda wished: layer(next(widths)), need, layer(1000), INPUT, tries=3)
    assert sessions == [2, 3, 4]
    assert [round(each.milliseconds, 3) for each in found.rounds] == [3.35, 6.2, 4.49]


@pytest.mark.slow
def test_what_is_timed_are_the_integers_that_are_shipped(
    need: Latency, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """The files that are timed hold a byte for each weight; dense and narrow alike."""
    sizes = []

    def timed(self: Bench, turns: Sequence[Sequence[dict[str, Any]]], rounds: int) -> list[list[list[float]]]:
        sizes.extend(Path(each["path"]).stat().st_size for (each,) in turns)
        return [[[10.0] * rounds], [[4.9] * rounds]]

    assert isinstance(need.table, LatencyTable)
    monkeypatch.setattr(Bench, "lowered", LOWERED)
    monkeypatch.setattr(Bench, "timed", timed)
    network = replace(need.table.networks[0], shapes={"0.weight": (1000, 256)}, inputs=((1, 256),))
    backend = XNNPACK(quantization=Int8(calibration=[torch.randn(16, 256)]))
    table = replace(need.table, backend="xnnpack Int8", networks=(network,))
    accepted(lambda _: nn.Sequential(nn.Linear(256, 480)), Latency(5.0, table), nn.Sequential(nn.Linear(256, 1000)),
             torch.zeros(1, 256), backend=backend)  # fmt: skip
    for size, outputs in zip(sizes, (1000, 480), strict=True):
        assert 256 * outputs < size < 2 * 256 * outputs
    with pytest.raises(ValueError, match="another backend do not go together: 'xnnpack Int8' and 'xnnpack'"):
        accepted(lambda _: layer(3), Latency(5.0, table), nn.Sequential(nn.Linear(256, 1000)), torch.zeros(1, 256))


@pytest.mark.slow
def test_a_phone_tells_what_files_take(need: Latency, monkeypatch: pytest.MonkeyPatch) -> None:
    """On it a file takes 8 ms for what the dense one weighs; the table of the phone says 10, and no clock runs here."""
    assert isinstance(need.table, LatencyTable)
    monkeypatch.setattr(Bench, "timed", lambda *_: pytest.fail("timed here"))
    wished = Latency(4.0, replace(need.table, device="a phone", runtime="", clock="wall", threads=0))
    told: list[tuple[str, int]] = []

    def measure(path: Path) -> float:
        told.append((path.name, path.stat().st_size))
        return 8.0 * told[-1][1] / told[0][1]

    asked = []

    def make(part: Latency) -> nn.Module:
        asked.append(part.ms)
        return layer(round(100 * part.ms * 1.2))

    found = accepted(make, wished, layer(1000), INPUT, measure=measure)
    assert [name for name, _ in told] == ["dense.pte", *(f"{number + 1}.pte" for number in range(len(found.rounds)))]
    assert asked[0] == pytest.approx(0.985 * 4.0 * 10 / 8)
    assert [each.milliseconds for each in found.rounds] == [8.0 * size / told[0][1] for _, size in told[1:]]
    assert 0.97 <= found.rounds[found.chosen].milliseconds / 4.0 <= 1.0
    with pytest.raises(ValueError, match=r"7 ms are told of the dense network, which meets 8 ms as it is"):
        accepted(make, replace(wished, ms=8.0), layer(1000), INPUT, measure=lambda _: 7.0)
    odds: tuple[Any, ...] = (float("nan"), -1.0, "3")
    for odd in odds:
        with pytest.raises(
            (ValueError, TypeError), match=r"what measure tells of dense\.pte, in milliseconds, must be"
        ):
            accepted(make, wished, layer(1000), INPUT, measure=lambda _, odd=odd: odd)
    with pytest.raises(ValueError, match="measured for 'xnnpack', and the programs are for 'portable'"):
        accepted(make, wished, layer(1000), INPUT, backend=Portable(), measure=measure)


def test_another_network_or_device(need: Latency):
    with pytest.raises(ValueError, match="of another model"):
        accepted(lambda wished: layer(3), need, layer(999), INPUT)
    assert isinstance(need.table, LatencyTable)
    for name, value in {"device": "x", "runtime": "executorch 9", "backend": "portable", "clock": "wall"}.items():
        other = replace(need.table, **{name: value})
        with pytest.raises(ValueError, match=f"tables of another {name} do not go together"):
            accepted(lambda wished: layer(3), Latency(5.0, other), layer(1000), INPUT)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"need": MACs(0.5)}, r"need must be one such as Latency\(8\.0, table\), got MACs"),
        ({"make": "layer"}, "make must be a function, got 'layer'"),
        ({"make": lambda wished: None}, "make must return the pruned model, and returned None"),
        ({"measure": 8.0}, r"measure must be a function, got 8\.0"),
        ({"dense": "layer"}, "model: got 'layer'"),
        ({"backend": "xnnpack"}, r"backend: got 'xnnpack', must be a value such as XNNPACK\(\)"),
    ],
)
def test_arguments_of_another_type(need: Latency, changed: dict[str, Any], text: str):
    wanted: dict[str, Any] = {"make": lambda wished: layer(3), "need": need, "dense": layer(1000)}
    with pytest.raises(TypeError, match=text):
        accepted(example_inputs=INPUT, **{**wanted, **changed})


def test_a_need_that_the_dense_network_meets(need: Latency):
    with pytest.raises(ValueError, match="the dense network takes 10 ms, which meets 10 ms as it is"):
        accepted(lambda wished: layer(3), replace(need, ms=10.0), layer(1000), INPUT)
