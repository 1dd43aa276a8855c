"""What is measured of a network: its cells at several widths, a call that does nothing, and some whole programs."""

import hashlib
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, cast

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
from lightning_prune.selection.cell_cost import Anchor, Network, Place
from lightning_prune.selection.cells import Cell, Kernel, Point
from lightning_prune.selection.channels import ChannelUnits
from lightning_prune.selection.granularity import Channel
from lightning_prune.selection.latency import LatencyTable
from lightning_prune.selection.targets import Targets
from lightning_prune.values import check_whole

BORDER = "border"
"""Key of the cell that does nothing: what a call takes, and the copy of its inputs."""
_WHOLES = (1.0, 1 / 8, 0.55, 0.8)
"""Shares of all widths at which the whole network is measured too: some 100, 4, 30 and 65 % of its time."""
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
    """What is measured of a network: its cells at several widths, and some programs of the whole of it.

    Args:
        name: its class.
        shapes: dense name of the weights that compute -> shape.
        units: the channels that may go.
        wholes: the first of the copies as they are, dense first.
        kinds: for each of its cells the key of its kind, and the cell in each copy.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    units: ChannelUnits
    wholes: tuple[Program, ...]
    kinds: list[tuple[str, list[Piece]]]

    def turns(self, table: LatencyTable) -> list[list[tuple[str, Piece]]]:
        """Return the cells of each copy that are to be measured, in their order, without those that the table knows."""
        known = {key: {point.widths for point in cell.points} for key, cell in table.cells.items()}
        return [
            [(key, pieces[i]) for key, pieces in self.kinds if pieces[i].widths not in known.get(key, ())]
            for i in range(len(self.kinds[0][1]))
        ]

    def network(self, times: Sequence[Sequence[float]]) -> Network:
        """Return the network, tied to the clock by the milliseconds of its whole programs."""
        anchors = tuple(
            Anchor(widths, least_of(own), interquartile_range(own))
            for widths, own in zip(self.anchors, times, strict=True)
        )
        inputs = tuple(shape for shape, _ in self.wholes[0].inputs)
        return Network(self.name, self.shapes, self.cells, anchors, inputs)

    @property
    def cells(self) -> tuple[tuple[str, tuple[Place, ...]], ...]:
        """The key of each cell, and where the weights of its kernels are."""
        return tuple((key, pieces[0].weights) for key, pieces in self.kinds)

    @property
    def anchors(self) -> tuple[tuple[tuple[tuple[int, int], ...], ...], ...]:
        """Of each whole program the widths of each kernel of each cell."""
        return tuple(tuple(pieces[i].widths for _, pieces in self.kinds) for i in range(len(self.wholes)))


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
    """Return what is measured of a model: copies at several widths, the same at each call, cut into cells.

    Raises:
        ValueError: nothing can be pruned.
        ExportError: the model cannot be run or traced, or its operators change with the widths.
    """
    inputs = example_tensors(model, example_inputs)
    whole = folded_copy(model)
    eager_outputs(EagerModel(whole), inputs)
    units = cast(ChannelUnits, units_of(granularity, Targets(), whole, inputs))
    fold, copies, cut = not isinstance(backend, Portable), list[nn.Module](), list[list[Piece]]()
    for widths in _widths(units, lambda: cut[0], points):
        copies.append(plain_copy(whole))
        keep = {name: range(width) for name, width in widths.items()}
        compact(copies[-1], Compaction.from_keep(units.found, keep))
        cut.append(cells_of(copies[-1], inputs, fold=fold))
    tensors, shapes = whole.state_dict(), [(tuple(x.shape), x.dtype) for x in inputs]
    quantize = None if backend.quantization is None else backend.quantization.quantize_for_time
    return Design(
        type(model).__name__,
        {name: tuple(tensors[name].shape) for piece in cut[0] for name, *_ in piece.weights},
        units,
        tuple(Program(copied, shapes, False, quantize) for copied in copies[: min(points, len(_WHOLES))]),
        _kinds(type(model).__name__, cut, backend),
    )


def _widths(units: ChannelUnits, dense: Callable[[], Sequence[Piece]], points: int) -> Iterator[dict[str, int]]:
    """Yield the widths of each copy: those of whole programs, then random ones, spread over all that there may be.

    Channel groups with the same part in cells of one kind have the same width, so that few cells are new.

    Args:
        units: the channels that may go.
        dense: returns the cells of the first copy.
        points: number of copies.
    """
    for share in _WHOLES[:points]:
        yield {name: math.ceil(share * size) for name, size in units.sizes.items()}
    parts: dict[str, list[tuple[object, ...]]] = {name: [] for name in units.sizes}
    for piece in dense():
        for number, (weight, *_) in enumerate(piece.weights):
            for group, axis, _ in units.shares.get(weight, ()):
                parts[group].append((piece.tokens, number, axis))
    drawn, strata, left = random.Random(0), dict[object, list[int]](), points - len(_WHOLES)
    alike = {name: tuple(sorted(map(repr, own))) or name for name, own in parts.items()}
    for number in range(left):
        shares = dict[object, float]()
        for part in alike.values():
            if part not in shares:
                own = strata.setdefault(part, drawn.sample(range(left), left))
                shares[part] = min(_WHOLES) + (1 - min(_WHOLES)) * (own[number] + drawn.random()) / left
        yield {name: math.ceil(shares[part] * units.sizes[name]) for name, part in alike.items()}


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
    with quick():
        graphs = {
            f"m{number}": graph_of(EagerModel(each.module), each.tensors, backend, quantize=each.quantize).program
            for number, each in enumerate(programs)
        }
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
    """Return cells, the border among them, with what was measured, less what a call of each takes by itself.

    What has its place several times counts by its mean.
    """
    cells = dict(cells)
    border = cells[BORDER].fitted({"point": (1, 1)})[0]
    alike: dict[tuple[str, tuple[tuple[int, int], ...]], list[Measured]] = {}
    for each in measured:
        alike.setdefault((each.key, each.widths), []).append(each)
    for (key, widths), same in alike.items():
        least = fmean(least_of(each.milliseconds) for each in same)
        # the border moves what it takes in and out, a cell what it takes in
        call = border[0] + border[2] / 2 * same[0].taken
        spread = fmean(interquartile_range(each.milliseconds) for each in same)
        point = Point(widths, max(least - call, _SMALLEST_SHARE * least), spread)
        cell = cells.get(key) or Cell(key.partition(" #")[0], same[0].kernels, ())
        cells[key] = replace(cell, points=(*cell.points, point))
    return cells
