"""8-bit integers through torchao's PT2E and the quantizer that ExecuTorch keeps for XNNPACK."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule
from tqdm.auto import tqdm

from lightning_prune.deploy.quantization.calibrated import Calibrated
from lightning_prune.deploy.quantization.calibration import Samples
from lightning_prune.deploy.quantization.graphs import converted, prepared


@dataclass(frozen=True, eq=False, repr=False)
class Int8(Calibrated):
    """Weights and activations of 8 bits; the ranges of the activations are taken from calibration samples.

    Weights are symmetric and have one scale per output channel, so that zeros stay zeros; activations have one scale
    and zero point per tensor, from torchao's histogram observers.

    Args:
        calibration: a DataLoader or list of batches as ``export(verify_on=)`` takes them, samples like those that the
            app will see; targets are not looked at. Batches of any size. A model with memory sees them in a row; better
            :class:`~lightning_prune.deploy.Sequences`, each from the first state.
        skip: name patterns (fnmatch) of module paths that stay in float, as in ``("head", "stem.*")``; what lies under
            a path that matches stays too.
        min_sqnr: signal-to-quantization-noise ratio in dB that every layer and output must reach; the worst layers
            are kept in float until they do. None: only ``skip`` stays in float.
        min_output_sqnr: ratio in dB that every output must reach, in the graph and in the file; below it the export
            is refused.
        samples: how many samples are used at most, the first ones of the loader.
    """

    calibration: Iterable[Any]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibration is None:
            raise TypeError("Int8.calibration: got None; pass a loader, or use Int8Dynamic(), which needs none")

    def convert(
        self, program: torch.export.ExportedProgram, nodes: frozenset[str], samples: Samples
    ) -> tuple[GraphModule, frozenset[str]]:
        """Return the graph with integers at the given nodes, and which of them these are."""
        graph, taken = prepared(program, nodes, is_dynamic=False)
        with torch.no_grad():
            for inputs in tqdm(samples.run(graph), desc="calibrating", disable=None, delay=5):
                graph(*(x.clone() for x in inputs))
        return converted(graph), taken


@dataclass(frozen=True, eq=False, repr=False)
class Int8Dynamic(Calibrated):
    """Weights of 8 bits, and activations of 8 bits whose range is found anew at each run: Linear and convolutions.

    Args:
        calibration: samples on which the noise is measured, as in :class:`Int8`; None: the example inputs, and random
            ones of the same shapes.
        skip: as in :class:`Int8`.
        min_sqnr: as in :class:`Int8`.
        min_output_sqnr: as in :class:`Int8`.
        samples: as in :class:`Int8`.
    """

    calibration: Iterable[Any] | None = None

    def convert(
        self, program: torch.export.ExportedProgram, nodes: frozenset[str], samples: Samples
    ) -> tuple[GraphModule, frozenset[str]]:
        """Return the graph with integers at the given nodes, and which of them these are."""
        graph, taken = prepared(program, nodes, is_dynamic=True)
        with torch.no_grad():
            graph(*(x.clone() for x in samples.example))
        return converted(graph), taken
