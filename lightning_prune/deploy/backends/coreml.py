"""Apple's Neural Engine, GPU and CPU through Core ML."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from lightning_prune.deploy.backends.base import WORTH_A_NOTE, Backend
from lightning_prune.deploy.rewriting import FOR_COREML, Rewrite

ComputeUnit = Literal["ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE"]
Precision = Literal["float16", "float32"]

RELEASES = {"iOS15": 15, "iOS16": 16, "iOS17": 17, "iOS18": 18, "iOS26": 26} | {
    "macOS12": 15,
    "macOS13": 16,
    "macOS14": 17,
    "macOS15": 18,
    "macOS26": 26,
}
"""Deployment target -> the iOS release whose features it has."""
_COMPUTE_UNITS = ("ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")
_PRECISIONS = ("float16", "float32")
_COMPRESSED_SINCE, _JOINT_SINCE = 16, 18
_PALETTE_BITS = (1, 2, 3, 4, 6, 8)
_LEAST_SPARSITY = 0.3
"""Below this a bit per weight and the non-zero values are not smaller than the weights by enough to matter."""


@dataclass(frozen=True)
class Linear8:
    """Weights as 8-bit integers with one scale per output channel; activations stay float."""

    def __str__(self) -> str:
        return "8-bit weights"


@dataclass(frozen=True)
class Palette:
    """Weights as indices into a table of 2**bits values per layer, found by k-means; activations stay float.

    Args:
        bits: of an index: 1, 2, 3, 4, 6 or 8. Fewer bits cost accuracy: measure it.
    """

    bits: int = 4

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or self.bits not in _PALETTE_BITS:
            raise ValueError(f"bits: got {self.bits!r}, must be one of {_PALETTE_BITS}, as in Palette(bits=4)")

    def __str__(self) -> str:
        return f"{self.bits}-bit palettes"


@dataclass(frozen=True)
class CoreML(Backend):
    """Apple's Neural Engine, GPU and CPU: iOS and macOS.

    It exports on Linux and macOS and runs on Apple's devices: the same graph is verified on the portable kernels here.

    Args:
        deployment_target: the oldest release that shall run it, such as ``"iOS18"`` or ``"macOS15"``.
        compute_unit: what may run it.
        precision: of activations, and of weights unless ``weights`` says otherwise.
        sparse_weights: store a layer of which at least 30 % is zero as its non-zero values and a bit per weight. A
            pruned model's file shrinks; the values are the same to the last bit.
        weights: a smaller number format for the weights, together with ``sparse_weights`` for what is not zero;
            None: as ``precision`` says. It rounds: see :func:`decompressed` for measuring what that costs.
    """

    deployment_target: str = "iOS18"
    compute_unit: ComputeUnit = "ALL"
    precision: Precision = "float16"
    sparse_weights: bool = False
    weights: Linear8 | Palette | None = None

    def __post_init__(self) -> None:
        _check_choice("deployment_target", self.deployment_target, tuple(RELEASES))
        _check_choice("compute_unit", self.compute_unit, _COMPUTE_UNITS)
        _check_choice("precision", self.precision, _PRECISIONS)
        if self.weights is not None and not isinstance(self.weights, Linear8 | Palette):
            raise TypeError(f"weights: got {self.weights!r}, must be None, Linear8() or Palette(bits=4)")
        joint = self.sparse_weights and self.weights is not None
        needed = _JOINT_SINCE if joint else _COMPRESSED_SINCE if self.sparse_weights or self.weights is not None else 0
        if RELEASES[self.deployment_target] < needed:
            what = "sparse_weights together with weights" if joint else "compressed weights"
            raise ValueError(
                f"deployment_target: got {self.deployment_target!r}, but Core ML has {what} since iOS{needed}; pass"
                f" deployment_target='iOS{needed}' or later, or leave them out"
            )

    @property
    def name(self) -> str:
        """``coreml``."""
        return "coreml"

    def check(self, inputs: Sequence[Tensor], dynamic_shapes: Any = None) -> None:  # noqa: ANN401
        """Refuse inputs of more than five dimensions, and of types that Core ML has not.

        Raises:
            ValueError: an input that Core ML does not take.
        """
        for index, x in enumerate(inputs):
            if x.ndim > 5:
                raise ValueError(
                    f"example_inputs[{index}] has {x.ndim} dimensions, and Core ML takes at most 5: merge some of them"
                    " before the model, and split them again in its forward"
                )

    def partitioners(self) -> Sequence[Any]:
        """Return ExecuTorch's CoreMLPartitioner with these settings.

        Raises:
            ImportError: coremltools is not installed.
        """
        try:
            import coremltools as ct
            import coremltools.optimize.coreml as cto
            from executorch.backends.apple.coreml.compiler import CoreMLBackend

            from lightning_prune.deploy.executorch.coreml import fitting_partitioner, registered_pass
        except ImportError as error:
            raise ImportError(
                f"Core ML's converter is not installed ({error}): pip install 'lightning-prune[coreml]', on Linux or"
                " macOS"
            ) from error
        default: Any = ct.PassPipeline.DEFAULT
        joint, passes = self.sparse_weights, list(default.passes)
        if self.sparse_weights:  # before any other: the other order crashes in coremltools 9.0
            zeros = cto.OpThresholdPrunerConfig(threshold=0.0, minimum_sparsity_percentile=_LEAST_SPARSITY)
            passes.append(registered_pass("store_sparse", "prune_weights", zeros, joint=False))
        match self.weights:
            case Linear8():
                name, config = f"linear_8{'_sparse' * joint}", cto.OpLinearQuantizerConfig()
                passes.append(registered_pass(name, "linear_quantize_weights", config, joint))
            case Palette(bits):
                name, config = f"palette_{bits}{'_sparse' * joint}", cto.OpPalettizerConfig(mode="kmeans", nbits=bits)
                passes.append(registered_pass(name, "palettize_weights", config, joint))
        specs = CoreMLBackend.generate_compile_specs(
            compute_unit=ct.ComputeUnit[self.compute_unit],
            minimum_deployment_target=ct.target[self.deployment_target],
            compute_precision=ct.precision(self.precision),
            pass_names=passes,
        )
        return [fitting_partitioner(specs)]

    def late_rewrites(self) -> Sequence[Rewrite]:
        """Return attention as Core ML has it, whole."""
        return FOR_COREML

    def notes(self, sparsity: float) -> tuple[str, ...]:
        """Return what becomes of zeros, from a sparsity of 30 % on, and that compressed weights are rounded."""
        notes = []
        if self.weights is not None:
            notes.append(
                f"The file holds {self.weights}, and what was run here are the full ones: measure what the rounding"
                " costs with lightning_prune.deploy.decompressed."
            )
        if sparsity >= WORTH_A_NOTE and not self.sparse_weights:
            notes.append(
                f"{sparsity:.0%} of the parameters are zero, and Core ML stores them like any other number:"
                " CoreML(sparse_weights=True) leaves them out, so that the file shrinks. Removed channels buy speed"
                " too: prune with granularity=Channel()."
            )
        elif sparsity >= WORTH_A_NOTE:
            notes.append(
                f"{sparsity:.0%} of the parameters are zero: layers with at least 30 % zeros are stored sparse. Whether"
                " they also run faster is for Core ML to choose on the device: measure it there."
            )
        return tuple(notes)


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: got {value!r}, must be one of {', '.join(map(repr, allowed))}")
