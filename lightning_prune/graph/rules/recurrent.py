"""Recurrent layers: the hidden units of all layers and directions go together, because a module has one hidden size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import fx

from lightning_prune.graph.axes import Dim, Dims, Fixed
from lightning_prune.graph.rules.contraction import contract

if TYPE_CHECKING:
    from lightning_prune.graph.flow import Flow
    from lightning_prune.graph.trace import Call

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def recurrent(call: Call, flow: Flow) -> Any:  # noqa: ANN401
    """Weights (gates x hidden, in) and (gates x hidden, hidden), biases (gates x hidden) of each layer and direction.

    With its rows, its biases and its first state at zero a hidden unit stays at zero.
    """
    weights = call.get("params")
    directions = 2 if call.get("bidirectional") else 1
    per_layer = 4 if call.get("has_biases") else 2
    if weights is None or len(weights) != per_layer * directions * call["num_layers"]:
        return flow.give_up(call, f"{call.place} has packed inputs or a projection, and keeps its sizes")
    hidden: Dim = flow.of(weights[1])[1]
    reads = flow.of(call["input"])[-1]
    for layer in range(call["num_layers"]):
        for direction in range(directions):
            first = (layer * directions + direction) * per_layer
            _cell(call, flow, weights[first : first + per_layer], reads, hidden)
        reads = _side_by_side(hidden, directions)
    return _results(call, flow, hidden, reads)


def _cell(call: Call, flow: Flow, weights: list[fx.Node], reads: Dim, hidden: Dim) -> None:
    contract(call, flow, reads, weights[0], 1)
    contract(call, flow, hidden, weights[1], 1)
    gates = GATES[call.operator]
    for weight in weights:
        rows = flow.of(weight)[0]
        flow.produce(rows)
        for part in np.split(rows, gates) if isinstance(rows, np.ndarray) else (rows,):
            flow.join(hidden, part)


def _side_by_side(hidden: Dim, directions: int) -> Dim:
    return np.tile(hidden, directions) if isinstance(hidden, np.ndarray) else hidden


def _results(call: Call, flow: Flow, hidden: Dim, outputs: Dim) -> list[Dims]:
    """Return the axes of the outputs and of each last state; the first states have the hidden units too."""
    leading = flow.of(call["input"])[:-1]
    batch = leading[0 if call.get("batch_first") else -1]
    states = call["hx"] if isinstance(call["hx"], (list, tuple)) else [call["hx"]]
    for state in states:
        if flow.is_activation(state) or state in flow.trace.names:
            flow.join(hidden, flow.of(state)[-1])
    layers = Fixed(f"layers of {call.place}")
    last: Dims = (layers, *((batch,) if len(leading) == 2 else ()), hidden)
    return [(*leading, outputs), *[last] * len(states)]
