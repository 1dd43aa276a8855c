"""What a tensor holds where a channel was removed, as long as that follows from the masked parameters alone."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import fx

from lightning_prune.graph.rules.families import COPIES, FILLS, JOINS, MOVES, RESHAPES, base_name, is_pointwise
from lightning_prune.graph.trace import Trace

_SAME = (COPIES - FILLS) | {"zeros_like", "zero"} | RESHAPES | MOVES
_SPLITS = frozenset(("chunk", "split", "split_with_sizes"))

NEVER_NEGATIVE = frozenset(("abs", "square", "relu", "sigmoid", "exp", "softplus", "var", "std", "linalg_vector_norm"))

KEEPS_THE_SIGN = frozenset(("mean", "sum", "amax", "amin", "to", "_to_copy", "clone", "expand"))
"""Operators that return no negative number for none."""


def _is_number(term: Any) -> bool:  # noqa: ANN401
    """Tell whether an argument is a positive constant."""
    return isinstance(term, (int, float)) and term > 0


class RemovedValue:
    """The value of tensors made of parameters only, at the entries that a mask sets to zero.

    A weight contributes nothing at removed entries when it is zero there, and a division is safe when its denominator
    is not. Both are decided by running the same operators on single numbers.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._known: dict[tuple[fx.Node, bool], float | None] = {}

    def is_zero(self, node: fx.Node) -> bool:
        """Tell whether masking the parameters makes the node zero there; buffers carry no mask."""
        return self._value(node, False) == 0.0

    def is_positive(self, node: fx.Node) -> bool:
        """Tell whether the node is positive there: by its value, with a buffer counted as zero, or for any input."""
        value = self._value(node, True)
        return (value is not None and 0.0 < value < math.inf) or self._is_above_zero(node)

    def _is_above_zero(self, node: fx.Node) -> bool:
        """Tell whether the operator adds a positive number to something that is never negative, or clips above zero."""
        call = self._trace.calls.get(node)
        if call is None:
            return False
        name = base_name(call.operator)
        if name == "add":
            terms = [call["self"], call["other"]]
            return all(self._is_at_least_zero(term) for term in terms) and any(_is_number(term) for term in terms)
        if name in ("clamp", "clamp_min"):
            return _is_number(call.get("min"))
        return name in ("sqrt", "expand", "expand_as") and self._is_above_zero(call["self"])

    def _is_at_least_zero(self, term: Any) -> bool:  # noqa: ANN401
        if not isinstance(term, fx.Node):
            return _is_number(term)
        call = self._trace.calls.get(term)
        if call is None:
            return False
        if base_name(call.operator) in KEEPS_THE_SIGN:
            return self._is_at_least_zero(call["self"])
        return call.get("exponent") == 2 or base_name(call.operator) in NEVER_NEGATIVE

    def _value(self, node: fx.Node, with_buffers: bool) -> float | None:
        key = (node, with_buffers)
        if key not in self._known:
            self._known[key] = self._compute(node, with_buffers)
        return self._known[key]

    def _compute(self, node: fx.Node, with_buffers: bool) -> float | None:
        if node in self._trace.names:
            return 0.0 if with_buffers or self._trace.names[node] in self._trace.parameters else None
        if node.target is operator.getitem:
            return self._value(node.all_input_nodes[0], with_buffers)
        call = self._trace.calls.get(node)
        if call is not None and call.operator in _SPLITS:
            return self._value(node.all_input_nodes[0], with_buffers)
        if call is None or not isinstance(call.output, torch.Tensor):
            return None
        inputs = [(argument, self._value(argument, with_buffers)) for argument in node.all_input_nodes]
        name = base_name(call.operator)
        if name in _SAME | JOINS:
            values = {value for _, value in inputs}
            return values.pop() if len(values) == 1 else None
        if name in ("mv", "_weight_norm"):
            # A row of zeros gives zero. Weight norm's direction keeps its rows, but their length is zero then.
            return 0.0 if inputs[0][1] == 0.0 else None
        if not is_pointwise(call):
            return None
        # An operand that is broadcast holds other entries as well as the removed one, so that its value is unknown.
        shape = call.output.shape
        whole = {argument: value for argument, value in inputs if argument.meta["val"].shape == shape}
        if name == "mul" and 0.0 in whole.values():
            return 0.0
        # Spectral norm: one number, over all entries, divides each of them.
        if name == "div" and list(whole.values()) == [0.0] and all(n.meta["val"].numel() == 1 for n, _ in inputs[1:]):
            return 0.0
        if len(whole) < len(inputs) or None in whole.values():
            return None

        def number(argument: fx.Node) -> Any:  # noqa: ANN401
            return torch.tensor(whole[argument], dtype=torch.float64)

        target: Any = call.node.target
        args = fx.map_arg(call.node.args, number)
        return float(target(*args, **fx.map_arg(call.node.kwargs, number)))
