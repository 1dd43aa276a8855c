"""What is measured of a network: its cells at several widths, a call that does nothing, and two whole programs."""

import hashlib
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from lightning_prune.compaction import Compaction, compact
from lightning_prune.deploy.backends import Backend, Portable
from lightning_prune.deploy.backends.base import check_backend
from lightning_prune.deploy.clock import least_of
from lightning_prune.deploy.executorch.lowering import graph_of, lower, save
from lightning_prune.deploy.executorch.quick import quick
from lightning_prune.deploy.program.arguments import check_model
from lightning_prune.deploy.program.cells import Piece, cells_of
from lightning_prune.deploy.program.eager import EagerModel, eager_outputs, example_tensors, folded_copy
from lightning_prune.deploy.program.signature import dtype_name
from lightning_prune.deploy.quantization import Quantized
from lightning_prune.deploy.quantization.base import NothingToQuantizeError
from lightning_prune.deploy.quantization.layers import Layer
from lightning_prune.deploy.quantization.quantizers import Quantize
from lightning_prune.deploy.runtime.turns import interquartile_range
from lightning_prune.errors import ExportError
from lightning_prune.model.plain_copy import plain_copy
from lightning_prune.run.binding import units_of
from lightning_prune.selection.cells import Cell, Kernel, Point
from lightning_prune.selection.channels import ChannelUnits
from lightning_prune.selection.granularity import Channel
from lightning_prune.selection.latency import Anchor, LatencyTable, Network
from lightning_prune.selection.targets import Targets
from lightning_prune.values import check_whole

BORDER = "border"
"""Key of the cell that does nothing: what a call takes, and the copy of its inputs."""
_NARROWEST = 8
"""Divides all widths in the narrow network."""
_SMALLEST_SHARE = 0.05
"""Of what was measured, that is left at least when the border is taken off."""


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
        quantize: what makes integers of it; None: the backend's quantization, as in an export.
    """

    module: nn.Module
    inputs: Sequence[tuple[tuple[int, ...], torch.dtype]]
    is_last: bool
    quantize: Quantize | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Inputs, drawn."""
        drawn = [
            torch.randn(shape).to(dtype) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype)
            for shape, dtype in self.inputs
        ]
        return tuple(x.to(memory_format=torch.channels_last) if self.is_last and x.dim() == 4 else x for x in drawn)


@dataclass(frozen=True)
class Design:
    """What is measured of a network: its cells at several widths, and two programs of the whole of it.

    Args:
        name: its class.
        shapes: dense name of the weights that compute -> shape.
        units: the channels that may go.
        wholes: the network, dense and narrow.
        kinds: for each of its cells the key of its kind, and the cell in each copy, dense first, narrow second.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    units: ChannelUnits
    wholes: tuple[Program, Program]
    kinds: list[tuple[str, list[Piece]]]

    def wanted(self, table: LatencyTable, points: int) -> list[tuple[str, Piece]]:
        """Return the cells to be measured, with the key of their kind, without those that the table knows.

        Of each kind they are the widest, the narrowest, and those that lie furthest from all others.
        """
        by_kind: dict[str, dict[tuple[tuple[int, int], ...], Piece]] = {}
        for key, pieces in self.kinds:
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

    def network(self, times: Sequence[Sequence[float]]) -> Network:
        """Return the network, tied to the clock by the milliseconds of each round of its two programs."""
        dense, narrow = (
            Anchor(tuple(pieces[i].widths for _, pieces in self.kinds), least_of(own), interquartile_range(own))
            for i, own in enumerate(times)
        )
        cells = tuple((key, pieces[0].weights) for key, pieces in self.kinds)
        return Network(
            self.name, self.shapes, cells, (dense, narrow), tuple(shape for shape, _ in self.wholes[0].inputs)
        )


def check_design(model: nn.Module, backend: Backend, points: int, granularity: Channel) -> None:
    """Check the arguments of :func:`designed` that a caller gives.

    Raises:
        TypeError: one is of another type.
        ValueError: there are too few points.
    """
    check_model(model)
    check_backend(backend)
    if not isinstance(granularity, Channel):
        raise TypeError(f"granularity: got {granularity!r:.60}, must be a value such as Channel()")
    check_whole("points", points, 3, why=": a cell has a constant, and changes with two widths")


def designed(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor] | None,
    backend: Backend,
    points: int,
    granularity: Channel,
) -> Design:
    """Return what is measured of a model: copies at widths drawn at random, the same at each call, cut into cells.

    Raises:
        ValueError: nothing can be pruned.
        ExportError: the model cannot be run or traced, or its operators change with the widths.
    """
    inputs = example_tensors(model, example_inputs)
    whole = folded_copy(model)
    eager_outputs(EagerModel(whole), inputs)
    units = cast(ChannelUnits, units_of(granularity, Targets(), whole, inputs))
    least = {name: -(-size // _NARROWEST) for name, size in units.sizes.items()}
    drawn = random.Random(0)
    designs = [{}, least]  # dense, narrow
    for _ in range(points - 2):
        designs.append({name: drawn.randint(least[name], size) for name, size in units.sizes.items()})
    copies = [plain_copy(whole) for _ in designs]
    for copied, widths in zip(copies, designs, strict=True):
        keep = {name: range(width) for name, width in widths.items()}
        compact(copied, Compaction.from_keep(units.found, keep))
    cut = [cells_of(copied, inputs, fold=not isinstance(backend, Portable)) for copied in copies]
    tensors, shapes = whole.state_dict(), [(tuple(x.shape), x.dtype) for x in inputs]
    quantize = None if backend.quantization is None else backend.quantization.quantize_for_time
    return Design(
        type(model).__name__,
        {name: tuple(tensors[name].shape) for piece in cut[0] for name, *_ in piece.weights},
        units,
        (Program(copies[0], shapes, False, quantize), Program(copies[1], shapes, False, quantize)),
        _kinds(type(model).__name__, cut, backend),
    )


def _kinds(name: str, cut: Sequence[Sequence[Piece]], backend: Backend) -> list[tuple[str, list[Piece]]]:
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
        text = " ".join((*same, str(pieces[0].kernels), *(["in float"] if _is_skipped(pieces[0], backend) else [])))
        kinds.append((f"{label} #{hashlib.sha256(text.encode()).hexdigest()[:10]}", pieces))
    return kinds


def written(programs: Sequence[Program], backend: Backend, path: Path) -> list[dict[str, Any]]:
    """Lower programs into one file, and return for each its ``method`` and ``inputs``: shape, type, channels last.

    Raises:
        ExportError: one cannot be traced or lowered.
    """
    graphs = {
        f"m{number}": graph_of(EagerModel(each.module), each.tensors, backend, quantize=each.quantize).program
        for number, each in enumerate(programs)
    }
    with quick(graphs.values()):
        save(lower(graphs, backend), path)
    return [
        {
            "method": name,
            "inputs": [
                [list(shape), dtype_name(dtype), each.is_last and len(shape) == 4] for shape, dtype in each.inputs
            ],
        }
        for name, each in zip(graphs, programs, strict=True)
    ]


def border_sizes(pieces: Iterable[Piece]) -> list[int]:
    """Return three numbers of elements that cells take, few to many: at these a cell that does nothing is measured."""
    sizes = {math.prod(shape) for piece in pieces for shape, dtype in piece.inputs if dtype.is_floating_point}
    ordered = sorted(sizes or {64})
    return sorted({ordered[0], ordered[len(ordered) // 2], ordered[-1]})


def border_program(size: int) -> Program:
    """Return what does next to nothing with so many elements."""
    return Program(_Border(), [((1, size), torch.float32)], False, _in_float)


def border_of(sizes: Sequence[int], times: Sequence[Sequence[float]]) -> Cell:
    """Return the cell that does nothing, by the milliseconds of each round at these numbers of elements."""
    points = [
        Point(((0, size),), least_of(own), interquartile_range(own)) for size, own in zip(sizes, times, strict=True)
    ]
    return Cell("a call", (Kernel("point", 0.0, 1.0, 0.0),), tuple(points))


def cell_program(piece: Piece, backend: Backend) -> Program:
    """Return what runs a cell; inside of a delegate channels come last.

    Its integers are chosen on random inputs: samples are of the whole network, and time does not depend on values.
    """
    is_last, quantization = backend.name == "xnnpack" and piece.is_inner, backend.quantization
    if quantization is None or _is_skipped(piece, backend):
        return Program(piece.module, piece.inputs, is_last, _in_float)
    # layers have no names in a cell
    quantization = quantization.without_patterns(quantization.skip)

    def quantize(program: ExportedProgram, inputs: Sequence[Tensor]) -> Quantized | None:
        try:
            return quantization.quantize_for_time(program, inputs)
        except NothingToQuantizeError:
            return None

    return Program(piece.module, piece.inputs, is_last, quantize)


def _is_skipped(piece: Piece, backend: Backend) -> bool:
    """Whether the backend's quantization leaves a layer of the cell in float."""
    paths = [name.rpartition(".")[0] for name, *_ in piece.weights]
    layers = [Layer(path, path, "", "", True) for path in paths]
    patterns = () if backend.quantization is None else backend.quantization.skip
    return any(layer.is_meant_by(pattern) for layer in layers for pattern in patterns)


def _in_float(program: ExportedProgram, inputs: Sequence[Tensor]) -> None:
    """Quantize nothing."""


@dataclass(frozen=True)
class Measured:
    """A cell that was measured at some widths.

    Args:
        key: of its kind.
        kernels: what computes in it.
        widths: of each kernel, output and input channels.
        taken: elements that it takes.
        milliseconds: of each round.
    """

    key: str
    kernels: tuple[Kernel, ...]
    widths: tuple[tuple[int, int], ...]
    taken: int
    milliseconds: Sequence[float]

    @classmethod
    def of(cls, key: str, piece: Piece, milliseconds: Sequence[float]) -> "Measured":
        """Return it of a cell of a copy."""
        taken = sum(math.prod(shape) for shape, _ in piece.inputs)
        return cls(key, piece.kernels, piece.widths, taken, milliseconds)


def with_points(cells: Mapping[str, Cell], measured: Iterable[Measured]) -> dict[str, Cell]:
    """Return cells, the border among them, with what was measured, less what a call of each takes by itself."""
    cells = dict(cells)
    border = cells[BORDER].fitted({"point": (1, 1)})[0]
    for each in measured:
        # the border moves what it takes in and out, a cell what it takes in
        call, whole = border[0] + border[2] / 2 * each.taken, least_of(each.milliseconds)
        point = Point(each.widths, max(whole - call, _SMALLEST_SHARE * whole), interquartile_range(each.milliseconds))
        cell = cells.get(each.key) or Cell(each.key.partition(" #")[0], each.kernels, ())
        cells[each.key] = replace(cell, points=(*cell.points, point))
    return cells
