"""What a sparsity counts: parameters or multiply-accumulates of the whole network, and how much must go to meet it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass


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
    while high - low > resolution:
        middle = (low + high) / 2
        low, high = (low, middle) if cost(middle) <= limit else (middle, high)
    return high
