"""Which layers become integers: all but those to skip, and but the worst ones where a ratio must be reached."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch.fx import GraphModule

from lightning_prune.deploy.quantization.base import NothingToQuantizeError, Quantized, decibels
from lightning_prune.deploy.quantization.calibration import Samples
from lightning_prune.deploy.quantization.graphs import fused, holders, retraced
from lightning_prune.deploy.quantization.layers import chosen, in_loops, layers_of
from lightning_prune.deploy.quantization.noise import (
    GraphPair,
    Measured,
    blame,
    in_float,
    measure,
    recorded,
    without_scale,
)
from lightning_prune.errors import VerificationError
from lightning_prune.model.state import kept_state

Way = Callable[[torch.export.ExportedProgram, frozenset[str], Samples], tuple[GraphModule, frozenset[str]]]
"""Quantizes nodes of a program: (program, nodes, samples) -> (graph in which nodes keep their names, nodes taken)."""


_LOOKED_AT = 2
"""Runs on which it is found out which layer is to blame for the noise of another one."""
_SHOWN, _SHOWN_IN_STEP = 2, 8
"""Runs that are handed on for the file to be compared on; of a program with a memory, of the first row."""


@dataclass(frozen=True)
class NoiseBounds:
    """What stays in float and what is refused; the fields are those of Int8.

    Args:
        name: of the quantization, for errors.
        skip: name patterns.
        min_sqnr: in dB.
        min_output_sqnr: in dB.
    """

    name: str
    skip: tuple[str, ...]
    min_sqnr: float | None
    min_output_sqnr: float


def quantized_within(
    program: torch.export.ExportedProgram, samples: Samples, way: Way, bounds: NoiseBounds
) -> Quantized:
    """Return the quantized program, as many layers in float as the bounds ask for.

    What only adds, multiplies or joins between a state and its next value stays in float: the state would be rounded
    anew at each call.

    Each pass quantizes anew and measures. Layers that are too noisy by themselves go back to float, and where there is
    none the one whose noise alone harms the first layer that is too noisy, or else the outputs, the most. That is at
    least one layer a pass, so that it comes to an end.

    Raises:
        ValueError: a pattern of ``skip`` matches no layer.
        NothingToQuantizeError: no layer is left to quantize.
        VerificationError: something is NaN, or an output noisier than the bound.
    """
    graph = fused(program)
    layers = layers_of(graph)
    with kept_state(graph) as changed:
        kept = chosen(layers.values(), bounds.skip) | without_scale(graph, list(layers), samples.example)
        state = changed()
    samples = replace(samples, first={name: graph.get_buffer(name).clone() for name in state})
    samples = replace(samples, rows=in_float(graph, samples))
    kept |= in_loops(graph, state, samples.feeding)
    while True:
        quantized, taken = way(program, frozenset(layers.keys() - kept), samples)
        if not taken:
            names = ", ".join(layer.name for layer in layers.values()) or "none"
            raise NothingToQuantizeError(
                f"{bounds.name} leaves nothing to quantize: the layers that could be ({names}) are skipped, too noisy"
                " for min_sqnr or of a kind that the backend has no kernel for. Lower min_sqnr, skip fewer, take"
                " another quantization, or export without one"
            )
        watched = {node: (v.output, holders(quantized, v)) for node, v in layers.items() if node in taken}
        pair = GraphPair(graph, quantized, watched)
        measured = measure(pair, samples, bounds.min_sqnr is not None)
        too_noisy = _too_noisy(pair, measured, samples, bounds.min_sqnr)
        if not too_noisy:
            break
        kept |= too_noisy
    sqnr = {layers[node].name: ratio for node, ratio in measured.layers.items()}
    _check(sqnr, measured.outputs, bounds)
    left = tuple(v.name for node, v in layers.items() if node not in taken and (v.has_weight or node in kept))
    shown = tuple(samples.few(_SHOWN_IN_STEP if state else _SHOWN).rows[0])
    outputs = tuple(recorded(quantized, {}, inputs, state=dict(samples.first))[1] for inputs in shown)
    again = retraced(quantized, program, samples.example)
    return Quantized(again, sqnr, left, measured.outputs, shown, outputs)


def _too_noisy(pair: GraphPair, measured: Measured, samples: Samples, min_sqnr: float | None) -> set[str]:
    if min_sqnr is None:
        return set()
    failing = [node for node, ratio in measured.layers.items() if not ratio >= min_sqnr]
    if not failing and all(ratio >= min_sqnr for ratio in measured.outputs):
        return set()
    by_themselves = {node for node, ratio in measured.own.items() if not ratio >= min_sqnr}
    if by_themselves:
        return by_themselves
    blamed = blame(pair, samples.few(_LOOKED_AT), failing[0] if failing else None)
    return {min(blamed, key=lambda node: blamed[node])}


def _check(sqnr: Mapping[str, float], outputs: Sequence[float], bounds: NoiseBounds) -> None:
    worst = sorted(sqnr, key=lambda name: -math.inf if math.isnan(sqnr[name]) else sqnr[name])[:3]
    layers = ", ".join(f"{name} ({decibels(sqnr[name])})" for name in worst)
    nan = [name for name, ratio in sqnr.items() if math.isnan(ratio)]
    if nan or any(map(math.isnan, outputs)):
        where = f"layer {nan[0]}" if nan else f"output {[math.isnan(x) for x in outputs].index(True)}"
        raise VerificationError(
            f"{bounds.name}: {where} holds NaN or infinities after the quantization; keep its layer in float with"
            f" skip=, or check the weights and the calibration samples. The noisiest layers: {layers}"
        )
    for index, ratio in enumerate(outputs):
        if ratio < bounds.min_output_sqnr:
            raise VerificationError(
                f"{bounds.name}: output {index} reaches {decibels(ratio)} of signal to quantization noise,"
                f" min_output_sqnr is {bounds.min_output_sqnr:g} dB. The noisiest layers: {layers}; keep such in float"
                f" with skip= or min_sqnr=, or calibrate on samples like those that the app will see"
            )
