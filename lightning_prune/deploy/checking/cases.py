"""What a program is compared on: inputs of all kinds and sizes that it takes, and what the model makes of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_prune.deploy.program.dynamic import resized
from lightning_prune.deploy.program.eager import EagerModel, is_silent, random_like
from lightning_prune.deploy.program.loaders import NO_SAMPLES, OwnSamples
from lightning_prune.errors import ExportError

_RANDOM = "random inputs"


@dataclass(frozen=True)
class Case:
    """Inputs on which file and model must agree.

    Args:
        inputs: of the program.
        expected: what the model makes of them.
        of_graph: what the quantized graph makes of them that the file was made of; None: it is not at hand.
    """

    inputs: Sequence[Tensor]
    expected: Sequence[Tensor]
    of_graph: Sequence[Tensor] | None = None


def cases(
    eager: EagerModel,
    inputs: Sequence[Tensor],
    sizes: Mapping[str, Sequence[Sequence[int]]],
    samples: Sequence[Sequence[Tensor]] = (),
    of_graph: Sequence[Sequence[Tensor]] = (),
    own: OwnSamples = NO_SAMPLES,
) -> tuple[dict[str, Case], tuple[str, ...]]:
    """Return what to compare on in order, by what it is, and a note where random inputs tell nothing.

    Args:
        eager: the model; it runs once on each.
        inputs: the example inputs.
        sizes: what it is -> shapes of all inputs, tried first; none where all is fixed.
        samples: inputs like those that a quantized program was calibrated on: the program is right on such alone, and
            is not compared on random ones.
        of_graph: what the quantized graph makes of the samples, where it is at hand.
        own: samples of the model's own data, compared on before random ones.

    Raises:
        ExportError: the model rejects one of them, other than random ones.
    """
    examples = tuple(samples[0] if samples else inputs)
    compared = {
        where: tuple(resized(x, shape) for x, shape in zip(examples, shapes, strict=True))
        for where, shapes in sizes.items()
    }
    compared["the example inputs"] = examples
    if any(x.ndim == 4 for x in examples):
        compared["channels-last inputs"] = tuple(
            x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in examples
        )
    found = {where: Case(given, eager.run(*given)) for where, given in compared.items()}
    for index, sample in enumerate(samples):
        found[f"sample {index}"] = Case(sample, eager.run(*sample), of_graph[index] if of_graph else None)
    notes, reason = list[str](), own.reason
    try:
        found |= {f"sample {i} of {own.name}": Case(each, eager.run(*each)) for i, each in enumerate(own.inputs)}
    except ExportError as error:
        reason = str(error)
    if reason:
        notes.append(f"Not compared on {own.name} ({reason}): pass verify_on= with batches of what forward takes.")
    drawn = random_like(examples)
    if samples or all(new is old for new, old in zip(drawn, examples, strict=True)):
        return found, tuple(notes)
    try:
        random = Case(drawn, eager.run(*drawn))
    except Exception:  # inputs outside of what the model takes, which nobody asked it to take
        random = None
    if random is not None and all(bool(torch.isfinite(y).all()) for y in random.expected):
        return found | {_RANDOM: random}, tuple(notes)
    return found, (*notes, "Compared on the example inputs alone: the model gives no finite output on random ones.")


def described(compared: Mapping[str, Case], own: OwnSamples) -> str:
    """Return in words what a method was compared on; example inputs of one value each are no data.

    Args:
        compared: what :func:`cases` returned.
        own: samples that may be among it.
    """
    if any(where.endswith(f" of {own.name}") for where in compared):
        return f"{own.count:,} samples of {own.name}"
    if "sample 0" in compared:
        return "inputs as in the calibration"
    if _RANDOM not in compared:
        return "the example inputs only"
    is_shape = is_silent(compared["the example inputs"].inputs)
    return "random inputs only" if is_shape else "the example inputs and random ones"
