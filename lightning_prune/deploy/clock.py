"""Whole programs by the clock of a latency table: processor time of the one thread, in turns."""

from collections.abc import Mapping
from typing import Any

from lightning_prune.deploy.artifact.artifact import Artifact
from lightning_prune.deploy.program.signature import dtype_name
from lightning_prune.deploy.runtime.child import CHILD
from lightning_prune.errors import ExportError

_SECONDS = 20.0
"""For all rounds together; there are five at least."""


def milliseconds(artifacts: Mapping[str, Artifact], *, threads: int = 1, rounds: int = 100) -> dict[str, float]:
    """Return what a run of each program takes here, as latency tables measure: the lower tenth of the rounds.

    On one thread the clock is the processor time of that thread, and what else runs on the machine only ever adds. On
    several it is the wall's.

    Args:
        artifacts: name -> an exported program; the inputs are random ones of its shapes.
        threads: of the ExecuTorch runtime.
        rounds: in each of which every program has its turn.

    Raises:
        ExportError: a program cannot be loaded or run.
    """
    programs = [
        {
            "path": str(artifact.path.resolve()),
            "method": "forward",
            "inputs": [[list(tensor.shape), dtype_name(tensor.dtype), False] for tensor in artifact.inputs],
        }
        for artifact in artifacts.values()
    ]
    first = next(iter(artifacts.values())).path
    with CHILD.releasing():
        told: dict[str, Any] = CHILD.ask(
            "rounds", first, programs=programs, threads=threads, rounds=rounds, seconds=_SECONDS
        )
    if failed := {list(artifacts)[int(number)]: why for number, why in told["failed"].items()}:
        raise ExportError(f"programs fail in the ExecuTorch runtime: {failed}")
    return {name: sorted(own)[len(own) // 10] / 1e6 for name, own in zip(artifacts, told["nanoseconds"], strict=True)}
