"""ExecuTorch's CoreMLPartitioner, which leaves alone what Core ML has no number format for."""

from collections.abc import Sequence
from typing import Any


def fitting_partitioner(specs: Sequence[Any]) -> Any:  # noqa: ANN401
    """Return a partitioner that leaves outside whatever reads or writes a type that Core ML has not.

    Such as the conversion of a uint8 image to float32: coremltools fails with the name of the type.

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
    from torch import Tensor
    from torch.export import ExportedProgram
    from torch.fx import Node
    from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
    from torch.utils import _pytree as pytree

    class Taken(original._OperatorsSupportedForCoreMLBackend):
        def is_node_supported(self, submodules: Any, node: Node) -> bool:  # noqa: ANN401
            values = pytree.tree_leaves([n.meta.get("val") for n in (node, *node.all_input_nodes)])
            has_types = all(x.dtype in TORCH_DTYPE_TO_MIL_DTYPE for x in values if isinstance(x, Tensor))
            return has_types and super().is_node_supported(submodules, node)

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

    return FittingPartitioner(compile_specs=list(specs))
