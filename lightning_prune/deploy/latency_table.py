"""Latency tables, measured: the cells of a network at several widths in the ExecuTorch runtime of this machine."""

import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from tqdm.auto import tqdm

from lightning_prune.deploy.backends import XNNPACK, Backend
from lightning_prune.deploy.clock import FEWEST, in_turns
from lightning_prune.deploy.designs import (
    BORDER,
    Measured,
    Program,
    border_of,
    border_program,
    border_sizes,
    cell_program,
    check_design,
    designed,
    with_points,
    written,
)
from lightning_prune.deploy.executorch.quiet import require_executorch
from lightning_prune.deploy.program.cells import Piece
from lightning_prune.deploy.program.eager import isolated
from lightning_prune.deploy.runtime.child import CHILD
from lightning_prune.documents import scratch
from lightning_prune.errors import ExportError
from lightning_prune.selection.granularity import Channel
from lightning_prune.selection.latency import CellCost, LatencyTable
from lightning_prune.values import check_bool, check_whole

_DEFAULT_BACKEND = XNNPACK()
_TOGETHER = 16
"""Programs in a file: as many as are lost when the process is killed."""
_FEW = 10
"""Rounds for what is kept until all programs have their turns together."""


def latency_table(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
    *,
    backend: Backend = _DEFAULT_BACKEND,
    path: str | Path | None = None,
    threads: int = 1,
    rounds: int = 100,
    points: int = 7,
    granularity: Channel = Channel(),  # noqa: B008 - frozen
    progress: bool = True,
) -> LatencyTable:
    """Measure what the cells of a model take in the ExecuTorch runtime on this machine, at several widths.

    Copies of the model at widths drawn at random are traced and cut into cells, a kernel with what is fused to it;
    cells of one kind that differ in widths alone share their points. They are lowered, many into one file, and then all
    timed in turns, beside two whole programs, dense and narrow, which tie the sum of the cells to the clock. What a
    call takes by itself is taken off.

    Args:
        model: what will be pruned; left as it is. Weights do not matter, widths do.
        example_inputs: a tensor or a tuple of tensors; None: the model's ``example_input_array``.
        backend: where the program will run; it has to run on this machine too.
        path: of a file that the table is written to while it grows; what it holds already is not measured again, so
            that a call that was killed goes on, and the table of one model helps the next.
        threads: of the ExecuTorch runtime. On one the clock is the processor time of the thread, otherwise the wall's.
        rounds: how many measurements each number is the lower tenth of, at least 10.
        points: widths at which a cell is measured, at most.
        granularity: the recipe's: which channel groups go.
        progress: whether a bar shows on a terminal.

    Returns:
        the table.

    Raises:
        TypeError: an argument is of another type.
        ValueError: fewer than 10 rounds or 3 points, nothing to prune, or the file at ``path`` was measured otherwise.
        ExportError: the model or a cell cannot be run, traced or lowered, the backend does not run here, or the clock
            is too coarse.
        ImportError: ExecuTorch is not installed.

    Example:
        >>> image = torch.zeros(1, 3, 96, 96)  # doctest: +SKIP
        >>> table = latency_table(model, image, path="pixel.json")  # doctest: +SKIP
        >>> Recipe(..., need=Latency(ms=8.0, table=table))  # doctest: +SKIP
    """
    require_executorch()
    check_design(model, backend, points, granularity)
    check_whole("threads", threads, 1)
    check_bool("progress", progress)
    check_whole("rounds", rounds, FEWEST, why=": of fewer there is no lower tenth")
    if not backend.runs_here:
        raise ExportError(f"{backend} does not run on this machine, so nothing can be measured for it here")
    file = None if path is None else Path(path)
    with isolated(), scratch() as folder, CHILD.releasing():
        bench = Bench(backend, threads, rounds, folder)
        table = bench.table(file)
        design = designed(model, example_inputs, backend, points, granularity)
        wanted = design.wanted(table, points)
        with tqdm(total=len(wanted) + 2, desc="cells", disable=None if progress else True) as bar:
            table, wholes = bench.measured(table, wanted, design.wholes, file, bar.update)
        network = design.network(wholes)
        cost = CellCost(table, network, design.units)
        saved = {
            name: max(cost.total - cost.left({name: size // 2}), 1e-9 * cost.total) / (size // 2)
            for name, size in design.units.sizes.items()
        }
    table = table.merged(replace(table, networks=(network,), channels=saved))
    if file is not None:
        table.save(file)
    return table


def device() -> str:
    """Return what this machine calls its processor."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def runtime() -> str:
    """Return the name and version of the runtime of this machine."""
    return f"executorch {importlib.metadata.version('executorch')}"


@dataclass(frozen=True)
class Bench:
    """Lowers programs and times them in turns.

    Args:
        backend: where they run.
        threads: of the runtime.
        rounds: of turns.
        folder: for the files.
    """

    backend: Backend
    threads: int
    rounds: int
    folder: Path

    def table(self, path: Path | None) -> LatencyTable:
        """Return an empty table, or what a file holds of one."""
        backend = self.backend
        quantization = "" if backend.quantization is None else f" {type(backend.quantization).__name__}"
        new = LatencyTable(
            device=device(),
            runtime=runtime(),
            backend=f"{backend.name}{quantization}",
            threads=self.threads,
            clock="thread" if self.threads == 1 else "wall",
            rounds=self.rounds,
        )
        if path is None or not path.exists():
            return new
        try:
            return replace(LatencyTable.load(path).merged(new), rounds=self.rounds)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; name another file") from error

    def measured(
        self,
        table: LatencyTable,
        wanted: Sequence[tuple[str, Piece]],
        wholes: Sequence[Program],
        path: Path | None,
        tell: Callable[[int], object],
    ) -> tuple[LatencyTable, list[list[float]]]:
        """Return the table with what cells take, less what a call takes by itself, and the times of whole programs.

        All of them have their turns in one session: what a machine does at a time, and what lies in its caches beside
        a program, change what layers take by a fifth, and of two sessions no ratio can be told.

        Args:
            table: what is known.
            wanted: cells that are not, with the keys of their kinds.
            wholes: whole programs.
            path: of the file; what cells take by themselves is kept in it until then, for a call that is killed.
            tell: is called with a number of programs that have been lowered.
        """
        sizes = [] if BORDER in table.cells or not wanted else border_sizes([piece for _, piece in wanted])
        asked, grown = self.lowered([border_program(size) for size in sizes]) if sizes else [], table
        for start in range(0, len(wanted), _TOGETHER):
            some = wanted[start : start + _TOGETHER]
            asked += self.lowered([cell_program(piece, self.backend) for _, piece in some])
            if path is not None:
                early = asked[: len(sizes)] if start == 0 else []
                times = self.timed([*early, *asked[-len(some) :]], _FEW)
                grown = _grown(grown, sizes if start == 0 else [], some, times)
                grown.save(path)
            tell(len(some))
        asked += self.lowered(wholes)
        tell(len(wholes))
        times = self.timed(asked, self.rounds)
        return _grown(table, sizes, wanted, times[: -len(wholes)]), times[-len(wholes) :]

    def lowered(self, programs: Sequence[Program]) -> list[dict[str, Any]]:
        """Lower programs into a file and return what :func:`~lightning_prune.deploy.clock.in_turns` takes.

        They are run once, if the backend runs here; those that fail with channels last go into another file without.

        Raises:
            ExportError: one cannot be traced, lowered or run, or the clock is too coarse.
        """
        path = self.folder / f"{len(list(self.folder.iterdir()))}.pte"
        asked = [{"path": str(path), **each} for each in written(programs, self.backend, path)]
        if not self.backend.runs_here:
            return asked
        _, failed = in_turns(path, asked, threads=self.threads, rounds=1)
        if failed:
            again = [replace(programs[number], is_last=False) for number in failed]
            # portable kernels, such as that of a maximum, may not take channels last: the delegate turns them for it
            if not any(programs[number].is_last for number in failed):
                raise ExportError(f"a cell fails in the ExecuTorch runtime: {next(iter(failed.values()))}")
            for number, own in zip(failed, self.lowered(again), strict=True):
                asked[number] = own
        return asked

    def timed(self, asked: Sequence[Mapping[str, Any]], rounds: int) -> list[list[float]]:
        """Return the milliseconds of each round for each program that was lowered.

        Raises:
            ExportError: one cannot be run.
        """
        times, failed = in_turns(Path(asked[0]["path"]), asked, threads=self.threads, rounds=rounds)
        if failed:
            raise ExportError(f"a cell fails in the ExecuTorch runtime: {next(iter(failed.values()))}")
        return times


def _grown(
    table: LatencyTable, sizes: Sequence[int], pieces: Sequence[tuple[str, Piece]], times: Sequence[Sequence[float]]
) -> LatencyTable:
    """Return a table with times of programs that do nothing, of some sizes, and of cells after them."""
    cells = {**table.cells, **({BORDER: border_of(sizes, times[: len(sizes)])} if sizes else {})}
    own = zip(pieces, times[len(sizes) :], strict=True)
    return replace(table, cells=with_points(cells, [Measured.of(key, piece, each) for (key, piece), each in own]))
