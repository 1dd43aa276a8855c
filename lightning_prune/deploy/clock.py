"""Programs by the clock of a latency table: processor time of the one thread, in turns."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_prune.deploy.artifact.artifact import Artifact
from lightning_prune.deploy.program.signature import dtype_name
from lightning_prune.deploy.runtime.child import CHILD
from lightning_prune.errors import ExportError

_PASSES = 4
"""Times that all programs are loaded anew. The places that memory gives to weights decide what they push out of the
caches: `python -m benchmarks.settling` found 8.0 to 9.5 ms for a program of 45 MB that was loaded twelve times."""
_SECONDS = 30.0
"""For all rounds together; there are two at least in each pass."""
_LEAST_SECONDS = 1.5
"""For all rounds together: what else a machine begins to do can fill a tenth of a second. From session to session of
this length the share of a network of 0.05 ms changed by 0.4 % (`python -m benchmarks.settling`)."""
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
            minute, in four passes, for each of which the programs are loaded anew. 0: each program is run once, to see
            whether it fails.

    Returns:
        the milliseconds of each program of each turn, a few of each round, and the numbers of the turn and in it -> why
        for those that cannot be run.

    Raises:
        ExportError: the clock is too coarse.
    """
    places = [(number, place) for number, own in enumerate(turns) for place in range(len(own))]
    times: list[list[list[float]]] = [[[] for _ in own] for own in turns]
    passes, failed = min(_PASSES, max(1, rounds)), dict[tuple[int, int], str]()
    for begin in (number * len(turns) // passes for number in range(passes)):
        # what is loaded first finds another memory than what comes last
        order = sorted(places, key=lambda place: (place[0] < begin, place))
        told: dict[str, Any] = CHILD.ask(
            "rounds",
            path,
            programs=[{**turns[number][place], "turn": number} for number, place in order],
            threads=threads,
            rounds=-(-rounds // passes),
            seconds=_SECONDS / passes,
            least=_LEAST_SECONDS / passes,
        )
        if told["tick"] > COARSEST:
            raise ExportError(
                f"the clock of a thread ticks every {told['tick'] / 1e6:.1f} ms on this system, too coarse for layers:"
                " measure with threads=2, whose clock is that of the wall"
            )
        for (number, place), own in zip(order, told["nanoseconds"], strict=True):
            times[number][place] += [each / 1e6 for each in own]
        failed |= {order[int(number)]: why for number, why in told["failed"].items()}
    return times, failed


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
