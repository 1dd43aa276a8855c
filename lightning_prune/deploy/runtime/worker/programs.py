"""Loaded programs: run, timed, kept until they are released."""

import itertools
import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_prune.deploy.executorch import native
from lightning_prune.deploy.executorch.pte_file import RefusedError, read
from lightning_prune.distributed.memory import limited

Place = Mapping[str, Any]
"""What the caller wants run: its ``number`` for it, ``path``, ``method``, ``data`` (path of external weights, or None),
``threads`` (None: as many as the runtime takes by itself), ``room`` (bytes that it may take beyond the runtime)."""


_SETTLING, _MEASURED = 8, 4
"""Runs of a turn that do not count, and that do: `python -m benchmarks.settling` found 12.6, 11.7 and 10.6 ms at the
first, second and sixth run of a network of 45 MB and 10.2 in the end; 4.9, 4.3, 2.8 and 2.7 ms of one of 15 MB."""
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
        self, programs: Sequence[Mapping[str, Any]], threads: int, rounds: int, seconds: float, least: float = 0.0
    ) -> dict[str, object]:
        """Measure methods in turns: in each round every turn, beginning one further than the round before.

        A turn is a program, or the cells of one in their order: then each meets caches that the others filled, as it
        does inside of the whole, and takes what lies where the one before wrote. A turn is run until its time
        settles, then measured; on one thread the clock is the processor time of that thread, which what else runs on
        the machine does not lengthen.

        Args:
            programs: for each its ``path``, ``method``, ``inputs``: shape, dtype, whether channels come last, and the
                number of its ``turn``; those of one turn run in order.
            threads: of the runtime.
            rounds: how many; fewer, two at least, where they would take longer than the seconds. 0: each is run once,
                to see whether it fails.
            seconds: see there.
            least: seconds that they go on for, whatever their number.

        Returns:
            ``nanoseconds``, a list for each method, with a few numbers of each round, the ``tick`` of the clock, and
            the number of each method that ``failed`` -> why; it has no times.
        """
        self._use(threads)
        clock = time.thread_time_ns if threads == 1 else time.perf_counter_ns
        ticks = []
        for _ in range(5):
            first = last = clock()
            while last == first:
                last = clock()
            ticks.append(last - first)
        methods, failed, turns = dict[int, Callable[[], object]](), dict[str, str](), dict[int, list[int]]()
        for number, (program, inputs) in enumerate(zip(programs, _drawn(programs), strict=True)):
            try:
                loaded = native.load(program["path"], program["method"], None, clone=False)
                methods[number] = partial(loaded.run, inputs)
                methods[number]()
                turns.setdefault(program["turn"], []).append(number)
            except RuntimeError as error:
                failed[str(number)] = str(error)
        order, counts = list(turns.values()), [1] * len(programs)
        for number in (number for own in order for number in own if rounds):
            begin = time.perf_counter_ns()
            methods[number]()
            counts[number] = max(1, math.ceil(20 * min(ticks) / max(1, time.perf_counter_ns() - begin)))
        times: list[list[float]] = [[] for _ in programs]
        begin = time.perf_counter()
        for number in itertools.count() if order and rounds else ():
            spent = time.perf_counter() - begin
            if number >= (2 if spent > seconds else rounds) and spent >= least:
                break
            first = number % len(order)
            for own in (*order[first:], *order[:first]):
                for again in range(_SETTLING + _MEASURED):
                    for place in own:
                        run, count = methods[place], counts[place]
                        start = clock()
                        for _ in range(count):
                            run()
                        if again >= _SETTLING:
                            times[place].append((clock() - start) / count)
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


def _drawn(programs: Sequence[Mapping[str, Any]]) -> Iterator[list[Tensor]]:
    """Yield what each program takes, all of it in one place: inside of a network a layer takes what was just written.

    Floats are random numbers, integers zeros.
    """
    told = [each for program in programs for each in program["inputs"]]
    pool = torch.randn(
        max((math.prod(shape) for shape, _, _ in told), default=1), generator=torch.Generator().manual_seed(0)
    )
    pools = {name: pool.to(getattr(torch, name)) for name in {name for _, name, _ in told}}
    for own in (own for own in pools.values() if not own.dtype.is_floating_point):
        own.zero_()
    for program in programs:
        taken = []
        for shape, name, is_last in program["inputs"]:
            own = pools[name][: math.prod(shape)]
            taken.append(own.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1) if is_last else own.view(shape))
        yield taken
