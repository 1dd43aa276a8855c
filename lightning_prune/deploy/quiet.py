"""ExecuTorch's noise, silenced line by line: what is not on the lists here comes through."""

import io
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import IO

_DEPRECATING_MODULES = r"executorch\.|torchao\.|torch\.jit\.|importlib\.resources|copyreg$"
_LOGGED = {
    "torchao": re.compile(r"Failed to load .*\.so: Could not load this library"),
    "torchao.kernel.intmm": re.compile(r"Warning: Detected no triton"),
    "torch.utils._pytree": re.compile(r".* is an Enum subclass and is now natively supported"),
}
_NATIVE = re.compile(r"\[(cpuinfo_utils\.cpp:\d+\] |threadpool\.cpp:\d+\] Resetting threadpool)")


@contextmanager
def quiet_lowering() -> Iterator[None]:
    """Ignore the deprecation warnings that torch.export, ExecuTorch and torchao raise about their own calls.

    The handler that ExecuTorch leaves on the root logger goes too: it would turn a later ``logging.basicConfig`` of
    the caller into a call without effect.
    """
    with _same_handlers(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=_DEPRECATING_MODULES)
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=r"(open_text|read_text|read_binary) is deprecated")
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
        warnings.filterwarnings("ignore", message="This API is experimental and subject to change without notice")
        yield


@contextmanager
def quiet_import() -> Iterator[None]:
    """Import ExecuTorch without its warnings and log lines."""
    filters = [(logging.getLogger(name), _without(pattern)) for name, pattern in _LOGGED.items()]
    for logger, known in filters:
        logger.addFilter(known)
    try:
        with quiet_lowering(), quiet_native():
            yield
    finally:
        for logger, known in filters:
            logger.removeFilter(known)


@contextmanager
def _same_handlers() -> Iterator[None]:
    root = logging.getLogger()
    before = list(root.handlers)
    try:
        yield
    finally:
        for handler in [h for h in root.handlers if h not in before]:
            root.removeHandler(handler)


def _without(pattern: re.Pattern[str]) -> logging.Filter:
    class Known(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            return pattern.match(record.getMessage()) is None

    return Known()


@contextmanager
def native_lines() -> Iterator[list[str]]:
    """Collect what is written to stderr, by Python and by C++; the list is filled when the block ends.

    ExecuTorch's C++ writes some lines to ``sys.stderr`` and some to file descriptor 2. The caller passes on what it
    wants seen with :func:`tell`.
    """
    lines: list[str] = []
    with tempfile.TemporaryFile() as sink, io.StringIO() as text:
        try:
            with _descriptor_to(sink), redirect_stderr(text):
                yield lines
        finally:
            sink.seek(0)
            lines += [*text.getvalue().splitlines(), *sink.read().decode(errors="replace").splitlines()]


@contextmanager
def _descriptor_to(sink: IO[bytes]) -> Iterator[None]:
    try:
        original = os.dup(2)
    except OSError:  # a process without standard streams has nothing to collect
        yield
        return
    if sys.stderr is not None:
        sys.stderr.flush()
    os.dup2(sink.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)


@contextmanager
def quiet_native() -> Iterator[None]:
    """Drop the known lines that ExecuTorch's C++ writes to stderr and pass on every other one."""
    lines: list[str] = []
    try:
        with native_lines() as lines:
            yield
    finally:
        tell(lines)


def tell(lines: list[str]) -> None:
    """Write lines to stderr, the known noise left out."""
    unknown = [line for line in lines if not _NATIVE.match(line)]
    if unknown and sys.stderr is not None:
        sys.stderr.write("\n".join([*unknown, ""]))
