"""From the eager copy to a program in a file: torch.export, the backend's partitioners, ExecuTorch's serialisation."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import torch
from torch import Tensor

from lightning_prune.deploy.backends import Backend
from lightning_prune.deploy.eager import EagerModel
from lightning_prune.deploy.files import writing
from lightning_prune.deploy.quiet import quiet_import, quiet_lowering
from lightning_prune.deploy.rewriting import rewritten
from lightning_prune.deploy.runtime import imported
from lightning_prune.deploy.signature import describe
from lightning_prune.errors import ExportError


class Program(Protocol):
    """ExecuTorch's ExecutorchProgramManager, as far as it is used here."""

    def write_to_file(self, file: BinaryIO, /) -> None:
        """Write the bytes of a .pte."""
        ...


class Lowered(Protocol):
    """ExecuTorch's EdgeProgramManager, as far as it is used here."""

    def exported_program(self) -> torch.export.ExportedProgram:
        """Return the graph with its delegate calls."""
        ...

    def to_executorch(self) -> Program:
        """Plan the memory and serialise."""
        ...


def lower(eager: EagerModel, inputs: Sequence[Tensor], backend: Backend) -> Lowered:
    """Trace a model on inputs of fixed shapes and give the backend what it takes.

    Raises:
        ExportError: the model cannot be traced or lowered.
    """
    traced = rewritten(_traced(eager, inputs), backend.rewrites())
    if backend.quantization is not None:
        traced = backend.quantization.quantize(traced, inputs).program
    exir = imported("executorch.exir")
    with quiet_import():
        partitioners = list(backend.partitioners())
    try:
        with quiet_lowering():
            return exir.to_edge_transform_and_lower(traced, partitioner=partitioners)
    except Exception as error:
        raise ExportError(f"{_name(eager)} cannot be lowered to {backend}: {error}") from error


def _traced(eager: EagerModel, inputs: Sequence[Tensor]) -> torch.export.ExportedProgram:
    try:
        with quiet_lowering():
            return torch.export.export(eager, tuple(inputs))
    except Exception as error:
        raise ExportError(f"{_name(eager)} cannot be traced by torch.export on {describe(inputs)}: {error}") from error


def save(lowered: Lowered, path: Path) -> None:
    """Write the program to a file.

    Raises:
        ExportError: it cannot be serialised, or the file cannot be written.
    """
    try:
        with quiet_lowering():
            program = lowered.to_executorch()
    except Exception as error:
        raise ExportError(f"ExecuTorch cannot serialise the program: {error}") from error
    with writing(path), path.open("wb") as file:
        program.write_to_file(file)


def outside_notes(lowered: Lowered, backend: Backend) -> tuple[str, ...]:
    """Return a sentence that counts the operators left outside the backend, or nothing where there is none."""
    calls = [node for node in lowered.exported_program().graph.nodes if node.op == "call_function"]
    names = Counter(node.target.name() for node in calls if hasattr(node.target, "_op"))
    if not names:
        return ()
    listed = ", ".join(f"{name} ×{count}" if count > 1 else name for name, count in names.most_common())
    return (f"{names.total()} operator calls stay outside {backend.name} and run on portable kernels: {listed}.",)


def _name(eager: EagerModel) -> str:
    return type(eager.model).__name__
