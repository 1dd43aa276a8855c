"""A process of its own for .pte files: what takes the ExecuTorch runtime down there does not take the caller down."""

import atexit
import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from lightning_prune.deploy.executorch.installation import require_executorch
from lightning_prune.deploy.executorch.quiet import unknown
from lightning_prune.deploy.runtime.wire import BrokenMessageError, receive, send
from lightning_prune.errors import ExportError

TIMEOUT = 300.0
"""Seconds after which a process that does not answer is ended."""

_PACKAGE = Path(__file__).parents[2]
_START = """
import sys
sys.path[:] = sys.argv[2].split("\\n")
from types import ModuleType
for name, folder in (("lightning_prune", sys.argv[1]), ("lightning_prune.deploy", sys.argv[1] + "/deploy")):
    sys.modules[name] = ModuleType(name)
    sys.modules[name].__path__ = [folder]
from lightning_prune.deploy.runtime.worker.serving import serve
serve()
"""
_LINES = 6


class EndedError(ExportError):
    """The process ended, or was ended, while it ran a file.

    Args:
        message: for the user.
        how: it ended, in words: ``SIGSEGV``, or that there was no answer in time.
    """

    def __init__(self, message: str, how: str) -> None:
        super().__init__(message)
        self.how = how


class Child:
    """The process: started at the first request, started again after a crash, ended with this one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: IO[bytes] | None = None
        self._owner = os.getpid()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the process, if it does not run, and do not wait for it: a request that comes later is served sooner.

        Raises:
            ExportError: there can be no process.
        """
        with self._lock:
            self._started()

    def ask(self, task: str, subject: Path, timeout: float = TIMEOUT, **arguments: object) -> Any:  # noqa: ANN401
        """Let the process do something with a file.

        Args:
            task: one of those in ``worker/serving.py``.
            subject: the file, for the errors.
            timeout: seconds after which the process is ended.
            **arguments: of the task: plain values and tensors; paths are absolute, as the process stays in the folder
                in which it was started.

        Raises:
            ExportError: the file cannot be read, loaded or run; it took the process down, or no answer came in time.
            ImportError: ExecuTorch is not installed.
        """
        require_executorch()
        with self._lock:
            reply = self._exchange({"task": task, "arguments": arguments}, subject, timeout)
        if "value" not in reply:
            raise ExportError(f"{subject} cannot be used: {reply.get('error')}{self._told()}")
        return reply["value"]

    def forget(self) -> None:
        """Let the process, if there is one, release what it has loaded; one that cannot is ended."""
        if self._process is not None and self._process.poll() is None:
            with suppress(ExportError):
                self.ask("forget", Path())

    def close(self) -> None:
        """End the process."""
        atexit.unregister(self.close)
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                _close(stream)
        try:
            process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._stderr is not None:
            self._stderr.close()

    def _exchange(self, request: dict[str, object], subject: Path, timeout: float) -> dict[str, Any]:
        process, stdin, stdout = self._started()
        late = threading.Event()
        timer = threading.Timer(timeout, lambda: (late.set(), process.kill()))
        timer.start()
        try:
            send(stdin, request)
            reply = receive(stdout)
        except (OSError, BrokenMessageError):
            reply = None
        except BaseException:  # the reply to come would be taken for that of the next request
            process.kill()
            self.close()
            raise
        finally:
            timer.cancel()
        if reply is None:
            raise self._obituary(process, subject, timeout if late.is_set() else None)
        return reply

    def _started(self) -> tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes]]:
        if self._owner != os.getpid():
            self._process, self._owner, self._lock = None, os.getpid(), threading.Lock()
        if self._process is None or self._process.poll() is not None:
            self.close()
            atexit.register(self.close)
            self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process lives
            command = [sys.executable, "-W", "ignore", "-c", _START, str(_PACKAGE), "\n".join(sys.path)]
            pipe = subprocess.PIPE
            try:
                self._process = subprocess.Popen(
                    command, stdin=pipe, stdout=pipe, stderr=self._stderr, start_new_session=True
                )
            except OSError as error:
                raise ExportError(
                    f"no process for .pte files can be started ({error}): free memory, or allow more processes"
                ) from error
        process = self._process
        if process.stdin is None or process.stdout is None or self._stderr is None:
            raise ExportError("the process for .pte files has no pipes")
        self._stderr.seek(0)
        self._stderr.truncate()
        return process, process.stdin, process.stdout

    def _obituary(self, process: subprocess.Popen[bytes], subject: Path, timeout: float | None) -> EndedError:
        if timeout is None and _outlives(process):
            process.kill()
        told = self._told()
        code = process.wait()
        self.close()
        if timeout is not None:
            message = f"{subject} gave no answer within {timeout:g} s: it is damaged, or needs a longer timeout{told}"
            return EndedError(message, f"no answer within {timeout:g} s")
        return EndedError(
            f"{subject} took the process that runs it down ({_name(code)}), yours goes on: the file is damaged or not"
            f" made for this runtime; export it again, and copy it together with its manifest{told}",
            _name(code),
        )

    def _told(self) -> str:
        if self._stderr is None or self._stderr.closed:
            return ""
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").split("\n")
        said = [line.strip() for line in unknown(lines)][-_LINES:]
        return f" (it said: {'; '.join(said)})" if said else ""


CHILD = Child()
"""The one process that all callers share."""


def _outlives(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(timeout=2)
    except subprocess.TimeoutExpired:
        return True
    return False


def _name(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _close(stream: IO[bytes]) -> None:
    try:
        stream.close()
    except OSError:  # what was not sent cannot be sent any more
        return
