"""ExecuTorch, if it is there, without its noise: known lines are silenced, what is not on the lists comes through.

The lists are of ExecuTorch 1.4.1, torchao 0.18.0 and coremltools 9.0, none of which has a switch for them.
"""

import importlib
import importlib.util
import io
import logging
import os
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import ModuleType
from typing import IO

import torch

_DEPRECATING_MODULES = r"executorch\.|torchao\.|torch\.jit\.|importlib\.resources|copyreg$"
_COREML = "executorch.backends.apple.coreml"
_LOGGED = {
    "torchao": re.compile(r"Failed to load .*\.so: Could not load this library"),
    "torchao.kernel.intmm": re.compile(r"Warning: Detected no triton"),
    "torch.utils._pytree": re.compile(r".* is an Enum subclass and is now natively supported"),
    "coremltools": re.compile(
        r"(Torch|scikit-learn) version .* (has not been tested|is not supported)|Failed to load _ML"
        r"|Fail to import BlobReader|Tuple detected at graph output|Saving value type of|Core ML embedding"
    ),
    f"{_COREML}.compiler.coreml_preprocess": re.compile(r"The model with identifier .* was exported with CoreML"),
}
_INFORMING = ("", f"{_COREML}.partition.coreml_partitioner", f"{_COREML}.compiler.coreml_preprocess")
"""Loggers that ExecuTorch sets to INFO; the first is the root, which it shares with everyone."""
_NATIVE = re.compile(
    r"\[(cpuinfo_utils\.cpp:\d+\] |threadpool\.cpp:\d+\] Resetting threadpool)"
    r"|(Running MIL|Running compression pass|Converting PyTorch Frontend|Getting Core ML weights|Decompressing)"
)
_VELA = re.compile(r"\n?Network summary for .*?\nNeural network macs[^\n]*\n\n?", re.DOTALL)

_ONE_AT_A_TIME = threading.RLock()
"""Streams, file descriptors, loggers and warning filters belong to the whole process, not to a thread."""


@contextmanager
def quiet_lowering() -> Iterator[None]:
    """Ignore the deprecation warnings that torch.export, ExecuTorch and torchao raise about their own calls.

    The handler that ExecuTorch leaves on the root logger goes too: it would turn a later ``logging.basicConfig`` of
    the caller into a call without effect. So do Core ML's progress bars, and the lines below WARNING that ExecuTorch's
    partitioners log for themselves.
    """
    with _ONE_AT_A_TIME, _same_handlers(), _known_lines(), quiet_native(), _quiet_output(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=_DEPRECATING_MODULES)
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=r"(open_text|read_text|read_binary) is deprecated")
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
        warnings.filterwarnings("ignore", message=r"Function _TORCH_OPS_REGISTRY\.\w+ is deprecated")
        # first values other than zeros are stored here
        warnings.filterwarnings("ignore", message="Mutation on a buffer in the model is detected")
        # the list by which torch's recurrent layers hand their parameters on, the same afterwards (2.13)
        warnings.filterwarnings("ignore", message=r"(?s)The tensor attributes? .*_flat_weights.* assigned")
        # coremltools tries with numpy which constants have a place in float16
        warnings.filterwarnings("ignore", message="overflow encountered in cast", category=RuntimeWarning)
        warnings.filterwarnings("ignore", message="This API is experimental and subject to change without notice")
        yield


@contextmanager
def quiet_import() -> Iterator[None]:
    """Import ExecuTorch without its warnings and log lines."""
    with quiet_lowering():
        yield


def require_executorch() -> None:
    """Check that ExecuTorch is installed, without importing it.

    Raises:
        ImportError: it is not.
    """
    try:
        found = importlib.util.find_spec("executorch") is not None
    except ValueError:
        found = False
    if not found:
        raise ImportError("ExecuTorch is not installed: pip install 'lightning-prune[mobile]'")


def imported(module: str) -> ModuleType:
    """Import a module of ExecuTorch without its noise.

    Raises:
        ImportError: not installed, or it does not load beside this torch.
    """
    require_executorch()
    try:
        with quiet_import():
            return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} does not load beside torch {torch.__version__} ({error}): pip install 'lightning-prune[mobile]'"
        ) from error


@contextmanager
def _quiet_output() -> Iterator[None]:
    """Drop the tables that Arm's compiler prints and pass on everything else."""
    text = io.StringIO()
    try:
        with redirect_stdout(text):
            yield
    finally:
        if (rest := _VELA.sub("", text.getvalue())) and sys.stdout is not None:
            sys.stdout.write(rest)


@contextmanager
def _known_lines() -> Iterator[None]:
    filters: list[tuple[logging.Logger, Callable[[logging.LogRecord], bool]]] = [
        (logging.getLogger(name), lambda record, pattern=pattern: pattern.match(record.getMessage()) is None)
        for name, pattern in _LOGGED.items()
    ]
    filters += [(logging.getLogger(name), _below_warning) for name in _INFORMING]
    for logger, known in filters:
        logger.addFilter(known)
    try:
        yield
    finally:
        for logger, known in filters:
            logger.removeFilter(known)


def _below_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or f"{os.sep}executorch{os.sep}" not in record.pathname


@contextmanager
def _same_handlers() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.setLevel(level)
        for handler in [h for h in root.handlers if h not in before]:
            root.removeHandler(handler)


@contextmanager
def native_lines() -> Iterator[list[str]]:
    """Collect what is written to stderr, by Python and by C++; the list is filled when the block ends.

    ExecuTorch's C++ writes some lines to ``sys.stderr`` and some to file descriptor 2. The caller passes on what it
    wants seen with :func:`tell`.
    """
    lines: list[str] = []
    with _ONE_AT_A_TIME, tempfile.TemporaryFile() as sink, io.StringIO() as text:
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


def unknown(lines: list[str]) -> list[str]:
    """Return lines of C++ without the known noise."""
    return [line for line in lines if line.strip() and not _NATIVE.match(line)]


def tell(lines: list[str]) -> None:
    """Write lines to stderr, the known noise left out."""
    if (told := unknown(lines)) and sys.stderr is not None:
        sys.stderr.write("\n".join([*told, ""]))
