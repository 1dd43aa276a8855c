"""Latency tables: what the cells of networks take on one device, and so what a network takes at any widths."""

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from lightning_prune.documents import Form, loaded, typed, whole
from lightning_prune.selection.cell_cost import CellCost, Network
from lightning_prune.selection.cells import Cell, Step, steps_of
from lightning_prune.selection.channels import ChannelUnits
from lightning_prune.tables import Table, Tabular, escaped

FORM = Form("lightning_prune.latency_table", 2, "table")


@dataclass(frozen=True, repr=False)
class LatencyTable(Tabular):
    """What the cells of networks take on one device, for ``need=Latency(ms=…, table=table)``.

    Made by :func:`lightning_prune.deploy.latency_table`. Points belong to the device, whatever network they come from;
    a network is tied to them by a few measurements of the whole of it.

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
        return self.cost_of(self.network_of(sizes, inputs), units)

    def cost_of(self, network: Network, units: ChannelUnits) -> CellCost:
        """Return the latency of a network of cells that the table has, at any widths of its channel groups.

        Raises:
            ValueError: the clock does not tell the dense network from the narrow one.
        """
        return CellCost(self.cells, self._fits, self.steps, network, units)

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
            TypeError: the other is no table.
            ValueError: they were not measured alike.
        """
        _check_table(other)
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
        """Return a row for each cell that both have, with what the other takes of this one's time.

        Raises:
            TypeError: the other is no table.
        """
        _check_table(other)
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


def _check_table(value: object) -> None:
    if not isinstance(value, LatencyTable):
        raise TypeError(f"the other must be a LatencyTable, as LatencyTable.load(path) returns it, got {value!r:.60}")


def _threads(count: int) -> str:
    return f"{count} thread" + ("s" if count != 1 else "")


def _listed(inputs: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("×".join(map(str, shape)) for shape in inputs) or "unknown inputs"
