"""What the ways to quantize share: samples to calibrate and measure on, layers in float, bounds."""

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from lightning_prune.deploy.quantization.base import Quantization, Quantized
from lightning_prune.deploy.quantization.calibration import Samples, drawn_samples, samples_of
from lightning_prune.deploy.quantization.choosing import NoiseBounds, quantized_within
from lightning_prune.values import check_number, check_whole


@dataclass(frozen=True, eq=False, repr=False)
class Calibrated(Quantization):
    """A quantization that looks at samples; :class:`Int8` says what the fields are.

    Two compare equal where they hold the same loader and equal numbers.
    """

    calibration: Iterable[Any] | None
    skip: Sequence[str] = ()
    min_sqnr: float | None = None
    min_output_sqnr: float = 10.0
    samples: int = 256

    def __post_init__(self) -> None:
        patterns = () if isinstance(self.skip, str) else tuple(self.skip)
        if isinstance(self.skip, str) or not all(isinstance(pattern, str) for pattern in patterns):
            raise TypeError(
                f"{self._name}.skip takes a sequence of name patterns, got {self.skip!r}; write ('head', 'stem.*')"
            )
        object.__setattr__(self, "skip", patterns)
        check_loader(f"{self._name}.calibration", self.calibration)
        if self.min_sqnr is not None:
            check_number(f"{self._name}.min_sqnr", self.min_sqnr, why=": it is a ratio in dB")
        check_number(f"{self._name}.min_output_sqnr", self.min_output_sqnr, why=": it is a ratio in dB")
        check_whole(f"{self._name}.samples", self.samples, 1)

    @abstractmethod
    def convert(
        self, program: torch.export.ExportedProgram, nodes: frozenset[str], samples: Samples
    ) -> tuple[GraphModule, frozenset[str]]:
        """Return the graph of a program with the given nodes on integers, and which of them could be."""

    def quantize(self, program: torch.export.ExportedProgram, inputs: Sequence[Tensor]) -> Quantized:
        """Return the quantized program; see :meth:`Quantization.quantize`."""
        if self.calibration is None:
            samples = Samples((drawn_samples(inputs),))
        else:
            samples = samples_of(self.calibration, inputs, self.samples)
        bounds = NoiseBounds(self._name, tuple(self.skip), self.min_sqnr, self.min_output_sqnr)
        return quantized_within(program, samples, self.convert, bounds)

    def quantize_for_time(self, program: torch.export.ExportedProgram, inputs: Sequence[Tensor]) -> Quantized:
        """Return the program quantized on the inputs and random ones, whatever the noise."""
        bounds = NoiseBounds(self._name, tuple(self.skip), None, -math.inf)
        return quantized_within(program, Samples((drawn_samples(inputs),)), self.convert, bounds)

    def looks_at(self) -> Iterable[Any] | None:
        """Return ``calibration``."""
        return self.calibration

    def calibrated_on(self, samples: Iterable[Any] | None) -> Quantization:
        """Return the same with other samples."""
        return replace(self, calibration=samples)

    def without_patterns(self, patterns: Collection[str]) -> Quantization:
        """Return the same without some patterns of ``skip``."""
        return replace(self, skip=tuple(pattern for pattern in self.skip if pattern not in patterns))

    @property
    def _name(self) -> str:
        return type(self).__name__

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._key() == other._key()  # pyright: ignore[reportAttributeAccessIssue]

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        fields = (field.name for field in dataclasses.fields(self))
        return tuple(id(self.calibration) if name == "calibration" else getattr(self, name) for name in fields)

    def __repr__(self) -> str:
        shown = [f"calibration={described(self.calibration)}"] if self.calibration is not None else []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "calibration" and value != field.default:
                shown.append(f"{field.name}={value!r}")
        return f"{self._name}({', '.join(shown)})"


def described(loader: object) -> str:
    """Return a loader in a few words."""
    try:
        batches = f" of {len(loader)} batches" if isinstance(loader, Sized) else ""
    except TypeError:  # a DataLoader of an iterable dataset has a __len__ that raises
        batches = ""
    return f"<{type(loader).__name__}{batches}>"


def check_loader(owner: str, loader: object) -> None:
    """Check samples to calibrate on; None is allowed.

    Raises:
        TypeError: they cannot be read, or not more than once.
    """
    if loader is None:
        return
    if isinstance(loader, str | Tensor | Iterator) or not isinstance(loader, Iterable):
        raise TypeError(
            f"{owner}: got a {type(loader).__name__}, must be a DataLoader or a list of batches, which can"
            " be read more than once"
        )
