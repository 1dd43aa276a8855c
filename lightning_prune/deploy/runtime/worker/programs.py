"""Loaded programs: run, timed, kept until they are released."""

import math
import os
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_prune.deploy.executorch import native
from lightning_prune.deploy.executorch.pte_file import RefusedError, read
from lightning_prune.distributed.memory import limited

Place = Mapping[str, Any]
"""What the caller wants run: its ``number`` for it, ``path``, ``method``, ``data`` (path of external weights, or None),
``threads`` (None: as many as the runtime takes by itself), ``room`` (bytes that it may take beyond the runtime)."""


_TOO_LARGE = "it may take {:,}, or eight times its size: where that is too little, pass memory= with more bytes"


class Programs:
    """Programs by their number; one whose file changed is loaded again."""

    def __init__(self) -> None:
        self._loaded: dict[int, tuple[object, native.RuntimeMethod]] = {}
        self._threads = self._usual = 0

    def load(self, place: Place) -> dict[str, object]:
        """Load a method, where it is not, and return what it takes and gives, and the file's methods."""
        loaded = self._program(**place)
        return {"inputs": loaded.inputs, "outputs": loaded.outputs, "methods": loaded.methods}

    def run(self, place: Place, inputs: Sequence[Tensor] = (), goes_on: bool = False) -> list[object]:
        """Return what a method gives for contiguous tensors that it takes.

        Args:
            place: of the method.
            inputs: the tensors.
            goes_on: whether it must not be loaded anew, since it goes on from the call before.
        """
        loaded = self._program(**place, goes_on=goes_on)
        try:
            with limited(place["room"]):
                return list(loaded.run(inputs))
        except MemoryError as error:
            raise RefusedError(_TOO_LARGE.format(place["room"])) from error
        except RuntimeError as error:
            raise RefusedError(f"it fails in the ExecuTorch runtime: {error}") from error

    def turn(self, place: Place, runs: int, inputs: Sequence[Tensor] = ()) -> list[float]:
        """Return the seconds of each of some runs, after one that is not counted."""
        self.run(place, inputs)
        run = self._program(**place).run
        seconds = []
        with limited(place["room"]):
            for _ in range(runs):
                start = time.perf_counter()
                run(inputs)
                seconds.append(time.perf_counter() - start)
        return seconds

    def rounds(
        self, programs: Sequence[Mapping[str, Any]], threads: int, rounds: int, seconds: float
    ) -> dict[str, object]:
        """Measure methods in turns: in each round every one, beginning one further than the round before.

        Of two runs in a row the second counts, whose weights and code lie in the caches where they fit. On one thread
        the clock is the processor time of that thread, which what else runs on the machine does not lengthen.

        Args:
            programs: for each its ``path``, ``method`` and ``inputs``: shape, dtype, whether channels come last.
            threads: of the runtime.
            rounds: how many; fewer, five at least, where they would take longer than the seconds.
            seconds: see there.

        Returns:
            ``nanoseconds``, a list over the rounds for each method, the ``tick`` of the clock, and the number of each
            method that ``failed`` -> why; it has no times.
        """
        self._use(threads)
        clock = time.thread_time_ns if threads == 1 else time.perf_counter_ns
        ticks = []
        for _ in range(5):
            first = last = clock()
            while last == first:
                last = clock()
            ticks.append(last - first)
        methods = []
        generator = torch.Generator().manual_seed(0)
        for program in programs:
            inputs = []
            for shape, dtype, is_last in program["inputs"]:
                kind = getattr(torch, dtype)
                x = torch.randn(shape, generator=generator) if kind.is_floating_point else torch.zeros(shape)
                inputs.append(x.to(kind).to(memory_format=torch.channels_last if is_last else torch.contiguous_format))
            methods.append((native.load(program["path"], program["method"], None, clone=False).run, inputs))
        counts, failed = dict[int, int](), dict[str, str]()
        for number, (run, inputs) in enumerate(methods):
            try:
                run(inputs)
            except RuntimeError as error:
                failed[str(number)] = str(error)
                continue
            begin = time.perf_counter_ns()
            run(inputs)
            counts[number] = max(1, math.ceil(20 * min(ticks) / max(1, time.perf_counter_ns() - begin)))
        times: list[list[float]] = [[] for _ in methods]
        begin, order = time.perf_counter(), list(counts)
        for number in range(rounds if order else 0):
            if number >= 5 and time.perf_counter() - begin > seconds:
                break
            first = number % len(order)
            for place in (*order[first:], *order[:first]):
                run, inputs = methods[place]
                run(inputs)
                start = clock()
                for _ in range(counts[place]):
                    run(inputs)
                times[place].append((clock() - start) / counts[place])
        return {"nanoseconds": times, "tick": min(ticks), "failed": failed}

    def release(self, numbers: Collection[int]) -> None:
        """Let go of programs."""
        for number in numbers:
            self._loaded.pop(number, None)

    def _program(
        self,
        number: int,
        path: str,
        method: str,
        data: str | None,
        threads: int | None,
        room: int,
        goes_on: bool = False,
    ) -> native.RuntimeMethod:
        self._use(threads)
        about = os.stat(path)
        version = (path, method, data, about.st_size, about.st_mtime_ns)
        if number not in self._loaded or self._loaded[number][0] != version:
            if goes_on:
                raise RefusedError(
                    "what it kept from call to call is gone, since the file, the number of threads or the process"
                    " is another one than at the call before: begin anew with reset()"
                )
            try:
                with limited(room):
                    self._loaded[number] = version, native.load(path, method, data)
            except (RuntimeError, MemoryError) as error:
                plans = read(path).program.execution_plan
                planned = max((sum(plan.non_const_buffer_sizes) for plan in plans if plan.name == method), default=0)
                if planned > room or isinstance(error, MemoryError):
                    raise RefusedError(f"it plans {planned:,} bytes, and {_TOO_LARGE.format(room)}") from error
                needed = {delegate.id for plan in plans for delegate in plan.delegates}
                missing = sorted(needed.difference(native.backends()))
                raise RefusedError(
                    f"it is made for {', '.join(missing)}, which the runtime on this machine has not: run it on its"
                    " device"
                    if missing
                    else f"the ExecuTorch runtime refuses it ({error}): it is damaged, or made for another version"
                ) from error
        return self._loaded[number][1]

    def _use(self, threads: int | None) -> None:
        self._usual = self._usual or native.threads()
        threads = self._usual if threads is None else threads
        if threads == self._threads:
            return
        self._loaded.clear()  # a loaded method keeps a pointer into the old pool: calling it again crashes or hangs
        if native.threads() != threads:
            native.set_threads(threads)
        if (got := native.threads()) != threads:
            raise RefusedError(f"ExecuTorch runs on {got} threads where {threads} were asked for: pass threads={got}")
        self._threads = threads
