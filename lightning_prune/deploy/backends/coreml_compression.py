"""Core ML's conversion with passes of our own that compress the weights, and the weights as they come out."""

from collections.abc import Callable
from functools import partial
from typing import Any

from lightning_prune.deploy.backends.coreml import CoreML, Linear8, Palette

_NAMESPACE = "lightning_prune"
_LEAST_SPARSITY = 0.3
"""Below this a bit per weight and the non-zero values are not smaller than the weights by enough to matter."""


def partitioner(backend: CoreML) -> Any:  # noqa: ANN401
    """Return ExecuTorch's CoreMLPartitioner for the settings of a backend.

    Raises:
        ImportError: coremltools is not installed.
    """
    try:
        import coremltools as ct
        from executorch.backends.apple.coreml.compiler import CoreMLBackend

        from lightning_prune.deploy.backends.coreml_partitioner import fitting_partitioner
    except ImportError as error:
        raise ImportError(
            f"Core ML's converter is not installed ({error}): pip install 'lightning-prune[coreml]', on Linux or macOS"
        ) from error
    specs = CoreMLBackend.generate_compile_specs(
        compute_unit=ct.ComputeUnit[backend.compute_unit],
        minimum_deployment_target=ct.target[backend.deployment_target],
        compute_precision=ct.precision(backend.precision),
        pass_names=[*_default_passes(), *_passes(backend)],
    )
    return fitting_partitioner(specs)


def _default_passes() -> list[str]:
    import coremltools as ct

    default: Any = ct.PassPipeline.DEFAULT
    return default.passes


def _passes(backend: CoreML) -> list[str]:
    """Register the passes that a backend needs and return their names; sparse first, the other order crashes."""
    names = []
    if backend.sparse_weights:
        names.append(_registered("store_sparse", _sparse))
    joint = backend.sparse_weights
    match backend.weights:
        case Linear8():
            names.append(_registered(f"linear_8{'_sparse' * joint}", partial(_linear, joint)))
        case Palette(bits):
            names.append(_registered(f"palette_{bits}{'_sparse' * joint}", partial(_palette, bits, joint)))
    return names


def _registered(name: str, make: Callable[[], type]) -> str:
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY, register_pass

    full = f"{_NAMESPACE}::{name}"
    if full not in PASS_REGISTRY:
        register_pass(namespace=_NAMESPACE, name=name)(make())
    return full


def _sparse() -> type:
    import coremltools.optimize.coreml as cto
    from coremltools.optimize.coreml._quantization_passes import prune_weights

    zeros = cto.OpThresholdPrunerConfig(threshold=0.0, minimum_sparsity_percentile=_LEAST_SPARSITY)
    return _configured(prune_weights, zeros, joint=False)


def _linear(joint: bool) -> type:
    import coremltools.optimize.coreml as cto
    from coremltools.optimize.coreml._quantization_passes import linear_quantize_weights

    return _configured(linear_quantize_weights, cto.OpLinearQuantizerConfig(), joint)


def _palette(bits: int, joint: bool) -> type:
    import coremltools.optimize.coreml as cto
    from coremltools.optimize.coreml._quantization_passes import palettize_weights

    return _configured(palettize_weights, cto.OpPalettizerConfig(mode="kmeans", nbits=bits), joint)


def _configured(compression: Any, config: Any, joint: bool) -> type:  # noqa: ANN401
    """Return a pass that needs no options: pass names are all that ExecuTorch hands on to Core ML."""
    import coremltools.optimize.coreml as cto

    class Configured(compression):
        def __init__(self) -> None:
            super().__init__(cto.OptimizationConfig(global_config=config))
            self.joint_compression = joint

    return Configured
