"""scripts/verify_on_arm.sh and probe_on_arm.sh: what a .pte made here computes in the aarch64 runtime."""

import json
import os
import platform
import runpy
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("executorch")

import torch
from deploy_models import EXAMPLE, Wide, images, small

from lightning_prune.deploy import export, export_probe
from lightning_prune.deploy.backends import XNNPACK
from lightning_prune.deploy.quantization import Int8

SCRIPT = Path(__file__).parents[2] / "scripts" / "verify_on_arm.sh"
TOOLS = ("qemu-aarch64-static", "mmdebstrap", "aarch64-linux-gnu-gcc")
PROBE = SCRIPT.with_name("probe_on_arm.sh")
CANNOT_BE_SET_UP = 3

pytestmark = pytest.mark.skipif(
    not shutil.which("bash") or platform.machine() != "x86_64", reason="needs bash and x86-64"
)


def verify(*arguments: str | Path, script: Path = SCRIPT, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run([script, *arguments], env=settings, capture_output=True, text=True, timeout=1200, check=False)


class TestArguments:
    def test_help_tells_how_to_use_it(self) -> None:
        result = verify("--help")
        assert result.returncode == 0
        assert result.stdout.startswith("Usage: verify_on_arm.sh")

    @pytest.mark.parametrize(("arguments", "word"), [
        ((), "no .pte given"),
        (("--fast",), "unknown option --fast"),
        (("--root",), "--root needs a value"),
        (("no_such.pte",), "no_such.pte: no such file"),
        (("--tolerance", "small", __file__), "got small"),
    ])  # fmt: skip
    def test_wrong_ones_are_refused(self, arguments: tuple[str, ...], word: str) -> None:
        result = verify(*arguments)
        assert result.returncode == 2
        assert word in result.stderr

    def test_a_python_without_executorch_is_refused(self, tmp_path: Path) -> None:
        result = verify("--root", tmp_path, __file__, PYTHON="false")
        assert result.returncode == 2
        assert "set PYTHON" in result.stderr

    @pytest.mark.parametrize(("arguments", "word"), [
        ((), "give the folder of a probe"),
        (("--root",), "--root needs a value"),
        (("no_such", "out.json"), "no_such has no plan.json"),
    ])  # fmt: skip
    def test_wrong_ones_of_a_probe_are_refused(self, arguments: tuple[str, ...], word: str) -> None:
        result = verify(*arguments, script=PROBE)
        assert result.returncode == 2
        assert word in result.stderr

    def test_a_probe_of_another_runtime_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "plan.json").write_text('{"runtime": "executorch 0.1"}')
        result = verify(tmp_path, tmp_path / "out.json", script=PROBE)
        assert result.returncode == 2
        assert "was not written for executorch" in result.stderr


class TestOutputs:
    module: Mapping[str, Any] = runpy.run_path(str(SCRIPT.parent / "arm" / "outputs.py"))

    def difference(self, here: list[list[float]], there: list[list[float]]) -> dict[str, Any]:
        return self.module["difference"](*([np.asarray(x, dtype=np.float32) for x in side] for side in (here, there)))

    def test_equal_ones_are_identical(self) -> None:
        found = self.difference([[1, -3], [2]], [[1, -3], [2]])
        assert found == {"identical": True, "finite": True, "max_abs_error": 0, "max_abs_output": 3}

    def test_the_largest_difference_of_any_output_counts(self) -> None:
        found = self.difference([[1, 2], [3, 8]], [[1, 2], [3, 4]])
        assert (found["identical"], found["max_abs_error"], found["max_abs_output"]) == (False, 4, 4)

    def test_nan_is_not_finite(self) -> None:
        assert not self.difference([[float("nan")]], [[1]])["finite"]

    def test_other_shapes_are_refused(self) -> None:
        with pytest.raises(ValueError, match="shapes"):
            self.difference([[1, 2]], [[1]])


needs_emulation = pytest.mark.skipif(
    not all(map(shutil.which, TOOLS)) and not (shutil.which("apt-get") and os.geteuid() == 0),
    reason=f"needs {', '.join(TOOLS)}, or root rights and apt-get to install them",
)


@pytest.mark.slow
@needs_emulation
def test_float_agrees_and_int8_is_identical(tmp_path: Path) -> None:
    quantized = XNNPACK(quantization=Int8(calibration=[images(4, seed) for seed in range(3)]))
    export(small(), tmp_path / "float.pte", example_inputs=EXAMPLE)
    export(small(), tmp_path / "int8.pte", example_inputs=EXAMPLE, backend=quantized)
    result = verify(tmp_path / "float.pte", tmp_path / "int8.pte", "--tolerance", "1e-5")
    if result.returncode == CANNOT_BE_SET_UP:
        pytest.skip(result.stderr.strip().splitlines()[-1])
    assert result.returncode == 0, result.stderr
    on_float, on_int8 = map(json.loads, result.stdout.splitlines())
    assert {on_float["machine"], on_int8["machine"]} == {"aarch64"}
    assert on_float["max_abs_output"] > 0.1
    assert on_int8["identical"]


@pytest.mark.slow
@needs_emulation
def test_a_probe_runs_there_and_gives_a_table(tmp_path: Path) -> None:
    image = torch.zeros(1, 3, 20, 20)
    probe = export_probe(Wide().eval(), tmp_path / "probe", image, passes=1, rounds=10, points=3)
    result = verify(tmp_path / "probe", tmp_path / "arm.json", script=PROBE)
    if result.returncode == CANNOT_BE_SET_UP:
        pytest.skip(result.stderr.strip().splitlines()[-1])
    assert result.returncode == 0, result.stderr
    table = probe.table(tmp_path / "arm.json")
    assert (table.device, table.rounds, table.backend) == ("emulated Neoverse N1", 40, "xnnpack")
    dense, narrow, _ = (anchor.milliseconds for anchor in table.networks[0].anchors)
    assert dense > 2 * narrow
