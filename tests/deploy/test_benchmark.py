import math
import shutil
from pathlib import Path

import pytest
import torch
from deploy_models import EXAMPLE, exported
from torch import Tensor, nn

from lightning_prune.deploy import Artifact, Timings, benchmark, export
from lightning_prune.deploy.runtime.turns import in_turns, standard_error
from lightning_prune.errors import ExportError

needs_executorch = pytest.mark.usefixtures("_executorch")


@pytest.fixture(scope="session")
def _executorch() -> None:
    pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")


class TestTurns:
    def test_every_round_takes_all_and_begins_one_further(self):
        order: list[str] = []

        def turn(name: str, runs: int) -> float:
            order.append(name)
            return 0.002

        times, runs = in_turns({name: lambda n, name=name: turn(name, n) for name in "abc"}, 4)
        assert order[9:] == [*"abc", *"bca", *"cab", *"abc"]
        assert {name: len(taken) for name, taken in times.items()} == dict.fromkeys("abc", 4)
        assert runs == dict.fromkeys("abc", 3)

    def test_standard_error(self):
        generator = torch.Generator().manual_seed(0)
        medians = [torch.randn(200, generator=generator).sort().values[100].item() for _ in range(200)]
        spread = torch.tensor(medians).std().item()
        assert standard_error(torch.randn(200, generator=generator).tolist()) == pytest.approx(spread, rel=0.3)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, _executorch: None) -> Artifact:
    return exported(tmp_path_factory.mktemp("benchmark"))


@pytest.fixture(scope="module")
def measured(artifact: Artifact) -> Timings:
    other = shutil.copy(artifact.path, artifact.path.with_name("other.pte"))
    return benchmark({"dense": artifact.path, "pruned": other}, EXAMPLE, rounds=5)


@needs_executorch
class TestBenchmark:
    def test_values(self, measured: Timings):
        assert list(measured) == ["dense", "pruned"]
        assert measured["dense"].ratio == 1
        assert measured["pruned"].ratio > 0
        assert all(row.median_ms > 0 and row.spread_ms >= 0 and row.rounds == 5 for row in measured.values())

    def test_table(self, measured: Timings):
        head, _, dense, pruned = str(measured).splitlines()
        assert head.endswith("(1 thread, 5 rounds)")
        assert dense.startswith("dense")
        assert dense.endswith("1.00×")
        assert pruned.endswith("unverified: no manifest beside it")
        assert [row.is_verified for row in measured.values()] == [True, False]

    def test_names(self, artifact: Artifact, tmp_path: Path):
        twin = Path(shutil.copy(artifact.path, tmp_path / "small.pte"))
        other = Path(shutil.copy(artifact.path, tmp_path / "b.pte"))
        found = benchmark([artifact.path, twin, other], rounds=1)
        assert list(found) == [str(artifact.path), str(twin), "b"]
        assert list(benchmark(str(other), rounds=1)) == ["b"]
        with pytest.raises(ValueError, match="a file is named twice"):
            benchmark([other, other], rounds=1)

    def test_nothing_to_measure(self, artifact: Artifact):
        with pytest.raises(ValueError, match="programs: got none, must be the path of a file"):
            benchmark({}, EXAMPLE)
        with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
            benchmark(artifact.path, EXAMPLE, rounds=0)
        with pytest.raises(ValueError, match=r"takes \(4, 1, 8, 8\) float32; got \(2,\) float32"):
            benchmark({"dense": artifact.path}, torch.zeros(2), rounds=1)

    def test_one_round_has_no_spread(self, artifact: Artifact):
        found = benchmark(artifact.path, EXAMPLE, rounds=1)
        assert math.isnan(found["small"].spread_ms)
        assert "unknown" in str(found)
        assert "±" not in str(found["small"])

    def test_a_file_that_its_manifest_does_not_describe(self, artifact: Artifact, tmp_path: Path):
        (tmp_path / "a.pte").write_bytes(artifact.path.read_bytes() + b"\0")
        (tmp_path / "a.json").write_bytes(artifact.manifest_path.read_bytes())
        with pytest.raises(ExportError, match=r"is not the file that a.json describes"):
            benchmark([artifact.path, tmp_path / "a.pte"], rounds=1)


class Heavy(nn.Module):
    """Two thirds of the time in an operator that no backend takes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        hidden = torch.cumsum(self.conv(image), 1)
        return torch.cumsum(torch.cumsum(hidden, 1), 1).relu()


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory, _executorch: None) -> Timings:
    folder = tmp_path_factory.mktemp("profile")
    export(Heavy(), folder / "heavy.pte", example_inputs=torch.zeros(1, 1, 128, 128))
    return benchmark(folder / "heavy.pte", rounds=9, profile=True)


@needs_executorch
class TestProfile:
    @pytest.mark.parametrize("rounds", [1, 2])
    def test_too_few_rounds_to_tell_a_resolution(self, artifact: Artifact, rounds: int):
        with pytest.raises(ValueError, match=f"rounds must be at least 3, got {rounds}: fewer do not say how sure"):
            benchmark(artifact.path, rounds=rounds, profile=True)

    def test_the_heavy_operator_is_found(self, profiled: Timings):
        found = profiled.profiles["heavy"]
        first = found.rows[0]
        assert (first.name, first.is_delegate, first.calls) == ("aten::cumsum.out", False, 3)
        assert first.share > 0.4
        assert found.outside_share > 0.4

    def test_the_parts_add_up_to_the_whole(self, profiled: Timings):
        found = profiled.profiles["heavy"]
        spent = sum(row.milliseconds for row in found.rows)
        noise = 4 * sum(row.resolution_ms for row in found.rows)
        assert spent == pytest.approx(found.fastest_ms, rel=0.35, abs=noise)

    def test_table(self, profiled: Timings):
        assert "outside of delegates)" in str(profiled)
        assert "aten::cumsum.out" in str(profiled)
