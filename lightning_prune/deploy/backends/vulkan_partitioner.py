"""ExecuTorch's VulkanPartitioner with the options that fit the graph at hand."""

from typing import Any


def partitioner(half: bool) -> Any:  # noqa: ANN401
    """Return a partitioner that asks for operators which can be resized only where the graph has dynamic shapes.

    Args:
        half: compute and store weights as float16.
    """
    from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner
    from executorch.exir.backend.partitioner import Partitioner, PartitionResult
    from torch.export import ExportedProgram

    class FittingPartitioner(Partitioner):
        def fitting(self, program: ExportedProgram) -> VulkanPartitioner:
            return VulkanPartitioner({"force_fp16": half, "require_dynamic_shapes": bool(program.range_constraints)})

        def partition(self, exported_program: ExportedProgram) -> PartitionResult:
            return self.fitting(exported_program).partition(exported_program)

        def ops_to_not_decompose(self, ep: ExportedProgram) -> Any:  # noqa: ANN401
            return self.fitting(ep).ops_to_not_decompose(ep)

    return FittingPartitioner()
