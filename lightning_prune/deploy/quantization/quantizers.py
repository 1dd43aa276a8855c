"""Which samples each method of a program is quantized on, and which patterns of ``skip`` concern it."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram

from lightning_prune.deploy.program.dynamic import claimed
from lightning_prune.deploy.program.methods import EntryPoint
from lightning_prune.deploy.program.sequences import Sequences
from lightning_prune.deploy.program.signature import MethodSpec
from lightning_prune.deploy.program.structure import Records
from lightning_prune.deploy.quantization import Quantization, Quantized
from lightning_prune.deploy.quantization.base import NothingToQuantizeError, UnmatchedError
from lightning_prune.errors import PruningError

Quantize = Callable[[ExportedProgram, Sequence[Tensor]], Quantized | None]
"""Quantizes a traced program; None: nothing in it becomes an integer."""


class Quantizers:
    """Quantizes the methods of a program in one way, each on samples of its own inputs.

    Args:
        quantization: of the backend; None: none.
        entries: the methods, ``forward`` first.

    Raises:
        ValueError: a method's inputs are not those of ``forward`` and it has no samples of its own, or it has some
            and nothing is quantized.
    """

    def __init__(self, quantization: Quantization | None, entries: Sequence[EntryPoint]) -> None:
        self._quantization = quantization
        self._samples = {entry.name: _samples(entry, entries[0], quantization) for entry in entries}
        self._unmatched: dict[str, list[UnmatchedError]] = {}
        self._nothing: list[NothingToQuantizeError] = []

    def of(self, name: str) -> Quantize | None:
        """Return what quantizes a method; None where nothing is quantized."""
        if self._quantization is None:
            return None
        quantization = self._quantization.calibrated_on(self._samples[name])

        def quantize(program: ExportedProgram, inputs: Sequence[Tensor]) -> Quantized | None:
            try:
                return self._quantized(quantization, program, inputs)
            except (ValueError, PruningError) as error:
                if name == "forward" or isinstance(error, UnmatchedError):
                    raise
                raise type(error)(f"methods[{name!r}]: {error}") from error

        return quantize

    def check(self) -> None:
        """Check what no single method can tell, after all were quantized.

        Raises:
            ValueError: a pattern of ``skip`` matches no layer of any method.
            ExportError: nothing became an integer in any method.
        """
        for errors in (*self._unmatched.values(), self._nothing):
            if len(errors) == len(self._samples):
                raise errors[0]

    def _quantized(
        self, quantization: Quantization, program: ExportedProgram, inputs: Sequence[Tensor]
    ) -> Quantized | None:
        try:
            return quantization.quantize(program, inputs)
        except UnmatchedError as error:
            if len(self._samples) == 1:
                raise
            for pattern in error.patterns:
                self._unmatched.setdefault(pattern, []).append(error)
            return self._quantized(quantization.without_patterns(error.patterns), program, inputs)
        except NothingToQuantizeError as error:
            self._nothing.append(error)
            return None


def _samples(entry: EntryPoint, forward: EntryPoint, quantization: Quantization | None) -> Iterable[Any] | None:
    """Return the samples that a method is quantized on, as the program takes them."""
    given = entry.calibration
    if quantization is None:
        if given is not None:
            raise ValueError(f"methods[{entry.name!r}].calibration: the backend has no quantization; leave it out")
        return None
    if given is None and (given := quantization.looks_at()) is not None and _inputs(entry) != _inputs(forward):
        raise ValueError(
            f"methods[{entry.name!r}] takes {_listed(entry.spec)}, and {type(quantization).__name__}.calibration holds"
            f" inputs of forward, {_listed(forward.spec)}: give it samples of its own, as in"
            f" Method({entry.eager.method!r}, …, calibration=loader)"
        )
    if given is None:
        return None
    if isinstance(given, Sequences):
        return given.taken(claimed(entry.spec, entry.shapes), entry.preprocess, "calibration")
    given = Records(entry.names, given, "calibration")
    return given if entry.preprocess is None else entry.preprocess.images(given, "calibration")


def _inputs(entry: EntryPoint) -> list[tuple[object, ...]]:
    return [(one.name, tuple(one.shape[1:]), one.dtype) for one in entry.spec.inputs]


def _listed(spec: MethodSpec) -> str:
    return ", ".join(map(str, spec.inputs))
