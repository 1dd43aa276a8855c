"""coremltools and ExecuTorch's part for Core ML from inside: passes, partitioner, and the models in a file.

As ExecuTorch 1.4.1 and coremltools 9.0 have them.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Node
from torch.utils import _pytree as pytree

from lightning_prune.documents import scratch
from lightning_prune.errors import ExportError

_NAMESPACE = "lightning_prune"
_PACKAGE = Path("lowered_module", "model.mlpackage")

_ON_ANY = (
    r"_assert_tensor_metadata|_clone_dim_order|_to_copy|_to_dim_order_copy|_unsafe_view|alias|alias_copy|cat|clone|expand"
    r"|expand_copy|flip|full_like|getitem|ones_like|pad|permute|permute_copy|repeat|repeat_interleave|select|select_copy"
    r"|slice|slice_copy|split|split_with_sizes_copy|squeeze|squeeze_copy|stack|unsqueeze|unsqueeze_copy|view|view_copy"
    r"|where|zeros_like"
)
_ON_BOOLS = re.compile(
    rf"{_ON_ANY}|add|all|any|bitwise_and|bitwise_not|cumsum|eq|index|index_put|logical_and|logical_not|logical_or"
    r"|logical_xor|masked_fill|mul|ne|scaled_dot_product_attention|sum"
)
_ON_INTEGERS = re.compile(
    rf"{_ON_ANY}|abs|add|amax|amin|any|argmax|argmin|bmm|clamp|cumsum|div|embedding|eq|floor_divide|ge|gather|gt|index"
    r"|index_put|index_select|isnan|le|log|logical_and|logical_not|logical_or|lt|masked_fill|matmul|max|maximum|min"
    r"|minimum|mul|ne|neg|one_hot|pow|remainder|roll|rsub|scatter|scatter_add|sign|sort|square|sub|sum|topk|type_as"
)
"""Operators that coremltools 9.0 converts where they read bools or integers: each was tried. It says that it takes the
others too, and fails on them later, with a message that names neither the user's line nor what to do."""


def registered_pass(name: str, compression: str, config: Any, joint: bool) -> str:  # noqa: ANN401
    """Register a compression of weights as a pass without options, if it is not, and return the pass's full name.

    Names are all that ExecuTorch hands on to Core ML, and coremltools' own passes ask for a configuration. They stand
    in no public place: https://github.com/apple/coremltools/blob/9.0/coremltools/optimize/coreml/_quantization_passes.py#L231

    Args:
        name: of the pass.
        compression: class of coremltools that it is made of, such as ``prune_weights``.
        config: for every weight, such as ``OpPalettizerConfig(nbits=4)``.
        joint: whether it compresses further what another pass has compressed.
    """
    import coremltools.optimize.coreml as cto
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY, register_pass
    from coremltools.optimize.coreml import _quantization_passes

    full = f"{_NAMESPACE}::{name}"
    if full not in PASS_REGISTRY:

        @register_pass(namespace=_NAMESPACE, name=name)
        class Configured(getattr(_quantization_passes, compression)):  # pyright: ignore[reportUnusedClass]
            def __init__(self) -> None:
                super().__init__(cto.OptimizationConfig(global_config=config))
                self.joint_compression = joint

    return full


def fitting_partitioner(specs: Sequence[Any]) -> Any:  # noqa: ANN401
    """Return ExecuTorch's CoreMLPartitioner, which leaves outside what Core ML does not do on the types at hand.

    Such as the conversion of a uint8 image to float32, the square root of an integer, or the larger one of two bools.
    Which operators are taken is asked of a private class, and ``partition`` makes it by itself:
    https://github.com/pytorch/executorch/blob/v1.4.1/backends/apple/coreml/partition/coreml_partitioner.py#L94

    Args:
        specs: what ``CoreMLBackend.generate_compile_specs`` returns.

    Raises:
        ImportError: coremltools is not installed.
    """
    from coremltools.converters.mil.frontend.torch.utils import TORCH_DTYPE_TO_MIL_DTYPE
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner
    from executorch.backends.apple.coreml.partition import coreml_partitioner as original
    from executorch.exir.backend.partitioner import PartitionResult
    from executorch.exir.backend.utils import tag_constant_data, tag_mutated_buffer
    from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner

    class Taken(original._OperatorsSupportedForCoreMLBackend):
        def is_node_supported(self, submodules: Any, node: Node) -> bool:  # noqa: ANN401
            values = pytree.tree_leaves([n.meta.get("val") for n in (node, *node.all_input_nodes)])
            has_types = all(x.dtype in TORCH_DTYPE_TO_MIL_DTYPE for x in values if isinstance(x, Tensor))
            return has_types and _is_taken(node) and super().is_node_supported(submodules, node)

    class FittingPartitioner(CoreMLPartitioner):
        def partition(self, exported_program: ExportedProgram) -> PartitionResult:
            graph, tags = exported_program.graph_module, {}
            proposed = CapabilityBasedPartitioner(graph, Taken(), allows_single_node_partition=True)
            for part in proposed.propose_partitions():
                tags[f"tag{part.id}"] = self.delegation_spec
                for node in part.nodes:
                    node.meta["delegation_tag"] = f"tag{part.id}"
            tag_constant_data(exported_program)
            tag_mutated_buffer(exported_program)
            return PartitionResult(tagged_exported_program=exported_program, partition_tags=tags)

        def ops_to_not_decompose(self, ep: ExportedProgram) -> tuple[list[OpOverload], Callable[[Node], bool] | None]:
            # what is left outside has to come apart into operators that have a portable kernel
            return super().ops_to_not_decompose(ep)[0], _is_taken

    return FittingPartitioner(compile_specs=list(specs))


def _is_taken(node: Node) -> bool:
    """Say whether coremltools converts an operator on the bools and integers that it reads."""
    parts = getattr(node.target, "__name__", "").split(".")  # such as aten.add.Tensor, add.Tensor before, or getitem
    name = parts[-2] if len(parts) > 1 else parts[0]
    for x in pytree.tree_leaves([n.meta.get("val") for n in node.all_input_nodes]):
        if isinstance(x, Tensor) and not x.dtype.is_floating_point:
            known = _ON_BOOLS if x.dtype == torch.bool else _ON_INTEGERS
            if known.fullmatch(name) is None:
                return False
    return True


def models_in(path: Path) -> Iterator[Any]:
    """Yield the Core ML models in a .pte, each good until the next one is asked for.

    Only private functions read a .pte and unpack what ExecuTorch packed into it:
    https://github.com/pytorch/executorch/blob/v1.4.1/exir/_serialize/_program.py#L741

    Raises:
        ExportError: there is none.
    """
    import coremltools as ct
    from executorch.backends.apple.coreml import executorchcoreml
    from executorch.exir._serialize._program import deserialize_pte_binary

    program = deserialize_pte_binary(path.read_bytes()).program
    delegates = [delegate for plan in program.execution_plan for delegate in plan.delegates]
    indices = sorted({delegate.processed.index for delegate in delegates if delegate.id == "CoreMLBackend"})
    if not indices:
        raise ExportError(f"{path} holds no Core ML model: export with backend=CoreML()")
    with scratch() as folder:
        for index in indices:
            (place := folder / str(index)).mkdir()
            packed = bytes(program.backend_delegate_data[index].data)
            if not executorchcoreml.unflatten_directory_contents(packed, str(place)):
                raise ExportError(f"{path}: its Core ML model cannot be unpacked; export it again")
            yield ct.models.MLModel(str(place / _PACKAGE), skip_model_load=True)
