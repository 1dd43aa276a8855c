"""The process that runs .pte files: what happens to it does not happen to the caller."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest
import torch
from deploy_models import EXAMPLE, exported, images, small
from torch import Tensor

from lightning_prune.deploy import Artifact, RuntimeModel, export
from lightning_prune.deploy.runtime.child import _PACKAGE, _START, CHILD, Child
from lightning_prune.deploy.runtime.model import read_contents
from lightning_prune.errors import ExportError

pytest.importorskip("executorch", reason="needs the extra 'mobile' (executorch)")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(tmp_path_factory.mktemp("child"))


def is_alive(number: int) -> bool:
    """Whether a process runs; one that ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pid() -> int:
    assert CHILD._process is not None
    return CHILD._process.pid


class TestCrash:
    def test_a_crash_is_an_error_that_says_what_happened_and_the_next_call_works(self, artifact: Artifact):
        program = RuntimeModel(artifact.path)
        before = program(images(4))[0]
        killed = pid()
        threading.Timer(0.3, lambda: os.kill(killed, signal.SIGSEGV)).start()
        with pytest.raises(
            ExportError, match=r"small.pte took the process that runs it down \(SIGSEGV\), yours goes on"
        ):
            program.timed([images(4)], min)(10_000_000)
        assert torch.equal(program(images(4))[0], before)
        assert pid() != killed

    def test_killed_between_two_calls(self, artifact: Artifact):
        program = RuntimeModel(artifact.path)
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
        RuntimeModel(artifact.path)(images(4))
        alive = pid()
        (tmp_path / "a.pte").write_bytes(b"nothing")
        with pytest.raises(ExportError, match=r"a.pte cannot be used: .*it does not begin like a .pte"):
            read_contents(tmp_path / "a.pte")
        with pytest.raises(ExportError, match="KeyError"):
            CHILD.ask("no such task", tmp_path)
        assert pid() == alive

    def test_a_file_that_vanished(self, artifact: Artifact, tmp_path: Path):
        path = Path(shutil.copy(artifact.path, tmp_path / "a.pte"))
        program = RuntimeModel(path)
        path.unlink()
        with pytest.raises(ExportError, match=r"a.pte is not there any more: put it back") as error:
            program(images(4))
        assert "damaged" not in str(error.value)


def read_contents_ready() -> None:
    """Start the process, so that a short timeout is not spent on that."""
    CHILD.ask("release", Path(), numbers=[])


class TestWritten:
    """A file that an export has just written."""

    def test_a_crash_ends_the_export_and_not_its_process(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        class Crashing(RuntimeModel):
            def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
                turn = self.timed(self.prepared(*inputs), min)
                turn(1)
                threading.Timer(0.3, lambda: os.kill(pid(), signal.SIGSEGV)).start()
                return (torch.tensor(turn(10_000_000)),)

        monkeypatch.setattr(sys.modules["lightning_prune.deploy.export"], "RuntimeModel", Crashing)
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
        assert tasks[-1] == "release"

    def test_start_does_not_wait(self, artifact: Artifact):
        child = Child()
        child.start()
        process = child._process
        assert process is not None
        child.start()
        assert child._process is process
        child.ask("release", artifact.path, numbers=[])
        assert child._process is process
        child.close()

    def test_no_process_can_be_started(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
        with pytest.raises(ExportError, match=r"no process for .pte files can be started \(.*nowhere"):
            Child().start()


def test_the_process_does_not_load_the_export_side(artifact: Artifact):
    code = (
        "import lightning_prune.deploy.runtime.worker.serving\n"
        "from lightning_prune.deploy.executorch.native import bindings\nbindings()\nimport sys\n"
        "print(sorted(name for name in sys.modules if name.startswith('executorch.exir')))"
    )
    start = _START[: _START.index("from multiprocessing")] + code
    command = [sys.executable, "-W", "ignore", "-c", start, str(_PACKAGE), "-1", "-1", *sys.path]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout == "['executorch.exir', 'executorch.exir._warnings']\n"


class TestEnd:
    def test_close(self, artifact: Artifact):
        child = Child()
        child.ask("release", artifact.path, numbers=[])
        process = child._process
        assert process is not None
        child.close()
        child.close()
        assert process.returncode == 0
        child.ask("release", artifact.path, numbers=[])
        child.close()

    @pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
    def test_at_full_load_it_ends_within_a_second_of_its_caller_s_death(self, artifact: Artifact):
        code = (
            "import torch, threading\n"
            "from lightning_prune.deploy.runtime.child import CHILD\n"
            "from lightning_prune.deploy.runtime.model import RuntimeModel\n"
            f"program = RuntimeModel({str(artifact.path)!r})\n"
            "threading.Timer(0.5, lambda: print(CHILD._process.pid, flush=True)).start()\n"
            "program.timed(program.random_inputs(), min)(1_000_000_000)"
        )
        caller = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert caller.stdout is not None
        number = int(caller.stdout.readline())
        os.kill(number, 0)
        caller.kill()
        caller.wait()
        deadline = time.monotonic() + 1
        while is_alive(number) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not is_alive(number)
        caller.stdout.close()

    def test_a_fork_of_the_caller_keeps_it_no_longer_alive(self, artifact: Artifact):
        code = (
            "import os, time\n"
            "from lightning_prune.deploy.runtime.child import CHILD\n"
            "CHILD.ask('release', '', numbers=[])\n"
            "print(CHILD._process.pid, flush=True)\n"
            "if os.fork() == 0:\n    os.close(1)\n    time.sleep(5)\n    os._exit(0)\n"
            "os.kill(os.getpid(), 9)"
        )
        caller = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
        deadline = time.monotonic() + 1
        while is_alive(int(caller.stdout)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not is_alive(int(caller.stdout))

    def test_it_imports_from_no_more_places_than_its_caller(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        started: list[list[str]] = []

        class Stopped(OSError):
            pass

        def popen(command: list[str], **options: object) -> None:
            started.append(command)
            raise Stopped("not here")

        places = ["/a\n/tmp/planted", "/b\0", 3, "/c", "\ud800"]
        flags = {"isolated": 1, "ignore_environment": 1, "no_user_site": 1, "no_site": 1, "safe_path": True}
        monkeypatch.setattr(sys, "path", places)
        monkeypatch.setattr(sys, "flags", types.SimpleNamespace(**flags))
        monkeypatch.setattr(subprocess, "Popen", popen)
        with pytest.raises(ExportError, match="not here"):
            Child().start()
        assert started[0][1:6] == ["-I", "-E", "-s", "-S", "-P"]
        assert started[0][-2:] == ["/a\n/tmp/planted", "/c"]

    def test_it_ends_with_its_caller_and_needs_no_main_guard(self, artifact: Artifact, tmp_path: Path):
        (tmp_path / "json.py").write_text("raise SystemExit('a file of the caller')")
        code = (
            "from lightning_prune.deploy.runtime.child import CHILD\n"
            "from lightning_prune.deploy.runtime.model import RuntimeModel\n"
            f"RuntimeModel({str(artifact.path)!r}).random_inputs()\n"
            "CHILD.ask('release', '', numbers=[])\nprint(CHILD._process.pid)"
        )
        command = [sys.executable, "-W", "error", "-P", "-c", code] if sys.version_info >= (3, 11) else None
        if command is None:
            pytest.skip("python -P is new in 3.11")
        found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
        assert (found.returncode, found.stderr) == (0, "")
        with pytest.raises(ProcessLookupError):
            os.kill(int(found.stdout), 0)
