"""Arm's part of ExecuTorch from inside, for Ethos-U.

As ExecuTorch 1.4.1 has it. Its partitioner takes one folder for what Vela writes about a program, so that the estimates
of several parts overwrite each other; the specification of each part is therefore made anew, and only ``_to_list``
turns one into what a delegate is compiled with:
https://github.com/pytorch/executorch/blob/v1.4.1/backends/arm/common/arm_compile_spec.py#L193
"""

from pathlib import Path
from typing import Any, Protocol

from torch.export import ExportedProgram


class Reporting(Protocol):
    """Where the compiler's files of each part go."""

    def next_folder(self) -> Path:
        """Return a new folder."""
        ...


def specification(target: str, system: str | None = None, memory: str | None = None) -> Any:  # noqa: ANN401
    """Return ExecuTorch's EthosUCompileSpec.

    Raises:
        ImportError: Arm's compiler is not installed.
    """
    try:
        import ethosu.vela  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]
        from executorch.backends.arm.ethosu import EthosUCompileSpec
    except ImportError as error:
        raise ImportError(
            f"Arm's compiler for Ethos-U is not installed ({error}): pip install 'lightning-prune[ethos-u]'"
        ) from error
    return EthosUCompileSpec(target, system, memory)


def reporting_partitioner(target: str, report: Reporting, system: str | None, memory: str | None) -> Any:  # noqa: ANN401
    """Return ExecuTorch's EthosUPartitioner, whose compiler writes about each part into a folder of ``report``.

    Raises:
        ImportError: Arm's compiler is not installed.
    """
    whole_specification = specification(target, system, memory)
    from executorch.backends.arm.ethosu import EthosUPartitioner
    from executorch.exir.backend.partitioner import DelegationSpec, Partitioner, PartitionResult

    class ReportingPartitioner(Partitioner):
        def __init__(self) -> None:
            super().__init__()
            self.whole, self.report = EthosUPartitioner(whole_specification), report

        def partition(self, exported_program: ExportedProgram) -> PartitionResult:
            result = self.whole.partition(exported_program)
            for tag, spec in result.partition_tags.items():
                of_part = specification(target, system, memory)
                of_part.dump_intermediate_artifacts_to(str(self.report.next_folder()))
                result.partition_tags[tag] = DelegationSpec(spec.backend_id, of_part._to_list())
            return result

        def ops_to_not_decompose(self, ep: ExportedProgram) -> Any:  # noqa: ANN401
            return self.whole.ops_to_not_decompose(ep)

    return ReportingPartitioner()
