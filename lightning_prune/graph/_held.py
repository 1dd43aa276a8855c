"""Which axes have their size in an attribute of a module, so that the attribute shrinks with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_prune.graph._sizes import Quotient, Size, Sizes
from lightning_prune.graph.axes import Axes, Dim, Fixed
from lightning_prune.graph.trace import Call


class HeldSizes:
    """The attributes that hold sizes, noted anew in each pass; axes of one attribute are one.

    Attributes:
        by_path: the axis whose size, or number of units, stands in an attribute, by the attribute's path.
    """

    def __init__(self, axes: Axes, sizes: Sizes) -> None:
        self._axes = axes
        self._sizes = sizes
        self.restart()

    def restart(self) -> None:
        """Forget everything."""
        self._kept: dict[str, str] = {}
        self.begin_pass()

    def begin_pass(self) -> None:
        """Forget the axes, but not which attributes also are the size of a fixed one."""
        self.by_path: dict[str, np.ndarray] = {}
        self._quotients: list[tuple[Quotient, str]] = []
        self._kept_before, self._kept = self._kept, {}

    def note(self, call: Call, given: Sequence[int], dims: Sequence[Dim], is_strict: bool) -> None:
        """Note which attributes hold the sizes that a call gives to these axes.

        Args:
            call: the call.
            given: the sizes that it states.
            dims: the axes that get them.
            is_strict: whether what is still in conflict gets frozen.
        """
        stated = self._sizes.get((call.where, tuple(given)), ())
        for size, dim in zip(stated, dims, strict=False):
            if isinstance(size, Quotient):
                self._quotients.append((size, call.place))
                self._axes.freeze(dim, f"{call.place} computes its size as one over the number of others")
            # an attribute that changes with the axis is its length, or the number of its units
            held = size.attributes if isinstance(size, Size) else {}
            labels = np.zeros(0) if isinstance(dim, Fixed) or size in held.values() else self._axes.label[dim]
            paths = [path for n in (size, len(np.unique(labels))) for path, value in held.items() if value == n]
            # heads of which several go at once, as queries of one key do, are alike in all of their width
            paths += [
                path
                for path, value in held.items()
                if labels.size and not labels.size % value and not np.ptp(labels.reshape(value, -1), axis=1).any()
            ]
            path = next(iter(paths), None)
            if path is None:
                continue
            if isinstance(dim, Fixed):
                self._kept[path] = dim.reason
            elif is_strict and path in self._kept_before:
                self._axes.freeze(dim, f"{path} is also the size of what stays: {self._kept_before[path]}")
            known = self.by_path.get(path)
            if isinstance(dim, np.ndarray) and (known is None or known.size != dim.size):
                self.by_path[path] = dim
            elif known is not None and known.size == size:
                self._axes.join(known, dim)

    def end_pass(self) -> None:
        """Let numerators follow their denominators, so that quotients stay as they are; freeze where they cannot."""
        for quotient, place in self._quotients:
            for divisor in [self.by_path[path] for path in quotient.under if path in self.by_path]:
                if not quotient.over:
                    self._axes.freeze(divisor, f"{place} computes a size as a length over the number of these")
                for path in quotient.over:
                    numerator = self.by_path.setdefault(path, divisor)
                    if numerator.size % divisor.size:
                        self._axes.freeze((numerator, divisor), f"{place} divides {path}")
                    else:
                        self._axes.join(numerator, np.repeat(divisor, numerator.size // divisor.size))
