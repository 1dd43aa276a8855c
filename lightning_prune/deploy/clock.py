"""Programs by the clock of a latency table: processor time of the one thread, in turns."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_prune.deploy.artifact.artifact import Artifact
from lightning_prune.deploy.program.signature import dtype_name
from lightning_prune.deploy.runtime.child import CHILD
from lightning_prune.errors import ExportError

_SECONDS = 30.0
"""For all rounds together; there are five at least."""
FEWEST = 10
"""Rounds: of fewer there is no lower tenth."""
COARSEST = 1_000_000
"""Nanoseconds between two ticks of a clock that can tell layers apart."""


def least_of(milliseconds: Sequence[float]) -> float:
    """Return the lower tenth over the rounds: what else runs on a machine only ever adds."""
    return float(np.quantile(milliseconds, 0.1))


def in_turns(
    path: Path, turns: Sequence[Sequence[Mapping[str, Any]]], *, threads: int, rounds: int
) -> tuple[list[list[list[float]]], dict[tuple[int, int], str]]:
    """Run programs in turns; a turn may be the cells of a network in their order.

    On one thread the clock is the processor time of that thread; on several it is the wall's.

    Args:
        path: of the first, for errors.
        turns: of each program the ``path`` of its file, its ``method``, and of its ``inputs`` shape, type, and whether
            channels come last.
        threads: of the ExecuTorch runtime.
        rounds: in each of which every turn is run until its time settles and then measured; as many as fit into half a
            minute, five at least. 0: each program is run once, to see whether it fails.

    Returns:
        the milliseconds of each program of each turn, a few of each round, and the numbers of the turn and in it -> why
        for those that cannot be run.

    Raises:
        ExportError: the clock is too coarse.
    """
    places = [(number, place) for number, own in enumerate(turns) for place in range(len(own))]
    programs = [{**turns[number][place], "turn": number} for number, place in places]
    told: dict[str, Any] = CHILD.ask(
        "rounds", path, programs=programs, threads=threads, rounds=rounds, seconds=_SECONDS
    )
    if told["tick"] > COARSEST:
        raise ExportError(
            f"the clock of a thread ticks every {told['tick'] / 1e6:.1f} ms on this system, too coarse for layers:"
            " measure with threads=2, whose clock is that of the wall"
        )
    times: list[list[list[float]]] = [[] for _ in turns]
    for (number, _), own in zip(places, told["nanoseconds"], strict=True):
        times[number].append([each / 1e6 for each in own])
    return times, {places[int(number)]: why for number, why in told["failed"].items()}


def milliseconds(artifacts: Mapping[str, Artifact], *, threads: int = 1, rounds: int = 30) -> dict[str, float]:
    """Return what a run of each exported program takes here, as latency tables measure.

    Args:
        artifacts: name -> an exported program; the inputs are random ones of its shapes.
        threads: of the ExecuTorch runtime.
        rounds: in each of which every program has its turn.

    Raises:
        ExportError: a program cannot be loaded or run, or the clock is too coarse.
    """
    turns = [
        [
            {
                "path": str(artifact.path.resolve()),
                "method": "forward",
                "inputs": [[list(tensor.shape), dtype_name(tensor.dtype), False] for tensor in artifact.inputs],
            }
        ]
        for artifact in artifacts.values()
    ]
    with CHILD.releasing():
        times, failed = in_turns(next(iter(artifacts.values())).path, turns, threads=threads, rounds=rounds)
    if failed:
        (number, _), why = next(iter(failed.items()))
        raise ExportError(f"{list(artifacts)[number]} fails in the ExecuTorch runtime: {why}")
    return {name: least_of(own) for name, (own,) in zip(artifacts, times, strict=True)}
