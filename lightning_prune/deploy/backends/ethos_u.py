"""Arm's Ethos-U, the neural processor of microcontrollers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lightning_prune.deploy.backends.base import Backend
from lightning_prune.deploy.quantization import Quantization
from lightning_prune.deploy.quantization.calibrated import check_loader, described
from lightning_prune.values import check_whole

EthosTarget = Literal[
    "ethos-u55-32",
    "ethos-u55-64",
    "ethos-u55-128",
    "ethos-u55-256",
    "ethos-u65-256",
    "ethos-u65-512",
    "ethos-u85-128",
    "ethos-u85-256",
    "ethos-u85-512",
    "ethos-u85-1024",
    "ethos-u85-2048",
]


@dataclass(frozen=True, eq=False, repr=False)
class EthosU(Backend):
    """Arm's Ethos-U, the neural processor of microcontrollers, through Arm's compiler Vela.

    It computes in 8-bit integers alone, so that a calibration loader is needed. Vela codes the weights: in flash and
    DRAM zeros take next to no room and less of the bandwidth. Ethos-U85 computes half as much where
    :class:`~lightning_prune.NOfM` (2, 4) left two of four. It exports on any machine and runs on none but the chip:
    the same quantized graph is verified on the portable kernels here, and Vela's estimate of cycles stands in the
    notes.

    Args:
        calibration: batches as in :class:`~lightning_prune.deploy.Int8`.
        target: the processor and its number of multiply-accumulates per cycle.
        samples: how many samples of the loader are looked at.
        system: clock and memories that are compiled for, by their name in Vela's ``Arm/vela.ini``, such as
            ``"Ethos_U85_SYS_Flash_High"``; None: what ExecuTorch takes for the target.
        memory: where weights and activations lie, by its name there, such as ``"Shared_Sram"``; None: what ExecuTorch
            takes for the target, on Ethos-U85 all of it in SRAM.

    Raises:
        ValueError: an unknown target, or a number of samples below 1.
        TypeError: the calibration is no loader, or can be read only once; a name is no text.
    """

    calibration: Iterable[Any]
    target: EthosTarget = "ethos-u55-128"
    samples: int = 256
    system: str | None = None
    memory: str | None = None

    def __post_init__(self) -> None:
        check_loader("EthosU.calibration", self.calibration)
        if self.calibration is None:
            raise TypeError("EthosU.calibration: got None; Ethos-U computes in integers alone: pass a loader")
        check_whole("EthosU.samples", self.samples, 1)
        if self.target not in get_args(EthosTarget):
            allowed = ", ".join(map(repr, get_args(EthosTarget)))
            raise ValueError(f"target: got {self.target!r}, must be one of {allowed}")
        for name, value in (("system", self.system), ("memory", self.memory)):
            if not isinstance(value, str | None):
                raise TypeError(f"EthosU.{name}: got {value!r}, must be a name of Vela's configuration, or None")

    def __repr__(self) -> str:
        places = "".join(
            f", {name}={value!r}" for name, value in (("system", self.system), ("memory", self.memory)) if value
        )
        return f"EthosU({described(self.calibration)}, target={self.target!r}, samples={self.samples}{places})"

    @property
    def name(self) -> str:
        """``ethos-u``."""
        return "ethos-u"

    @property
    def quantization(self) -> Quantization:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Static 8-bit integers as Arm's own quantizer lays them out."""
        from lightning_prune.deploy.backends.ethos_u_compiler import EthosInt8

        return EthosInt8(self.calibration, self.target, self.samples)

    def partitioners(self) -> Sequence[Any]:
        """Return ExecuTorch's EthosUPartitioner.

        Raises:
            ImportError: Arm's compiler is not installed.
        """
        from lightning_prune.deploy.backends.ethos_u_compiler import VelaReport
        from lightning_prune.deploy.executorch.arm import reporting_partitioner

        return [reporting_partitioner(self.target, VelaReport(), self.system, self.memory)]

    def notes_of_lowering(self, partitioners: Sequence[Any], sparsity: float) -> tuple[str, ...]:
        """Return Vela's estimate for the program, and what became of zeros."""
        return tuple(partitioner.report.told(sparsity) for partitioner in partitioners)
