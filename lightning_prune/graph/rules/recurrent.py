"""Recurrent layers: the hidden units of all layers and directions go together, because a module has one hidden size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx

from lightning_prune.graph.axes import Dim, Dims, Fixed
from lightning_prune.graph.flow import Flow
from lightning_prune.graph.rules.contraction import contract
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
            _step(call, flow, reads, weights[first : first + per_layer], hidden, GATES[call.operator])
        # The directions lie side by side in what the next layer reads.
        reads = np.tile(hidden, directions) if isinstance(hidden, np.ndarray) else hidden
    leading = flow.of(call["input"])[:-1]
    batch = leading[0 if call.get("batch_first") else -1]
    states = _states(call, flow, hidden)
    layers = Fixed(f"layers of {call.place}")
    last: Dims = (layers, *((batch,) if len(leading) == 2 else ()), hidden)
    return [(*leading, reads), *[last] * states]


def cell(call: Call, flow: Flow) -> Any:  # noqa: ANN401
    """One step of a layer: the state that it gives has the hidden units of the one that it takes."""
    hidden: Dim = flow.of(call["w_hh"])[1]
    weights = [call[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh") if call.get(name) is not None]
    _step(call, flow, flow.of(call["input"])[-1], weights, hidden, GATES[call.operator.removesuffix("_cell")])
    last: Dims = (*flow.of(call["input"])[:-1], hidden)
    # a single state is no list
    return [last] * states if (states := _states(call, flow, hidden)) > 1 else last


def _step(call: Call, flow: Flow, reads: Dim, weights: Sequence[fx.Node], hidden: Dim, gates: int) -> None:
    """Let the input go into the first weight and the hidden units into the second, and make these of all rows."""
    contract(call, flow, reads, weights[0], 1)
    contract(call, flow, hidden, weights[1], 1)
    for weight in weights:
        rows = flow.of(weight)[0]
        flow.produce(rows)
        for part in np.split(rows, gates) if isinstance(rows, np.ndarray) else (rows,):
            flow.join(hidden, part)


def _states(call: Call, flow: Flow, hidden: Dim) -> int:
    """Let the given states have the hidden units, and return how many there are."""
    states = call["hx"] if isinstance(call["hx"], (list, tuple)) else [call["hx"]]
    for state in states:
        # torch makes the zeros of a state that is not given, and of the right size each time
        if flow.is_activation(state) or state in flow.trace.names or isinstance(flow.of(state)[-1], np.ndarray):
            flow.join(hidden, flow.of(state)[-1])
    return len(states)
