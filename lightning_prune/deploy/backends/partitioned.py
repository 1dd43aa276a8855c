"""A backend from the SDK of a chip's vendor."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_prune.deploy.backends.base import Backend
from lightning_prune.deploy.quantization import Quantization
from lightning_prune.deploy.quantization.base import check_quantization
from lightning_prune.deploy.rewriting import DEFAULT, Rewrite


@dataclass(frozen=True)
class Partitioned(Backend):
    """A backend from the SDK of a chip's vendor, by the partitioner that comes with it.

    For Qualcomm, MediaTek, Samsung, NXP, OpenVINO and others: nothing of theirs is imported before
    ``make_partitioners`` is called.

    Args:
        label: its name in the manifest, such as ``"qualcomm"``.
        make_partitioners: returns ExecuTorch partitioners; it imports the SDK and holds its settings.
        quantization: how weights and activations become integers; None: not at all. Most of these chips compute in
            integers and take nothing of a float model.
        can_run_here: whether this Python's ExecuTorch runtime has the backend; if not, the same graph is verified on
            the portable kernels.
        remarks: sentences for ``artifact.notes``, such as what the chip does with zeros.
        graph_rewrites: what is done to the graph last, after the quantization.

    Example:
        >>> def partitioners():
        ...     from executorch.backends.openvino.partitioner import OpenvinoPartitioner
        ...     from executorch.exir.backend.backend_details import CompileSpec
        ...     return [OpenvinoPartitioner([CompileSpec("device", b"CPU")])]
        >>> Partitioned("openvino", partitioners).name
        'openvino'
    """

    label: str
    make_partitioners: Callable[[], Sequence[Any]]
    quantization: Quantization | None = None
    can_run_here: bool = False
    remarks: tuple[str, ...] = ()
    graph_rewrites: tuple[Rewrite, ...] = tuple(DEFAULT)

    def __post_init__(self) -> None:
        if not self.label or self.label.strip() != self.label:
            raise ValueError(f"label: got {self.label!r}, must be a name such as 'qualcomm'")
        if not callable(self.make_partitioners):
            raise TypeError(
                f"make_partitioners: got a {type(self.make_partitioners).__name__}, must be a function that imports the"
                " SDK and returns its partitioners, as in lambda: [partitioner]"
            )
        if isinstance(self.remarks, str):
            raise TypeError(f"remarks: got the string {self.remarks!r}, must be a tuple of sentences")
        check_quantization(self.quantization)

    @property
    def name(self) -> str:
        """The label."""
        return self.label

    @property
    def runs_here(self) -> bool:
        """As given."""
        return self.can_run_here

    def partitioners(self) -> Sequence[Any]:
        """Return what the given function returns."""
        return self.make_partitioners()

    def late_rewrites(self) -> Sequence[Rewrite]:
        """Return the given ones."""
        return self.graph_rewrites

    def notes(self, sparsity: float) -> tuple[str, ...]:
        """Return the remarks; what the chip does with zeros is its vendor's to say."""
        return self.remarks
