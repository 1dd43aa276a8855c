"""torchao and ExecuTorch's quantizer for XNNPACK from inside.

As torchao 0.18.0 and ExecuTorch 1.4.1 have them.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from lightning_prune.deploy.executorch.quiet import quiet_import, quiet_lowering


def fold_batch_norms(graph: GraphModule) -> None:
    """Fold the batch norms of a traced graph into the convolutions before them.

    ``prepare_pt2e`` does the same, with a function that stands in no public place:
    https://github.com/pytorch/ao/blob/v0.18.0/torchao/quantization/pt2e/utils.py#L922

    Changes: the graph.
    """
    with quiet_import():
        from torchao.quantization.pt2e.utils import _fuse_conv_bn_
    _fuse_conv_bn_(graph)


def xnnpack_quantizer(
    is_dynamic: bool, takes: Callable[[Node], bool], around: Callable[[GraphModule, Any, Callable], None]
) -> Any:  # noqa: ANN401
    """Return ExecuTorch's XNNPACKQuantizer with one scale per output channel.

    Its patterns for quantization-aware training are left out: they look for batch norms, which are folded by now, and
    trace 24 small graphs to find none. No option does that:
    https://github.com/pytorch/executorch/blob/v1.4.1/backends/xnnpack/quantizer/xnnpack_quantizer.py#L276

    Args:
        is_dynamic: whether activations are measured at run time.
        takes: which operators it may take.
        around: called with the graph, the configuration and what marks the graph as ExecuTorch does.
    """
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack

    config = xnnpack.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=is_dynamic)

    class Quantizer(xnnpack.XNNPACKQuantizer):
        SUPPORTED_PATTERNS: ClassVar = [p for p in xnnpack.XNNPACKQuantizer.SUPPORTED_PATTERNS if not p.is_qat]

        def annotate(self, model: GraphModule) -> GraphModule:
            around(model, config, super().annotate)
            return model

    return Quantizer().set_global(config).set_filter_function(takes)


def mark(node: Node, specs: dict[Any, Any]) -> None:
    """Mark a node as one that will be computed in integers, with the specifications of its inputs."""
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation

    node.meta["quantization_annotation"] = QuantizationAnnotation(specs, _annotated=True)


def is_marked(node: Node) -> bool:
    """Whether a quantizer has said how an input of a node becomes integers."""
    annotation = node.meta.get("quantization_annotation")
    return annotation is not None and any(spec is not None for spec in annotation.input_qspec_map.values())


def in_4_bits(weight: Tensor, scales: Tensor, group_size: int) -> Tensor:
    """Return a weight in 4 bits with these scales, whose inputs will have 8 bits with a range for each row.

    torchao's ``quantize_`` chooses scales by itself, and by the range alone; the tensor class takes others:
    https://github.com/pytorch/ao/blob/v0.18.0/torchao/quantization/quantize_/workflows/intx/intx_unpacked_to_int8_tensor.py#L174
    """
    with quiet_import():
        from torchao.quantization import IntxUnpackedToInt8Tensor
    with quiet_lowering():
        return IntxUnpackedToInt8Tensor.from_hp(
            weight,
            (1, group_size),  # pyright: ignore[reportArgumentType]
            torch.int4,  # pyright: ignore[reportAttributeAccessIssue]
            activation_quantization="int8_asym_per_token",  # pyright: ignore[reportArgumentType]
            intx_choose_qparams_algorithm=None,
            custom_scale=scales,
            custom_zero_point=torch.zeros_like(scales, dtype=torch.int8),
        )
