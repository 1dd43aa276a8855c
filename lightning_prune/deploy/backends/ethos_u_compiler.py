"""Arm's quantizer, partitioner and compiler for Ethos-U, as far as they are used here."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from lightning_prune.deploy.backends.ethos_u_report import Report
from lightning_prune.deploy.executorch.quiet import quiet_import, quiet_lowering
from lightning_prune.deploy.quantization.base import Quantization, Quantized
from lightning_prune.deploy.quantization.calibration import calibration_samples, check_batched
from lightning_prune.deploy.quantization.graphs import retraced
from lightning_prune.deploy.quantization.noise import Noise
from lightning_prune.errors import ExportError, VerificationError


def _specification(target: str) -> Any:  # noqa: ANN401
    try:
        import ethosu.vela  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]
        from executorch.backends.arm.ethosu import EthosUCompileSpec
    except ImportError as error:
        raise ImportError(
            f"Arm's compiler for Ethos-U is not installed ({error}): pip install 'lightning-prune[ethos-u]'"
        ) from error
    return EthosUCompileSpec(target)


def partitioner(target: str, report: Report) -> Any:  # noqa: ANN401
    """Return ExecuTorch's EthosUPartitioner, whose compiler leaves its estimate of each part in a report.

    Raises:
        ImportError: Arm's compiler is not installed.
    """
    specification = _specification(target)
    from executorch.backends.arm.ethosu import EthosUPartitioner
    from executorch.exir.backend.partitioner import DelegationSpec, Partitioner, PartitionResult

    class Reporting(Partitioner):
        whole = EthosUPartitioner(specification)

        def partition(self, exported_program: ExportedProgram) -> PartitionResult:
            found = self.whole.partition(exported_program)
            for tag, spec in found.partition_tags.items():
                of_part = _specification(target)
                of_part.dump_intermediate_artifacts_to(str(report.next_folder()))
                found.partition_tags[tag] = DelegationSpec(spec.backend_id, of_part._to_list())
            return found

        def ops_to_not_decompose(self, ep: ExportedProgram) -> Any:  # noqa: ANN401
            return self.whole.ops_to_not_decompose(ep)

    return Reporting()


@dataclass(frozen=True, eq=False)
class EthosInt8(Quantization):
    """Static 8-bit integers as Arm's own quantizer lays them out.

    Args:
        calibration: batches as in :class:`~lightning_prune.deploy.Int8`.
        target: the processor.
        samples: how many samples of the loader are looked at.
    """

    calibration: Iterable[Any]
    target: str
    samples: int = 256

    def quantize(self, program: ExportedProgram, inputs: Sequence[Tensor]) -> Quantized:
        """Return the quantized program; see :meth:`Quantization.quantize`."""
        check_batched(inputs)
        samples = calibration_samples(self.calibration, inputs, self.samples)
        graph = program.module(check_guards=False)
        quantized = self._converted(program, samples)
        noise = Noise()
        with torch.no_grad():
            for sample in samples:
                pairs = zip(_run(graph, sample), _run(quantized, sample), strict=True)
                for index, (expected, got) in enumerate(pairs):
                    noise.add(str(index), expected, got)
        ratios = tuple(noise.ratios().values())
        if not all(ratio >= self.min_output_sqnr for ratio in ratios):
            raise VerificationError(
                f"EthosU: the outputs of the quantized program have {', '.join(f'{r:.1f}' for r in ratios)} dB, at"
                f" least {self.min_output_sqnr:g} is asked for: calibrate on more of the data that the model will see"
            )
        shown = samples[:2]
        with torch.no_grad():
            outputs = tuple(_run(quantized, sample) for sample in shown)
        return Quantized(retraced(quantized, program, samples[0]), {}, (), ratios, shown, outputs)

    def looks_at(self) -> Iterable[Any]:
        """Return ``calibration``."""
        return self.calibration

    def calibrated_on(self, samples: Iterable[Any] | None) -> Quantization:
        """Return the same with other samples."""
        return self if samples is None else replace(self, calibration=samples)

    def _converted(self, program: ExportedProgram, samples: Sequence[tuple[Tensor, ...]]) -> torch.fx.GraphModule:
        specification = _specification(self.target)
        with quiet_import():
            from executorch.backends.arm.quantizer import EthosUQuantizer, get_symmetric_quantization_config
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        try:
            with quiet_lowering(), torch.no_grad():
                quantizer = EthosUQuantizer(specification).set_global(get_symmetric_quantization_config())
                observed = prepare_pt2e(program.module(check_guards=False), quantizer)
                for sample in samples:
                    _run(observed, sample)
                return _with_long_zero_points(convert_pt2e(observed))
        except Exception as error:
            raise ExportError(f"the program cannot be quantized for {self.target}: {error}") from error


def _with_long_zero_points(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Hold zero points as int64, which ExecuTorch's kernels read without a look at their type."""
    for node in graph.graph.nodes:
        if node.op == "call_function" and "per_channel" in str(node.target) and node.args[2].op == "get_attr":
            owner, _, name = node.args[2].target.rpartition(".")
            setattr(graph.get_submodule(owner), name, graph.get_buffer(node.args[2].target).long())
    return graph


def _run(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(itertools.chain(graph(*(x.clone() for x in inputs))))
