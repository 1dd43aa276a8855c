"""ExecuTorch's own kernels, without a delegate."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_prune.deploy.backends.base import WORTH_A_NOTE, Backend


@dataclass(frozen=True)
class Portable(Backend):
    """ExecuTorch's own kernels, without a delegate: runs wherever ExecuTorch does, slowly.

    It is the reference: the graph of a backend that cannot run on this machine is run with it instead.
    """

    @property
    def name(self) -> str:
        """``portable``."""
        return "portable"

    @property
    def runs_here(self) -> bool:
        """True: the kernels are part of ExecuTorch's Python package."""
        return True

    def partitioners(self) -> Sequence[Any]:
        """Return none: no operator goes to a delegate."""
        return []

    def notes(self, sparsity: float) -> tuple[str, ...]:
        """Return a warning about zeros that bring nothing, from a sparsity of 30 % on."""
        if sparsity < WORTH_A_NOTE:
            return ()
        return (
            f"{sparsity:.0%} of the parameters are zero: the portable kernels store and multiply zeros like any other"
            " number, so only the zipped download shrinks. To run faster, export with backend=XNNPACK(), and remove"
            " channels: prune with granularity=Channel().",
        )
