"""Latency tables, measured: the cells of a network at several widths in the ExecuTorch runtime of this machine."""

import hashlib
import importlib.metadata
import math
import platform
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lightning_prune.compaction import Compaction, compact
from lightning_prune.deploy.backends import XNNPACK, Backend, Portable
from lightning_prune.deploy.backends.base import check_backend
from lightning_prune.deploy.clock import in_turns, least_of
from lightning_prune.deploy.executorch.lowering import graph_of, lower, save
from lightning_prune.deploy.executorch.quick import quick
from lightning_prune.deploy.executorch.quiet import require_executorch
from lightning_prune.deploy.program.arguments import check_model
from lightning_prune.deploy.program.cells import Piece, cells_of
from lightning_prune.deploy.program.eager import EagerModel, eager_outputs, example_tensors, folded_copy, isolated
from lightning_prune.deploy.program.signature import dtype_name
from lightning_prune.deploy.runtime.child import CHILD
from lightning_prune.deploy.runtime.turns import interquartile_range
from lightning_prune.errors import ExportError
from lightning_prune.model.plain_copy import plain_copy
from lightning_prune.run.binding import units_of
from lightning_prune.selection.cells import Cell, Kernel, Point
from lightning_prune.selection.channels import ChannelUnits
from lightning_prune.selection.granularity import Channel
from lightning_prune.selection.latency import Anchor, CellCost, LatencyTable, Network
from lightning_prune.selection.targets import Targets
from lightning_prune.values import check_bool, check_whole

_DEFAULT_BACKEND = XNNPACK()
_BORDER = "border"
"""Key of the cell that does nothing: what a call takes, and the copy of its inputs."""
_TOGETHER = 16
"""Programs in a file: as many as are lost when the process is killed."""
_NARROWEST = 8
"""Divides all widths in the narrow network."""
_SMALLEST_SHARE = 0.05
"""Of what was measured, that is left at least when the border is taken off."""


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
    cells of one kind that differ in widths alone share their points. Many are lowered into one file and timed in turns.
    What a call takes by itself is taken off. Two whole programs, dense and narrow, tie the sum of the cells to the
    clock.

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
    check_model(model)
    check_whole("threads", threads, 1)
    check_backend(backend)
    if not isinstance(granularity, Channel):
        raise TypeError(f"granularity: got {granularity!r:.60}, must be a value such as Channel()")
    check_bool("progress", progress)
    check_whole("rounds", rounds, 10, why=": of fewer there is no lower tenth")
    check_whole("points", points, 3, why=": a cell has a constant, and changes with two widths")
    if not backend.runs_here:
        raise ExportError(f"{backend} does not run on this machine, so nothing can be measured for it here")
    with isolated(), TemporaryDirectory() as folder, CHILD.releasing():
        bench = Bench(backend, threads, rounds, Path(folder))
        table = bench.table(None if path is None else Path(path))
        inputs = example_tensors(model, example_inputs)
        whole = folded_copy(model)
        eager_outputs(EagerModel(whole), inputs)
        units = cast(ChannelUnits, units_of(granularity, Targets(), whole, inputs))
        least = {name: -(-size // _NARROWEST) for name, size in units.sizes.items()}
        drawn = random.Random(0)  # the same at each call
        designs = [{}, least]  # dense, narrow
        for _ in range(points - 2):
            designs.append({name: drawn.randint(least[name], size) for name, size in units.sizes.items()})
        copies = [plain_copy(whole) for _ in designs]
        for copied, widths in zip(copies, designs, strict=True):
            keep = {name: range(width) for name, width in widths.items()}
            compact(copied, Compaction.from_keep(units.found, keep))
        cut = [cells_of(copied, inputs, fold=not isinstance(backend, Portable)) for copied in copies]
        kinds = _kinds(type(model).__name__, cut)
        wanted = _wanted(kinds, table, points)
        with tqdm(total=len(wanted) + 2, desc="cells", disable=None if progress else True) as bar:
            for start in range(0, len(wanted), _TOGETHER):
                some = wanted[start : start + _TOGETHER]
                table = bench.grown(table, some)
                if path is not None:
                    table.save(path)
                bar.update(len(some))
            shapes = [(tuple(x.shape), x.dtype) for x in inputs]
            times = bench.times([Program(copied, shapes, False) for copied in copies[:2]])
            bar.update(2)
        anchors = [
            Anchor(tuple(piece.widths for piece in cut[i]), least_of(own), interquartile_range(own))
            for i, own in enumerate(times)
        ]
        tensors = whole.state_dict()
        network = Network(
            type(model).__name__,
            {name: tuple(tensors[name].shape) for piece in cut[0] for name, *_ in piece.weights},
            tuple((key, piece.weights) for (key, _), piece in zip(kinds, cut[0], strict=True)),
            (anchors[0], anchors[1]),
        )
        cost = CellCost(table, network, units)
        saved = {
            name: max(cost.total - cost.left({name: size // 2}), 1e-9 * cost.total) / (size // 2)
            for name, size in units.sizes.items()
        }
    table = table.merged(replace(table, networks=(network,), channels=saved))
    if path is not None:
        table.save(path)
    return table


def device() -> str:
    """Return what this machine calls its processor."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _kinds(name: str, cut: Sequence[Sequence[Piece]]) -> list[tuple[str, list[Piece]]]:
    """Return for each cell of the network the key of its kind, and the cell in each of the copies.

    A kind is what is said of a cell with all numbers blank that differ between the copies.
    """
    kinds = []
    if len({len(pieces) for pieces in cut}) > 1:
        raise ExportError(f"the operators of {name} change with the widths, so its cells cannot be compared")
    for pieces in map(list, zip(*cut, strict=True)):
        if len({len(piece.tokens) for piece in pieces}) > 1:
            raise ExportError(f"the operators of {name} change with the widths, so its cells cannot be compared")
        same = [own[0] if len(set(own)) == 1 else "*" for own in zip(*(p.tokens for p in pieces), strict=True)]
        made = same[max(i for i, token in enumerate(same) if token.startswith("torch.")) + 1 : -1]
        label = f"{pieces[0].label} to {'×'.join(made)}"
        text = " ".join((*same, str(pieces[0].kernels)))
        kinds.append((f"{label} #{hashlib.sha256(text.encode()).hexdigest()[:10]}", pieces))
    return kinds


def _wanted(kinds: Sequence[tuple[str, list[Piece]]], table: LatencyTable, points: int) -> list[tuple[str, Piece]]:
    """Return the cells to be measured, without those that are known.

    Of each kind they are the widest, the narrowest, and those that lie furthest from all others.
    """
    by_kind: dict[str, dict[tuple[tuple[int, int], ...], Piece]] = {}
    for key, pieces in kinds:
        for piece in pieces:
            by_kind.setdefault(key, {}).setdefault(piece.widths, piece)
    wanted = []
    for key, own in by_kind.items():
        places = {widths: np.log2(np.array(widths, float).flatten() + 1e-9) for widths in own}
        known = table.cells[key].points if key in table.cells else ()
        places |= {point.widths: np.log2(np.array(point.widths, float).flatten() + 1e-9) for point in known}
        chosen = [point.widths for point in known]
        for extreme in (max, min):
            widths = extreme(own, key=lambda widths: places[widths].sum())
            chosen += [widths] if widths not in chosen else []
        while len(chosen) < points and (left := [widths for widths in own if widths not in chosen]):
            distance = {w: min(np.linalg.norm(places[w] - places[other]) for other in chosen) for w in left}
            chosen.append(max(left, key=distance.__getitem__))
        wanted += [(key, own[widths]) for widths in chosen[len(known) :]]
    return wanted


class _Border(nn.Module):
    """Does next to nothing with what it takes."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu()


@dataclass(frozen=True)
class Program:
    """What is lowered as a method.

    Args:
        module: runs it.
        inputs: shapes and dtypes.
        is_last: whether channels come last in those of four axes.
    """

    module: nn.Module
    inputs: Sequence[tuple[tuple[int, ...], torch.dtype]]
    is_last: bool

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Inputs, drawn."""
        drawn = [
            torch.randn(shape).to(dtype) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype)
            for shape, dtype in self.inputs
        ]
        return tuple(x.to(memory_format=torch.channels_last) if self.is_last and x.dim() == 4 else x for x in drawn)


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
            runtime=f"executorch {importlib.metadata.version('executorch')}",
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

    def grown(self, table: LatencyTable, pieces: Sequence[tuple[str, Piece]]) -> LatencyTable:
        """Return the table with what cells take, less what a call of each takes by itself."""
        cells = dict(table.cells)
        if _BORDER not in cells:
            cells[_BORDER] = self.border([piece for _, piece in pieces])
        border = cells[_BORDER].fitted({"point": (1, 1)})[0]
        for (key, piece), own in zip(pieces, self.cells([piece for _, piece in pieces]), strict=True):
            # the border moves what it takes in and out, a cell what it takes in
            call = border[0] + border[2] / 2 * sum(math.prod(shape) for shape, _ in piece.inputs)
            taken = max(least_of(own) - call, _SMALLEST_SHARE * least_of(own))
            cell = cells.get(key) or Cell(key.partition(" #")[0], piece.kernels, ())
            point = Point(piece.widths, taken, interquartile_range(own))
            cells[key] = replace(cell, points=(*cell.points, point))
        return replace(table, cells=cells)

    def times(self, programs: Sequence[Program]) -> list[list[float]]:
        """Return the milliseconds of each round for each program.

        Raises:
            ExportError: one cannot be traced, lowered or run, or the clock is too coarse.
        """
        path = self.folder / "cells.pte"
        graphs = {
            f"m{number}": graph_of(EagerModel(each.module), each.tensors, self.backend).program
            for number, each in enumerate(programs)
        }
        with quick(graphs.values()):
            save(lower(graphs, self.backend), path)
        asked = [
            {
                "path": str(path),
                "method": name,
                "inputs": [
                    [list(shape), dtype_name(dtype), each.is_last and len(shape) == 4] for shape, dtype in each.inputs
                ],
            }
            for name, each in zip(graphs, programs, strict=True)
        ]
        times, failed = in_turns(path, asked, threads=self.threads, rounds=self.rounds)
        if failed:
            again = [replace(programs[number], is_last=False) for number in failed]
            # portable kernels, such as that of a maximum, may not take channels last: the delegate turns them for it
            if not any(programs[number].is_last for number in failed):
                raise ExportError(f"a cell fails in the ExecuTorch runtime: {next(iter(failed.values()))}")
            for number, own in zip(failed, self.times(again), strict=True):
                times[number] = own
        return times

    def cells(self, pieces: Sequence[Piece]) -> list[list[float]]:
        """Return the milliseconds of each round for each cell; inside of a delegate channels come last."""
        is_last = self.backend.name == "xnnpack"
        return self.times([Program(each.module, each.inputs, is_last and each.is_inner) for each in pieces])

    def border(self, pieces: Sequence[Piece]) -> Cell:
        """Return a cell that does nothing, at the numbers of elements that cells take."""
        sizes = sorted(
            {math.prod(shape) for piece in pieces for shape, dtype in piece.inputs if dtype.is_floating_point} or {64}
        )
        sizes = sorted({sizes[0], sizes[len(sizes) // 2], sizes[-1]})
        times = self.times([Program(_Border(), [((1, size), torch.float32)], False) for size in sizes])
        points = [
            Point(((0, size),), least_of(own), interquartile_range(own)) for size, own in zip(sizes, times, strict=True)
        ]
        return Cell("a call", (Kernel("point", 0.0, 1.0, 0.0),), tuple(points))
