"""Programs that someone made to take more than they hold; what an honest one holds is in ``test_inspect.py``."""

import resource
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from deploy_models import EXAMPLE, exported, images

from lightning_prune.deploy import Artifact, RuntimeModel, export, inspect
from lightning_prune.deploy.executorch import pte_file
from lightning_prune.deploy.runtime.child import CHILD, Child
from lightning_prune.errors import ExportError

pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(tmp_path_factory.mktemp("contents"))


def changed(artifact: Artifact, folder: Path, change: Callable[[Any], None]) -> Path:
    """Return a file with another program before the same segments, and no manifest."""
    file = pte_file.read(str(artifact.path))
    program = deepcopy(file.program)
    change(program)
    (folder / "a.pte").write_bytes(file.with_program(program))
    return folder / "a.pte"


def test_overlapping_segments(artifact: Artifact, tmp_path: Path) -> None:
    path = changed(artifact, tmp_path, lambda program: program.segments.extend(deepcopy(program.segments) * 99))
    with pytest.raises(ExportError, match=r"a.pte cannot be used: its segments \d+ and \d+ overlap: it is damaged"):
        inspect(path)


def test_more_is_told_than_fits_into_a_reply(artifact: Artifact, tmp_path: Path) -> None:
    def many(program: Any) -> None:
        (plan,) = program.execution_plan[:1]
        plan.inputs = plan.inputs * 100_000

    path = changed(artifact, tmp_path, many)
    with pytest.raises(ExportError, match=r"a.pte cannot be used: what it holds takes [\d,]{9} bytes to tell"):
        inspect(path)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no limit holds")
class TestMemory:
    def test_a_plan_of_gigabytes_needs_a_word(self, artifact: Artifact, tmp_path: Path) -> None:
        def large(program: Any) -> None:
            program.execution_plan[0].non_const_buffer_sizes[1] = 2**30

        path = changed(artifact, tmp_path, large)
        with pytest.raises(ExportError, match=r"it plans 1,073,741,824 bytes, and it may take 268,435,456, .* memory="):
            RuntimeModel(path)
        program = RuntimeModel(path, memory=2**31)
        assert torch.equal(program(images(4))[0], RuntimeModel(artifact.path)(images(4))[0])

    def test_what_a_run_takes_counts_too(self, tmp_path: Path) -> None:
        model = torch.nn.Sequential(torch.nn.Conv2d(1, 64, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(64, 1, 1))
        path = export(model, tmp_path / "a.pte", example_inputs=torch.zeros(1, 1, 256, 256)).path
        CHILD.close()  # what it has freed it may take again
        with pytest.raises(ExportError, match=r"out_of_memory.* it may take 1,048,576 bytes beyond .* pass memory="):
            RuntimeModel(path, memory=2**20)(torch.zeros(1, 1, 256, 256))
        assert RuntimeModel(path)(torch.zeros(1, 1, 256, 256))[0].shape == (1, 1, 256, 256)

    def test_no_memory_is_no_number(self, artifact: Artifact) -> None:
        with pytest.raises(ValueError, match="memory must be at least 1, got 0"):
            RuntimeModel(artifact.path, memory=0)

    def test_a_limit_of_the_user_s_is_not_raised(self, artifact: Artifact) -> None:
        before = resource.getrlimit(resource.RLIMIT_DATA)
        child = Child()
        resource.setrlimit(resource.RLIMIT_DATA, (2**33, before[1]))
        try:
            child.ask("contents", artifact.path, path=str(artifact.path))
            assert child._process is not None
            limits = Path(f"/proc/{child._process.pid}/limits").read_text()
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, before)
            child.close()
        (line,) = (line for line in limits.splitlines() if line.startswith("Max data size"))
        assert int(line.split()[3]) == 2**33

    def test_afterwards_it_has_room_again(self, artifact: Artifact) -> None:
        RuntimeModel(artifact.path)(EXAMPLE)
        assert CHILD._process is not None
        limits = Path(f"/proc/{CHILD._process.pid}/limits").read_text()
        (line,) = (line for line in limits.splitlines() if line.startswith("Max data size"))
        assert line.split()[3] == "unlimited" or int(line.split()[3]) > 2**31
