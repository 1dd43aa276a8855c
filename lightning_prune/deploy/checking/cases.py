"""What a program is compared on: inputs of all kinds and sizes that it takes, and what the model makes of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_prune.deploy.program.dynamic import resized
from lightning_prune.deploy.program.eager import EagerModel, random_like


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
) -> tuple[dict[str, Case], tuple[str, ...]]:
    """Return what to compare on, by what it is, and a note where random inputs tell nothing.

    Args:
        eager: the model; it runs once on each.
        inputs: the example inputs.
        sizes: what it is -> shapes of all inputs, tried first; none where all is fixed.
        samples: inputs like those that a quantized program was calibrated on: the program is right on such alone, and
            is not compared on random ones.
        of_graph: what the quantized graph makes of the samples, where it is at hand.

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
    drawn = random_like(examples)
    if samples or all(new is old for new, old in zip(drawn, examples, strict=True)):
        return found, ()
    try:
        random = Case(drawn, eager.run(*drawn))
    except Exception:  # inputs outside of what the model takes, which nobody asked it to take
        random = None
    if random is not None and all(bool(torch.isfinite(y).all()) for y in random.expected):
        return found | {"random inputs": random}, ()
    return found, ("Compared on the example inputs alone: the model gives no finite output on random ones.",)
