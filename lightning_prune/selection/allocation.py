"""How overall sparsity is spread: the share of all units -> the share of each target's (or channel group's) units.

An allocation is any callable ``allocation(share, candidates) -> {name: share}``; shares are cumulative, in [0, 1],
and must not fall when ``share`` rises.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Literal, Protocol

import torch
from torch import Tensor

from lightning_prune.criteria import CHUNK, Scores
from lightning_prune.distributed.shards import ALONE, Spread
from lightning_prune.distributed.threads import one_thread
from lightning_prune.selection.ranking import Cut, count, lowest, lowest_of, ordered_bits
from lightning_prune.values import Choice, check_number


@dataclass(frozen=True, eq=False)
class Candidates:
    """The units that may be removed.

    Args:
        scores: name of the target or channel group -> score of each of its units (any shape; -inf where removed
            already). May be computed when read: use :meth:`pieces` to go through large ones.
        shapes: name -> shape of the weight that the units belong to.
        sizes: name -> number of units.
        removed: name -> how many of them are removed already.
        dtype: float64 if any score is, otherwise float32.
        costs: "params" and, with an example input, "macs" -> name -> what one of its units costs in the dense network.
        scales: name -> what its scores are divided by before they are ranked, positive; 1 where missing.
        in_play: name -> bool mask of the weights that units are made of, where that is not all of them: the rest has
            left with channels that another recipe removed.
        spread: the ranks over which the scores lie; each reads those of its own rows alone. All other fields, and
            every cut, are of all of them.
        default: how the sparsity is spread where the recipe leaves it open.
    """

    scores: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, int]
    removed: Mapping[str, int]
    dtype: torch.dtype = torch.float32
    costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)
    in_play: Mapping[str, Tensor] = field(default_factory=dict)
    spread: Spread = ALONE
    default: "Allocation" = field(default_factory=lambda: Global())
    _cuts: dict[int, Cut] = field(default_factory=dict, repr=False)
    _few: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _per_cost: dict[tuple[tuple[str, float], ...], "Candidates"] = field(default_factory=dict, repr=False)

    @one_thread()
    def cut(self, k: int) -> Cut:
        """Return the cut that removes the k lowest of all units, ties by order of names; remembered."""
        if k not in self._cuts and self._is_few:
            if "" not in self._few:
                self._few[""] = torch.cat([self._bits(name) for name in self.sizes]).sort().values
            self._cuts[k] = lowest_of(self._few[""], k)
        elif k not in self._cuts:
            pieces = lambda: (piece for name in self.sizes for piece in self.pieces(name))  # noqa: E731
            self._cuts[k] = lowest(pieces, k, self.dtype, spread=self.spread)
        return self._cuts[k]

    def cut_of(self, name: str, k: int) -> Cut:
        """Return the cut that removes the k lowest units of one name: quick when it is that of all units.

        Its ties are those among this rank's own units.
        """
        if self._is_few:
            return lowest_of(self._bits(name).sort().values, k)
        latest = next(reversed(self._cuts.values()), None)
        cut = lowest(lambda: self.pieces(name), k, self.dtype, latest, self.spread)
        if not self.spread.is_sharded:
            return cut
        own = count(self.pieces(name), cut.bits, self.dtype)[1]
        return Cut(cut.bits, min(own, max(0, cut.ties - self.spread.before(own))))

    @one_thread()
    def removed_by(self, cut: Cut) -> dict[str, int]:
        """Return how many units of each name a cut through all of them removes."""
        if self._is_few:
            own = [
                (int((bits < cut.bits).sum()), int((bits == cut.bits).sum())) for bits in map(self._bits, self.sizes)
            ]
        else:
            own = [count(self.pieces(name), cut.bits, self.dtype) for name in self.sizes]
        left, removed = cut.ties, dict[str, int]()
        for name, (below, equal) in zip(self.sizes, self.spread.sum(torch.tensor(own)).tolist(), strict=True):
            ties = min(left, equal)
            left, removed[name] = left - ties, below + ties
        return removed

    @property
    def _is_few(self) -> bool:
        """Whether all scores are at hand and few, as those of channels are: then they are sorted once."""
        return not isinstance(self.scores, Scores) and not self.spread.is_sharded and self.total <= CHUNK

    def _bits(self, name: str) -> Tensor:
        if name not in self._few:
            self._few[name] = torch.cat([ordered_bits(piece) for piece in self.pieces(name)])
        return self._few[name]

    def pieces(self, name: str) -> Iterator[Tensor]:
        """Yield the scores of one target in row-major order, flat, in pieces of bounded size where possible."""
        found = self.scores.chunks(name) if isinstance(self.scores, Scores) else (self.scores[name].flatten(),)
        scale = self.scales.get(name, 1.0)
        for piece in found:
            yield piece.to(self.dtype) if scale == 1.0 else piece.to(self.dtype) / scale

    def per_cost(self, costs: Mapping[str, float]) -> "Candidates":
        """Return the same units with each score divided by the cost of the unit; remembered, with their cuts.

        Raises:
            ValueError: a name has no cost, or one that is not positive.
        """
        missing = [name for name in self.sizes if name not in costs]
        if missing:
            raise ValueError(
                f"Global.cost has no entry for {missing[0]}{f' and {len(missing) - 1} more' if missing[1:] else ''}; it"
                f" has {list(costs)[:8]} and needs one for each of {list(self.sizes)[:8]}"
            )
        for name in self.sizes:
            _check_cost(name, costs[name])
        key = tuple((name, float(costs[name])) for name in self.sizes)
        if key not in self._per_cost:
            scales = {name: cost * self.scales.get(name, 1.0) for name, cost in key}
            self._per_cost[key] = replace(self, scales=scales, _cuts={}, _few={}, _per_cost={})
        return self._per_cost[key]

    @property
    def total(self) -> int:
        """The number of units of all targets together."""
        return sum(self.sizes.values())


Allocation = Callable[[float, Candidates], Mapping[str, float]]


@dataclass(frozen=True)
class Uniform(Choice):
    """The same share everywhere."""

    def __call__(self, share: float, candidates: Candidates) -> dict[str, float]:
        """Return ``share`` for each name."""
        return dict.fromkeys(candidates.sizes, share)


@dataclass(frozen=True)
class ERK(Choice):
    """Erdős-Rényi-Kernel: a layer keeps in proportion to sum(shape) / prod(shape), so large layers lose most.

    density_l = min(1, eps * sum(shape_l) / prod(shape_l)), with eps such that the overall share is met.

    Source:
        Evci et al. 2020, "Rigging the Lottery" (RigL), section 3; for Linear layers Mocanu et al. 2018.
    """

    def __call__(self, share: float, candidates: Candidates) -> dict[str, float]:
        """Return the share of each name."""
        raw = {name: sum(shape) / math.prod(shape) for name, shape in candidates.shapes.items()}
        kept = (1 - share) * candidates.total
        dense = {name for name in raw if not candidates.sizes[name]}
        while len(dense) < len(raw):
            rest = sum(raw[n] * candidates.sizes[n] for n in raw if n not in dense)
            eps = max(0.0, kept - sum(candidates.sizes[n] for n in dense)) / rest
            above = {n for n in raw if n not in dense and eps * raw[n] > 1}
            if not above:
                return {n: 0.0 if n in dense else 1 - eps * raw[n] for n in raw}
            dense |= above
        return dict.fromkeys(raw, 0.0)


@dataclass(frozen=True)
class Global(Choice):
    """One ranking over all units: the lowest scores go, wherever they are; ties by order of names.

    Args:
        cost: rank by score per cost, so that an expensive channel goes before a cheap one of the same score: "params",
            "macs", or a table target or channel group -> cost of one of its units. A table is kept as a plain dict of
            numbers. None: by score alone.

    Raises:
        ValueError: another word, an empty table, or a cost that is not a positive, finite number.
    """

    cost: Literal["params", "macs"] | Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.cost, Mapping):
            if not self.cost:
                raise ValueError(
                    "Global.cost is an empty table; give each target or channel group a cost, or leave cost out"
                )
            for name, cost in self.cost.items():
                _check_cost(name, cost)
            # numbers under names, so that YAML and torch.load(weights_only=True) take any table
            object.__setattr__(self, "cost", {name: float(cost) for name, cost in self.cost.items()})
        elif self.cost not in (None, "params", "macs"):
            raise ValueError(f'Global.cost must be "params", "macs", a table or None, got {self.cost!r}')

    def __call__(self, share: float, candidates: Candidates) -> dict[str, float]:
        """Return the share of each name."""
        if self.cost is not None:
            costs = self.cost if isinstance(self.cost, Mapping) else candidates.costs.get(self.cost)
            if costs is None:
                raise ValueError(f"Global(cost={self.cost!r}) needs an example input: set example_input_array")
            candidates = candidates.per_cost(costs)
        removed = candidates.removed_by(candidates.cut(round(share * candidates.total)))
        return {name: removed[name] / max(size, 1) for name, size in candidates.sizes.items()}


class SensitivityCurve(Protocol):
    """What :func:`lightning_prune.study.sensitivity` returns."""

    def limits(self, max_drop: float) -> Mapping[str, float]:
        """Return target or channel group -> the largest share of its units that may go for this drop."""
        ...


@dataclass(frozen=True)
class FromSensitivity(Choice):
    """Shares in proportion to what each target or channel group was measured to stand.

    With t_l the limit of l, the largest share at which the metric had fallen by no more than ``max_drop`` with l alone
    pruned: share_l = c t_l up to c = 1, with c such that the overall share is met; beyond, what is missing is taken
    from each in proportion to the 1 - t_l that is left of it.

    Args:
        curve: of :func:`lightning_prune.study.sensitivity`; or target or channel group -> limit in [0, 1], as which it
            is kept.
        max_drop: by how much the metric may have fallen, in its own unit, above 0.

    Raises:
        ValueError: a limit outside [0, 1], or a drop that is not above 0.

    Source:
        Han et al. 2015 and Li et al. 2017 set the sparsity of each layer by hand from such curves.
    """

    curve: SensitivityCurve | Mapping[str, float]
    max_drop: float = 0.02

    def __post_init__(self) -> None:
        check_number("FromSensitivity.max_drop", self.max_drop, above=0)
        limits = self.curve if isinstance(self.curve, Mapping) else self.curve.limits(self.max_drop)
        for name, limit in limits.items():
            if not 0 <= limit <= 1:
                raise ValueError(f"FromSensitivity.curve gives {name} the limit {limit!r}; it must lie in [0, 1]")
        # numbers under names, so that YAML and torch.load(weights_only=True) take it
        object.__setattr__(self, "curve", {name: float(limit) for name, limit in limits.items()})

    def __call__(self, share: float, candidates: Candidates) -> dict[str, float]:
        """Return the share of each name.

        Raises:
            ValueError: the curve lacks a target or channel group.
        """
        curve = self.curve if isinstance(self.curve, Mapping) else self.curve.limits(self.max_drop)
        missing = next((name for name in candidates.sizes if name not in curve), None)
        if missing is not None:
            raise ValueError(
                f"the sensitivity curve has no entry for {missing}; it has {list(curve)[:8]}. Measure it with the"
                " granularity and the targets of the recipe"
            )
        limits = {name: curve[name] for name in candidates.sizes}
        wanted = share * candidates.total
        within = sum(limits[name] * size for name, size in candidates.sizes.items())
        if wanted <= within:
            return {name: limit * (wanted / within if within else 0.0) for name, limit in limits.items()}
        rest = min(1.0, (wanted - within) / (candidates.total - within))
        return {name: limit + rest * (1 - limit) for name, limit in limits.items()}


def _check_cost(name: str, cost: float) -> None:
    if isinstance(cost, bool) or not isinstance(cost, Real) or not 0 < cost < math.inf:
        raise ValueError(f"Global.cost gives {name} the cost {cost!r}; each must be a positive, finite number")


BUILT_IN: tuple[type[Choice], ...] = (Uniform, ERK, Global, FromSensitivity)
"""What a recipe names, and a checkpoint may hold."""
