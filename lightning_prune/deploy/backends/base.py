"""Where a program runs: what every backend says about itself."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_prune.deploy.quantization import Quantization
from lightning_prune.deploy.rewriting import DEFAULT, Rewrite

WORTH_A_NOTE = 0.3
"""The share of zeros from which on a note is made of them; fewer are no sign of pruning."""


class Backend(ABC):
    """A place where programs run; a subclass is a frozen dataclass, so that it prints, compares and is recorded.

    A subclass says its ``name`` and its ``partitioners``; everything else has a default. The export asks in this
    order: ``check``, ``rewrites``, ``quantization``, ``late_rewrites``, ``partitioners``, ``notes``,
    ``notes_of_lowering``.
    """

    quantization: Quantization | None = None
    """How weights and activations become integers before the partitioners see them; None: not at all."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Its name in the manifest."""

    @abstractmethod
    def partitioners(self) -> Sequence[Any]:
        """Return ExecuTorch partitioners, asked in order which operators they take; imports happen here.

        Raises:
            ImportError: a package is missing; the message names the extra.
        """

    @property
    def runs_here(self) -> bool:
        """Whether the runtime of the Python package can run it; if not, the same graph is run without a delegate."""
        return False

    def check(self, inputs: Sequence[Tensor], dynamic_shapes: Any = None) -> None:  # noqa: ANN401, B027
        """Refuse what the backend cannot take, before anything is traced.

        Args:
            inputs: the example inputs of one method.
            dynamic_shapes: as in torch.export, of that method; None: every shape is fixed.

        Raises:
            ValueError: an input or a dynamic dimension that the backend does not take.
        """

    def rewrites(self) -> Sequence[Rewrite]:
        """Return what is done to the traced graph, in float and before it is quantized."""
        return DEFAULT

    def late_rewrites(self) -> Sequence[Rewrite]:
        """Return what is done to the graph last, after it was quantized, so that the backend takes more of it.

        Operators that are split into several here stay whole for the quantization, which sees layers, not arithmetic.
        """
        return ()

    def notes(self, sparsity: float) -> tuple[str, ...]:
        """Return what a user should know about a model with this share of zeros in [0, 1], as sentences."""
        return ()

    def notes_of_lowering(self, partitioners: Sequence[Any], sparsity: float) -> tuple[str, ...]:
        """Return what a user should know about a program after its lowering, as sentences.

        Args:
            partitioners: what :meth:`partitioners` returned and the program was lowered with.
            sparsity: share of zeros of the model.
        """
        return ()

    def __str__(self) -> str:
        return repr(self)


def check_backend(value: object, name: str = "backend") -> None:
    """Check a backend.

    Raises:
        TypeError: it is none, or the class of one.
    """
    if isinstance(value, type) or not isinstance(value, Backend):
        raise TypeError(f"{name}: got {value!r:.60}, must be a value such as XNNPACK()")
