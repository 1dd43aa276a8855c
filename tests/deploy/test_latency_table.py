"""Latency tables, measured: what they hold, go on from, and refuse."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from compaction_cases import everything, trained
from deploy_models import EXAMPLE, Small, Wide, small
from torch import Tensor, nn

from lightning_prune import Channel, Compaction, Latency, NoRepair, OneShot, Recipe, channel_groups, compact, prune
from lightning_prune.deploy import XNNPACK, CoreML, Int8, LatencyTable, Portable, latency_table
from lightning_prune.deploy.clock import least_of
from lightning_prune.deploy.designs import BORDER, Program
from lightning_prune.deploy.latency_table import Bench
from lightning_prune.deploy.program.eager import folded_copy
from lightning_prune.errors import ExportError
from lightning_prune.model import masks
from lightning_prune.run.binding import bind

needs_executorch = pytest.mark.usefixtures("_executorch")


@pytest.fixture(scope="session")
def _executorch() -> None:
    pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")


INPUT = torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[LatencyTable, Path]:
    pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")
    path = tmp_path_factory.mktemp("table") / "table.json"
    return latency_table(Wide(), INPUT, points=5, path=path), path


@pytest.mark.slow
@needs_executorch
class TestMeasured:
    def test_every_cell_has_points_and_the_file_holds_them(self, table: tuple[LatencyTable, Path]):
        measured, path = table
        (network,) = measured.networks
        assert [[name for name, *_ in places] for _, places in network.cells] == [
            ["stem.weight"],
            ["narrow.weight"],
            ["back.weight"],
            ["last.weight"],
            ["head.weight"],
        ]
        assert all(len(measured.cells[key].points) == 5 for key, _ in network.cells)
        assert LatencyTable.load(path) == measured
        assert (measured.clock, measured.threads, measured.backend) == ("thread", 1, "xnnpack")

    def test_it_tells_a_need_what_widths_take(self, table: tuple[LatencyTable, Path]):
        dense = table[0].networks[0].anchors[0].milliseconds
        recipe = Recipe(granularity=Channel(), need=Latency(dense / 2, table[0]), schedule=OneShot())
        (bound,) = bind(recipe, trained(Wide()), (INPUT,)).needs
        assert bound.cost.total == pytest.approx(dense, rel=1e-6)
        half = {"stem": 32, "narrow": 4, "last": 24}
        assert 0.15 < bound.cost.left(half) / dense < 0.6
        lost = [bound.cost.left({"stem": n}) for n in (0, 16, 32, 48)]
        assert lost == sorted(lost, reverse=True)
        assert set(table[0].channels) == set(half)
        with pytest.raises(ValueError, match=r"knows Wide at inputs of 1×3×40×40, and the example input is 2×3×48×48,"):
            bind(recipe, trained(Wide()), (torch.zeros(2, 3, 48, 48),))

    def test_what_the_file_holds_is_not_measured_again(self, table: tuple[LatencyTable, Path], tmp_path: Path):
        measured, _ = table
        part = tmp_path / "part.json"
        # as a killed call leaves it: some points, no network
        key = measured.networks[0].cells[0][0]
        cells = {**measured.cells, key: replace(measured.cells[key], points=measured.cells[key].points[:2])}
        replace(measured, cells=cells, networks=()).save(part)
        again = latency_table(Wide(), INPUT, points=5, path=part)
        assert again.cells[key].points[:2] == measured.cells[key].points[:2]
        assert {k: c for k, c in again.cells.items() if k != key} == {
            k: c for k, c in measured.cells.items() if k != key
        }
        assert {p.widths for p in again.cells[key].points} == {p.widths for p in measured.cells[key].points}

    def test_another_network_of_such_cells_brings_few_new_ones(self, table: tuple[LatencyTable, Path]):
        measured, path = table
        both = latency_table(Wide(), INPUT, points=5, path=path)
        assert {key: len(cell.points) for key, cell in both.cells.items()} == {
            key: len(cell.points) for key, cell in measured.cells.items()
        }
        assert len(both.networks) == 1


@pytest.mark.slow
@needs_executorch
def test_a_file_that_was_measured_otherwise(table: tuple[LatencyTable, Path], tmp_path: Path):
    path = tmp_path / "other.json"
    replace(table[0], device="a phone").save(path)
    with pytest.raises(ValueError, match=r"other\.json: tables of another device do not go together: 'a phone'"):
        latency_table(Wide(), INPUT, path=path)
    table[0].save(path)
    with pytest.raises(ValueError, match="tables of another backend do not go together: 'xnnpack' and 'portable'"):
        latency_table(Wide(), INPUT, path=path, backend=Portable())
    with pytest.raises(ValueError, match="tables of another threads do not go together: 1 and 2"):
        latency_table(Wide(), INPUT, path=path, threads=2)


@pytest.mark.slow
@needs_executorch
@pytest.mark.skipif(sys.platform == "win32", reason="kills a process by a signal")
def test_a_killed_call_leaves_a_file_that_the_next_goes_on_from(tmp_path: Path):
    path = tmp_path / "table.json"
    script = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from deploy_models import Wide\n"
        "from test_latency_table import INPUT\n"
        "from lightning_prune.deploy import latency_table\n"
        "from lightning_prune.selection.latency import LatencyTable\n"
        "import os, signal\n"
        "save = LatencyTable.save\n"
        "def dying(self, path):\n"
        "    save(self, path)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "LatencyTable.save = dying\n"
        "latency_table(Wide(), INPUT, points=5, path=sys.argv[1])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(path), str(Path(__file__).parent), *sys.path], env=dict(os.environ)
    )
    assert ended.returncode == -signal.SIGKILL
    half = LatencyTable.load(path)
    assert all(len(cell.points) == 1 for key, cell in half.cells.items() if key != BORDER)
    assert not half.networks
    whole = latency_table(Wide(), INPUT, points=5, path=path)
    assert len(whole.networks) == 1
    for key, cell in half.cells.items():
        assert whole.cells[key].points[: len(cell.points)] == cell.points


class Attending(nn.Module):
    """Two heads of a width that an attribute holds, before a mean over places."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.query, self.both, self.value = 2, *(nn.Linear(6, 128) for _ in range(3))
        self.out = nn.Linear(128, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.both, self.value))
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).mean(1))


@pytest.mark.slow
@needs_executorch
def test_the_width_of_query_key_and_value_is_measured_in_place_of_heads():
    model, x = Attending(), torch.randn(1, 128, 6)
    heads, widths = (
        latency_table(model, x, points=3, granularity=Channel(attention=way)) for way in ("heads", "width")
    )
    assert set(heads.channels) == {"query"}
    assert set(widths.channels) == {"query", "value"}
    recipe = Recipe(
        granularity=Channel(attention="width"),
        need=Latency(0.8 * widths.networks[0].anchors[0].milliseconds, widths),
        schedule=OneShot(),
        repair=NoRepair(),
    )
    prune(model, recipe, [torch.randn(32, 128, 6)], progress=False)
    assert model.query.out_features < 128 or model.value.out_features < 128


@pytest.mark.slow
@needs_executorch
def test_a_need_of_a_program_of_integers(tmp_path: Path):
    batches = [torch.randn(4, 3, 40, 40) for _ in range(2)]
    backend, model = XNNPACK(quantization=Int8(batches)), trained(Wide())
    table = latency_table(model, INPUT, points=3, rounds=20, backend=backend)
    assert table.backend == "xnnpack Int8"
    need = Latency(0.5 * table.networks[0].anchors[0].milliseconds, table)
    wholes = [Program(folded_copy(model), [((1, 3, 40, 40), torch.float32)], False)]
    prune(
        model,
        Recipe(granularity=Channel(), need=need, schedule=OneShot(), repair=NoRepair()),
        batches,
        example_inputs=INPUT,
        progress=False,
    )
    wholes.append(Program(folded_copy(model), wholes[0].inputs, False))
    # as an export does it, on the batches
    bench = Bench(backend, 1, 30, tmp_path)
    dense, pruned = (least_of(own) for (own,) in bench.timed([bench.lowered([each]) for each in wholes], 30))
    assert 0.25 < pruned / dense < 0.75


@needs_executorch
def test_model_stays_as_it_was():
    model = small().train()
    masks.attach(model, ["conv.weight"])
    before, state = everything(model), torch.random.get_rng_state()
    # so small a network no clock may tell from nothing
    with suppress(ValueError):
        latency_table(model, EXAMPLE, points=3, rounds=10)
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
        (Small(), EXAMPLE, {"rounds": 9}, "rounds must be at least 10, got 9"),
        (Small(), EXAMPLE, {"points": 2}, "points must be at least 3, got 2"),
        (Small(), EXAMPLE, {"threads": 0}, "threads must be at least 1, got 0"),
        (Small(), None, {}, "Small has no example_input_array"),
        (Fixed(), EXAMPLE, {}, "conv"),
        (Bare(), torch.zeros(1, 4), {}, "no channel of the chosen targets can be removed"),
    ],
)
def test_bad_arguments(model: nn.Module, example: Any, options: dict[str, Any], text: str):
    with pytest.raises(ValueError, match=text):
        latency_table(model, example, **options)


@needs_executorch
def test_a_place_where_no_file_can_be_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(Bench, "measured", None)
    with pytest.raises(IsADirectoryError, match="is a folder: name a file"):
        latency_table(small(), EXAMPLE, path=tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"there is no folder .*gone, in which table\.json would lie: create it"
    ):
        latency_table(small(), EXAMPLE, path=tmp_path / "gone" / "table.json")
    with pytest.raises(TypeError, match="path must name a file, got 3"):
        latency_table(small(), EXAMPLE, path=cast(Any, 3))
    (tmp_path / "table.json").write_text("[]")
    with pytest.raises(ValueError, match=r"^\S+table\.json: the JSON text is no table"):
        latency_table(small(), EXAMPLE, path=tmp_path / "table.json")


@needs_executorch
def test_what_cannot_be_measured_here():
    with pytest.raises(ExportError, match=r"CoreML\(.*\) does not run on this machine"):
        latency_table(small(), EXAMPLE, backend=CoreML())


@needs_executorch
def test_a_clock_that_is_too_coarse(monkeypatch: pytest.MonkeyPatch):
    from lightning_prune.deploy.runtime.child import Child

    def told(self: Child, task: str, *args: object, **named: Any) -> dict[str, object]:
        programs: Any = named.get("programs", ())
        return {"nanoseconds": [[15_600_000.0] * 10 for _ in programs], "tick": 15_600_000, "failed": {}}

    monkeypatch.setattr(Child, "ask", told)
    with pytest.raises(ExportError, match=r"ticks every 15\.6 ms on this system, too coarse for layers"):
        latency_table(small(), EXAMPLE)


@torch.no_grad()
def test_widths_of_copies_are_those_of_the_compact_model():
    pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")
    from lightning_prune.deploy.program.cells import cells_of

    model = trained(Wide())
    found = channel_groups(model, INPUT)
    compact(model, Compaction.from_keep(found, {"stem": range(10), "last": range(7)}))
    assert [p.widths[0] for p in cells_of(model, (INPUT,))] == [(10, 3), (8, 10), (10, 8), (7, 10), (2, 7)]
