"""A .pte in ExecuTorch's own runtime, with its inputs checked before C++ sees them."""

import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from lightning_prune.deploy.artifact.manifest import data_paths, load_manifest, methods_of
from lightning_prune.deploy.executorch.installation import imported
from lightning_prune.deploy.executorch.quiet import native_lines, quiet_native, tell, unknown
from lightning_prune.deploy.program.arguments import check_text, given_path
from lightning_prune.deploy.program.constants import Constant
from lightning_prune.deploy.program.signature import DTYPES, MethodSpec, TensorSpec, describe, dtype_name
from lightning_prune.deploy.runtime.child_program import check_undescribed
from lightning_prune.errors import ExportError
from lightning_prune.values import check_whole

_DTYPES: Mapping[int, torch.dtype] = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 11, 15), DTYPES.values(), strict=True))


class _TensorMeta(Protocol):
    def sizes(self) -> Sequence[int]: ...
    def dtype(self) -> int: ...


class _MethodMeta(Protocol):
    def num_inputs(self) -> int: ...
    def num_outputs(self) -> int: ...
    def input_tensor_meta(self, index: int, /) -> _TensorMeta: ...
    def output_tensor_meta(self, index: int, /) -> _TensorMeta: ...


class _Program(Protocol):
    """A loaded file: it must live as long as anything of it is used, or the process goes down."""

    def method_names(self) -> Collection[str]: ...
    def method_meta(self, name: str, /) -> _MethodMeta: ...
    def run_method(self, name: str, inputs: Sequence[Tensor], /) -> Sequence[Tensor]: ...


class _Single:
    """A .pte that holds its weights, with one method loaded at once and the others when they are asked for."""

    def __init__(self, path: Path, method: str) -> None:
        self._program = imported("executorch.runtime").Runtime.get().load_program(path)
        self.method_meta: Callable[[str], _MethodMeta] = self._program.metadata
        if method in self.method_names():
            self._program.load_method(method)

    def method_names(self) -> Collection[str]:
        return self._program.method_names

    def run_method(self, name: str, inputs: Sequence[Tensor], /) -> Sequence[Tensor]:
        return self._program.load_method(name).execute(inputs)


def _open(path: Path, data_path: Path | None, method: str) -> _Program:
    if data_path is None:
        return _Single(path, method)
    program = imported("executorch.extension.pybindings.portable_lib")._load_for_executorch(str(path), str(data_path))
    program.method_names()  # the file is read here
    return program


_LIVE: "weakref.WeakSet[RuntimeModel]" = weakref.WeakSet()


class RuntimeModel:
    """A method of a .pte, called with tensors like a function.

    A file that its manifest does not describe is refused before the runtime, which it could take down, sees it; one
    without a manifest is first read in a process of its own, and refused where it is cut off or lacks its weights. It
    holds the program as long as it lives, and reads the file again after a change of the thread count, which
    invalidates every loaded method (see :func:`thread_count`).

    Args:
        path: of the .pte; a manifest beside it gives names, ranges of sizes and the .ptd file.
        method: name of the method in it.
        signature: what the method takes and gives, if known; None: from the manifest, or from the file where there is
            none (its sizes are then fixed at the largest).
        data_path: of the .ptd file with its weights, for a file without a manifest.

    Raises:
        FileNotFoundError: no such file.
        TypeError: an argument is of another type.
        ExportError: the file is not the one that its manifest describes, or not a program that this runtime can load,
            or it has no such method.
        ImportError: ExecuTorch is not installed.
    """

    def __init__(
        self,
        path: str | Path,
        method: str = "forward",
        *,
        signature: MethodSpec | None = None,
        data_path: str | Path | None = None,
    ) -> None:
        check_text("method", method, "forward")
        self.path = given_path(path)
        self.method = method
        if not self.path.is_file():
            raise FileNotFoundError(f"no .pte file at {self.path}")
        self.data_path = None if data_path is None else given_path(data_path, "data_path", "model.ptd")
        if signature is None and self.path.with_suffix(".json").is_file():
            signature = self._described()
        elif signature is None:
            check_undescribed(self.path, has_data=self.data_path is not None)
        self._program: _Program | None = None
        found = self._signature()
        self.inputs, self.outputs = (found.inputs, found.outputs) if signature is None else self._same(signature, found)
        _LIVE.add(self)

    def __repr__(self) -> str:
        return f"RuntimeModel({str(self.path)!r}, inputs=[{', '.join(map(str, self.inputs))}])"

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the program.

        Args:
            inputs: tensors on the CPU of the dtypes and of shapes in the ranges of ``self.inputs``; any memory layout.

        Returns:
            its outputs, tensors of their own.

        Raises:
            ValueError: their number, a shape or a dtype is another.
        """
        return self.run(self.prepared(*inputs))

    @property
    def constants(self) -> Mapping[str, tuple[Constant, ...]]:
        """What the constant methods of the file hold, by name; a single value as a tuple of one."""
        program = self._loaded()
        names = [n for n in program.method_names() if program.method_meta(n).num_inputs() == 0]
        return {name: tuple(program.run_method(name, ())) for name in sorted(names)}  # type: ignore[misc]

    def prepared(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the inputs checked and in the layout of the program (contiguous; another would be read wrongly)."""
        if len(inputs) != len(self.inputs) or not all(isinstance(x, Tensor) for x in inputs):
            raise ValueError(f"{self.path.name} takes {self._expected()}; got {describe(inputs) or 'nothing'}")
        if not all(spec.takes(x) for spec, x in zip(self.inputs, inputs, strict=True)):
            raise ValueError(f"{self.path.name} takes {self._expected()}; got {describe(inputs)}")
        return tuple(x.detach().cpu().contiguous() for x in inputs)

    def run(self, prepared: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Run the program on inputs that :meth:`prepared` returned; nothing is checked again.

        Raises:
            ExportError: the runtime reports an error.
        """
        try:
            return tuple(self._loaded().run_method(self.method, prepared))
        except RuntimeError as error:
            raise ExportError(f"{self.path.name} fails in the ExecuTorch runtime: {error}") from error

    def unload(self) -> None:
        """Let go of the program; the next call reads the file again."""
        self._program = None

    def _described(self) -> MethodSpec:
        manifest = load_manifest(self.path)
        methods = methods_of(manifest)
        if self.method not in methods:
            raise ExportError(f"{self.path} has no method {self.method!r}: its methods are {', '.join(methods)}")
        paths = data_paths(manifest, self.path)
        if len(paths) > 1:
            raise ExportError(f"{self.path} has {len(paths)} .ptd files, and this runtime loads one: export it again")
        self.data_path = paths[0] if paths else self.data_path
        return methods[self.method]

    def _signature(self) -> MethodSpec:
        program = self._loaded()
        if self.method not in (names := program.method_names()):
            raise ExportError(f"{self.path} has no method {self.method!r}: its methods are {', '.join(sorted(names))}")
        meta = program.method_meta(self.method)
        try:
            takes = _specs("input", meta.num_inputs(), meta.input_tensor_meta)
            return MethodSpec(takes, _specs("output", meta.num_outputs(), meta.output_tensor_meta))
        except (RuntimeError, KeyError, IndexError) as error:
            raise ExportError(
                f"method {self.method!r} of {self.path} takes or gives something else than plain tensors ({error}):"
                " call it through executorch.runtime"
            ) from error

    def _same(self, signature: MethodSpec, found: MethodSpec) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        largest = [tuple(spec.range_of(i)[1] for i in range(len(spec.shape))) for spec in signature.inputs]
        told = [(shape, spec.dtype) for shape, spec in zip(largest, signature.inputs, strict=True)]
        if told != [(spec.shape, spec.dtype) for spec in found.inputs] or len(found.outputs) != len(signature.outputs):
            raise ExportError(
                f"{self.path} takes {', '.join(map(str, found.inputs))}, which is not what its manifest says"
                f" ({', '.join(map(str, signature.inputs))}): export the model again"
            )
        return signature.inputs, signature.outputs

    def _loaded(self) -> _Program:
        if self._program is None:
            imported("executorch.runtime")
            lines: list[str] = []
            try:
                with native_lines() as lines:
                    self._program = _open(self.path, self.data_path, self.method)
            except RuntimeError as error:
                raise ExportError(self._refusal(error, lines)) from error
            tell(lines)
        return self._program

    def _refusal(self, error: Exception, lines: list[str]) -> str:
        told = "; ".join(unknown(lines)) or "it gives no reason"
        return (
            f"{self.path} cannot be loaded by the ExecuTorch runtime on this machine ({error}: {told}): export it"
            " again, or run it where its backend is available"
        )

    def _expected(self) -> str:
        return ", ".join(f"{spec.shape_text()} {dtype_name(spec.dtype)}" for spec in self.inputs) or "no input"


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
        TypeError: it is no whole number.
        ExportError: ExecuTorch does not take this number.
    """
    check_whole("threads", threads, 1)
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
