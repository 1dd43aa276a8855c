"""A network as cells, tied to the clock by whole programs, and what it takes at any widths of its channel groups."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from lightning_prune.selection.budget import Terms
from lightning_prune.selection.cells import Cell, Step, Steps, stepped
from lightning_prune.selection.channels import ChannelUnits
from lightning_prune.values import check_number, check_whole

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
        anchors: whole programs, the dense one first, those of less widths after it; two at least.
        inputs: shapes of what it took when it was measured; none in files of before they were kept.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    cells: tuple[tuple[str, tuple[Place, ...]], ...]
    anchors: tuple[Anchor, ...]
    inputs: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        for size in (size for shape in (*self.shapes.values(), *self.inputs) for size in shape):
            check_whole(f"a size of {self.name}", size, 0)
        weights = [places for _, places in self.cells]
        for name, *axes in (place for places in weights for place in places):
            if not all(0 <= axis < len(self.shapes.get(name, ())) for axis in axes):
                raise ValueError(f"{self.name} has no {name} with the axes {axes}")
        if len(self.anchors) < 2:
            raise ValueError(f"{self.name} has fewer than two whole programs, dense and narrow")
        for anchor in self.anchors:
            if list(map(len, anchor.widths)) != list(map(len, weights)):
                raise ValueError(f"the widths at which {self.name} was measured are not those of its cells")


_ANY_WIDTH = "what layers take at any width"


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
    """The latency of a network at widths of its channel groups: the sum of its cells, tied to whole programs.

    Between two whole programs the milliseconds are interpolated: what cells take together hangs on what fits the
    caches, so that the factor between their sum and the clock is another one for a network of another size.

    Args:
        cells: key of a kind -> the kind.
        fits: key of a kind -> what each feature takes.
        steps: kind of kernel -> its step.
        network: made of these cells.
        units: the channels that may go.

    Raises:
        ValueError: the clock does not tell the dense network from the narrow one.
    """

    def __init__(
        self,
        cells: Mapping[str, Cell],
        fits: Mapping[str, np.ndarray],
        steps: Steps,
        network: Network,
        units: ChannelUnits,
    ) -> None:
        self._units = units
        told = sorted(
            (
                math.fsum(
                    float(cells[key].features(own, steps) @ fits[key])
                    for (key, _), own in zip(network.cells, anchor.widths, strict=True)
                ),
                anchor.milliseconds,
            )
            for anchor in network.anchors
        )
        # what a busy machine told wrong lies between the others in no order
        (least, fastest), (most, slowest) = told[0], told[-1]
        if least >= most or fastest >= slowest:
            raise ValueError(
                f"the latency table cannot tell {network.name} from the narrow one ({slowest:.4f} and {fastest:.4f} ms,"
                f" cells {most:.4f} and {least:.4f} ms): the clock is too coarse or the network too small; measure"
                " with more rounds"
            )
        curve = [told[0]]
        for sum_, ms in told[1:-1]:
            if curve[-1][0] < sum_ < most and curve[-1][1] < ms < slowest:
                curve.append((sum_, ms))
        curve.append(told[-1])
        (low, fast), (high, slow) = curve[:2]
        self._curve = np.array([(0.0, max(0.0, fast - low * (slow - fast) / (high - low))), *curve])
        """Sums of cells and milliseconds, rising; the first is of no cell at all."""
        self._constant, self._products = 0.0, list[tuple[float, str, tuple[_Width, ...]]]()
        for key, places in network.cells:
            cell, fit = cells[key], fits[key]
            self._constant += float(fit[0])
            for kernel, (name, out, into) in zip(cell.kernels, places, strict=True):
                made = self._width(network, name, out, steps[kernel.kind])
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
        cells = self._constant + math.fsum(
            factor * math.prod(width.left(removed) for width in widths) for factor, _, widths in self._products
        )
        factor, constant = self._line(0, cells)
        return factor * cells + constant

    def _line(self, axis: int, place: float) -> tuple[float, float]:
        """Return the factor and the constant of the piece of the curve at a sum of cells (0) or milliseconds (1)."""
        above = min(max(int(np.searchsorted(self._curve[:, axis], place)), 1), len(self._curve) - 1)
        (low, fast), (high, slow) = self._curve[above - 1 : above + 1]
        factor = float((slow - fast) / (high - low))
        return factor, float(fast) - factor * float(low)

    def terms(self, widths: Mapping[str, Sequence[int]], limit: float) -> tuple[float, Terms]:
        """Return the milliseconds as a constant and a sum of terms of one or two channel groups.

        They are those of the piece of the curve on which the limit lies: above it exactly where they are above it.
        """
        scale, constant = self._line(1, limit)
        constant += scale * self._constant
        gone = {group: self._units.sizes[group] - np.array(own, float) for group, own in widths.items()}
        tables = dict[tuple[str, ...], np.ndarray]()
        for factor, _, axes in self._products:
            for chosen in product(*(axis.tables(gone) for axis in axes)):
                parts: dict[str, np.ndarray] = {}
                for group, part in chosen:
                    parts[group] = parts[group] * part if group in parts else part
                joint = scale * factor * float(parts.pop("", np.ones(()))) * np.ones(())
                names = tuple(sorted(parts))
                for name in names:
                    joint = np.multiply.outer(joint, parts[name])
                if names:
                    tables[names] = tables[names] + joint if names in tables else joint
                else:
                    constant += float(joint)
        return constant, list(tables.items())

    def holders(self, removed: Mapping[str, float]) -> dict[str, float]:
        """Return what takes most when so many channels are gone -> milliseconds, largest first.

        Of the layers it is what grows with a width of theirs; what all of them take besides stands under a name of its
        own, so that it all adds up to what is left.
        """
        each: dict[str, float] = {}
        for factor, name, widths in self._products:
            each[name] = each.get(name, 0.0) + factor * math.prod(width.left(removed) for width in widths)
        scale, constant = self._line(1, self.left(removed))
        each = {name: scale * own for name, own in each.items()} | {_ANY_WIDTH: constant + scale * self._constant}
        return dict(sorted(each.items(), key=lambda item: -item[1]))
