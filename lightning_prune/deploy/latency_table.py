"""Latency tables, measured: the cells of a network at several widths in the ExecuTorch runtime of this machine."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
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
    Design,
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
from lightning_prune.documents import check_file, scratch
from lightning_prune.errors import ExportError
from lightning_prune.selection.granularity import Channel
from lightning_prune.selection.latency import LatencyTable
from lightning_prune.values import check_bool, check_whole

_DEFAULT_BACKEND = XNNPACK()


def latency_table(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
    *,
    backend: Backend = _DEFAULT_BACKEND,
    path: str | Path | None = None,
    threads: int = 1,
    rounds: int = 30,
    points: int = 6,
    granularity: Channel = Channel(),  # noqa: B008 - frozen
    progress: bool = True,
) -> LatencyTable:
    """Measure what the cells of a model take in the ExecuTorch runtime on this machine, at several widths.

    Copies of the model at several widths are traced and cut into cells, a kernel with what is fused to it; cells of one
    kind that differ in widths alone share their points. They are lowered, those of a copy into one file, and then all
    timed in turns, those of a copy in their order, beside up to four whole programs, which tie the sum of the cells to
    the clock. What a call takes by itself is taken off.

    Args:
        model: what will be pruned; left as it is. Weights do not matter, widths do.
        example_inputs: a tensor or a tuple of tensors; None: the model's ``example_input_array``.
        backend: where the program will run; it has to run on this machine too.
        path: of a file that the table is written to while it grows; what it holds already is not measured again, so
            that a call that was killed goes on, and the table of one model helps the next.
        threads: of the ExecuTorch runtime. On one the clock is the processor time of the thread, otherwise the wall's.
        rounds: of turns, of each of which some numbers come; the lower tenth of all of them counts. At least 10; fewer,
            where they would take more than half a minute.
        points: copies, and so widths at which a cell is measured; the first four are measured as a whole, too.
        granularity: the recipe's: which channel groups go.
        progress: whether a bar shows on a terminal.

    Returns:
        the table.

    Raises:
        TypeError: an argument is of another type.
        ValueError: fewer than 10 rounds or 3 points, nothing to prune, or the file at ``path`` was measured otherwise.
        ExportError: the model or a cell cannot be run, traced or lowered, the backend does not run here, or the clock
            is too coarse.
        OSError: no file can be written at ``path``.
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
    if path is not None and not isinstance(path, str | Path):
        raise TypeError(f"path must name a file, got {path!r:.60}")
    if not backend.runs_here:
        raise ExportError(f"{backend} does not run on this machine, so nothing can be measured for it here")
    file = None if path is None else Path(path)
    with isolated(), scratch() as folder, CHILD.releasing():
        bench = Bench(backend, threads, rounds, folder)
        table = bench.table(file)
        design = designed(model, example_inputs, backend, points, granularity)
        table, wholes = bench.measured(table, design, file, progress)
        network = design.network(wholes)
        cost = table.cost_of(network, design.units)
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
        if path is not None:
            check_file(path)
        if path is None or not path.exists():
            return new
        known = LatencyTable.load(path)
        try:
            return replace(known.merged(new), rounds=self.rounds)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; name another file") from error

    def measured(
        self, table: LatencyTable, design: Design, path: Path | None, progress: bool
    ) -> tuple[LatencyTable, list[list[float]]]:
        """Return the table with what cells take, less what a call takes by itself, and the times of whole programs.

        All of them have their turns in one session: what a machine does at a time changes what layers take by a fifth,
        and of two sessions no ratio can be told.

        Args:
            table: what is known.
            design: what is to be known.
            path: of the file; what the cells of a copy take by themselves is kept in it until then, for a call that is
                killed.
            progress: whether a bar shows on a terminal.
        """
        turns = [own for own in design.turns(table) if own]
        sizes = [] if BORDER in table.cells else border_sizes([piece for own in turns for _, piece in own])
        border = [[each] for each in self.lowered([border_program(size) for size in sizes])] if sizes else []
        grown, asked, programs = table, list[list[dict[str, Any]]](), dict[object, dict[str, Any]]()
        new = [dict.fromkeys((key, piece.widths) for key, piece in own) for own in turns]
        total = len(set().union(*new)) + len(design.wholes)
        with tqdm(total=total, desc="cells", disable=None if progress else True) as bar:
            for own in turns:
                wanted = {(key, piece.widths): piece for key, piece in own if (key, piece.widths) not in programs}
                if wanted:
                    lowered = self.lowered([cell_program(piece, self.backend) for piece in wanted.values()])
                    programs |= dict(zip(wanted, lowered, strict=True))
                asked.append([programs[key, piece.widths] for key, piece in own])
                if path is not None and wanted:
                    early = border if grown is table else []
                    told = self.timed([*early, asked[-1]], FEWEST)
                    grown = _grown(grown, sizes if early else [], [own], told)
                    grown.save(path)
                bar.update(len(wanted))
            wholes = [self.lowered([whole]) for whole in design.wholes]
            bar.update(len(wholes))
        times = self.timed([*border, *asked, *wholes], self.rounds)
        table = _grown(table, sizes, turns, times[: -len(wholes)])
        return table, [own for (own,) in times[-len(wholes) :]]

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
        _, failed = in_turns(path, [[each] for each in asked], threads=self.threads, rounds=0)
        if failed:
            again = [replace(programs[number], is_last=False) for number, _ in failed]
            # portable kernels, such as that of a maximum, may not take channels last: the delegate turns them for it
            if not any(programs[number].is_last for number, _ in failed):
                raise ExportError(f"a cell fails in the ExecuTorch runtime: {next(iter(failed.values()))}")
            for (number, _), own in zip(failed, self.lowered(again), strict=True):
                asked[number] = own
        return asked

    def timed(self, turns: Sequence[Sequence[Mapping[str, Any]]], rounds: int) -> list[list[list[float]]]:
        """Return milliseconds of each program of each turn, all of which were lowered.

        Raises:
            ExportError: one cannot be run.
        """
        times, failed = in_turns(Path(turns[0][0]["path"]), turns, threads=self.threads, rounds=rounds)
        if failed:
            raise ExportError(f"a cell fails in the ExecuTorch runtime: {next(iter(failed.values()))}")
        return times


def _grown(
    table: LatencyTable,
    sizes: Sequence[int],
    turns: Sequence[Sequence[tuple[str, Piece]]],
    times: Sequence[Sequence[Sequence[float]]],
) -> LatencyTable:
    """Return a table with times of programs that do nothing, of some sizes, and of the cells of some copies."""
    border = {BORDER: border_of(sizes, [own for (own,) in times[: len(sizes)]])} if sizes else {}
    measured = [
        Measured.of(key, piece, told)
        for own, each in zip(turns, times[len(sizes) :], strict=True)
        for (key, piece), told in zip(own, each, strict=True)
    ]
    return replace(table, cells=with_points({**table.cells, **border}, measured))
