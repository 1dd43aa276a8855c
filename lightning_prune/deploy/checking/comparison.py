"""How far the outputs of a program are from the eager model's, and how far they may be."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_prune.deploy.program.signature import describe
from lightning_prune.deploy.quantization.noise import Noise, ratio_db
from lightning_prune.errors import VerificationError
from lightning_prune.values import check_number

TOLERANCE = 1e-4
"""Largest absolute difference that is accepted where nothing else was asked for: float kernels stay below 1e-6."""

_ROUNDING = 0.01
"""The largest difference, as a share of the largest number of the output, that rounding may be the reason of."""
_LEAST_POWER = 1e-300
"""Stands for the power of an output that is zero throughout, so that its ratio stays a number that JSON can hold."""


@dataclass(frozen=True)
class Bounds:
    """What is accepted of every output.

    Args:
        tolerance: largest absolute difference; None: any.
        min_sqnr: lowest signal-to-quantization-noise ratio over all that was run, in dB; None: any.

    Raises:
        TypeError: one is no number.
        ValueError: one is not finite, or the tolerance not above 0.
    """

    tolerance: float | None = None
    min_sqnr: float | None = None

    def __post_init__(self) -> None:
        if self.tolerance is not None:
            check_number("tolerance", self.tolerance, above=0)
        if self.min_sqnr is not None:
            check_number("min_sqnr", self.min_sqnr)


@dataclass(frozen=True)
class Remedies:
    """What to do about outputs that are out of bounds.

    Args:
        differs: where they differ by more than rounding does.
        rounds: where it may be rounding, before "tolerance=…".
        noisy: where the ratio is too low.
    """

    differs: str = (
        "That is no rounding: the backend computes something else. Export with Portable() to compare, and write the"
        " operator in front of this output another way"
    )
    rounds: str = "Compare with another backend, or accept it with"
    noisy: str = (
        "Calibrate on more samples like these, keep sensitive layers in float with min_sqnr= or skip=, or accept it"
        " with a lower min_output_sqnr="
    )


class DiffersError(VerificationError):
    """An output differs by more than rounding does."""


FOR_EXPORT = Remedies()
_FOR_A_FILE = Remedies(
    "That is no rounding: is it the file of this model with these weights? A quantized file is judged by min_sqnr=",
    "Is it the file of this model with these weights? If so, judge a quantized file by min_sqnr= and another one by a"
    " larger tolerance: accept it with",
    "Is it the file of this model with these weights, and are these inputs like those that it was calibrated on? If so,"
    " accept it with a lower min_sqnr=",
)
_FOR_A_FLOAT_FILE = Remedies(
    "That is no rounding: is it the file of this model with these weights?",
    "Is it the file of this model with these weights? If so, accept it with",
)


def for_a_file(manifest: Mapping[str, Any] | None, parameters: int) -> Remedies:
    """Return what to do where a file that is there already and a model differ.

    Args:
        manifest: of the file, if it has one.
        parameters: of the model.
    """
    if manifest is None:
        return _FOR_A_FILE
    if (exported := manifest["model"]["parameters"]) != parameters:
        other = (
            f"The file was exported from a model of {exported:,} parameters, and this one has {parameters:,}: load the"
            " checkpoint that was exported, in a shell with --checkpoint"
        )
        return Remedies(other, f"{other}, or accept it with", other)
    return _FOR_A_FLOAT_FILE if manifest["quantization"] is None else _FOR_A_FILE


@dataclass(frozen=True)
class OutputError:
    """How far an output of the file is from the eager model's.

    Args:
        max_abs_error: largest absolute difference over all that was run.
        sqnr_db: 10 · log₁₀(Σ y² / Σ (y − ŷ)²) over all that was run, y of the eager model and ŷ of the file; infinite
            where they are equal, and for outputs that are not floating.
    """

    max_abs_error: float = 0.0
    sqnr_db: float = math.inf

    def to_json(self) -> dict[str, float | None]:
        """Return both as plain values, an infinite ratio as None."""
        ratio = self.sqnr_db if math.isfinite(self.sqnr_db) else None
        return {"max_abs_error": self.max_abs_error, "sqnr_db": ratio}

    def worse(self, other: "OutputError") -> "OutputError":
        """Return the larger difference and the lower ratio of the two."""
        return OutputError(max(self.max_abs_error, other.max_abs_error), min(self.sqnr_db, other.sqnr_db))


class Differences:
    """The errors of each output so far; refuses what is out of bounds.

    Args:
        names: of the outputs, in order.
        bounds: what is accepted.
        remedies: what to do about anything else.
    """

    def __init__(self, names: Sequence[str], bounds: Bounds, remedies: Remedies = FOR_EXPORT) -> None:
        self._largest = dict.fromkeys(names, 0.0)
        self._noise = Noise()
        self._bounds, self._remedies = bounds, remedies

    @property
    def errors(self) -> dict[str, OutputError]:
        """What was measured so far, by output."""
        ratios = {
            name: ratio_db(max(power, _LEAST_POWER), self._noise.noise[name])
            for name, power in self._noise.signal.items()
        }
        return {name: OutputError(error, ratios.get(name, math.inf)) for name, error in self._largest.items()}

    def add(self, outputs: Sequence[Tensor], expected: Sequence[Tensor], where: str) -> None:
        """Compare the program's outputs with the eager model's.

        Args:
            outputs: of the program.
            expected: of the eager model on the same inputs.
            where: on which inputs, in words.

        Raises:
            VerificationError: their number, a shape or a dtype differs, or a difference is above the tolerance or NaN.
        """
        if len(outputs) != len(expected):
            raise VerificationError(
                f"the program gives {len(outputs)} outputs on {where}, the eager model {len(expected)}: {_OTHER_GRAPH}"
            )
        for name, output, wanted in zip(self._largest, outputs, expected, strict=True):
            if output.shape != wanted.shape or output.dtype != wanted.dtype:
                raise VerificationError(
                    f"output {name!r} on {where}: the program gives {describe([output])}, the eager model"
                    f" {describe([wanted])}: {_OTHER_GRAPH}"
                )
            error = max_abs_difference(output, wanted)
            tolerance = self._bounds.tolerance
            if not error <= (sys.float_info.max if tolerance is None else tolerance):
                if not math.isfinite(error) or tolerance is None:
                    raise VerificationError(
                        f"output {name!r} on {where} holds NaN or infinities that program and eager model do not share:"
                        " check the weights and the example input"
                    )
                is_rounding = error <= _ROUNDING * float(wanted.double().abs().max())
                raise (VerificationError if is_rounding else DiffersError)(
                    f"output {name!r} on {where}: largest absolute difference from the eager model is {error:.3g}, the"
                    f" tolerance is {tolerance:g}. "
                    + (
                        f"{self._remedies.rounds} tolerance={_above(error):g}"
                        if is_rounding
                        else self._remedies.differs
                    )
                )
            self._largest[name] = max(self._largest[name], error)
            if wanted.is_floating_point():
                self._noise.add(name, wanted, output)

    def check(self, where: str = "", is_size: bool = False) -> None:
        """Check the ratios, which build up over all that was run.

        Args:
            where: on which inputs, in words, with a space before.
            is_size: whether these inputs have another size than the example.

        Raises:
            VerificationError: one is too low.
        """
        for name, error in self.errors.items():
            if self._bounds.min_sqnr is not None and not error.sqnr_db >= self._bounds.min_sqnr:
                raise VerificationError(
                    f"output {name!r}{where}: the signal-to-quantization-noise ratio to the eager model is"
                    f" {error.sqnr_db:.1f} dB, the lowest accepted is {self._bounds.min_sqnr:g} dB (largest absolute"
                    f" difference {error.max_abs_error:.3g}). {_WRONG_SIZE if is_size else self._remedies.noisy}"
                )


_WRONG_SIZE = "If it is right at other sizes, the runtime cannot resize this program: leave dynamic_shapes= out"
_OTHER_GRAPH = "the program is not made of this model"


def _above(error: float) -> float:
    """Return the next number of one digit that is not below: a tolerance that would do, short enough to copy."""
    unit = 10.0 ** math.floor(math.log10(error))
    return float(f"{math.ceil(error / unit) * unit:.1g}")


def max_abs_difference(output: Tensor, expected: Tensor) -> float:
    """Return max|output − expected| in float64; equal infinities count as 0, any NaN makes the result NaN."""
    if output.numel() == 0:
        return 0.0
    left, right = output.double(), expected.double()
    return float((left - right).abs().masked_fill(left == right, 0.0).max())
