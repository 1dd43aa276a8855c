"""A probe that is written, and run in the runtime of this machine."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compaction_cases import everything
from deploy_models import Wide

pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")

from lightning_prune import Channel, Latency, OneShot, Recipe
from lightning_prune.cli.main import main
from lightning_prune.deploy import CoreML, LatencyTable, Probe, export_probe, run_probe
from lightning_prune.deploy.backends import XNNPACK
from lightning_prune.deploy.designs import BORDER, designed
from lightning_prune.deploy.probe import WHOLE
from lightning_prune.errors import ExportError
from lightning_prune.run.binding import bind

INPUT = torch.zeros(1, 3, 40, 40)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = Wide().eval()
    before = everything(model)
    folder = tmp_path_factory.mktemp("probe") / "probe"
    probe = export_probe(model, folder, INPUT, passes=2, rounds=5, points=3)
    assert everything(model) == before
    assert probe == Probe.load(folder)
    return folder


def test_it_measures_what_a_table_here_measures(folder: Path):
    probe, design = Probe.load(folder), designed(Wide().eval(), INPUT, XNNPACK(), 3, Channel())
    turns: list[list[object]] = [[] for _ in range(3 + 3 + 3)]
    for program in probe.programs:
        turns[program.turn].append((program.cell, program.widths) if program.cell in probe.kernels else program.cell)
    cells = [[(key, piece.widths) for key, piece in own] for own in design.turns(LatencyTable())]
    assert turns == [*[[BORDER]] * 3, *cells, *[[WHOLE]] * 3]
    assert {p.name for p in folder.iterdir()} == {"plan.json", *probe.files, ".lightning_prune.json"}


def test_the_command_runs_it_and_a_table_comes_of_what_it_writes(folder: Path, capsys: pytest.CaptureFixture[str]):
    results = folder.parent / "here.json"
    assert main(["probe", str(folder), "-o", str(results)]) == 0
    assert "21 programs" in capsys.readouterr().out
    told = json.loads(results.read_text())
    assert {len(times) for times in told["nanoseconds"].values()} == {40}
    table = Probe.load(folder).table(results)
    assert (table.threads, table.clock, table.backend) == (1, "thread", "xnnpack")
    dense, narrow, _ = (anchor.milliseconds for anchor in table.networks[0].anchors)
    recipe = Recipe(granularity=Channel(), need=Latency((dense + narrow) / 2, table), schedule=OneShot())
    (bound,) = bind(recipe, Wide(), (INPUT,)).needs
    assert bound.cost.total == pytest.approx(dense, rel=1e-6)
    lost = [bound.cost.left({"stem": n}) for n in (0, 16, 32, 48)]
    assert lost == sorted(lost, reverse=True)
    assert lost[-1] < 0.9 * lost[0]
    with pytest.raises(ValueError, match="the latency table is of another model"):
        bind(recipe, torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 3)), (INPUT,))


def test_a_turn_may_span_files_and_a_program_that_fails_is_told_by_its_name(folder: Path, tmp_path: Path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    plan = json.loads((tmp_path / "plan.json").read_text())
    first, *_, last = plan["programs"]
    last["turn"] = first["turn"]
    plan["programs"][1]["method"] = "no_such_method"
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    results = run_probe(tmp_path)
    assert list(results.failed) == [plan["programs"][1]["name"]]
    assert results.nanoseconds.keys() | results.failed == {program["name"] for program in plan["programs"]}
    assert {len(times) for times in results.nanoseconds.values()} == {40}
    with pytest.raises(ValueError, match="1 of 21 programs failed on"):
        Probe.load(tmp_path).table(results)


@pytest.mark.parametrize("value", [None, 3])
def test_what_is_no_path_is_refused_by_the_argument(value: Any):
    with pytest.raises(TypeError, match=r"folder: got .*, must be a path, as in folder='probe'"):
        run_probe(value)


def test_what_cannot_be_run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    text = (tmp_path / "plan.json").read_text()
    (tmp_path / "plan.json").write_text(text.replace(Probe.load(folder).runtime, "executorch 0.1"))
    with pytest.raises(ExportError, match=r"was written for executorch 0\.1, and here is executorch"):
        run_probe(tmp_path)
    (tmp_path / "plan.json").write_text(text)
    large = json.loads(text)
    large["programs"][0]["inputs"][0]["shape"] = [1, 2**28]
    (tmp_path / "plan.json").write_text(json.dumps(large))
    with pytest.raises(ExportError, match=r"0\.pte cannot be used: it may take 268,435,456 bytes .* pass memory="):
        run_probe(tmp_path, memory=2**28)
    (tmp_path / "plan.json").write_text(text)
    (tmp_path / "0.pte").write_bytes(b"damaged")
    with pytest.raises(ExportError, match=r"0\.pte is not the file that the plan names"):
        run_probe(tmp_path)
    assert main(["probe", str(tmp_path), "-o", str(tmp_path / "out.json")]) == 2
    assert "is not the file" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
    assert main(["probe", str(folder), "-o", str(tmp_path)]) == 2
    assert "is a folder: name a file" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")  # coremltools leaves its folders
def test_a_backend_of_a_phone_alone_is_written(tmp_path: Path):
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).eval()
    probe = export_probe(model, tmp_path / "probe", torch.zeros(1, 8), backend=CoreML(), points=3)
    assert probe.backend == "coreml"
    assert all((tmp_path / "probe" / name).stat().st_size for name in probe.files)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"passes": 2, "rounds": 4}, "rounds must be at least 5, got 4"),
        ({"points": 2}, "points must be at least 3, got 2"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
    ],
)
def test_bad_arguments(options: dict[str, int], text: str, tmp_path: Path):
    with pytest.raises(ValueError, match=text):
        export_probe(Wide(), tmp_path / "probe", INPUT, **options)  # pyright: ignore[reportArgumentType]
    assert not list(tmp_path.iterdir())
