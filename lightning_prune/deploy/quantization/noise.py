"""Signal-to-quantization-noise ratios of layers and outputs: the float graph beside the quantized one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from lightning_prune.deploy.quantization.calibration import Sample, Samples

_STEPS = 255
"""Of 8 bits, over all values of a tensor."""


@dataclass
class Noise:
    """Σ y² and Σ (y − ŷ)² of several tensors over several runs, y in float and ŷ quantized."""

    signal: dict[str, float] = field(default_factory=dict)
    noise: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, expected: Tensor, got: Tensor) -> None:
        """Add one run; entries where y is not finite count as noise only where ŷ differs, and then as NaN."""
        y, z = expected.double(), got.double()
        same = y == z
        self.signal[name] = self.signal.get(name, 0.0) + float(y.square().masked_fill(~y.isfinite(), 0.0).sum())
        self.noise[name] = self.noise.get(name, 0.0) + float((y - z).square().masked_fill(same, 0.0).sum())

    def ratios(self) -> dict[str, float]:
        """Return the ratio of each in dB; infinite without noise, NaN where a value is NaN on one side only."""
        return {name: ratio_db(self.signal[name], noise) for name, noise in self.noise.items()}


def ratio_db(signal: float, noise: float) -> float:
    """Return 10 · log₁₀(signal / noise); infinite without noise, −∞ without signal, NaN where either is."""
    if math.isnan(signal) or not math.isfinite(noise):
        return math.nan
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def sqnr_db(expected: Tensor, got: Tensor) -> float:
    """Return the signal-to-quantization-noise ratio of one tensor in dB."""
    one = Noise()
    one.add("", expected, got)
    return one.ratios()[""]


class RecordingInterpreter(Interpreter):
    """Runs a traced graph and keeps the values of some nodes.

    Args:
        graph: what to run.
        watched: node -> name under which its value is kept; of several nodes with one name the first counts.
        replaced: name -> value that goes on in the place of the one computed.
    """

    def __init__(self, graph: GraphModule, watched: Mapping[str, str], replaced: Mapping[str, Tensor]) -> None:
        super().__init__(graph)
        self.watched = watched
        self.replaced = replaced
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:  # noqa: ANN401
        """Run one node."""
        value = super().run_node(n)
        name = self.watched.get(n.name)
        if name is None:
            return value
        self.values.setdefault(name, value)
        return self.replaced.get(name, value)


def recorded(
    graph: GraphModule,
    watched: Mapping[str, str],
    inputs: Sequence[Tensor],
    replaced: Mapping[str, Tensor] | None = None,
    state: dict[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """Return the values of the watched nodes, and the outputs.

    Args:
        graph: what to run.
        watched: node -> name.
        inputs: of the run.
        replaced: name -> value that goes on in the place of the one computed.
        state: buffer -> value that it has before the run, and afterwards the one that it has then; other graphs may
            hold the same tensor.
    """
    recorder = RecordingInterpreter(graph, watched, replaced or {})
    state = {} if state is None else state
    with torch.no_grad():
        for name, value in state.items():
            graph.get_buffer(name).copy_(value)
        outputs = pytree.tree_map_only(Tensor, torch.clone, recorder.run(*(x.clone() for x in inputs)))
        state |= {name: graph.get_buffer(name).clone() for name in state}
    return recorder.values, tuple(pytree.tree_leaves(outputs))


def in_float(graph: GraphModule, samples: Samples) -> list[list[Sample]]:
    """Return rows whose fed inputs are what the graph in float gives, so that each run holds all that it takes."""
    rows = list[list[Sample]]()
    for row in samples.rows if samples.feeding.sources else ():
        state, outputs = dict(samples.first), None
        rows.append([])
        for inputs in row:
            rows[-1].append(tuple(inputs) if outputs is None else samples.feeding.fed(inputs, outputs))
            outputs = recorded(graph, {}, rows[-1][-1], state=state)[1]
    return rows or [list(row) for row in samples.rows]


@dataclass(frozen=True)
class Measured:
    """What a quantized graph does to its layers and outputs.

    Args:
        layers: name -> ratio in dB, the noise of the layers before it included.
        own: name -> ratio in dB where all the layers before it are in float; empty unless asked for.
        outputs: ratio in dB of each output.
    """

    layers: Mapping[str, float]
    own: Mapping[str, float]
    outputs: tuple[float, ...]


@dataclass(frozen=True)
class GraphPair:
    """A graph in float, the same in integers, and where both hold the same values.

    Args:
        graph: in float.
        quantized: the same in integers.
        watched: name -> node of the float graph, nodes of the quantized graph that hold the same value.
    """

    graph: GraphModule
    quantized: GraphModule
    watched: Mapping[str, tuple[str, Sequence[str]]]

    @property
    def in_float(self) -> dict[str, str]:
        """Node of the float graph -> name."""
        return {node: name for name, (node, _) in self.watched.items()}

    @property
    def in_integers(self) -> dict[str, str]:
        """Node of the quantized graph -> name."""
        return {node: name for name, (_, nodes) in self.watched.items() for node in nodes}


def measure(pair: GraphPair, samples: Samples, with_own: bool) -> Measured:
    """Run both graphs on the same samples, each of them from its own state and fed with its own outputs.

    Args:
        pair: the graphs.
        samples: inputs.
        with_own: whether each layer is measured by itself as well.
    """
    layers, own, outputs = Noise(), Noise(), Noise()
    for row in samples.rows:
        state, quantized_state, got = dict(samples.first), dict(samples.first), None
        for inputs in row:
            before = dict(state)
            expected, wanted = recorded(pair.graph, pair.in_float, inputs, state=state)
            own_inputs = inputs if got is None else samples.feeding.fed(inputs, got)
            values, got = recorded(pair.quantized, pair.in_integers, own_inputs, state=quantized_state)
            alone = recorded(pair.quantized, pair.in_integers, inputs, expected, before)[0] if with_own else {}
            for name in pair.watched:
                layers.add(name, expected[name], values[name])
            for name in alone:
                own.add(name, expected[name], alone[name])
            _add_outputs(outputs, "{}", wanted, got)
    return Measured(layers.ratios(), own.ratios(), tuple(outputs.ratios().values()))


def _add_outputs(noise: Noise, name: str, expected: Sequence[Tensor], got: Sequence[Tensor]) -> None:
    """Add floating outputs under a name with their index in it; the others, which have no ratio, as exact."""
    for index, (y, z) in enumerate(zip(expected, got, strict=True)):
        noise.add(name.format(index), *((y, z) if y.is_floating_point() else (torch.zeros(()), torch.zeros(()))))


def blame(pair: GraphPair, samples: Samples, harmed: str | None) -> dict[str, float]:
    """Return for each watched layer the ratio that is left where its noise is the only one.

    Args:
        pair: the graphs.
        samples: inputs.
        harmed: the layer at whose output it is measured; None: at all outputs together.
    """
    noise = Noise()
    runs = [(dict(samples.first), row) for row in samples.rows]
    for state, inputs in ((state, inputs) for state, row in runs for inputs in row):
        before = dict(state)
        expected, wanted = recorded(pair.graph, pair.in_float, inputs, state=state)
        alone = recorded(pair.quantized, pair.in_integers, inputs, expected, dict(before))[0]
        for name in pair.watched:
            values, got = recorded(pair.graph, pair.in_float, inputs, {name: alone[name]}, dict(before))
            if harmed is None:
                _add_outputs(noise, name, wanted, got)
            else:
                noise.add(name, expected[harmed], alone[name] if name == harmed else values[harmed])
    return noise.ratios()


class _Scaleless(Interpreter):
    """Runs a traced graph and notes the nodes of these whose values have no common scale of 8 bits."""

    def __init__(self, graph: GraphModule, nodes: Sequence[str]) -> None:
        super().__init__(graph)
        self.nodes = frozenset(nodes)
        self.noted: set[str] = set()

    def run_node(self, n: Node) -> Any:  # noqa: ANN401
        value = super().run_node(n)
        if n.name in self.nodes:
            inputs = [x for node in n.all_input_nodes if isinstance(x := self.env.get(node), Tensor) and x.numel()]
            if not all(bool(x.isfinite().all()) for x in (value, *inputs) if isinstance(x, Tensor)):
                self.noted.add(n.name)
            elif n.target == torch.ops.aten.add.Tensor:
                largest = [float(x.abs().max()) for x in inputs]
                drowned = [x for x in largest if 0 < x < max(largest) / _STEPS]
                self.noted |= {n.name} if drowned else set()
        return value


def without_scale(graph: GraphModule, nodes: Sequence[str], inputs: Sequence[Tensor]) -> set[str]:
    """Return the nodes to which no scale of 8 bits fits on these inputs.

    They meet NaN or infinities, as a mask of −∞ before a softmax; or they add numbers of which one step of the larger
    is above all of the smaller, as scores and a mask of −1e9: the smaller would be lost altogether.
    """
    run = _Scaleless(graph, nodes)
    run.garbage_collect_values = False
    with torch.no_grad():
        run.run(*(x.clone() for x in inputs))
    return run.noted
