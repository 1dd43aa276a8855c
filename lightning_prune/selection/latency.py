"""Latency tables: what the cells of networks take on one device, and so what a network takes at any widths."""

import hashlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np

from lightning_prune.documents import Form, loaded, typed, whole
from lightning_prune.selection.budget import Terms
from lightning_prune.selection.cells import Cell, Step, stepped, steps_of
from lightning_prune.selection.channels import ChannelUnits
from lightning_prune.tables import Table, Tabular, escaped
from lightning_prune.values import check_number, check_whole

FORM = Form("lightning_prune.latency_table", 2, "table")

Place = tuple[str, int, int]
"""Dense name of a kernel's weight, its axis of outputs and its axis of inputs."""


@dataclass(frozen=True)
class Anchor:
    """A whole network that was measured.

    Args:
        widths: of each kernel of each cell, output and input channels.
        milliseconds: of a run.
        spread: interquartile range over the rounds.
    """

    widths: tuple[tuple[tuple[int, int], ...], ...]
    milliseconds: float
    spread: float

    def __post_init__(self) -> None:
        check_number("Anchor.milliseconds", self.milliseconds, above=0)
        check_number("Anchor.spread", self.spread, 0)
        for width in (width for kernel in self.widths for pair in kernel for width in pair):
            check_whole("Anchor.widths", width, 0)


@dataclass(frozen=True)
class Network:
    """A network as cells, tied to the clock by whole programs.

    Args:
        name: its class.
        shapes: dense name of the weights that compute -> shape.
        cells: the key of each cell, and where the weights of its kernels are.
        anchors: dense and narrow.
        inputs: shapes of what it took when it was measured; none in files of before they were kept.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    cells: tuple[tuple[str, tuple[Place, ...]], ...]
    anchors: tuple[Anchor, Anchor]
    inputs: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        for size in (size for shape in (*self.shapes.values(), *self.inputs) for size in shape):
            check_whole(f"a size of {self.name}", size, 0)
        weights = [places for _, places in self.cells]
        for name, *axes in (place for places in weights for place in places):
            if not all(0 <= axis < len(self.shapes.get(name, ())) for axis in axes):
                raise ValueError(f"{self.name} has no {name} with the axes {axes}")
        for anchor in self.anchors:
            if list(map(len, anchor.widths)) != list(map(len, weights)):
                raise ValueError(f"the widths at which {self.name} was measured are not those of its cells")


@dataclass(frozen=True, repr=False)
class LatencyTable(Tabular):
    """What the cells of networks take on one device, for ``need=Latency(ms=…, table=table)``.

    Made by :func:`lightning_prune.deploy.latency_table`. Points belong to the device, whatever network they come from;
    a network is tied to them by two measurements of the whole of it.

    Args:
        device: on which it was measured.
        runtime: its version.
        backend: name of the backend, with its quantization.
        threads: of the runtime.
        clock: "thread" for the processor time of the one thread, "wall" for several.
        rounds: how many measurements each number is the lower tenth of.
        cells: key -> cell.
        networks: those that can be predicted.
        channels: channel group -> milliseconds that one of its channels saves, as the mean down to half of them: a
            cost for ``Global(cost=table.channels)``.
    """

    device: str = ""
    runtime: str = ""
    backend: str = ""
    threads: int = 1
    clock: str = "thread"
    rounds: int = 0
    cells: Mapping[str, Cell] = field(default_factory=dict)
    networks: tuple[Network, ...] = ()
    channels: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for network in self.networks:
            for key, places in network.cells:
                if key in self.cells and len(places) != len(self.cells[key].kernels):
                    raise ValueError(f"{network.name} has {len(places)} weights for the kernels of {key}")
            if lacking := sum(key not in self.cells or not self.cells[key].points for key, _ in network.cells):
                raise ValueError(f"{network.name} has {lacking} cells without a point: measure it again")

    def __repr__(self) -> str:
        digest = hashlib.sha256(self.to_json().encode()).hexdigest()[:12]
        return f"LatencyTable({escaped(self.backend)}, {_threads(self.threads)}, {len(self.cells)} cells, {digest})"

    def table(self) -> Table:
        """Return a row for each cell: its widths, and what it takes at the widest and at the narrowest."""
        rows = []
        for cell in self.cells.values():
            points = sorted(cell.points, key=lambda point: point.milliseconds)
            narrow, wide = points[0], points[-1]
            worst = max(abs(self.predicted(cell, p.widths) / p.milliseconds - 1) for p in points)
            figures = (f"{narrow.milliseconds:.4f}", f"{wide.milliseconds:.4f}", f"{wide.spread:.4f}", f"{worst:.0%}")
            rows.append((escaped(cell.label), str(len(points)), *figures))
        head = ("cell", "points", "least ms", "most ms", "spread ms", "furthest from the fit")
        dense = ", ".join(
            f"{each.name} at {_listed(each.inputs)} {each.anchors[0].milliseconds:.3f} ms" for each in self.networks
        )
        steps = ", ".join(
            f"{kind} {small}" if small == large else f"{kind} {small}, beyond {large} {large}"
            for kind, (small, large) in self.steps.items()
        )
        note = (
            f"{dense or 'no network'}; {self.device}, {self.runtime}, {self.backend}, {_threads(self.threads)},"
            f" {self.clock} clock, {self.rounds} rounds. Steps of the widths: {steps}"
        )
        return Table(head, rows, note=escaped(note))

    @cached_property
    def steps(self) -> dict[str, Step]:
        """Kind of kernel -> the step of its output width, as measured."""
        return steps_of(self.cells.values())

    @cached_property
    def _fits(self) -> dict[str, np.ndarray]:
        return {key: cell.fitted(self.steps)[0] for key, cell in self.cells.items()}

    def predicted(self, cell: Cell, widths: Sequence[tuple[int, int]]) -> float:
        """Return the milliseconds of a cell at some widths of its kernels, by the fit through its points."""
        return float(cell.features(widths, self.steps) @ cell.fitted(self.steps)[0])

    def cost(self, units: ChannelUnits, sizes: Mapping[str, int], inputs: Sequence[tuple[int, ...]]) -> "CellCost":
        """Return the latency of a network as a cost that hangs on the widths of its channel groups.

        Args:
            units: the channels that may go.
            sizes: dense name of each parameter -> number of its elements.
            inputs: shapes of what it takes.

        Raises:
            ValueError: the table is of other models, or of this one at other inputs.
        """
        return CellCost(self, self.network_of(sizes, inputs), units)

    def network_of(self, sizes: Mapping[str, int], inputs: Sequence[tuple[int, ...]]) -> Network:
        """Return the network with weights of these names and numbers of elements that was measured at such inputs.

        A network of a file of before these were kept is returned with a warning.

        Args:
            sizes: dense name of each parameter -> number of its elements.
            inputs: shapes of what it takes; the first axis, a batch of any size, does not count, nor does their order.

        Raises:
            ValueError: the table is of other models, or of this one at other inputs.
        """
        alike = [
            network
            for network in reversed(self.networks)
            if all(sizes.get(name) == math.prod(shape) for name, shape in network.shapes.items())
        ]
        asked = sorted(shape[1:] for shape in inputs)
        for network in alike:
            if network.inputs and sorted(shape[1:] for shape in network.inputs) == asked:
                return network
        if untold := [network for network in alike if not network.inputs]:
            warnings.warn(
                f"the latency table is of before it kept the shapes of inputs: whether {untold[0].name} was measured at"
                f" {_listed(inputs)} cannot be checked, and at another size its milliseconds are others; measure it"
                " again",
                stacklevel=2,
            )
            return untold[0]
        if alike:
            known = " and at ".join(_listed(network.inputs) for network in alike)
            raise ValueError(
                f"the latency table knows {alike[0].name} at inputs of {known}, and the example input is"
                f" {_listed(inputs)}, at which it takes another time: measure it there with latency_table(model,"
                " example_inputs, path=…), or give the example input that the table was measured at"
            )
        if not self.networks:
            raise ValueError(
                "the latency table has no network in it, as those of version 1: measure it again with latency_table"
            )
        known = ", ".join(network.name for network in self.networks)
        raise ValueError(
            f"the latency table is of another model ({known}): its weights have other names or shapes; measure this one"
            " with latency_table(model, example_inputs, path=…), which takes over what the file holds"
        )

    def merged(self, other: "LatencyTable") -> "LatencyTable":
        """Return a table with the points and networks of both; where both have one, that of the other.

        Raises:
            ValueError: they were not measured alike.
        """
        for name in ("device", "runtime", "backend", "threads", "clock"):
            if (own := getattr(self, name)) != (theirs := getattr(other, name)):
                raise ValueError(f"tables of another {name} do not go together: {own!r} and {theirs!r}")
        cells = dict(self.cells)
        for key, cell in other.cells.items():
            points = {p.widths: p for p in (*(cells[key].points if key in cells else ()), *cell.points)}
            cells[key] = replace(cell, points=tuple(points.values()))
        known = [
            network
            for network in self.networks
            if not any(network.shapes == new.shapes and network.inputs in ((), new.inputs) for new in other.networks)
        ]
        return replace(
            other, cells=cells, networks=(*known, *other.networks), channels={**self.channels, **other.channels}
        )

    def compared(self, other: "LatencyTable") -> Table:
        """Return a row for each cell that both have, with what the other takes of this one's time."""
        rows = []
        for key, cell in self.cells.items():
            if key in other.cells:
                theirs = {point.widths: point.milliseconds for point in other.cells[key].points}
                pairs = [(p.milliseconds, theirs[p.widths]) for p in cell.points if p.widths in theirs]
                pairs = pairs or [(p.milliseconds, other.predicted(other.cells[key], p.widths)) for p in cell.points]
                mine, others = (math.fsum(side) for side in zip(*pairs, strict=True))
                rows.append((escaped(cell.label), f"{mine:.4f}", f"{others:.4f}", f"{others / mine:.2f}"))
        head = ("cell", f"{self.device or 'this'} ms", f"{other.device or 'other'} ms", "ratio")
        return Table([escaped(each) for each in head], rows)

    def save(self, path: str | Path) -> None:
        """Write it to a file, whole or not at all."""
        with whole(Path(path)) as written:
            written.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "LatencyTable":
        """Return what :meth:`save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it holds no table.
        """
        return loaded(Path(path), cls.from_json)

    def to_json(self) -> str:
        """Return the table as JSON text."""
        return FORM.write(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "LatencyTable":
        """Return the table of a JSON text; one of version 1 holds ``channels`` alone.

        Raises:
            ValueError: it is none, or holes are in it.
        """
        document = FORM.read(text)
        with FORM.parsing():
            if document["version"] == 1:
                saved = {
                    name: max(curve["milliseconds"][0] - curve["milliseconds"][-1], curve["resolution_ms"])
                    / (curve["widths"][0] - curve["widths"][-1])
                    for name, curve in document["curves"].items()
                }
                return cls(backend=document["backend"], threads=int(document["threads"]), clock="wall", channels=saved)
            return typed(cls, {one.name: document[one.name] for one in fields(cls)})


@dataclass(frozen=True)
class _Width:
    """A width as the channels that are left in it.

    Args:
        dense: of the network as it is.
        parts: channel group -> entries that go with one of its channels.
        step: up to which it counts.
    """

    dense: float
    parts: Mapping[str, float]
    step: Step = (1, 1)

    def left(self, removed: Mapping[str, float]) -> float:
        """Return it when so many channels are gone."""
        return float(self._up(self.dense - sum(per * removed.get(group, 0.0) for group, per in self.parts.items())))

    def tables(self, gone: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield parts of a sum: a channel group, or "" for none, and the part for each number that is gone."""
        if len(self.parts) == 1:
            ((group, per),) = self.parts.items()
            yield group, self._up(self.dense - per * gone[group])
        else:
            yield "", np.asarray(self._up(self.dense))
            yield from ((group, -per * gone[group]) for group, per in self.parts.items())

    def _up(self, width: float | np.ndarray) -> np.ndarray:
        # of several groups only their sum has a step, which would be a table over all of them
        is_joint = len(self.parts) > 1
        return np.asarray(width, float) if is_joint else stepped(np.maximum(width, 0.0), self.step)


class CellCost:
    """The latency of a network at widths of its channel groups: the sum of its cells, tied to two whole programs.

    Args:
        table: of the device.
        network: one of its networks.
        units: the channels that may go.
    """

    def __init__(self, table: LatencyTable, network: Network, units: ChannelUnits) -> None:
        self._units = units
        sums = [
            sum(
                float(table.cells[key].features(own, table.steps) @ table._fits[key])
                for (key, _), own in zip(network.cells, anchor.widths, strict=True)
            )
            for anchor in network.anchors
        ]
        dense, narrow = (anchor.milliseconds for anchor in network.anchors)
        if sums[0] <= sums[1] or dense <= narrow:
            raise ValueError(
                f"the latency table cannot tell {network.name} from the narrow one ({dense:.4f} and {narrow:.4f} ms,"
                f" cells {sums[0]:.4f} and {sums[1]:.4f} ms): the clock is too coarse or the network too small; measure"
                " with more rounds"
            )
        self.factor = (dense - narrow) / (sums[0] - sums[1])
        self.constant = dense - self.factor * sums[0]
        self._constant, self._products = self.constant, list[tuple[float, str, tuple[_Width, ...]]]()
        for key, places in network.cells:
            cell, fit = table.cells[key], self.factor * table._fits[key]
            self._constant += fit[0]
            for kernel, (name, out, into) in zip(cell.kernels, places, strict=True):
                made = self._width(network, name, out, table.steps[kernel.kind])
                taken = self._width(network, name, into)
                entering = self._width(network, name, out) if kernel.kind == "grouped" else taken
                terms = (
                    (fit[1] * kernel.area, (taken, made)),
                    (fit[2] * kernel.taken, (entering,)),
                    (fit[3] * kernel.made, (made,)),
                )
                self._products += [(float(factor), name, widths) for factor, widths in terms if factor]
        self.total = self.left({})

    def _width(self, network: Network, name: str, axis: int, step: Step = (1, 1)) -> _Width:
        size, parts = network.shapes[name][axis], dict[str, float]()
        for group, place, share in self._units.shares.get(name, ()):
            if place == axis:
                parts[group] = parts.get(group, 0.0) + share * size
        return _Width(size, parts, step)

    def left(self, removed: Mapping[str, float]) -> float:
        """Return the milliseconds that are left when so many channels of each group are gone."""
        return self._constant + sum(
            factor * math.prod(width.left(removed) for width in widths) for factor, _, widths in self._products
        )

    def terms(self, widths: Mapping[str, Sequence[int]]) -> tuple[float, Terms]:
        """Return the milliseconds as a constant and a sum of terms of one or two channel groups."""
        gone = {group: self._units.sizes[group] - np.array(own, float) for group, own in widths.items()}
        constant, tables = self._constant, dict[tuple[str, ...], np.ndarray]()
        for factor, _, axes in self._products:
            for chosen in product(*(axis.tables(gone) for axis in axes)):
                parts: dict[str, np.ndarray] = {}
                for group, part in chosen:
                    parts[group] = parts[group] * part if group in parts else part
                joint = factor * float(parts.pop("", np.ones(()))) * np.ones(())
                names = tuple(sorted(parts))
                for name in names:
                    joint = np.multiply.outer(joint, parts[name])
                if names:
                    tables[names] = tables[names] + joint if names in tables else joint
                else:
                    constant += float(joint)
        return constant, list(tables.items())

    def holders(self, removed: Mapping[str, float]) -> dict[str, float]:
        """Return the layers that take most when so many channels are gone -> milliseconds, largest first."""
        each: dict[str, float] = {}
        for factor, name, widths in self._products:
            each[name] = each.get(name, 0.0) + factor * math.prod(width.left(removed) for width in widths)
        return dict(sorted(each.items(), key=lambda item: -item[1]))


def _threads(count: int) -> str:
    return f"{count} thread" + ("s" if count != 1 else "")


def _listed(inputs: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("×".join(map(str, shape)) for shape in inputs) or "unknown inputs"
