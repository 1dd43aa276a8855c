"""The GPU of an Android phone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_prune.deploy.backends.base import WORTH_A_NOTE, Backend
from lightning_prune.deploy.rewriting import FOR_VULKAN, Rewrite


@dataclass(frozen=True)
class Vulkan(Backend):
    """The GPU of an Android phone, through Vulkan compute shaders.

    It exports on any machine and runs on none but the phone: the same graph is verified on the portable kernels here.

    Args:
        half: compute and store weights as float16, which halves the file. Values beyond ±65504 become infinite.
    """

    half: bool = False

    @property
    def name(self) -> str:
        """``vulkan``."""
        return "vulkan"

    def partitioners(self) -> Sequence[Any]:
        """Return ExecuTorch's VulkanPartitioner; of a graph with dynamic shapes it takes what can be resized."""
        from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner
        from executorch.exir.backend.partitioner import Partitioner, PartitionResult
        from torch.export import ExportedProgram

        half = self.half

        # what can be resized is asked for only where sizes vary, and that the graph alone says
        class FittingVulkanPartitioner(Partitioner):
            def fitting(self, program: ExportedProgram) -> VulkanPartitioner:
                return VulkanPartitioner(
                    {"force_fp16": half, "require_dynamic_shapes": bool(program.range_constraints)}
                )

            def partition(self, exported_program: ExportedProgram) -> PartitionResult:
                return self.fitting(exported_program).partition(exported_program)

            def ops_to_not_decompose(self, ep: ExportedProgram) -> Any:  # noqa: ANN401
                return self.fitting(ep).ops_to_not_decompose(ep)

        return [FittingVulkanPartitioner()]

    def late_rewrites(self) -> Sequence[Rewrite]:
        """Return attention written out, and masks with finite numbers: Vulkan's file format has no infinity."""
        return FOR_VULKAN

    def notes(self, sparsity: float) -> tuple[str, ...]:
        """Return a warning about zeros that bring nothing, from a sparsity of 30 % on."""
        if sparsity < WORTH_A_NOTE:
            return ()
        return (
            f"{sparsity:.0%} of the parameters are zero: Vulkan stores and multiplies zeros like any other number, so"
            " only the zipped download shrinks. To run faster and store less, remove channels: prune with"
            " granularity=Channel().",
        )
