"""What a network costs at given widths of its channel groups, and the widths that keep most within needs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from lightning_prune.graph.activations import Activations
from lightning_prune.selection.allocation import Candidates
from lightning_prune.selection.budget import Budget, Clock, NetworkCost, Terms
from lightning_prune.selection.channels import ChannelUnits
from lightning_prune.selection.knapsack import Problem, Widths
from lightning_prune.selection.memory import MemoryCost
from lightning_prune.selection.needs import Bound

_MOST_WIDTHS = 16
_ROUNDS = 12
_TOGETHER = 1.0
"""How much more the scores that a group loses weigh than one by one, when all are lost. Channels that go from one layer
do not go independently, and what is left has to take over for all of them. Chosen on digits and letters
(`python -m benchmarks.together`): larger factors are hardly more accurate, and keep less score."""


@dataclass(frozen=True)
class ParameterCost:
    """A cost that hangs on parameters, each in proportion to its size: parameters themselves, MACs, bytes.

    Args:
        budget: the cost of each parameter when dense.
        units: the channels that may go.
    """

    budget: Budget
    units: ChannelUnits

    @property
    def total(self) -> float:
        """Of the dense network."""
        return self.budget.total

    def left(self, removed: Mapping[str, float]) -> float:
        """Return what is left when so many channels of each group are gone."""
        return self.budget.remaining(self.units.densities(removed))

    def terms(self, widths: Mapping[str, Sequence[int]], limit: float) -> tuple[float, Terms]:
        """Return the cost as a constant and a sum of terms of one or two channel groups.

        What is left of a parameter is the product over its axes of 1 less the shares that its groups have lost, which
        is multiplied out.
        """
        sizes, constant, terms = self.units.sizes, self.total, list[tuple[tuple[str, ...], np.ndarray]]()
        for parameter, parts in self.units.shares.items():
            cost = self.budget.per_parameter.get(parameter, 0.0)
            axes: dict[int, list[tuple[str, np.ndarray]]] = {}
            for group, axis, share in parts:
                lost = share * (sizes[group] - np.array(widths[group], float))
                axes.setdefault(axis, []).append((group, -lost))
            for factors in product(*([None, *own] for own in axes.values())):
                tables: dict[str, np.ndarray] = {}
                for group, table in filter(None, factors):
                    tables[group] = tables[group] * table if group in tables else table
                if tables:
                    joint = cost * np.ones(())
                    for table in tables.values():
                        joint = np.multiply.outer(joint, table)
                    terms.append((tuple(tables), joint))
        return constant, terms

    def holders(self, removed: Mapping[str, float]) -> dict[str, float]:
        """Return the parameters that cost most when so many channels are gone -> their cost, largest first."""
        densities = self.units.densities(removed)
        left = {name: cost * densities.get(name, 1.0) for name, cost in self.budget.per_parameter.items()}
        return dict(sorted(left.items(), key=lambda item: -item[1]))


@dataclass(frozen=True)
class UnitCosts:
    """What a network can be counted by.

    Args:
        units: the channels that may go.
        parameters: number of all parameters.
        sizes: dense name of each parameter -> its elements and its axes; of those that share memory the first.
        computing: dense name of a parameter -> MACs that go with it: those of convolutions, Linear layers, attention.
        all_macs: of the whole network.
        inputs: shapes of its example input.
        running: returns what it holds while it runs; called where that counts.
    """

    units: ChannelUnits
    parameters: int
    sizes: Mapping[str, tuple[int, int]]
    computing: Mapping[str, float]
    all_macs: float
    inputs: tuple[tuple[int, ...], ...]
    running: Callable[[], Activations]

    @property
    def params(self) -> NetworkCost:
        """Parameters."""
        each = {name: float(size) for name, (size, _) in self.sizes.items()}
        return ParameterCost(Budget(self.parameters, each), self.units)

    @property
    def macs(self) -> NetworkCost:
        """Multiply-accumulates."""
        return ParameterCost(Budget(self.all_macs, self.computing), self.units)

    def bytes(self, bits: float) -> NetworkCost:
        """Return the bytes of all parameters, where weights of convolutions and Linear layers take so many bits."""
        each = {
            name: size * (bits if axes > 1 and name in self.computing else 32.0) / 8
            for name, (size, axes) in self.sizes.items()
        }
        return ParameterCost(Budget(sum(each.values()), each), self.units)

    def time(self, table: Clock) -> NetworkCost:
        """Return the milliseconds of a run, as a table predicts them."""
        return table.cost(self.units, {name: size for name, (size, _) in self.sizes.items()}, self.inputs)

    def memory(self, is_mapped: bool) -> NetworkCost:
        """Return the most bytes that a program holds at one time."""
        return MemoryCost(self.running(), self.bytes(32.0), self.units, is_mapped)


def progress(bound: Sequence[Bound], removed: Mapping[str, float]) -> float:
    """Return how far a network has come on the way from dense to all needs: 1 and more where it meets them."""
    return min((one.cost.total - one.cost.left(removed)) / (one.cost.total - one.limit) for one in bound)


def widths_within(
    units: ChannelUnits, candidates: Candidates, bound: Sequence[Bound], share: float
) -> tuple[dict[str, int], float]:
    """Return how many channels of each group go so that most score is left within the needs.

    What a group loses counts the more, the more of its score it is. Of groups with many widths some 16 are tried, and
    then those beside the chosen ones, closer and closer.

    Args:
        units: the channels that may go; none that is gone comes back.
        candidates: their scores, higher = keep.
        bound: the needs.
        share: of the way from the dense network to them.

    Returns:
        channel group -> number of its channels that are gone then, and by which share another choice of the widths
        that were tried first could keep more at most; infinite where that is not known, as with several needs.

    Raises:
        ValueError: they cannot be met.

    Source:
        :mod:`lightning_prune.selection.knapsack`; several needs by a price for each (Everett 1963).
    """
    every, steps, kept = dict[str, list[int]](), dict[str, int](), dict[str, np.ndarray]()
    for name, size in units.sizes.items():
        most = size - candidates.removed[name]
        every[name] = sorted({most, *(width for width in units.granularity.widths(size) if width <= most)})
        span = (every[name][-1] - every[name][0]) / (_MOST_WIDTHS - 2)
        steps[name] = 2 ** math.ceil(math.log2(span)) if len(every[name]) > _MOST_WIDTHS else 1
        scores = candidates.scores[name] / candidates.scales.get(name, 1.0)
        ranked = np.sort(scores.flatten().double().numpy())[::-1]
        kept[name] = _worth(np.concatenate([[0.0], np.cumsum(ranked[:most])]))
    limits = [one.at(share) for one in bound]
    allowed = {
        # kernels step at multiples of powers of two
        name: [width for width in own if width in (own[0], own[-1]) or width % steps[name] == 0]
        for name, own in every.items()
    }
    best = _chosen(units, allowed, kept, bound, limits)
    value, highest = best.value, best.bound
    while max(steps.values()) > 1:
        left = {name: allowed[name][index] for name, index in best.index.items()}
        for name in (name for name, step in steps.items() if step > 1):
            width, near = left[name], range(left[name] - steps[name], left[name] + steps[name] + 1)
            steps[name] = max(1, steps[name] // (_MOST_WIDTHS // 2))
            allowed[name] = [w for w in every[name] if w == width or (w in near and w % steps[name] == 0)]
        try:
            best = _chosen(units, allowed, kept, bound, limits)
        except ValueError:  # of the memory, narrower tensors may lie in an order that takes more
            best = Widths({}, -math.inf, math.inf)
        if best.value < value:  # which is not exact in large networks: what was chosen is one of these choices
            best = Widths({name: allowed[name].index(width) for name, width in left.items()}, value, highest)
        value = best.value
    gone = {name: units.sizes[name] - allowed[name][index] for name, index in best.index.items()}
    return gone, Widths({}, value, max(value, highest)).gap


def _worth(kept: np.ndarray) -> np.ndarray:
    """Return what the kept scores of a group are worth: all of them what they are, none nothing.

    all - (lost + a · lost² / all) / (1 + a),    lost = all - kept
    """
    lost, total = kept[-1] - kept, kept[-1]
    return kept if total <= 0 else total - (lost + _TOGETHER * lost**2 / total) / (1 + _TOGETHER)


def _chosen(
    units: ChannelUnits,
    allowed: Mapping[str, Sequence[int]],
    kept: Mapping[str, np.ndarray],
    bound: Sequence[Bound],
    limits: Sequence[float],
) -> Widths:
    """Return which of the allowed widths keep most within the limits, where so many channels keep so much."""
    values = {name: kept[name][own] for name, own in allowed.items()}
    counted = [one.cost.terms(allowed, limit) for one, limit in zip(bound, limits, strict=True)]
    if len(bound) == 1:
        constant, terms = counted[0]
        found = Problem(values, terms).solve(limits[0] - constant)
        removed = {name: units.sizes[name] - allowed[name][index] for name, index in found.index.items()}
        if bound[0].cost.left(removed) <= limits[0] * (1 + 1e-9):
            return found
    weights, best = np.ones(len(bound)), Widths({}, -math.inf, math.inf)
    slack = [0.0, 1.0]  # of what the needs allow together: too little, and not known to be
    for number in range(0 if len(bound) > 1 else _ROUNDS, 2 * _ROUNDS):
        # all needs as one, each in parts of what it allows, by a weight that rises while it is not met; where no
        # weights meet all of them, or a sum is less than the cost that it stands for, less and less is allowed
        allows = 1.0 if number < _ROUNDS else sum(slack) / 2
        parts = list(zip(weights / weights.sum(), limits, counted, strict=True))
        terms = [(key, weight / limit * table) for weight, limit, (_, own) in parts for key, table in own]
        constant = sum(weight / limit * own for weight, limit, (own, _) in parts)
        try:
            found = Problem(values, terms).solve(allows - constant)
        except ValueError:
            slack[0] = allows
            continue
        removed = {name: units.sizes[name] - allowed[name][index] for name, index in found.index.items()}
        over = np.array([one.cost.left(removed) / limit for one, limit in zip(bound, limits, strict=True)])
        if over.max() <= 1 + 1e-9:
            best = max(best, Widths(found.index, found.value, math.inf), key=lambda one: one.value)
        if number < _ROUNDS:
            weights = weights * over**4
        elif not best.index or over.max() > 1 + 1e-9:
            slack[1] = allows
        else:
            slack[0] = allows
    if not best.index:
        best = Widths(dict.fromkeys(allowed, 0), sum(float(own[0]) for own in values.values()), math.inf)
        removed = {name: units.sizes[name] - widths[0] for name, widths in allowed.items()}
        for one, limit in zip(bound, limits, strict=True):
            if (least := one.cost.left(removed)) > limit * (1 + 1e-9):
                raise ValueError(f"cannot come down to {one.need.amount(limit)}: {one.need.amount(least)} is the least")
    return best
