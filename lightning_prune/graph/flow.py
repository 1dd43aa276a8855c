"""Carry atoms through the graph, rule by rule, until nothing changes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import fx

from lightning_prune.graph._held import HeldSizes
from lightning_prune.graph._kernels import kernels
from lightning_prune.graph._removed_value import RemovedValue
from lightning_prune.graph._scales import Scales, Site, TakenUp
from lightning_prune.graph._vanishing import vanishing
from lightning_prune.graph.axes import NOT_A_CHANNEL, Axes, Dim, Dims, Fixed
from lightning_prune.graph.trace import Call, Trace

SplitKey = tuple[fx.Node, int]
"""A split of axes: the node, and the first of the new axes."""

Rule = Callable[[Call, "Flow"], Any]
"""Returns the axes of a call's result, a list of them for several results."""

# Neither is reached by a network that settles; they end what would alternate for ever.
MAX_RESTARTS = 12
MAX_PASSES = 20


class Flow(Axes):
    """The axes of every tensor in a traced graph: what a rule reads and writes.

    Args:
        trace: of the model.
        rule_of: finds the rule of a call; None for an operator that is not known.
        allow_inexact: whether axes may shrink over which a normalisation runs.
        attention: what carries the split of an attention where both can.

    Attributes:
        dims: axes of the result of each node; a list of them for a node with several results, None for no tensor.
        is_strict: in the second half of the passes, what is still in conflict gets frozen.
        scouts: while looking ahead, the atoms of their own that the new axes of each split get; None otherwise.
        splits: what each split chose in this round: (its atoms, number of candidates).
        whole: weights of grouped convolutions that lose whole convolution groups.
        slotwise: weights of grouped convolutions that lose the same slots in each group.
        unknown: operators without a rule.
        held: axes whose size stands in an attribute of a module.
        kernels: those that a layer computes with statistics over its inputs, by node.
        vanishing: nodes that are zero where a channel was removed.
        scales: finds what takes up the change of a mean over channels.
        sites: means over channels that can go, of the last pass.
        refused: calls, and the kind of their sites, whose channels are not all of one channel group, so that nothing
            takes up their change.
    """

    def __init__(
        self,
        trace: Trace,
        rule_of: Callable[[Call], Rule | None],
        allow_inexact: bool = False,
        attention: Literal["heads", "width"] = "heads",
    ) -> None:
        self.attention = attention
        super().__init__(trace.shapes, allow_inexact)
        self.trace = trace
        self._rule_of = rule_of
        self.removed_value = RemovedValue(trace)
        self.held = HeldSizes(self, trace.sizes)
        self.refused: set[tuple[fx.Node, str]] = set()
        self.scouts: dict[SplitKey, list[np.ndarray]] | None = None
        self.is_strict = False
        self._candidates: dict[SplitKey, list[int]] = {}
        self._deferred: set[tuple[SplitKey, int]] = set()
        self._choices: dict[SplitKey, int] = {}
        self.dims: dict[fx.Node, Any] = {}
        self.unknown: dict[str, None] = {}
        self.activations: set[fx.Node] = set()
        for node in trace.nodes:
            is_input = node.op == "placeholder" and node not in trace.names
            if is_input or any(argument in self.activations for argument in node.all_input_nodes):
                self.activations.add(node)
        self.kernels = kernels(trace, self.activations, self.removed_value)
        self._inside = {node: kernel for kernel in self.kernels.values() for node in kernel.inside}
        self.vanishing = vanishing(trace, self.removed_value, self.kernels)
        self.scales = Scales(trace, self.vanishing)

    def solve(self) -> None:
        """Run passes to a fixpoint; start again while an axis chosen to carry a split turns out frozen."""
        # A look ahead: each new axis of a split gets atoms of its own, and shows which of them something freezes
        # further down. Without it the first choice would be a guess, and each wrong one costs a restart.
        self._start()
        self.scouts = {}
        self._settle_passes()
        for key, parts in self.scouts.items():
            self._candidates[key] = [position for position, atoms in enumerate(parts) if self.is_live(atoms)]
            self._deferred |= {(key, position) for position, atoms in enumerate(parts) if self.is_deferred(atoms)}
        self.scouts = None
        for _ in range(MAX_RESTARTS):
            self._start()
            for self.is_strict in (False, True):
                self._settle_passes()
            dead = [
                key
                for key, (atoms, count) in self.splits.items()
                if self.frozen[atoms].all() and self._choices.get(key, 0) + 1 < count
            ]
            if not dead:
                return
            for key in dead:
                self._choices[key] = self._choices.get(key, 0) + 1

    def _start(self) -> None:
        self.restart()
        self.splits: dict[SplitKey, tuple[np.ndarray, int]] = {}
        self._made: dict[tuple[fx.Node, int], np.ndarray] = {}
        self.slotwise: set[str] = set()
        self.held.restart()

    def made(self, node: fx.Node, axis: int, size: int) -> np.ndarray:
        """Return atoms of its own for an axis that the model's code makes; the same in every pass."""
        if (node, axis) not in self._made:
            self._made[node, axis] = self.scratch(size)
        return self._made[node, axis]

    def carriers(self, key: SplitKey, sizes: list[int], constant: Collection[int] = ()) -> list[int]:
        """Return the axes that can carry a split, the one to use first.

        Those that are not frozen further down: a size that is a constant in the code comes after one that is not, the
        width of a value after its heads, and a small axis after a large one.
        """
        candidates = self._candidates.get(key) or list(range(len(sizes)))
        ranked = sorted(candidates, key=lambda at: (at in constant, (key, at) in self._deferred, -sizes[at]))
        first = min(self._choices.get(key, 0), len(ranked) - 1)
        return ranked[first:] + ranked[:first]

    def _settle_passes(self) -> None:
        passes = 0
        while True:
            before, slotwise = self.label, len(self.slotwise)
            self.begin_pass()
            self._run()
            if not self.end_pass() and slotwise == len(self.slotwise):
                return
            passes += 1
            if passes > MAX_PASSES:
                size = self.count
                self.freeze((before[:size] != self.label[:size]).nonzero()[0], "its coupling does not settle")

    def _run(self) -> None:
        self.whole: set[str] = set()
        self.sites: list[Site] = []
        self.held.begin_pass()
        for node in self.trace.nodes:
            if node.op == "placeholder":
                self.dims[node] = self._source(node)
            elif node.op == "output":
                self.freeze_nodes(node, "model output")
            elif node.target is operator.getitem:
                several, number = self.dims[node.all_input_nodes[0]], node.args[1]
                if isinstance(several, list) and isinstance(number, int):
                    self.dims[node] = several[number]
                else:
                    self.dims[node] = self.fixed(node, "not a tensor")
            elif node in self.kernels:
                kernel = self.kernels[node]
                rows, *others = self.dims[kernel.weight]
                for parameter, axis in kernel.beside.items():
                    self.produce(self.join(self.dims[parameter][axis], rows))
                self.dims[node] = (rows, *others)
            elif node in self._inside:
                self.dims[node] = self.fixed(node, "a part of a kernel")
            elif node in self.trace.calls:
                self.dims[node] = self._apply(self.trace.calls[node])
            else:
                self.dims[node] = self.fixed(node, "constant")
        self.held.end_pass()

    def _source(self, node: fx.Node) -> Dims | None:
        name = self.trace.names.get(node)
        if name is None or name not in self.trace.shapes:
            return self.fixed(node, "input of the model")
        value = node.meta["val"]
        dims = [self.atoms(name, axis) for axis in range(value.dim())]
        for dim in dims:
            if dim.size == 1:
                self.freeze(dim, NOT_A_CHANNEL)
        if name in self.trace.kept:
            self.freeze(dims, self.trace.kept[name])
        # Whole numbers and booleans are positions, counts or masks of positions: they address entries by number.
        if not value.is_floating_point() and not value.is_complex():
            self.freeze(dims, f"{name} holds {value.dtype} numbers")
        return tuple(Fixed("a single entry, broadcast") if dim.size == 1 else dim for dim in dims)

    def _apply(self, call: Call) -> Any:  # noqa: ANN401
        rule = self._rule_of(call)
        result = rule(call, self) if rule is not None else self.give_up(call)
        values, results = (call.output, result) if isinstance(result, list) else ([call.output], [result])
        for value, dims in zip(values, results, strict=True):
            shape = tuple(value.shape) if isinstance(value, torch.Tensor) else None
            made = None
            if shape is not None and dims is not None and len(dims) == len(shape):
                made = tuple(n if isinstance(dim, Fixed) else dim.size for dim, n in zip(dims, shape, strict=True))
            # A rule of a user's own, or an overload that nobody thought of: better nothing than a wrong axis.
            if made != shape:
                return self.give_up(call, f"the rule for {call.place} does not fit its result")
        return result

    def note_sizes(self, call: Call, given: Sequence[int], dims: Sequence[Dim]) -> None:
        """Note which attributes hold the sizes that a call gives to these axes; axes of one attribute are one."""
        self.held.note(call, given, dims, self.is_strict)

    def scale(self, call: Call, dims: Sequence[Dim], taken: TakenUp, kind: str = "mean") -> bool:
        """Note that a call averages over channels, whose change is taken up; tell whether it is, and they can go."""
        live = [dim for dim in dims if isinstance(dim, np.ndarray) and self.is_live(dim)]
        can_go = len(live) <= 1 and (call.node, kind) not in self.refused and not taken.reason
        if can_go and live:
            self.sites.append(Site(call.node, live[0], taken, kind))
        return can_go

    def of(self, node: fx.Node) -> Dims:
        """Return the axes of a node's tensor."""
        return self.dims[node]

    def is_activation(self, node: fx.Node) -> bool:
        """Tell whether a node depends on the model's inputs."""
        return node in self.activations

    def fixed(self, node: fx.Node, reason: str) -> Any:  # noqa: ANN401
        """Return fixed axes for whatever the node returns."""
        return _fixed(node.meta.get("val"), Fixed(reason))

    def freeze_nodes(self, node: fx.Node, reason: str) -> None:
        """Freeze every axis of every tensor that goes into a node."""
        self.freeze(self._inputs(node), reason)

    def _inputs(self, node: fx.Node) -> Iterator[Dim]:
        for argument in node.all_input_nodes:
            dims = self.dims.get(argument)
            for one in dims if isinstance(dims, list) else [dims]:
                yield from one or ()

    def give_up(self, call: Call, reason: str | None = None) -> Any:  # noqa: ANN401
        """Freeze what goes in and out; without a reason the operator is reported as unknown."""
        if reason is None:
            reason = f"no rule for {call.node.target} at {call.where or 'the root'}"
            if any(isinstance(dim, np.ndarray) for dim in self._inputs(call.node)):
                self.unknown[str(call.node.target)] = None
        self.freeze_nodes(call.node, reason)
        return self.fixed(call.node, reason)


def _fixed(value: Any, dim: Dim) -> Any:  # noqa: ANN401
    if isinstance(value, torch.Tensor):
        return (dim,) * value.dim()
    return [_fixed(one, dim) for one in value] if isinstance(value, (tuple, list)) else None
