"""What every way to quantize says about itself, and what comes out of it."""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_prune.errors import ExportError


@dataclass(frozen=True)
class Quantized:
    """A program whose weights, and activations if so chosen, are integers, and what that cost.

    The signal-to-quantization-noise ratio is 10 · log₁₀(Σ y² / Σ (y − ŷ)²) in dB, y of the float graph and ŷ of the
    quantized one on the same samples, summed over all of them; infinite where both are equal.

    Args:
        program: traced again after the quantization, with the dynamic shapes of the program that went in.
        sqnr: layer -> ratio of its output, in the order of the graph; the noise of the layers before it included.
        kept_float: layers that stay in float, in the order of the graph.
        output_sqnr: ratio of each output; infinite for outputs that are not floating.
        samples: inputs of the program's shapes on which it was measured, a few of them; the file must agree on them.
        outputs: of the quantized graph on these samples, in order, each from the first state.
    """

    program: torch.export.ExportedProgram
    sqnr: Mapping[str, float]
    kept_float: tuple[str, ...] = ()
    output_sqnr: tuple[float, ...] = ()
    samples: tuple[tuple[Tensor, ...], ...] = ()
    outputs: tuple[tuple[Tensor, ...], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return layers, outputs and layers in float as plain values; an infinite ratio becomes None."""
        return {
            "sqnr_db": {layer: _finite(ratio) for layer, ratio in self.sqnr.items()},
            "output_sqnr_db": [_finite(ratio) for ratio in self.output_sqnr],
            "kept_float": list(self.kept_float),
        }

    def __str__(self) -> str:
        worst, ratio = min(self.sqnr.items(), key=lambda item: item[1], default=("not measured", math.inf))
        output = f", outputs {', '.join(map(decibels, self.output_sqnr))}" if self.output_sqnr else ""
        kept = f"; in float: {', '.join(self.kept_float)}" if self.kept_float else ""
        return f"{len(self.sqnr)} layers quantized, worst {worst} {decibels(ratio)}{output}{kept}"


_LOWEST = -1000.0
"""What stands for minus infinity in dB, which plain JSON has not."""


def decibels(ratio: float) -> str:
    """Return a ratio in dB in words."""
    return "exact" if ratio == math.inf else f"{ratio:.1f} dB"


def _finite(ratio: float) -> float | None:
    return None if ratio == math.inf else max(ratio, _LOWEST)


class NothingToQuantizeError(ExportError):
    """A program has no layer that may become integers."""


class UnmatchedError(ValueError):
    """Patterns of ``skip`` match no layer of a program.

    Args:
        patterns: those.
        names: of the layers that there are.
    """

    def __init__(self, patterns: Sequence[str], names: Sequence[str]) -> None:
        listed = ", ".join(names) or "none"
        super().__init__(f"skip: pattern {patterns[0]!r} matches no layer; there are {listed}")
        self.patterns = tuple(patterns)


class Quantization(ABC):
    """A way to turn weights, and activations if so chosen, into integers; a subclass is a frozen dataclass."""

    min_output_sqnr: float = 10.0
    """Lowest signal-to-quantization-noise ratio in dB that is accepted of any output, of graph and of file."""

    skip: Sequence[str] = ()
    """Name patterns of layers that stay in float."""

    weight_bits: float = 8.0
    """Bits that a weight of a convolution or Linear layer takes in the file."""

    @abstractmethod
    def quantize(self, program: torch.export.ExportedProgram, inputs: Sequence[Tensor]) -> Quantized:
        """Return the quantized program.

        Args:
            program: traced and rewritten, in float; left as it is. Its dynamic shapes are kept.
            inputs: of the program.

        Raises:
            ValueError: a calibration batch does not fit the program.
            ExportError: it cannot be quantized.
            VerificationError: an output is NaN or noisier than ``min_output_sqnr``.
        """

    def quantize_for_time(self, program: torch.export.ExportedProgram, inputs: Sequence[Tensor]) -> Quantized:
        """Return the program quantized where its time alone counts: on no samples, and whatever the noise."""
        return self.quantize(program, inputs)

    def looks_at(self) -> Iterable[Any] | None:
        """Return the samples that ``forward`` is quantized on; None: it needs none."""
        return None

    def calibrated_on(self, samples: Iterable[Any] | None) -> "Quantization":
        """Return the same with other samples, those of another method."""
        return self

    def without_patterns(self, patterns: Collection[str]) -> "Quantization":
        """Return the same without some patterns of ``skip``, which concern other methods."""
        return self


def check_quantization(value: object) -> None:
    """Check what a backend is given as its quantization.

    Raises:
        TypeError: it is neither None nor a value, but a class or something else.
    """
    if value is None or isinstance(value, Quantization):
        return
    given = value.__name__ if isinstance(value, type) else ""
    choices = ("Int8Dynamic()", "Int8(calibration=loader)", "Int4Groupwise()")
    meant = next((choice for choice in choices if choice.partition("(")[0] == given), "")
    got = f"the class {given}" if given else f"{value!r:.60} ({type(value).__name__})"
    raise TypeError(f"quantization: got {got}, must be None or a value, as in quantization={meant or choices[0]}")
