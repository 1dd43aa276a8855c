"""What a network costs, and how much must go until a cost is met."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Terms = list[tuple[tuple[str, ...], np.ndarray]]
"""Channel groups, and what each combination of their widths costs: an axis for each of them."""


@dataclass(frozen=True)
class Budget:
    """A cost of the whole network and the part of it that hangs on each parameter.

    Args:
        total: cost of the dense network.
        per_parameter: dense name -> cost of that parameter when dense; what is left over of ``total`` stays whatever
            is pruned.
    """

    total: float
    per_parameter: Mapping[str, float]

    def remaining(self, densities: Mapping[str, float]) -> float:
        """Return the cost that is left when each named parameter keeps this share of its elements."""
        return self.total - sum(self.per_parameter.get(name, 0) * (1 - kept) for name, kept in densities.items())


class NetworkCost(Protocol):
    """A cost of the whole network as a function of the widths of its channel groups."""

    @property
    def total(self) -> float:
        """Of the dense network."""
        ...

    def left(self, removed: Mapping[str, float]) -> float:
        """Return what is left when so many channels of each group are gone."""
        ...

    def terms(self, widths: Mapping[str, Sequence[int]], limit: float) -> tuple[float, Terms]:
        """Return the cost as a constant and a sum of terms, each of a few channel groups.

        Args:
            widths: channel group -> the widths among which is chosen.
            limit: what the cost must come down to; the sum has to be above it exactly where the cost is.
        """
        ...

    def holders(self, removed: Mapping[str, float]) -> dict[str, float]:
        """Return what costs most when so many channels are gone: its name -> its cost, largest first."""
        ...


class Clock(Protocol):
    """What knows how long networks take: a latency table."""

    def cost(
        self,
        units: Any,  # noqa: ANN401 - of the channels, beyond this file
        sizes: Mapping[str, int],
        inputs: Sequence[tuple[int, ...]],
    ) -> NetworkCost:
        """Return the milliseconds of a run of the network with these channels, sizes of parameters and inputs."""
        ...


class Costs(Protocol):
    """What a network can be counted by."""

    @property
    def params(self) -> NetworkCost:
        """Parameters."""
        ...

    @property
    def macs(self) -> NetworkCost:
        """Multiply-accumulates.

        Raises:
            ValueError: there is no example input.
        """
        ...

    def bytes(self, bits: float) -> NetworkCost:
        """Return the bytes of all parameters, where weights of convolutions and Linear layers take so many bits."""
        ...

    def time(self, table: Clock) -> NetworkCost:
        """Return the milliseconds of a run, as a table predicts them.

        Raises:
            ValueError: it is of other networks.
        """
        ...

    def memory(self, is_mapped: bool) -> NetworkCost:
        """Return the most bytes that a program holds at one time; those of a mapped file do not count.

        Raises:
            ValueError: the network has operators of which this is not known.
        """
        ...


def smallest_share(cost: Callable[[float], float], limit: float, resolution: float) -> float:
    """Return a share in [0, 1] whose cost is at most ``limit``, at most ``resolution`` above the smallest such one.

    Args:
        cost: falls (weakly) as the share rises.
        limit: what the cost must come down to.
        resolution: at most half of the share that one unit makes, then not one unit too many goes.

    Raises:
        ValueError: not even share 1 comes down to the limit.

    Example:
        >>> left = lambda share: 100 - round(80 * share)
        >>> share = smallest_share(left, limit=50, resolution=0.5 / 80)
        >>> share, round(80 * share)
        (0.62109375, 50)
    """
    # costs are sums of floats: a rounding error must not ask for one more channel
    untouched = cost(0.0)
    limit += 1e-9 * max(1.0, abs(untouched))
    if untouched <= limit:
        return 0.0
    least = cost(1.0)
    if least > limit:
        raise ValueError(f"cannot come down to {limit:,.0f}: with everything removable gone {least:,.0f} is left")
    low, high = 0.0, 1.0
    # floats of this size have nothing in between below 2**-52: whatever the cost and the resolution, it ends
    while high - low > max(resolution, 2**-52):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(middle) <= limit else (middle, high)
    return high
