"""Where a program runs: what every backend says about itself."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from lightning_prune.deploy.quantization import Quantization
from lightning_prune.deploy.rewriting import DEFAULT, Rewrite


class Backend(ABC):
    """A place where programs run; a subclass is a frozen dataclass, so that it prints, compares and is recorded.

    A subclass says its ``name`` and its ``partitioners``; everything else has a default.
    """

    quantization: Quantization | None = None
    """How weights and activations become integers before the partitioners see them; None: not at all."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Its name in the manifest."""

    @abstractmethod
    def partitioners(self) -> Sequence[Any]:
        """Return ExecuTorch partitioners, asked in order which operators they take; imports happen here."""

    @property
    def runs_here(self) -> bool:
        """Whether the runtime of the Python package can run it; if not, the same graph is run without a delegate."""
        return False

    def rewrites(self) -> Sequence[Rewrite]:
        """Return what is done to the traced graph so that the backend takes more of it."""
        return DEFAULT

    def notes(self, sparsity: float) -> tuple[str, ...]:
        """Return what a user should know about a model with this share of zeros in [0, 1], as sentences."""
        return ()

    def __str__(self) -> str:
        return repr(self)
