"""CPU kernels for Arm and x86-64."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_prune.deploy.backends.base import WORTH_A_NOTE, Backend
from lightning_prune.deploy.quantization import Quantization
from lightning_prune.deploy.quantization.base import check_quantization
from lightning_prune.deploy.rewriting import FOR_XNNPACK, Rewrite


@dataclass(frozen=True)
class XNNPACK(Backend):
    """CPU kernels for Arm and x86-64: Android, iOS, desktop.

    Removed channels buy size and speed in proportion. Zeros that stay in place run at dense speed, since ExecuTorch
    never asks XNNPACK for its sparse kernels; only the compressed download shrinks.

    Args:
        quantization: how weights and activations become integers, as in ``Int8(calibration=loader)``; None: float32.
    """

    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        check_quantization(self.quantization)

    @property
    def name(self) -> str:
        """``xnnpack``."""
        return "xnnpack"

    @property
    def runs_here(self) -> bool:
        """True: ExecuTorch's Python package comes with it."""
        return True

    def partitioners(self) -> Sequence[Any]:
        """Return ExecuTorch's XnnpackPartitioner with its defaults."""
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

        return [XnnpackPartitioner()]

    def late_rewrites(self) -> Sequence[Rewrite]:
        """Return attention, layer norms, means, views and constants in the operators that XNNPACK has."""
        return FOR_XNNPACK

    def notes(self, sparsity: float) -> tuple[str, ...]:
        """Return a warning about zeros that bring no speed, from a sparsity of 30 % on."""
        if sparsity < WORTH_A_NOTE:
            return ()
        return (
            f"{sparsity:.0%} of the parameters are zero: XNNPACK stores and runs zeros like any other number, so the"
            " file and its latency are those of the dense model and only the zipped download shrinks. To run faster"
            " and store less, remove channels: prune with granularity=Channel(); for a smaller file on iOS, export"
            " with backend=CoreML(sparse_weights=True).",
        )
