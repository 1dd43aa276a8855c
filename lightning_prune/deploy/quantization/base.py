"""What every way to quantize says about itself."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Quantized:
    """A program whose weights, and activations if so chosen, are integers.

    Args:
        program: traced again after the quantization.
        sqnr: layer -> signal-to-quantization-noise ratio of its output, in dB.
        kept_float: layers that stay in float, in the order of the graph.
    """

    program: torch.export.ExportedProgram
    sqnr: Mapping[str, float]
    kept_float: tuple[str, ...] = ()


class Quantization(ABC):
    """A way to turn weights, and activations if so chosen, into integers; a subclass is a frozen dataclass."""

    @abstractmethod
    def quantize(
        self,
        program: torch.export.ExportedProgram,
        inputs: Sequence[Tensor],
        dynamic_shapes: Any = None,  # noqa: ANN401
    ) -> Quantized:
        """Return the quantized program.

        Args:
            program: traced and rewritten, in float.
            inputs: of the program.
            dynamic_shapes: as in torch.export.

        Raises:
            ExportError: it cannot be quantized, or what comes out is not what went in.
        """
