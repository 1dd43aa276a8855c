"""Cells of a network, a kernel with what is fused to it, and what they take at widths that were not measured.

    time = constant + a · MACs + b · elements taken + c · elements made,    a, b, c and the constant at least 0

where the output width counts up to the next step of the kernel, since the kernels of a CPU compute so many channels at
once whatever is left of them, and the input width as it is.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from lightning_prune.values import check_number, check_whole

Step = tuple[int, int]
"""Widths come in multiples of the first; beyond the second in multiples of that."""

Steps = Mapping[str, Step]
"""Kind of kernel -> its step."""

STEPS: tuple[Step, ...] = ((1, 1), (4, 4), (8, 8), (8, 16), (16, 16), (16, 32), (32, 32))
"""Those among which measurements choose: XNNPACK's kernels compute 4 to 32 channels at once."""
KINDS = ("window", "point", "grouped")
"""What a kernel may be."""
_MOST = 1e15
"""Of milliseconds and elements: squares and products of those above leave what a float can hold."""
_SMALLEST_SHARE = 0.02
"""Of a cell's longest time: what is shorter does not weigh more."""


@dataclass(frozen=True)
class Kernel:
    """A convolution or a multiplication by a weight, as far as no width changes it.

    Args:
        kind: "window" over several places, "point" or Linear layer, or "grouped" (depthwise) convolution.
        area: multiply-accumulates for each pair of an input and an output channel.
        taken: elements of an input channel.
        made: elements of an output channel.
    """

    kind: str
    area: float
    taken: float
    made: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Kernel.kind must be one of {', '.join(KINDS)}, got {self.kind!r:.60}")
        for name in ("area", "taken", "made"):
            check_number(f"Kernel.{name}", getattr(self, name), 0, _MOST)


@dataclass(frozen=True)
class Point:
    """A measurement.

    Args:
        widths: output and input channels of each kernel.
        milliseconds: without what a call takes by itself.
        spread: interquartile range over the rounds.
    """

    widths: tuple[tuple[int, int], ...]
    milliseconds: float
    spread: float

    def __post_init__(self) -> None:
        check_number("Point.milliseconds", self.milliseconds, most=_MOST, above=1 / _MOST)
        check_number("Point.spread", self.spread, 0, _MOST)
        for width in (width for pair in self.widths for width in pair):
            check_whole("Point.widths", width, 0)


@dataclass(frozen=True)
class Cell:
    """A cell at all widths.

    Args:
        label: its operators and the shape that comes out, ``*`` for widths.
        kernels: what computes in it.
        points: what was measured.
    """

    label: str
    kernels: tuple[Kernel, ...]
    points: tuple[Point, ...]

    def __post_init__(self) -> None:
        if any(len(point.widths) != len(self.kernels) for point in self.points):
            raise ValueError(f"{self.label} has a point with widths for another number of kernels than its own")

    def features(self, widths: Sequence[tuple[int, int]], steps: Steps) -> np.ndarray:
        """Return 1, MACs, elements taken and elements made at these widths of the kernels, (4,)."""
        total = np.array([1.0, 0.0, 0.0, 0.0])
        for kernel, (out, into) in zip(self.kernels, widths, strict=True):
            made = stepped(out, steps[kernel.kind])
            taken = out if kernel.kind == "grouped" else into
            total += (0.0, kernel.area * into * made, kernel.taken * taken, kernel.made * made)
        return total

    def fitted(self, steps: Steps) -> tuple[np.ndarray, float]:
        """Return what each feature takes, milliseconds (4,), and the sum of squared relative errors."""
        times = np.array([point.milliseconds for point in self.points])
        weights = 1 / np.maximum(times, _SMALLEST_SHARE * times.max())
        features = np.stack([self.features(point.widths, steps) for point in self.points])
        return least_squares(features * weights[:, None], times * weights)


def stepped(width: float | np.ndarray, step: Step) -> np.ndarray:
    """Return a width, or many, up to the next step.

    Example:
        >>> stepped(np.array([3, 17, 33]), (16, 32)).tolist()
        [16.0, 32.0, 64.0]
    """
    width = np.asarray(width, float)
    small, large = step
    return np.where(width <= large, np.ceil(width / small) * small, np.ceil(width / large) * large)


def least_squares(columns: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the weights of the columns, none negative, that come closest, and the sum of squared errors.

    Of few columns all choices are tried; of equal ones the first with fewest columns is taken.
    """
    scale = np.abs(columns).max(axis=0)
    best, least = np.zeros(columns.shape[1]), float(wanted @ wanted)
    live = [number for number in range(columns.shape[1]) if scale[number] > 0]
    for count in range(1, min(len(live), len(columns)) + 1):
        for chosen in map(list, combinations(live, count)):
            weights = np.linalg.lstsq(columns[:, chosen] / scale[chosen], wanted, rcond=None)[0]
            if (weights < 0).any():
                continue
            errors = columns[:, chosen] @ (weights / scale[chosen]) - wanted
            if (error := float(errors @ errors)) < least * (1 - 1e-6) - 1e-12:
                best, least = np.zeros(columns.shape[1]), error
                best[chosen] = weights / scale[chosen]
    return best, least


def steps_of(cells: Iterable[Cell]) -> dict[str, Step]:
    """Return for each kind of kernel the step at which what was measured is fitted best; 1 where nothing tells."""
    by_kind: dict[str, list[Cell]] = {kind: [] for kind in KINDS}
    for cell in cells:
        kinds = {kernel.kind for kernel in cell.kernels}
        if len(kinds) == 1 and len(cell.points) > 1:
            by_kind[kinds.pop()].append(cell)
    chosen = {}
    for kind, same in by_kind.items():
        errors = {step: math.fsum(cell.fitted({kind: step})[1] for cell in same) for step in STEPS}
        chosen[kind] = min(STEPS, key=lambda step: errors[step])
    return chosen
