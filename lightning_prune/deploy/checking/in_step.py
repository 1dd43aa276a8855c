"""A program with a memory beside its model: both from the first state, call by call, compared after each."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lightning_prune.deploy.checking.comparison import Bounds, Differences, OutputError, Remedies, max_abs_difference
from lightning_prune.deploy.program.dynamic import resized
from lightning_prune.deploy.program.eager import EagerModel, random_like
from lightning_prune.deploy.program.loaders import Function
from lightning_prune.errors import VerificationError

STEPS = 8
"""Calls in a sequence that is made from an example."""
_NEAR, _NEAR_IN_INTEGERS = 1e-3, 0.25
"""Share of the error that a suspicion may leave and still be the reason: rounding, or the noise of 8 bits."""

Steps = Sequence[Sequence[Tensor]]
Outputs = Sequence[Sequence[Tensor]]


def sequences(
    eager: EagerModel,
    inputs: Sequence[Tensor],
    samples: Steps = (),
    sizes: Mapping[str, Sequence[Sequence[int]]] | None = None,
) -> list[Steps]:
    """Return sequences of calls: the example and random inputs like it, or samples in a row; and the same reversed.

    Where sizes may vary there are two more, whose calls have all of these sizes in turns.

    Args:
        eager: the model; where it gives nothing finite on random inputs the example is repeated.
        inputs: the example.
        samples: those of a quantized program.
        sizes: what it is -> shapes of all inputs; none where all is fixed.
    """
    given, made = samples or [inputs], list[Steps]()
    shapes = list((sizes or {}).values())
    fed = [[shape[place] for place in eager.feeding.sources] for shape in shapes]
    # what goes into the next call has one size for the whole sequence
    turns = [shapes] if all(each == fed[0] for each in fed) else [[shape] for shape in shapes]
    for of_size in ([], *turns) if shapes else ([],):
        steps = [given[number % len(given)] for number in range(STEPS)]
        for number in range(STEPS if of_size else 0):
            pairs = zip(steps[number], of_size[number % len(of_size)], strict=True)
            steps[number] = [resized(x, shape) for x, shape in pairs]
        if not samples:
            drawn = [steps[0], *(random_like(step, seed) for seed, step in enumerate(steps[1:], 1))]
            try:
                outputs = [y for both in (drawn, drawn[::-1]) for step in eager.in_step(both) for y in step]
            except Exception:  # whatever a model raises on inputs that nobody asked it to take
                outputs = [torch.tensor(torch.nan)]
            steps = drawn if all(bool(torch.isfinite(y).all()) for y in outputs) else steps
        made += [steps, steps[::-1]]
    return [[eager.feeding.begun(first), *others] for first, *others in made]


def compare_in_step(
    program: Function,
    reset: Callable[[], None],
    eager: EagerModel,
    rows: Sequence[Steps],
    names: Sequence[str],
    bounds: Bounds,
    remedies: Remedies,
    of: str = "",
) -> dict[str, OutputError]:
    """Run sequences on both sides and compare every output of every step; the program is reset before each sequence.

    Args:
        program: the file in its runtime.
        reset: lets it begin from its first state.
        eager: the model, in its first state.
        rows: the sequences.
        names: of the outputs.
        bounds: what is accepted.
        remedies: what to do where they differ.
        of: what holds the sequences, as the end of a sentence.

    Raises:
        VerificationError: an output is out of bounds; the message says at which step, and what of the state is wrong.
    """
    differences = Differences(names, bounds, remedies)
    for number, steps in enumerate(rows):
        reset()
        outputs, expected = eager.feeding.in_a_row(program, steps), eager.in_step(steps)
        alone = Differences(names, bounds, remedies)
        try:
            for at, (got, wanted) in enumerate(zip(outputs, expected, strict=True)):
                for each in (differences, alone):
                    each.add(got, wanted, f"step {at} of sequence {number}{of} from the first state")
            alone.check(f" over sequence {number}{of}")
        except VerificationError as error:
            if not eager.state:
                raise
            near = _NEAR if bounds.min_sqnr is None else _NEAR_IN_INTEGERS
            reason = _reason(eager, steps, outputs, expected, rows[number - 1] if number else None, near)
            raise type(error)(f"{reason}: {error}") from error
    return differences.errors


def _reason(
    eager: EagerModel, steps: Steps, outputs: Outputs, expected: Outputs, earlier: Steps | None, near: float
) -> str:
    """Return what is wrong with the state in words: the suspicion under which the model gives these outputs."""
    errors = [_distance([got], [wanted]) for got, wanted in zip(outputs, expected, strict=True)]
    for words, under in _suspicions(eager, steps, earlier):
        if _distance(outputs, under) < near * max(errors):
            return words
    start = next((at for at, error in enumerate(errors) if error > 1e-3 * max(errors)), 0)
    grows = errors[-1] > 2 * errors[len(errors) // 2] > 0
    return f"the state differs from step {start} on" + (", and the difference grows from call to call" * grows)


def _suspicions(eager: EagerModel, steps: Steps, earlier: Steps | None) -> Iterator[tuple[str, Outputs]]:
    first = {name: eager.get_buffer(name).clone() for name in eager.state}
    zeros = {name: torch.zeros_like(value) for name, value in first.items()}
    yield "the state is not carried from call to call", eager.in_step(steps, after=lambda: eager.set_state(first))
    yield "the state is carried twice in a call", eager.in_step(steps, before=lambda step: eager(*step))
    yield "the first state is zeros, not the model's", eager.in_step(steps, first=zeros)
    if earlier is not None:
        stale = eager.in_step([*earlier, *steps])[len(earlier) :]
        yield "the state of the sequence before is there after a reset", stale
    kept = [first]

    def late() -> None:
        kept.append({name: eager.get_buffer(name).clone() for name in first})
        eager.set_state(kept[-2])

    yield "the state arrives one call late", eager.in_step(steps, after=late)
    for name in first:
        for axis in (axis for axis, size in enumerate(first[name].shape) if size > 1):
            for by in (1, -1):

                def shifted(name: str = name, axis: int = axis, by: int = by) -> None:
                    eager.set_state({name: eager.get_buffer(name).roll(by, axis)})

                words = f"{name.removeprefix('model.')} is written to the wrong slot of its axis {axis}"
                yield words, eager.in_step(steps, after=shifted)


def _distance(outputs: Outputs, expected: Outputs) -> float:
    pairs = [(a, b) for got, wanted in zip(outputs, expected, strict=True) for a, b in zip(got, wanted, strict=True)]
    return max((max_abs_difference(a, b) for a, b in pairs), default=0.0)
