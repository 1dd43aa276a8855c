"""A .pte in ExecuTorch's own runtime, with its inputs checked before C++ sees them."""

import importlib
import importlib.util
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from lightning_prune.deploy.quiet import native_lines, quiet_import, quiet_native, tell
from lightning_prune.deploy.signature import TensorSpec, describe, dtype_name
from lightning_prune.errors import ExportError

_DTYPES = {
    0: torch.uint8,
    1: torch.int8,
    2: torch.int16,
    3: torch.int32,
    4: torch.int64,
    5: torch.float16,
    6: torch.float32,
    7: torch.float64,
    11: torch.bool,
    15: torch.bfloat16,
}


class _TensorMeta(Protocol):
    def sizes(self) -> Sequence[int]: ...
    def dtype(self) -> int: ...


class _MethodMeta(Protocol):
    def num_inputs(self) -> int: ...
    def num_outputs(self) -> int: ...
    def input_tensor_meta(self, index: int, /) -> _TensorMeta: ...
    def output_tensor_meta(self, index: int, /) -> _TensorMeta: ...


class _Method(Protocol):
    @property
    def metadata(self) -> _MethodMeta: ...
    def execute(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]: ...


_LIVE: "weakref.WeakSet[RuntimeModel]" = weakref.WeakSet()


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


class RuntimeModel:
    """A method of a .pte, called with tensors like a function.

    It holds the Program as long as the Method: dropping the Program first takes the process down. It reads the file
    again after a change of the thread count, which invalidates every loaded method (see :func:`thread_count`).

    Args:
        path: of the .pte.
        method: name of the method in it.

    Raises:
        FileNotFoundError: no such file.
        ExportError: the file is not a program that this runtime can load, or it has no such method.
        ImportError: ExecuTorch is not installed.
    """

    def __init__(self, path: str | Path, method: str = "forward") -> None:
        self.path = Path(path)
        self.method = method
        if not self.path.is_file():
            raise FileNotFoundError(f"no .pte file at {self.path}")
        self._program: object = None
        self._method: _Method | None = None
        self.inputs, self.outputs = self._signature()
        _LIVE.add(self)

    def __repr__(self) -> str:
        return f"RuntimeModel({str(self.path)!r}, inputs=[{', '.join(map(str, self.inputs))}])"

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the program.

        Args:
            inputs: tensors on the CPU of exactly the shapes and dtypes in ``self.inputs``; any memory layout.

        Returns:
            its outputs, tensors of their own.

        Raises:
            ValueError: their number, a shape or a dtype is another.
        """
        return self.run(self.prepared(*inputs))

    def prepared(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the inputs checked and in the layout of the program (contiguous; another would be read wrongly)."""
        if len(inputs) != len(self.inputs) or not all(isinstance(x, Tensor) for x in inputs):
            raise ValueError(f"{self.path.name} takes {self._expected()}; got {describe(inputs) or 'nothing'}")
        for spec, tensor in zip(self.inputs, inputs, strict=True):
            if tuple(tensor.shape) != spec.shape or tensor.dtype != spec.dtype:
                raise ValueError(f"{self.path.name} takes {self._expected()}; got {describe(inputs)}")
        return tuple(x.detach().cpu().contiguous() for x in inputs)

    def run(self, prepared: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Run the program on inputs that :meth:`prepared` returned; nothing is checked again.

        Raises:
            ExportError: the runtime reports an error.
        """
        try:
            return tuple(self._loaded().execute(prepared))
        except RuntimeError as error:
            raise ExportError(f"{self.path.name} fails in the ExecuTorch runtime: {error}") from error

    def unload(self) -> None:
        """Let go of the program; the next call reads the file again."""
        self._method = None
        self._program = None

    def _signature(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        meta = self._loaded().metadata
        try:
            takes = _specs("input", meta.num_inputs(), meta.input_tensor_meta)
            return takes, _specs("output", meta.num_outputs(), meta.output_tensor_meta)
        except (RuntimeError, KeyError) as error:
            raise ExportError(
                f"method {self.method!r} of {self.path} takes or gives something else than plain tensors ({error}):"
                " call it through executorch.runtime"
            ) from error

    def _loaded(self) -> "_Method":
        if self._method is not None:
            return self._method
        runtime = imported("executorch.runtime").Runtime.get()
        lines: list[str] = []
        try:
            with native_lines() as lines:
                program = runtime.load_program(self.path)
                method = program.load_method(self.method)
        except (RuntimeError, KeyError) as error:
            raise ExportError(self._refusal(error, lines)) from error
        tell(lines)
        self._program, self._method = program, method
        return method

    def _refusal(self, error: Exception, lines: list[str]) -> str:
        if isinstance(error, KeyError):
            return f"{self.path} has no method {self.method!r}"
        told = "; ".join(lines) or "it gives no reason"
        return (
            f"{self.path} cannot be loaded by the ExecuTorch runtime on this machine ({error}: {told}): export it"
            " again, or run it where its backend is available"
        )

    def _expected(self) -> str:
        return ", ".join(f"{spec.shape} {dtype_name(spec.dtype)}" for spec in self.inputs) or "no input"


def _specs(kind: str, count: int, meta_of: "Callable[[int], _TensorMeta]") -> tuple[TensorSpec, ...]:
    metas = [meta_of(i) for i in range(count)]
    names = [kind] if count == 1 else [f"{kind}_{i}" for i in range(count)]
    return tuple(TensorSpec(n, tuple(m.sizes()), _DTYPES[m.dtype()]) for n, m in zip(names, metas, strict=True))


@contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """Run ExecuTorch on this many threads inside the block, and on as many as before after it.

    ExecuTorch replaces its thread pool for that, and a loaded method keeps a pointer into the old one: calling it
    again crashes or hangs. Every :class:`RuntimeModel` is therefore unloaded first and reads its file again. A method
    that the caller loaded with ``executorch.runtime`` must be loaded anew.

    Raises:
        ValueError: fewer than one thread.
        ExportError: ExecuTorch does not take this number.
    """
    if threads < 1:
        raise ValueError(f"threads: got {threads}, must be at least 1")
    native = imported("executorch.extension.pybindings.portable_lib")
    before = _threads(native)
    _set_threads(native, threads)
    try:
        yield
    finally:
        _set_threads(native, before)


def _threads(native: ModuleType) -> int:
    with quiet_native():
        return native._threadpool_get_thread_count()


def _set_threads(native: ModuleType, threads: int) -> None:
    if _threads(native) == threads:
        return
    for model in list(_LIVE):
        model.unload()
    with quiet_native():
        native._unsafe_reset_threadpool(threads)
    if (got := _threads(native)) != threads:
        raise ExportError(f"ExecuTorch runs on {got} threads where {threads} were asked for: pass threads={got}")
