"""Arm's quantizer for Ethos-U, and what its compiler Vela estimates for the parts of a program."""

import csv
import itertools
import weakref
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from lightning_prune.deploy.executorch.arm import specification
from lightning_prune.deploy.executorch.quiet import quiet_import, quiet_lowering
from lightning_prune.deploy.quantization.base import Quantization, Quantized
from lightning_prune.deploy.quantization.calibration import calibration_samples, check_batched
from lightning_prune.deploy.quantization.graphs import retraced
from lightning_prune.deploy.quantization.noise import Noise
from lightning_prune.documents import scratch
from lightning_prune.errors import ExportError, VerificationError


@dataclass(frozen=True)
class CompiledPart:
    """Vela's estimate for one part of a program that runs on the processor.

    Args:
        cycles: in all.
        seconds: of one run.
        accelerator: the configuration that it is for.
    """

    cycles: float
    seconds: float
    accelerator: str


class VelaReport:
    """The parts of one lowering, each in a folder of its own, which go when they are read or when this goes."""

    def __init__(self) -> None:
        place = ExitStack()
        self._folder = place.enter_context(scratch())
        self._clean = weakref.finalize(self, place.close)
        self._count = 0

    def next_folder(self) -> Path:
        """Return a new folder for the compiler's files of a part."""
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        return folder

    @cached_property
    def parts(self) -> tuple[CompiledPart, ...]:
        """The parts that Vela compiled, in order; to be asked after the lowering."""
        tables = sorted(
            self._folder.rglob("*summary*.csv"), key=lambda path: int(path.relative_to(self._folder).parts[0])
        )
        parts = []
        for table in tables:
            with table.open(newline="") as file:
                row = list(csv.DictReader(file))[-1]
            cycles, seconds = float(row["cycles_total"]), float(row["inference_time"])
            parts.append(CompiledPart(cycles, seconds, row["accelerator_configuration"]))
        self._clean()
        return tuple(parts)

    def told(self, sparsity: float) -> str:
        """Return the estimate in words.

        Args:
            sparsity: share of the weights that is zero.
        """
        if not self.parts:
            return "No operator runs on the Ethos-U."
        cycles, seconds = sum(part.cycles for part in self.parts), sum(part.seconds for part in self.parts)
        of = "" if len(self.parts) == 1 else f" for the {len(self.parts)} parts that run on it"
        return (
            f"Vela estimates {cycles:,.0f} cycles, {1000 * seconds:.3f} ms on {self.parts[0].accelerator}{of}; of"
            f" weights in flash or DRAM the zeros ({sparsity:.0%}) take next to no room."
        )


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
        compiled_for = specification(self.target)
        with quiet_import():
            from executorch.backends.arm.quantizer import EthosUQuantizer, get_symmetric_quantization_config
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        try:
            with quiet_lowering(), torch.no_grad():
                quantizer = EthosUQuantizer(compiled_for).set_global(get_symmetric_quantization_config())
                observed = prepare_pt2e(program.module(check_guards=False), quantizer)
                for sample in samples:
                    _run(observed, sample)
                graph = convert_pt2e(observed)
            # Arm's quantizer leaves zero points int32, and ExecuTorch's portable kernels, on which the graph is
            # verified, read them as int64 without a look at their type (1.4.1): they would read two at once.
            for node in graph.graph.nodes:
                if node.op == "call_function" and "per_channel" in str(node.target) and node.args[2].op == "get_attr":
                    owner, _, name = node.args[2].target.rpartition(".")
                    setattr(graph.get_submodule(owner), name, graph.get_buffer(node.args[2].target).long())
            return graph
        except Exception as error:
            raise ExportError(f"the program cannot be quantized for {self.target}: {error}") from error


def _run(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(itertools.chain(graph(*(x.clone() for x in inputs))))
