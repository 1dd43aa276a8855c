"""Ethos-U as far as it can be tested without Arm's compiler, and with it where it is installed."""

import copy
import csv
import importlib.util
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lightning_prune import Element, NOfM, NoRepair, OneShot, Recipe, prune
from lightning_prune.deploy import EthosU, Int8, Method, Normalize, Partitioned, RuntimeModel, export, load_manifest
from lightning_prune.deploy.backends.ethos_u_compiler import EthosInt8, VelaReport

needs_executorch = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="needs the extra 'mobile' (executorch)"
)
needs_vela = pytest.mark.skipif(
    importlib.util.find_spec("ethosu") is None, reason="needs the extra 'ethos-u' (Arm's compiler)"
)
BATCHES = [torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (place := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def compiled(report: VelaReport, cycles: float) -> None:
    (where := report.next_folder() / "output").mkdir()
    with (where / "out_summary_x.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["accelerator_configuration", "inference_time", "cycles_total"])
        rows.writerow(["Ethos_U55_128", cycles / 5e8, cycles])


class TestReport:
    def test_parts_add_up_and_are_told_again(self, folder: Path):
        report = VelaReport()
        for number in range(11):
            compiled(report, 1000.0 + number)
        told = "Vela estimates 11,055 cycles, 0.022 ms on Ethos_U55_128 for the 11 parts that run on it"
        assert report.told(0.5).startswith(told)
        assert [part.cycles for part in report.parts] == [1000.0 + number for number in range(11)]
        assert list(folder.iterdir()) == []
        assert "the zeros (75%)" in report.told(0.75)

    def test_nothing_runs_there(self):
        assert VelaReport().told(0.0) == "No operator runs on the Ethos-U."

    def test_one_that_nobody_asked_leaves_no_folder(self, folder: Path):
        report = VelaReport()
        compiled(report, 1.0)
        assert list(folder.iterdir())
        del report
        assert list(folder.iterdir()) == []


class TestValues:
    @pytest.mark.parametrize(
        ("arguments", "error", "told"),
        [
            ({"calibration": None}, TypeError, "EthosU.calibration: got None"),
            ({"calibration": iter(BATCHES)}, TypeError, "EthosU.calibration: got a list_iterator"),
            ({"calibration": BATCHES, "samples": 0}, ValueError, "EthosU.samples must be at least 1, got 0"),
            ({"calibration": BATCHES, "target": "u55"}, ValueError, "target: got 'u55', must be one of"),
            ({"calibration": BATCHES, "memory": 384}, TypeError, "EthosU.memory: got 384, must be a name of Vela's"),
        ],
    )
    def test_bad_arguments(self, arguments: dict[str, Any], error: type[Exception], told: str):
        with pytest.raises(error, match=told):
            EthosU(**arguments)

    def test_a_lowering_leaves_nothing_in_it(self, monkeypatch: pytest.MonkeyPatch):
        from lightning_prune.deploy.executorch import arm

        monkeypatch.setattr(arm, "reporting_partitioner", lambda target, report, *_: SimpleNamespace(report=report))
        backend = EthosU(BATCHES)
        before = dict(vars(backend))
        one, other = backend.partitioners(), backend.partitioners()
        compiled(one[0].report, 1000.0)
        assert "1,000 cycles" in backend.notes_of_lowering(one, 0.0)[0]
        assert backend.notes_of_lowering(other, 0.0) == ("No operator runs on the Ethos-U.",)
        assert (vars(backend), backend.notes(0.0)) == (before, ())

    def test_it_prints_without_its_samples(self):
        assert repr(EthosU(BATCHES)) == "EthosU(<list of 1 batches>, target='ethos-u55-128', samples=256)"
        assert repr(EthosU(BATCHES, memory="Shared_Sram")).endswith("samples=256, memory='Shared_Sram')")

    def test_samples_of_a_method(self):
        quantization = EthosU(BATCHES).quantization
        assert isinstance(quantization, EthosInt8)
        assert quantization.looks_at() is BATCHES
        other = [BATCHES[0] + 1]
        assert quantization.calibrated_on(other).looks_at() is other  # pyright: ignore[reportAttributeAccessIssue]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.conv(image).relu()

    def brighter(self, image: torch.Tensor) -> torch.Tensor:
        return self.conv(image * 2)


@needs_executorch
class TestWithoutTheCompiler:
    def test_integers_outside_a_delegate_run_here(self, tmp_path: Path):
        """As they must for a backend of integers that cannot run on this machine."""
        asked: list[int] = []

        def partitioners() -> list[Any]:
            asked.append(1)
            return []

        backend = Partitioned("chip", partitioners, quantization=Int8(BATCHES), can_run_here=True)
        methods = {"brighter": Method("brighter", BATCHES[0][:1])}
        artifact = export(
            Network().eval(), tmp_path / "m.pte", example_inputs=BATCHES[0][:1], backend=backend, methods=methods
        )
        assert RuntimeModel(artifact.path)(BATCHES[0][:1])[0].shape == (1, 8, 6, 6)
        assert len(asked) == 1, "one lowering asks once, whatever the number of methods"
        options = load_manifest(artifact.path)["backend"]["options"]
        assert options["make_partitioners"].endswith("test_integers_outside_a_delegate_run_here.<locals>.partitioners")
        of_quantization = load_manifest(artifact.path)["quantization"]["options"]
        assert of_quantization["calibration"] == "<list of 1 batches>"


@needs_executorch
@needs_vela
class TestWithTheCompiler:
    def test_twice_and_of_images(self, tmp_path: Path, folder: Path):
        backend, x = EthosU(BATCHES), BATCHES[0][:1]
        notes = [export(Network().eval(), tmp_path / "m.pte", example_inputs=x, backend=backend).notes for _ in "ab"]
        assert notes[0] == notes[1]
        assert "Vela estimates" in notes[0][0]
        images = [torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8)]
        values = Normalize([0.5] * 3, [0.2] * 3)
        export(Network().eval(), tmp_path / "i.pte", example_inputs=x, backend=EthosU(images), preprocess=values)
        options = load_manifest(tmp_path / "i.pte")["backend"]["options"]
        assert options == {
            "calibration": "<list of 1 batches>",
            "target": "ethos-u55-128",
            "samples": 256,
            "system": None,
            "memory": None,
        }
        assert not list(folder.glob("ethos-u-*"))

    @pytest.mark.slow
    def test_where_zeros_pay(self, tmp_path: Path):
        """2:4 along the input halves the work of Ethos-U85; other zeros pay where weights are read from flash."""
        torch.manual_seed(0)
        data = [torch.randn(8, 256)]
        dense = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()).eval()

        def cycles(model: nn.Module, system: str | None = None, memory: str | None = None) -> float:
            backend = EthosU(data, "ethos-u85-256", system=system, memory=memory)
            notes = export(model, tmp_path / "m.pte", example_inputs=data[0][:1], backend=backend).notes
            return float(re.findall(r"estimates ([\d,]+) cycles", notes[0])[0].replace(",", ""))

        two_of_four, single = copy.deepcopy(dense), copy.deepcopy(dense)
        for model, granularity in ((two_of_four, NOfM(2, 4)), (single, Element())):
            recipe = Recipe(schedule=OneShot(0.5), granularity=granularity, repair=NoRepair())
            prune(model, recipe, data, progress=False)
        assert cycles(two_of_four) < 0.75 * cycles(dense)
        assert cycles(single) > 0.95 * cycles(dense)
        flash = ("Ethos_U85_SYS_Flash_High", "Shared_Sram")
        assert cycles(single, *flash) < 0.75 * cycles(dense, *flash)
