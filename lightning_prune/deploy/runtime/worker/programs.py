"""Loaded programs: run, timed, kept until they are forgotten."""

import importlib
import os
import time
from collections.abc import Callable, Sequence
from types import ModuleType

from torch import Tensor

from lightning_prune.deploy.runtime.worker.pte_file import RefusedError, read, without_export_side

Run = Callable[[Sequence[Tensor]], Sequence[object]]
Key = tuple[str, str, str | None, int | None, int, int]


class Programs:
    """Programs by file, method and thread count; a file that changed is loaded again."""

    def __init__(self) -> None:
        self._loaded: dict[Key, Run] = {}
        self._threads = self._usual = 0

    def run(
        self, path: str, method: str, data: str | None, threads: int | None, inputs: Sequence[Tensor]
    ) -> list[object]:
        """Return what a method gives.

        Args:
            path: of the .pte.
            method: name of the method in it.
            data: path of its external weights, if any.
            threads: of the ExecuTorch runtime; None: as many as it takes by itself.
            inputs: contiguous tensors that it takes.
        """
        run = self._program(path, method, data, threads)
        try:
            return list(run(inputs))
        except RuntimeError as error:
            raise RefusedError(f"it fails in the ExecuTorch runtime: {error}") from error

    def turn(
        self, path: str, method: str, data: str | None, threads: int | None, inputs: Sequence[Tensor], runs: int
    ) -> list[float]:
        """Return the seconds of each of some runs, after one that is not counted."""
        run = self._program(path, method, data, threads)
        self.run(path, method, data, threads, inputs)
        seconds = []
        for _ in range(runs):
            start = time.perf_counter()
            run(inputs)
            seconds.append(time.perf_counter() - start)
        return seconds

    def forget(self) -> None:
        """Let go of all programs."""
        self._loaded.clear()

    def _program(self, path: str, method: str, data: str | None, threads: int | None) -> Run:
        native = _native()
        self._use(native, threads)
        about = os.stat(path)
        key = (path, method, data, threads, about.st_size, about.st_mtime_ns)
        if key not in self._loaded:
            try:
                self._loaded[key] = _load(native, path, method, data)
            except RuntimeError as error:
                raise RefusedError(_reason(native, path, str(error))) from error
        return self._loaded[key]

    def _use(self, native: ModuleType, threads: int | None) -> None:
        self._usual = self._usual or native._threadpool_get_thread_count()
        threads = self._usual if threads is None else threads
        if threads == self._threads:
            return
        self.forget()  # a loaded method keeps a pointer into the old pool
        if native._threadpool_get_thread_count() != threads:
            native._unsafe_reset_threadpool(threads)
        got = native._threadpool_get_thread_count()
        if got != threads:
            raise RefusedError(f"ExecuTorch runs on {got} threads where {threads} were asked for: pass threads={got}")
        self._threads = threads


def _native() -> ModuleType:
    without_export_side()
    from executorch.extension.pybindings import portable_lib

    importlib.import_module("executorch.kernels.quantized")  # registers the kernels of integers that no delegate takes
    return portable_lib


def _reason(native: ModuleType, path: str, error: str) -> str:
    needed = {delegate.id for plan in read(path).program.execution_plan for delegate in plan.delegates}
    if missing := sorted(needed.difference(native._get_registered_backend_names())):
        return f"it is made for {', '.join(missing)}, which the runtime on this machine has not: run it on its device"
    return f"the ExecuTorch runtime refuses it ({error}): it is damaged, or made for another version"


def _load(native: ModuleType, path: str, method: str, data: str | None) -> Run:
    check = native.Verification.InternalConsistency
    if data is not None:
        module = native._load_for_executorch(path, data, program_verification=check)
        return lambda inputs: module.run_method(method, inputs)
    program = native._load_program(path, program_verification=check)
    loaded = program.load_method(method)
    return lambda inputs, _program=program: loaded(inputs)
