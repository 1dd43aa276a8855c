"""Timing in turns, so that the machine's moods hit all alike."""

import math
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
Turn = Callable[[int], float]
"""Number of runs -> seconds per run."""

_SECONDS_PER_TURN = 0.005


def in_turns(turns: Mapping[Key, Turn], rounds: int) -> tuple[dict[Key, list[float]], dict[Key, int]]:
    """Measure several things in rounds: each round takes every one once around, beginning one further than the last.

    A turn is as many runs as take 5 ms. Two turns of each warm up.

    Returns:
        key -> seconds per run in each round, and key -> runs per turn.
    """
    runs = {}
    for key, turn in turns.items():
        turn(1)
        rough = max(1, math.ceil(_SECONDS_PER_TURN / turn(3)))
        runs[key] = max(1, math.ceil(_SECONDS_PER_TURN / turn(rough)))
    times: dict[Key, list[float]] = {key: [] for key in turns}
    keys = list(turns)
    for index in range(rounds):
        first = index % len(keys)
        for key in (*keys[first:], *keys[:first]):
            times[key].append(turns[key](runs[key]))
    return times, runs


def interquartile_range(values: Sequence[float]) -> float:
    """Return the distance between the first and the third quartile; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the median of values."""
    # 1.2533 times that of a mean, with the standard deviation of a normal from its quartiles
    return 1.2533 * interquartile_range(values) / 1.349 / math.sqrt(len(values))
