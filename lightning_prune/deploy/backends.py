"""Where a program runs, as frozen values: each knows its partitioner and what it does with zeros."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Backend(Protocol):
    """What :func:`~lightning_prune.deploy.export` asks of a backend; any dataclass with these members works."""

    @property
    def name(self) -> str:
        """Its name in the manifest."""
        ...

    def partitioners(self) -> Sequence[Any]:
        """Return ExecuTorch partitioners, asked in order which operators they take; imports happen here."""
        ...

    def notes(self, sparsity: float) -> tuple[str, ...]:
        """Return what a user should know about a model with this share of zeros in [0, 1], as sentences."""
        ...


@dataclass(frozen=True)
class XNNPACK:
    """CPU kernels for Arm and x86-64: Android, iOS, desktop.

    Removed channels buy size and speed in proportion. Zeros that stay in place run at dense speed, since ExecuTorch
    never asks XNNPACK for its sparse kernels; only the compressed download shrinks.
    """

    @property
    def name(self) -> str:
        """``xnnpack``."""
        return "xnnpack"

    def partitioners(self) -> Sequence[Any]:
        """Return ExecuTorch's XnnpackPartitioner with its defaults."""
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

        return [XnnpackPartitioner()]

    def notes(self, sparsity: float) -> tuple[str, ...]:
        """Return a warning about zeros that bring no speed, from a sparsity of 30 % on."""
        if sparsity < 0.3:
            return ()
        return (
            f"{sparsity:.0%} of the parameters are zero: XNNPACK stores and runs zeros like any other number, so the"
            " file and its latency are those of the dense model and only the zipped download shrinks. To run faster"
            " and store less, remove channels: prune with granularity=Channel().",
        )
