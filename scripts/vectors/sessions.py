"""Calls in a row of programs with a memory, and samples of a microphone cut into frames."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vectors.manifests import STEP_C, STEP_H, STEP_X, STEP_Y
from vectors.outputs import rounded

PLACES, VOCABULARY = 24, 11
TOKENS = {"name": "tokens", "shape": [1, PLACES], "dtype": "int64", "dynamic": {"1": [1, PLACES]}}
POSITIONS = {"name": "position", "shape": [PLACES], "dtype": "int64", "dynamic": {"0": [1, PLACES]}}
TEXT = {"inputs": [TOKENS, POSITIONS], "outputs": [{"name": "logits", "shape": [1, 1, VOCABULARY], "dtype": "float32"}]}


def affine(weights: np.ndarray, inputs: Sequence[np.ndarray], counts: Sequence[int]) -> list[np.ndarray]:
    """Return the outputs of a program that multiplies all of its inputs, end to end, with weights."""
    outputs = np.split(weights @ np.concatenate(inputs), np.cumsum(counts)[:-1])
    return [output.astype(np.float32) for output in outputs]


def sessions() -> list[dict[str, Any]]:
    """Return programs and what a session must make of calls in a row; steps without results are to be refused.

    A program is ``weights``, or a text whose next token is 3 times the last one and its position, over and over.
    """
    spec = {
        "inputs": [STEP_X, STEP_H, STEP_C],
        "outputs": [STEP_Y, STEP_H | {"name": "h_out"}, STEP_C | {"name": "c_out"}],
        "feeds": [{"input": name, "output": f"{name}_out", "first": first} for name, first in (("h", 0.0), ("c", 2.0))],
    }
    # halves and quarters of small whole numbers, which float32 holds exactly for all of these steps
    weights = np.random.default_rng(3).integers(-2, 3, (7, 7)) / 4
    counts, first = [2, 2, 3], {"h": np.zeros(2), "c": np.full(3, 2.0)}
    made = []
    for keeps in ([], ["ring"]):
        state, events = dict(first), list[dict[str, Any]]()

        def step(
            x: Sequence[float], state: dict[str, np.ndarray] = state, events: list[dict[str, Any]] = events
        ) -> None:
            outputs = affine(weights, [np.array(x), state["h"], state["c"]], counts)
            state.update(h=outputs[1], c=outputs[2])
            events.append({"do": "step", "inputs": [list(x)], "gives": [rounded(output) for output in outputs]})

        for x in ([1.0, 2.0], [-1.0, 0.5], [0.0, 3.0]):
            step(x)
        kept = {name: rounded(value) for name, value in state.items()}
        events += [{"do": "state", "is": kept}, {"do": "step", "inputs": [[1.0]]}, {"do": "step", "inputs": []},
                   {"do": "step", "inputs": [[1.0, 2.0], [0.0, 0.0]]},
                   {"do": "reset", "first": {"h": [1.0]}, "refused": True},
                   {"do": "reset", "first": {"x": [1.0, 2.0]}, "refused": True}]  # fmt: skip
        step([2.0, -2.0])
        events.append({"do": "fail", "inputs": [[1.0, 1.0]]})
        if keeps:
            events += [{"do": "step", "inputs": [[1.0, 1.0]]}, {"do": "reset"}]
            state.update(first)
        step([1.0, 1.0])
        events.append({"do": "reset", "first": {"c": kept["c"]}})
        state.update(h=first["h"], c=np.array(kept["c"]))
        step([0.5, 0.5])
        made.append({"spec": spec, "keeps": keeps, "weights": weights.ravel().tolist(), "events": events,
                     "restarts": 2 if keeps else 1})  # fmt: skip
    made.append({"spec": TEXT, "keeps": ["keys"], "events": texts(), "restarts": 1})
    return made


def texts() -> list[dict[str, Any]]:
    """Return prompts with what follows; without that where they are to be refused."""
    written, last, events = 0, list[int](), list[dict[str, Any]]()
    for prompt, most, stop in (([4, 7, 1], 5, []), ([2], 9, [6]), ([3, 3], 99, []), ([1], 1, [])):
        given, tokens = last + prompt, list[int]()
        if written + len(given) > PLACES:
            events.append({"do": "generate", "prompt": prompt, "max": most, "stop": stop})
            continue
        while not tokens or (len(tokens) < most and tokens[-1] not in stop and written < PLACES):
            written += len(given)
            given = [(3 * given[-1] + written - 1) % VOCABULARY]
            tokens += given
        last = given
        events.append({"do": "generate", "prompt": prompt, "max": most, "stop": stop, "gives": tokens})
    too_long = {"do": "generate", "prompt": [1] * (PLACES + 1), "max": 1, "stop": []}
    empty = {"do": "generate", "prompt": [], "max": 3, "stop": []}
    again = {"do": "generate", "prompt": [4], "max": 1, "stop": [], "gives": [3 * 4 % VOCABULARY]}
    return [*events, {"do": "reset"}, too_long, empty, again]


def framings(random: np.random.Generator) -> list[dict[str, Any]]:
    """Return samples in buffers of several sizes with the frames that each completes; without these where refused."""
    cases = []
    for window, hop, sizes in ((8, 8, [20, 0, 3, 1, 16]), (7, 3, [1, 2, 3, 4, 20]), (5, 1, [12]), (4, 4, [3]),
                               (25, 10, [64, 64])):  # fmt: skip
        samples = random.integers(-(2**15), 2**15, sum(sizes))
        ends = np.cumsum(sizes)
        starts = np.arange(0, max(0, sum(sizes) - window + 1), hop)
        done = [int(((starts + window) <= end).sum()) for end in ends]
        frames = [samples[start : start + window] / 2**15 for start in starts]
        cases.append({"window": window, "hop": hop, "sizes": sizes, "samples": samples.tolist(), "done": done,
                      "frames": rounded(np.array(frames))})  # fmt: skip
    return cases + [{"window": window, "hop": hop} for window, hop in ((0, 1), (-4, 1), (4, 0), (4, 5), (4, -1))]
