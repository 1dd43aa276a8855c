"""Calls in a row, for models with memory."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lightning_prune.deploy.program.feeds import Feeding
from lightning_prune.deploy.program.preprocessing import Normalize
from lightning_prune.deploy.program.signature import MethodSpec, describe, takes
from lightning_prune.deploy.program.structure import by_name, flat_inputs, misnamed

Call = tuple[Tensor, ...]
"""The inputs of one call of a program."""


@dataclass(frozen=True)
class Sequences:
    """Calls in a row: each sequence begins from the first state of a model, each call goes on from the one before.

    Args:
        sequences: each an iterable of calls that can be read more than once. A call is a tensor, a tuple of tensors in
            order or a dict by the names of the inputs, of sizes that the program takes. Inputs that are fed are left
            out; those of a first call may be there, and are then what the sequence begins with.

    Raises:
        ValueError: there is none.
        TypeError: one is no list of calls.

    Example:
        >>> import torch
        >>> len(Sequences([[torch.zeros(1, 4)] * 3, [torch.ones(1, 4)] * 2]))
        2
    """

    sequences: Sequence[Iterable[Any]]
    feeding: Feeding = field(default_factory=Feeding, init=False, repr=False)
    """What the inputs take from the call before, of what :meth:`taken` returned."""

    def __post_init__(self) -> None:
        sequences = self.sequences
        wrong = (Tensor, str, dict, Iterator)
        if isinstance(sequences, wrong) or not isinstance(sequences, Iterable):
            raise TypeError(f"Sequences: got a {type(sequences).__name__}, must be a list of lists of calls")
        if not (sequences := tuple(sequences)):
            raise ValueError("Sequences: there is none; give at least one, a list of calls")
        for index, sequence in enumerate(sequences):
            if isinstance(sequence, wrong) or not isinstance(sequence, Iterable):
                raise TypeError(
                    f"Sequences: number {index} is a {type(sequence).__name__}, must be a list of calls, as in"
                    " Sequences([[x0, x1, x2]])"
                )
        object.__setattr__(self, "sequences", sequences)

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def calls(self) -> list[list[Call]]:
        """The calls of each sequence, of what :meth:`taken` returned."""
        return [list(sequence) for sequence in self.sequences]

    def __iter__(self) -> Iterator[Iterable[Any]]:
        return iter(self.sequences)

    def taken(self, spec: MethodSpec, preprocess: Normalize | None, where: str) -> "Sequences":
        """Return the same with every call as a tuple of tensors that the program takes.

        Args:
            spec: of the program, with its ranges.
            preprocess: that is folded in, if any.
            where: what holds them, in errors.

        Raises:
            ValueError: a sequence has no call, or a call is not what the program takes.
        """
        inputs, feeding = spec.inputs, Feeding.of(spec)
        firsts = feeding.firsts(inputs)
        names, given_names = ([one.name for i, one in enumerate(inputs) if i not in fed] for fed in ((), firsts))

        def call(given: Any, at: str) -> Call:  # noqa: ANN401
            if isinstance(given, Mapping) and all(by_name(given, own) is None for own in (names, given_names)):
                raise misnamed(given, names, f"{where}: {at}")
            parts = given if isinstance(given, tuple | list) and not hasattr(given, "_fields") else (given,)
            tensors = flat_inputs(names, parts, {})
            if firsts and len(tensors) == len(given_names):
                left = iter(flat_inputs(given_names, parts, {}))
                tensors = tuple(firsts[i] if i in firsts else next(left) for i in range(len(inputs)))
            if preprocess is not None and tensors and isinstance(tensors[0], Tensor):
                tensors = (preprocess.image_of(tensors[0].detach().cpu(), where), *tensors[1:])
            if not takes(inputs, tensors):
                wanted = ", ".join(map(str, inputs))
                wanted += f"; {', '.join(feed.input for feed in spec.feeds)} may be left out" if spec.feeds else ""
                raise ValueError(f"{where}: {at} holds {describe(tensors) or 'nothing'}, the program takes {wanted}")
            return tuple(x.detach().cpu().contiguous() for x in tensors)

        made = [
            [call(given, f"call {at} of sequence {number}") for at, given in enumerate(sequence)]
            for number, sequence in enumerate(self)
        ]
        if not all(made):
            raise ValueError(f"{where}: sequence {made.index([])} has no call; give each at least one")
        sequences = Sequences(made)
        object.__setattr__(sequences, "feeding", feeding)
        return sequences
