"""Widths of channel groups that keep most score within a cost: a multiple-choice knapsack with coupled costs.

    maximise  sum_g value_g(w_g)   subject to   sum_t cost_t(w of the groups of t) <= limit

For a price of the cost the problem falls apart into a function over the graph of groups that cost terms couple, whose
best widths are found exactly by eliminating one group after the other; residual networks need tables of two or three
groups at most. All prices of a grid are eliminated at once. The best price gives widths within the limit and, as the
Lagrangian dual, a bound on what any widths could keep; what the limit has left over is filled by single and paired
changes. Where a table would become too large, as where every layer reads all before it, the widths for a price are
found by changing one group at a time, and there is no bound.

Source:
    Everett 1963, "Generalized Lagrange Multiplier Method", for the price; Dechter 1999, "Bucket elimination", for the
    elimination.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lightning_prune.selection.budget import Terms

_PRICES = 16
_SWEEPS = 3
_LARGEST = 2**22
"""Numbers in a table: 32 MB."""
_FEW = 2**16
"""Choices that are all tried."""
_TIE = 1e-9


@dataclass(frozen=True)
class Widths:
    """What was chosen.

    Args:
        index: channel group -> index of its width.
        value: score that is kept.
        bound: what no choice can exceed; infinite where it is not known.
    """

    index: Mapping[str, int]
    value: float
    bound: float

    @property
    def gap(self) -> float:
        """By which share the best choice may be better at most; infinite where it is not known."""
        return max(0.0, self.bound / self.value - 1) if self.value > 0 else math.inf


class Problem:
    """Groups, what each of their widths is worth, and what they cost together.

    Args:
        values: channel group -> value of each of its widths, (number of widths,).
        terms: of the cost, an axis for each group with its widths in the same order.

    Example:
        >>> problem = Problem(
        ...     {"a": np.array([0.0, 3.0]), "b": np.array([0.0, 2.0])},
        ...     [(("a",), np.array([0.0, 5.0])), (("b",), np.array([0.0, 4.0]))],
        ... )
        >>> problem.solve(5.0).index
        {'a': 1, 'b': 0}
    """

    def __init__(self, values: Mapping[str, np.ndarray], terms: Terms) -> None:
        self.values = {name: np.asarray(value, float) for name, value in values.items()}
        merged: dict[tuple[str, ...], np.ndarray] = {}
        for names, table in terms:
            key = tuple(sorted(names))
            turned = np.asarray(table, float).transpose([names.index(name) for name in key])
            merged[key] = merged[key] + turned if key in merged else turned
        self.terms = merged
        self._of = {name: [key for key in merged if name in key] for name in self.values}

    def cost(self, index: Mapping[str, int]) -> float:
        """Return what a choice costs."""
        return float(sum(table[tuple(index[name] for name in key)] for key, table in self.terms.items()))

    def value(self, index: Mapping[str, int]) -> float:
        """Return what a choice keeps."""
        return float(sum(value[index[name]] for name, value in self.values.items()))

    def solve(self, limit: float) -> Widths:
        """Return the widths that keep most within the limit.

        Raises:
            ValueError: no widths cost as little.
        """
        limit += _TIE * max(1.0, abs(limit))
        if math.prod(len(value) for value in self.values.values()) <= _FEW:
            return self._tried(limit)
        prices = self._scale * np.geomspace(1e-4, 1e4, _PRICES)
        bound, within = math.inf, dict[float, dict[str, int]]()
        for _ in range(_SWEEPS):
            chosen = self._priced(prices)
            values = sum(value[chosen[name]] for name, value in self.values.items())
            costs = sum(table[tuple(chosen[name] for name in key)] for key, table in self.terms.items())
            if self._is_exact:
                bound = min(bound, float((values - prices * (costs - limit)).min()))
            fits = np.flatnonzero(costs <= limit)
            if not len(fits):
                break
            first = int(fits[0])  # prices rise, costs fall
            within |= {float(prices[i]): {n: int(a[i]) for n, a in chosen.items()} for i in fits[:2]}
            if first == 0:
                break
            prices = np.geomspace(prices[first - 1], prices[first], _PRICES)
        if not within:
            chosen = self._priced(np.array([1e12 * self._scale]))
            cheapest = {name: int(own[0]) for name, own in chosen.items()}
            if (least := self.cost(cheapest)) > limit:
                raise ValueError(f"cannot come down to {limit:,.6g}: {least:,.6g} is the least that can be left")
            within = {float(prices[-1]): cheapest}
        best = max((self._filled(index, limit, price) for price, index in within.items()), key=self.value)
        return Widths(best, self.value(best), max(bound, self.value(best)) if self._is_exact else math.inf)

    def _tried(self, limit: float) -> Widths:
        """Return the best of all choices, where these are few."""
        names = list(self.values)
        each = dict(zip(names, np.indices([len(self.values[name]) for name in names]), strict=True))
        values, costs = np.zeros([len(own) for own in self.values.values()]), np.zeros(())
        for name, own in self.values.items():
            values = values + own[each[name]]
        for key, table in self.terms.items():
            costs = costs + table[tuple(each[name] for name in key)]
        costs = np.broadcast_to(costs, values.shape)
        best = np.unravel_index(int(np.where(costs <= limit, values, -np.inf).argmax()), values.shape)
        if costs[best] > limit:
            raise ValueError(f"cannot come down to {limit:,.6g}: {costs.min():,.6g} is the least that can be left")
        value = float(values[best])
        return Widths({name: int(index) for name, index in zip(names, best, strict=True)}, value, value)

    @cached_property
    def _scale(self) -> float:
        """Value per cost of the whole network: a price of that order decides something."""
        dearest = sum(float(table.max() - table.min()) for table in self.terms.values())
        return sum(float(value.max() - value.min()) for value in self.values.values()) / (dearest or 1.0) or 1.0

    @cached_property
    def _order(self) -> list[str]:
        """Those with fewest neighbours first, by which tables stay small."""
        near = {name: {other for key in self._of[name] for other in key} - {name} for name in self.values}
        order = []
        while near:
            name = min(near, key=lambda one: len(near[one]))
            around = near.pop(name)
            for other in around:
                near[other] = (near[other] | around) - {name, other}
            order.append(name)
        return order

    @cached_property
    def _is_exact(self) -> bool:
        """Whether all tables of the elimination are small enough."""
        near = {name: {other for key in self._of[name] for other in key} - {name} for name in self.values}
        for name in self._order:
            around = near.pop(name)
            if _PRICES * math.prod(len(self.values[other]) for other in (name, *around)) > _LARGEST:
                return False
            for other in around:
                near[other] = (near[other] | around) - {name, other}
        return True

    def _priced(self, prices: np.ndarray) -> dict[str, np.ndarray]:
        """Return for each group the index of its width at each price: most value less price times cost."""
        if not self._is_exact:
            each = [self._descended(float(price)) for price in prices]
            return {name: np.array([index[name] for index in each]) for name in self.values}
        place = {name: number for number, name in enumerate(self._order)}
        buckets: dict[str, list[tuple[tuple[str, ...], np.ndarray]]] = {name: [] for name in self._order}
        for name, value in self.values.items():
            buckets[name].append(((name,), np.broadcast_to(value, (len(prices), len(value)))))
        for key, table in self.terms.items():
            first = min(key, key=place.__getitem__)
            buckets[first].append((key, -prices.reshape(-1, *[1] * table.ndim) * table))
        solved = []
        for name in self._order:
            scope = sorted({n for key, _ in buckets[name] for n in key} - {name}, key=place.__getitem__)
            axes, total = [*scope, name], np.zeros(())
            for key, table in buckets[name]:
                turned = table.transpose(0, *[1 + key.index(axis) for axis in axes if axis in key])
                shape = [len(self.values[axis]) if axis in key else 1 for axis in axes]
                total = total + turned.reshape(len(prices), *shape)
            total = np.broadcast_to(total, (len(prices), *(len(self.values[axis]) for axis in axes)))
            solved.append((name, scope, total.argmax(-1)))
            if scope:
                buckets[scope[0]].append((tuple(scope), total.max(-1)))
        chosen: dict[str, np.ndarray] = {}
        for name, scope, best in reversed(solved):
            chosen[name] = best[(np.arange(len(prices)), *(chosen[other] for other in scope))]
        return chosen

    def _descended(self, price: float) -> dict[str, int]:
        """Return widths that no change of a single group makes better at a price."""
        index = {name: len(value) - 1 for name, value in self.values.items()}
        for _ in range(50):
            before = dict(index)
            for name, value in self.values.items():
                index[name] = int((value - price * self._change(name, index)).argmax())
            if index == before:
                break
        return index

    def _change(self, name: str, index: Mapping[str, int]) -> np.ndarray:
        """Return by how much the cost changes for each width of one group, all others as they are."""
        change = np.zeros(len(self.values[name]))
        for key in self._of[name]:
            row = tuple(slice(None) if other == name else index[other] for other in key)
            change += self.terms[key][row] - self.terms[key][tuple(index[other] for other in key)]
        return change

    def _filled(self, index: Mapping[str, int], limit: float, price: float) -> dict[str, int]:
        """Change single groups, and then pairs, as long as that keeps more within the limit."""
        index, spare = dict(index), limit - self.cost(index)
        least = _TIE * abs(self._scale)
        moves: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        stale = set(self.values)
        for _ in range(4 * len(self.values)):
            for name in stale:  # a change is felt by those that share a term with it
                value = self.values[name]
                moves[name] = value - value[index[name]], self._change(name, index)
            allowed = {name: np.where(change <= spare, gain, -np.inf) for name, (gain, change) in moves.items()}
            best = max(allowed, key=lambda name: allowed[name].max())
            if allowed[best].max() > least:
                made = {best: int(allowed[best].argmax())}
            else:
                made = self._pair(moves, index, spare, price)
            if not made:
                break
            index |= made
            spare = limit - self.cost(index)
            stale = {other for name in made for key in self._of[name] for other in key} | set(made)
        return index

    def _pair(
        self, moves: Mapping[str, tuple[np.ndarray, np.ndarray]], index: Mapping[str, int], spare: float, price: float
    ) -> dict[str, int]:
        """Return two changes of groups that share no term, which together gain most within what is spare; {}: none."""
        rest: list[tuple[float, float, str, int]] = []
        for name, (gain, change) in moves.items():
            near = np.flatnonzero(np.abs(gain - price * change) < 2 * price * max(spare, _TIE))
            rest += [(float(gain[i]), float(change[i]), name, int(i)) for i in near if i != index[name]]
        rest = sorted(rest, key=lambda move: -abs(move[0]))[:400]
        if not rest:
            return {}
        gains, changes = np.array([move[0] for move in rest]), np.array([move[1] for move in rest])
        both = np.where(changes[:, None] + changes <= spare, gains[:, None] + gains, -np.inf)
        for place in np.argsort(both, axis=None)[::-1][:50]:
            one, other = divmod(int(place), len(rest))
            if both[one, other] <= _TIE * abs(self._scale):
                break
            first, second = rest[one][2], rest[other][2]
            if first != second and not any(second in key for key in self._of[first]):
                return {first: rest[one][3], second: rest[other][3]}
        return {}
