"""The process that runs .pte files: what happens to it does not happen to the caller."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from deploy_models import EXAMPLE, exported, images, small
from torch import Tensor

from lightning_prune.deploy import Artifact, RuntimeModel, building, export
from lightning_prune.deploy.runtime.child import _PACKAGE, _START, CHILD, Child
from lightning_prune.deploy.runtime.child_program import ChildProgram, read_contents
from lightning_prune.deploy.runtime.wire import BrokenMessageError, receive, send
from lightning_prune.errors import ExportError

pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(tmp_path_factory.mktemp("child"))


def pid() -> int:
    assert CHILD._process is not None
    return CHILD._process.pid


class TestWire:
    def test_there_and_back(self, tmp_path: Path):
        message = {"task": "run", "arguments": {"x": [torch.arange(3), "é", None, {"a": 1.5}]}}
        with (tmp_path / "pipe").open("wb") as file:
            send(file, message)
            send(file, {})
        with (tmp_path / "pipe").open("rb") as file:
            back = receive(file)
            assert back is not None
            assert torch.equal(back["arguments"]["x"][0], torch.arange(3))
            assert back["arguments"]["x"][1:] == message["arguments"]["x"][1:]
            assert receive(file) == {}
            assert receive(file) is None

    @pytest.mark.parametrize("cut", [1, 11, 12, 40, -1])
    def test_cut_off(self, tmp_path: Path, cut: int):
        with (tmp_path / "pipe").open("wb") as file:
            send(file, {"a": torch.zeros(3)})
        data = (tmp_path / "pipe").read_bytes()[:cut]
        (tmp_path / "pipe").write_bytes(data)
        with (tmp_path / "pipe").open("rb") as file, pytest.raises(BrokenMessageError):
            receive(file)

    @pytest.mark.parametrize("data", [b"x" * 40, b"lpm1" + b"\xff" * 8 + b"abc", b"lpm1" + bytes(7) + b"\x03abc"])
    def test_something_else(self, tmp_path: Path, data: bytes):
        (tmp_path / "pipe").write_bytes(data)
        with (tmp_path / "pipe").open("rb") as file, pytest.raises(BrokenMessageError):
            receive(file)


class TestChildProgram:
    def test_it_gives_what_the_runtime_gives_here(self, artifact: Artifact):
        program, here = ChildProgram(artifact.path), RuntimeModel(artifact.path)
        assert (program.inputs, program.outputs, program.is_verified) == (here.inputs, here.outputs, True)
        assert torch.equal(program(images(4))[0], here(images(4))[0])

    def test_other_layouts_and_views_are_made_contiguous(self, artifact: Artifact):
        program = ChildProgram(artifact.path)
        batch = torch.stack([images(4), images(4, seed=2)], dim=-1)[..., 1].to(memory_format=torch.channels_last)
        assert torch.equal(program(batch)[0], program(batch.contiguous())[0])

    def test_wrong_inputs_never_reach_it(self, artifact: Artifact):
        program = ChildProgram(artifact.path)
        for inputs in ((), (images(3),), (images(4), images(4)), (images(4).double(),), ("x",)):
            with pytest.raises(ValueError, match=r"small.pte takes \(4, 1, 8, 8\) float32; got"):
                program(*inputs)  # pyright: ignore[reportArgumentType]

    def test_no_such_method_thread_or_file(self, artifact: Artifact, tmp_path: Path):
        with pytest.raises(ExportError, match="has no method 'embed': its methods are forward"):
            ChildProgram(artifact.path, "embed")
        with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
            ChildProgram(artifact.path, threads=0)
        with pytest.raises(FileNotFoundError, match=r"no .pte file at"):
            ChildProgram(tmp_path / "none.pte")
        with pytest.raises(ValueError, match=r"must end in .pte"):
            ChildProgram(artifact.manifest_path)

    def test_a_relative_path_is_of_the_callers_folder(self, artifact: Artifact, monkeypatch: pytest.MonkeyPatch):
        ChildProgram(artifact.path)(images(4))  # the other process runs, in the folder in which it was started
        monkeypatch.chdir(artifact.path.parent)
        program = ChildProgram(artifact.path.name)
        assert torch.equal(program(images(4))[0], ChildProgram(artifact.path)(images(4))[0])
        assert read_contents(program.path)["methods"]

    def test_threads(self, artifact: Artifact):
        outputs = [ChildProgram(artifact.path, threads=threads)(images(4))[0] for threads in (1, 2, 1)]
        torch.testing.assert_close(outputs[0], outputs[1])
        assert torch.equal(outputs[0], outputs[2])

    def test_a_file_that_changes_is_read_again(self, tmp_path: Path):
        path = tmp_path / "a.pte"
        outputs = []
        for seed in (0, 3):
            from lightning_prune.deploy import export

            export(small(seed), path, example_inputs=EXAMPLE)
            outputs.append(ChildProgram(path)(images(4))[0])
        assert not torch.equal(*outputs)


class TestCrash:
    def test_a_crash_is_an_error_that_says_what_happened_and_the_next_call_works(self, artifact: Artifact):
        program = ChildProgram(artifact.path)
        before = program(images(4))[0]
        killed = pid()
        threading.Timer(0.3, lambda: os.kill(killed, signal.SIGSEGV)).start()
        with pytest.raises(
            ExportError, match=r"small.pte took the process that runs it down \(SIGSEGV\), yours goes on"
        ):
            program.turn([images(4)], 10_000_000)
        assert torch.equal(program(images(4))[0], before)
        assert pid() != killed

    def test_killed_between_two_calls(self, artifact: Artifact):
        program = ChildProgram(artifact.path)
        before = program(images(4))[0]
        os.kill(pid(), signal.SIGKILL)
        os.waitid(os.P_PID, pid(), os.WEXITED | os.WNOWAIT)
        assert torch.equal(program(images(4))[0], before)

    def test_a_file_that_hangs(self, tmp_path: Path):
        path = tmp_path / "pipe.pte"
        os.mkfifo(path)
        read_contents_ready()
        with pytest.raises(ExportError, match=r"pipe.pte gave no answer within 0.5 s"):
            read_contents(path, timeout=0.5)

    def test_errors_of_python_leave_it_alive(self, artifact: Artifact, tmp_path: Path):
        ChildProgram(artifact.path)(images(4))
        alive = pid()
        (tmp_path / "a.pte").write_bytes(b"nothing")
        with pytest.raises(ExportError, match=r"a.pte cannot be used: .*it does not begin like a .pte"):
            read_contents(tmp_path / "a.pte")
        with pytest.raises(ExportError, match="KeyError"):
            CHILD.ask("no such task", tmp_path)
        assert pid() == alive


def read_contents_ready() -> None:
    """Start the process, so that a short timeout is not spent on that."""
    CHILD.ask("forget", Path())

    def test_a_file_that_vanished(self, artifact: Artifact, tmp_path: Path):
        path = Path(shutil.copy(artifact.path, tmp_path / "a.pte"))
        program = ChildProgram(path)
        path.unlink()
        with pytest.raises(ExportError, match=r"a.pte is not there any more: put it back") as error:
            program(images(4))
        assert "damaged" not in str(error.value)


class TestWritten:
    """A file that an export has just written."""

    def test_a_crash_ends_the_export_and_not_its_process(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        class Crashing(ChildProgram):
            def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
                self.turn(self.prepared(*inputs), 1)
                threading.Timer(0.3, lambda: os.kill(pid(), signal.SIGSEGV)).start()
                return tuple(torch.tensor(self.turn(self.prepared(*inputs), 10_000_000)))

        monkeypatch.setattr(building, "ChildProgram", Crashing)
        with pytest.raises(
            ExportError,
            match=r"the ExecuTorch runtime cannot run what XNNPACK.* makes of Small \(SIGSEGV\); your process",
        ):
            export(small(), tmp_path / "a.pte", example_inputs=EXAMPLE)
        assert list(tmp_path.iterdir()) == []

    def test_nothing_stays_loaded(self, artifact: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        tasks = []
        ask = CHILD.ask
        monkeypatch.setattr(
            CHILD, "ask", lambda task, *rest, **named: (tasks.append(task), ask(task, *rest, **named))[1]
        )
        export(small(), tmp_path / "a.pte", example_inputs=EXAMPLE)
        assert "run" in tasks
        assert tasks[-1] == "forget"

    def test_start_does_not_wait(self, artifact: Artifact):
        child = Child()
        child.start()
        process = child._process
        assert process is not None
        child.start()
        assert child._process is process
        child.ask("forget", artifact.path)
        assert child._process is process
        child.close()

    def test_no_process_can_be_started(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
        with pytest.raises(ExportError, match=r"no process for .pte files can be started \(.*nowhere"):
            Child().start()


def test_the_process_does_not_load_the_export_side(artifact: Artifact):
    code = (
        "from lightning_prune.deploy.runtime.worker.programs import Programs, _native\n_native()\nimport sys\n"
        "print(sorted(name for name in sys.modules if name.startswith('executorch.exir')))"
    )
    start = _START.replace("from lightning_prune.deploy.runtime.worker.serving import serve\nserve()", code)
    command = [sys.executable, "-W", "ignore", "-c", start, str(_PACKAGE), "\n".join(sys.path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout == "['executorch.exir', 'executorch.exir._warnings']\n"


class TestEnd:
    def test_close(self, artifact: Artifact):
        child = Child()
        child.ask("forget", artifact.path)
        process = child._process
        assert process is not None
        child.close()
        child.close()
        assert process.returncode == 0
        child.ask("forget", artifact.path)
        child.close()

    def test_it_ends_with_its_caller_and_needs_no_main_guard(self, artifact: Artifact, tmp_path: Path):
        (tmp_path / "json.py").write_text("raise SystemExit('a file of the caller')")
        code = (
            "from lightning_prune.deploy.runtime.child import CHILD\n"
            "from lightning_prune.deploy.runtime.child_program import ChildProgram\n"
            f"ChildProgram({str(artifact.path)!r}).random_inputs()\n"
            "CHILD.ask('forget', '')\nprint(CHILD._process.pid)"
        )
        command = [sys.executable, "-W", "error", "-P", "-c", code] if sys.version_info >= (3, 11) else None
        if command is None:
            pytest.skip("python -P is new in 3.11")
        found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
        assert (found.returncode, found.stderr) == (0, "")
        with pytest.raises(ProcessLookupError):
            os.kill(int(found.stdout), 0)
