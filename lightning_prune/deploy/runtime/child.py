"""A process of its own for .pte files: what takes the ExecuTorch runtime down there does not take the caller down."""

import atexit
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from lightning_prune.deploy.executorch.quiet import require_executorch, unknown
from lightning_prune.deploy.runtime.wire import BrokenMessageError, receive, send
from lightning_prune.errors import ExportError

TIMEOUT = 300.0
"""Seconds after which a process that does not answer is ended."""

_PACKAGE = Path(__file__).parents[2]
# The packages on the way to the worker are hollow, so that neither Lightning nor the export side is imported; the path
# is the caller's before anything else is imported, so that a json.py in the working folder is not taken. The caller
# alone has the other end of the lifeline, and writes nothing to it: at its death the kernel sends SIGIO, which ends
# this process even where the runtime computes and lets no Python run (PR_SET_PDEATHSIG would come when the thread that
# started it ends).
_START = """
import sys
sys.path[:] = sys.argv[4:]
lifeline = int(sys.argv[3])
if lifeline >= 0:
    import fcntl, os, select, signal
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:
        os._exit(0)
from types import ModuleType
for name, folder in (("lightning_prune", sys.argv[1]), ("lightning_prune.deploy", sys.argv[1] + "/deploy")):
    sys.modules[name] = ModuleType(name)
    sys.modules[name].__path__ = [folder]
from multiprocessing import connection
kind = connection.PipeConnection if sys.platform == "win32" else connection.Connection
from lightning_prune.deploy.runtime.worker.serving import serve
serve(kind(int(sys.argv[2])))
"""
_FLAGS = {"-I": "isolated", "-E": "ignore_environment", "-s": "no_user_site", "-S": "no_site", "-P": "safe_path"}
"""What keeps Python from importing other people's code, and its name in ``sys.flags``."""
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
    """The process: started at the first request, started again after a crash, ended with this one.

    Args:
        threads: on which programs run there that name no number of their own; None: as many as the runtime takes.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._stderr: IO[bytes] | None = None
        self._lifeline: int | None = None
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._unreferenced: list[int] = []

    def start(self) -> None:
        """Start the process, if it does not run, and do not wait for it: a request that comes later is served sooner.

        Raises:
            ExportError: there can be no process.
        """
        with self._lock:
            self._started()

    def ask(
        self, task: str, subject: Path, timeout: float = TIMEOUT, inputs: Sequence[Tensor] = (), **arguments: object
    ) -> Any:  # noqa: ANN401
        """Let the process do something with a file.

        Args:
            task: one of those in ``worker/serving.py``.
            subject: the file, for the errors.
            timeout: seconds after which the process is ended.
            inputs: tensors on the CPU that the task takes.
            **arguments: of the task: plain values; paths are absolute, as the process stays in the folder in which it
                was started.

        Returns:
            plain values, or a list of tensors.

        Raises:
            ExportError: the file cannot be read, loaded or run; it took the process down, or no answer came in time.
            ImportError: ExecuTorch is not installed.
        """
        require_executorch()
        with self._lock:
            released, self._unreferenced = self._unreferenced, []
            request = {"task": task, "arguments": arguments, "released": released}
            reply, tensors = self._exchange(request, inputs, subject, timeout)
        if "value" not in reply:
            raise ExportError(f"{subject} cannot be used: {reply.get('error')}{self._told()}")
        return tensors or reply["value"]

    def number(self) -> int:
        """Return a number for a program that will be loaded."""
        return next(self._numbers)

    def drop(self, number: int) -> None:
        """Let the process release a program with the next request; for finalizers, which may interrupt one."""
        self._unreferenced.append(number)

    def release(self, numbers: Sequence[int]) -> None:
        """Let the process, if there is one, release programs; one that cannot is ended."""
        if self._process is not None and self._process.poll() is None:
            with suppress(ExportError):
                self.ask("release", Path(), numbers=list(numbers))

    @contextmanager
    def releasing(self) -> Iterator[None]:
        """Release what is loaded in the block when it ends."""
        first = self.number()
        try:
            yield
        finally:
            self.release(range(first, self.number()))

    def close(self) -> None:
        """End the process."""
        atexit.unregister(self.close)
        process, self._process = self._process, None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        lifeline, self._lifeline = self._lifeline, None
        if process is not None and self._owner == os.getpid():
            if not _ends(process):
                process.kill()
                process.wait()
            if self._stderr is not None:
                self._stderr.close()
        if lifeline is not None:  # after the process ended by itself
            os.close(lifeline)

    def _exchange(
        self, request: dict[str, object], inputs: Sequence[Tensor], subject: Path, timeout: float
    ) -> tuple[dict[str, Any], list[Tensor]]:
        process, connection = self._started()
        late = threading.Event()
        # a timer and no poll(): the process may also stop within a message, or read no more of a long one
        timer = threading.Timer(timeout, lambda: (late.set(), process.kill()))
        timer.start()
        try:
            send(connection, request, inputs)
            return receive(connection)
        except (EOFError, OSError, BrokenMessageError):
            pass
        except BaseException:  # the reply to come would be taken for that of the next request
            process.kill()
            self.close()
            raise
        finally:
            timer.cancel()
        raise self._obituary(process, subject, timeout if late.is_set() else None)

    def _started(self) -> tuple[subprocess.Popen[bytes], Connection]:
        if self._owner != os.getpid():  # a fork has the caller's process and lock, and may use neither
            self._process, self._connection = None, None
            self._owner, self._lock = os.getpid(), threading.Lock()
        process, connection = self._process, self._connection
        if process is None or connection is None or process.poll() is not None:
            self.close()
            atexit.register(self.close)
            self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process lives
            connection, other = Pipe()
            handles, startup = _handing_over(other)
            flags = [flag for flag, name in _FLAGS.items() if getattr(sys.flags, name, False)]
            command = [sys.executable, *flags, "-W", "ignore", "-c", _START, str(_PACKAGE)]
            lifeline = -1
            if sys.platform != "win32":
                lifeline, self._lifeline = os.pipe()
                handles = (*handles, lifeline)
            try:
                process = subprocess.Popen(
                    [*command, str(other.fileno()), str(lifeline), *filter(_is_argument, sys.path)],
                    stdin=subprocess.DEVNULL,
                    stdout=self._stderr,
                    stderr=self._stderr,
                    start_new_session=True,
                    pass_fds=handles,
                    startupinfo=startup,
                )
            except OSError as error:
                raise ExportError(
                    f"no process for .pte files can be started ({error}): free memory, or allow more processes"
                ) from error
            finally:
                other.close()  # as long as it is open here too, the end of the process would not be noticed
                if lifeline >= 0:
                    os.close(lifeline)
            self._process, self._connection = process, connection
        if self._stderr is not None:
            self._stderr.seek(0)
            self._stderr.truncate()
        return process, connection

    def _obituary(self, process: subprocess.Popen[bytes], subject: Path, timeout: float | None) -> EndedError:
        if timeout is None and not _ends(process):
            process.kill()
        told = self._told()
        code = process.wait()
        self.close()
        if timeout is not None:
            message = f"{subject} gave no answer within {timeout:g} s: it is damaged, or needs a longer timeout{told}"
            return EndedError(message, f"no answer within {timeout:g} s")
        how = f"exit code {code}" if code >= 0 else f"signal {-code}"
        with suppress(ValueError):  # not every signal has a name
            how = signal.Signals(-code).name
        return EndedError(
            f"{subject} took the process that runs it down ({how}), yours goes on: the file is damaged or not"
            f" made for this runtime; export it again, and copy it together with its manifest{told}",
            how,
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


def _let_go() -> None:
    """Close the other end of the lifeline in a fork: it would keep the process alive after the caller's death."""
    lifeline, CHILD._lifeline = CHILD._lifeline, None
    if lifeline is not None:
        os.close(lifeline)


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_let_go)


def _is_argument(entry: object) -> bool:
    """Whether an entry of ``sys.path``, where anything may stand, is a path that a command can hold."""
    try:
        return isinstance(entry, str) and b"\0" not in os.fsencode(entry)
    except UnicodeEncodeError:
        return False


def _handing_over(connection: Connection) -> tuple[tuple[int, ...], Any]:
    """Return what makes Popen hand over one end of a connection, and nothing else of ours: pass_fds, startupinfo."""
    handle = connection.fileno()
    if sys.platform != "win32":
        return (handle,), None
    os.set_handle_inheritable(handle, True)
    return (), subprocess.STARTUPINFO(lpAttributeList={"handle_list": [handle]})


def _ends(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process ends by itself within two seconds."""
    try:
        process.wait(timeout=2)
    except subprocess.TimeoutExpired:
        return False
    return True
