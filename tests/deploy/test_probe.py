"""Plans of what a device measures, its results, and the table of both."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_prune.deploy.probe import Probe, ProbeInput, ProbeProgram, ProbeResults
from lightning_prune.selection.cells import Kernel

KERNEL = Kernel("point", 100.0, 100.0, 100.0)
WIDTHS = ((16, 8), (32, 8), (16, 32), (64, 64))


def probe() -> Probe:
    def program(number: int, elements: int, cell: str, widths: Any) -> ProbeProgram:
        inputs = (ProbeInput((1, elements), "float32", False),)
        return ProbeProgram(
            f"{number // 4}.m{number % 4}", number, f"{number // 4}.pte", f"m{number % 4}", inputs, cell, widths
        )

    parts = [(size, "border", ((0, size),)) for size in (64, 512, 4096)]
    parts += [(100 * into, "conv #1", ((out, into),)) for out, into in WIDTHS]
    parts += [(300, "whole", ()), (300, "whole", ())]
    return Probe(
        runtime="executorch 1.4.1",
        backend="xnnpack",
        threads=1,
        passes=2,
        rounds=5,
        files={f"{number}.pte": "0" * 64 for number in range(3)},
        programs=tuple(program(number, *part) for number, part in enumerate(parts)),
        kernels={"conv #1": (KERNEL,)},
        name="Two",
        shapes={"first.weight": (64, 64), "second.weight": (64, 64)},
        cells=(("conv #1", (("first.weight", 0, 1),)), ("conv #1", (("second.weight", 0, 1),))),
        anchors=((((64, 64),), ((64, 64),)), (((8, 64),), ((64, 8),))),
    )


def nanoseconds(program: ProbeProgram) -> int:
    """What a device takes that has 4 µs for a call, 2 ns an element moved, and 0.5 ns for a multiply-accumulate."""
    if program.cell == "whole":
        return {7: 5_000_000, 8: 1_000_000}[program.turn]
    call = 4_000 + (2 if program.cell == "border" else 1) * program.taken
    return call + sum(out * into * 100 // 2 for out, into in program.widths if program.cell == "conv #1")


def results(probe: Probe, **changes: Any) -> ProbeResults:
    times = {each.name: (nanoseconds(each),) * 10 for each in probe.programs}
    found = ProbeResults(probe.digest, "a phone", "", 1, "thread", 40, times)
    return replace(found, **changes)


@pytest.fixture(scope="module")
def plan() -> Probe:
    return Probe.from_json(probe().to_json())


class TestTable:
    def test_cells_have_what_the_device_took_less_a_call(self, plan: Probe):
        table = plan.table(results(plan))
        measured = {point.widths: point.milliseconds for point in table.cells["conv #1"].points}
        assert measured == pytest.approx({((out, into),): out * into * 50 / 1e6 for out, into in WIDTHS})
        assert [anchor.milliseconds for anchor in table.networks[0].anchors] == [5.0, 1.0]
        assert (table.device, table.clock, table.threads, table.rounds) == ("a phone", "thread", 1, 10)
        assert table.steps["point"] == (1, 1)

    def test_it_is_kept_as_any_table(self, plan: Probe, tmp_path: Path):
        table = plan.table(results(plan))
        table.save(tmp_path / "phone.json")
        assert type(table).load(tmp_path / "phone.json") == table
        assert "a phone" in str(table)

    def test_results_of_a_file(self, plan: Probe, tmp_path: Path):
        results(plan).save(tmp_path / "results.json")
        assert ProbeResults.load(tmp_path / "results.json") == results(plan)
        assert plan.table(tmp_path / "results.json") == plan.table(results(plan))

    def test_the_lower_tenth_counts(self, plan: Probe):
        own = results(plan)
        busy = {name: (*times, *(10 * time for time in times[:3])) for name, times in own.nanoseconds.items()}
        quiet, loud = (plan.table(each).cells["conv #1"].points for each in (own, replace(own, nanoseconds=busy)))
        assert [(p.widths, p.milliseconds) for p in loud] == [(p.widths, p.milliseconds) for p in quiet]
        assert [p.spread for p in loud] == pytest.approx([p.spread for p in quiet], abs=1e3)

    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            ({"plan": "1" * 64}, "the results of a phone are of another plan than this one of Two"),
            ({"runtime": "executorch 1.5.1"}, r"written for executorch 1\.4\.1, and a phone ran it in executorch 1\.5"),
            ({"failed": {"1.m0": "error 0x20"}}, r"1 of 9 programs failed on a phone: 1\.m0 \(error 0x20\)"),
            ({"tick": 1_500_000}, r"the clock of a phone ticks every 1\.5 ms, too coarse"),
            ({"nanoseconds": {}}, "9 of 9 programs have fewer than 10 rounds"),
        ],
    )
    def test_results_that_tell_nothing(self, plan: Probe, changes: dict[str, Any], text: str):
        with pytest.raises(ValueError, match=text):
            plan.table(results(plan, **changes))

    def test_a_hole_is_named(self, plan: Probe):
        own = results(plan)
        holed = {name: times[:9] if name == "1.m2" else times for name, times in own.nanoseconds.items()}
        with pytest.raises(ValueError, match=r"have holes: 1 of 9 programs have fewer than 10 rounds, 1\.m2"):
            plan.table(replace(own, nanoseconds=holed))


class TestDocuments:
    def test_the_digest_is_that_of_the_file(self, plan: Probe, tmp_path: Path):
        (tmp_path / "plan.json").write_text(plan.to_json(), encoding="utf-8")
        assert plan.digest == hashlib.sha256((tmp_path / "plan.json").read_bytes()).hexdigest()
        assert Probe.load(tmp_path) == Probe.load(tmp_path / "plan.json") == plan == probe()

    @pytest.mark.parametrize(
        ("old", "new", "text"),
        [
            ('"version": 1', '"version": 2', "the plan of a probe is of version 2, this package reads 1"),
            ("lightning_prune.probe_plan", "lightning_prune.latency_table", "is no plan of a probe"),
            ('"rounds": 5', '"rounds": "5"', "the plan of a probe is malformed"),
            ('"cell": "whole"', '"cell": "border"', "it has 1 whole programs, and the widths of 2"),
            (
                '"name": "2.m0",\n   "turn": 8',
                '"name": "2.m0",\n   "turn": -8',
                r"the turn of 2\.m0 must be at least 0",
            ),
            ('"turn": 8', '"turn": 1000001', r"the turn of 2\.m0 must be at most 1,000,000, got 1,000,001"),
            ('"turn": 8', '"turn": "8"', "programs: turn: '8' is no int"),
            ('"file": "1.pte"', '"file": "9.pte"', "is in a file that it does not name"),
            ('"passes"', '"ways"', "the plan of a probe is malformed: KeyError: 'passes'"),
            ('"passes": 2', '"passes": 1000000000', "1,000,000,000 passes of 5 rounds are more than 1,000,000 rounds"),
            ('"float32"', '"hub"', r"0\.m0 takes 'hub', and a program takes uint8"),
            ("      1,\n", f"      {2**64},\n", r"a size of 0\.m0 must be below 2\*\*64"),
            (
                '"conv #1",\n   "widths": [\n    [\n     16',
                f'"conv #1",\n   "widths": [\n    [\n     {2**70}',
                "below 2",
            ),
            ('"name": "0.m1"', '"name": "0.m0"', "two of its programs have one name"),
            ('"name": "Two"', '"name": 2', "2 is no str"),
            ('"kind": "point"', '"kind": "round"', "Kernel.kind must be one of"),
            ('"second.weight",', '"third.weight",', "Two has no third.weight with the axes"),
            (
                '"conv #1": [',
                '"conv #1": [{"kind": "point", "area": 1, "taken": 1, "made": 1},',
                "has 2 kernels, and 1",
            ),
        ],
    )
    def test_plans_that_are_refused(self, old: str, new: str, text: str):
        good = probe().to_json()
        assert old in good
        with pytest.raises(ValueError, match=text):
            Probe.from_json(good.replace(old, new, 1))

    @pytest.mark.parametrize(
        ("old", "new", "text"),
        [
            ('"version": 1', '"version": 2', "the results of a probe is of version 2"),
            ('"tick": 40', '"tick": 0', "tick must be at least 1"),
            ('"clock": "thread"', '"clock": "sun"', 'clock must be "thread" or "wall", got \'sun\''),
            ('"0.m0": [', '"0.m0": [0, ', r"nanoseconds of 0\.m0 must be at least 1"),
            ('"0.m0": [', '"0.m0": [1.5, ', "malformed"),
        ],
    )
    def test_results_that_are_refused(self, plan: Probe, old: str, new: str, text: str):
        good = results(plan).to_json()
        assert old in good
        with pytest.raises(ValueError, match=text):
            ProbeResults.from_json(good.replace(old, new, 1))

    @pytest.mark.parametrize("read", [Probe.load, ProbeResults.load])
    def test_what_is_no_document_is_refused_by_its_name(self, read: Callable[[Path], object], tmp_path: Path):
        path = tmp_path / "plan.json"
        for held in (b"\xff\xfe", b"{}", b"[" * 100_000, b""):
            path.write_bytes(held)
            with pytest.raises(ValueError, match=r"plan\.json"):
                read(path)

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFO")
    @pytest.mark.parametrize("read", [Probe.load, ProbeResults.load])
    def test_a_fifo_is_not_waited_for(self, read: Callable[[Path], object], tmp_path: Path):
        os.mkfifo(tmp_path / "plan.json")
        with pytest.raises(ValueError, match=r"plan\.json is no file"):
            read(tmp_path / "plan.json")

    def test_names_from_a_plan_move_no_cursor(self):
        assert r"for T\nwo\x1b[2J on" in str(replace(probe(), name="T\nwo\x1b[2J"))

    @pytest.mark.parametrize("value", [None, 3, b"probe"])
    def test_what_is_no_path_is_refused_by_the_argument(self, plan: Probe, value: Any):
        with pytest.raises(TypeError, match=r"folder: got .*, must be a path, as in folder='probe'"):
            Probe.load(value)
        for call in (ProbeResults.load, results(plan).save):
            with pytest.raises(TypeError, match=r"path: got .*, must be a path, as in path='results\.json'"):
                call(value)
        with pytest.raises(TypeError, match=r"results: got .*, must be what run_probe returns, or the path of"):
            plan.table(value)

    def test_another_folder(self, tmp_path: Path):
        with pytest.raises(FileNotFoundError):
            Probe.load(tmp_path)

    def test_another_file_is_refused_by_its_name(self, plan: Probe, tmp_path: Path):
        path = tmp_path / "results.json"
        path.write_bytes(b"\xff\xfe")
        with pytest.raises(ValueError, match=r"results\.json holds no text"):
            plan.table(path)
        path.write_text(plan.to_json(), encoding="utf-8")
        with pytest.raises(ValueError, match=r"results\.json: the JSON text is no results of a probe"):
            ProbeResults.load(path)
        with pytest.raises(ValueError, match=r"is a folder: name the file"):
            ProbeResults.load(tmp_path)
