"""The tensors that a network holds while it runs, and the kernels that read and make them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from lightning_prune.graph.rules.families import base_name
from lightning_prune.graph.trace import Call
from lightning_prune.model.workspace import Step

Elements = Mapping[str, float]
"""Dense name of the weight whose first axis makes the channels of a tensor -> its elements; "" where nothing does."""


@dataclass(frozen=True)
class Activations:
    """The tensors of one run, by number.

    Args:
        steps: the kernels in the order in which they run.
        elements: tensor -> how many it has, by what makes its channels.
        names: tensor -> the call that makes it, in words.
        borders: inputs and outputs, which the program holds itself.
        pointers: bytes of addresses by which convolutions and poolings reach what they read, whatever the widths.
    """

    steps: tuple[Step, ...]
    elements: Mapping[int, Elements]
    names: Mapping[int, str]
    borders: frozenset[int]
    pointers: int


class Running:
    """A run as far as it is recorded; tensors are numbers.

    Args:
        model: name of its class, for the errors.
        weights: placeholder node -> dense name of the parameter or buffer that it stands for.

    Attributes:
        of: node of the graph -> its tensor; constants have none.
        elements: see :class:`Activations`.
        is_last: tensor -> whether its channels come last, as XNNPACK's kernels of images have them.
        pointers: see :class:`Activations`.
    """

    def __init__(self, model: str, weights: Mapping[fx.Node, str]) -> None:
        self.model, self.pointers = model, 0
        self.of, self.elements, self.is_last = dict[fx.Node, int](), dict[int, Elements](), dict[int, bool]()
        self._weights, self._steps = weights, list[Step]()
        self._makers, self._names = dict[int, str](), dict[int, str]()
        self._turned, self._late = dict[int, int](), set[int]()

    def reads(self, call: Call) -> list[int]:
        """Return the tensors that a call takes, as often as it takes them."""
        given = [
            x for value in call.arguments.values() for x in (value if isinstance(value, list | tuple) else [value])
        ]
        return [self.of[x] for x in given if isinstance(x, fx.Node) and x in self.of]

    def check(self, value: Any, place: str) -> None:  # noqa: ANN401 - whatever an operator returns
        """Refuse what is no tensor of float32."""
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            raise ValueError(
                f"what {self.model} takes of the memory is known for float32 alone, and {place} is"
                f" {value.dtype if isinstance(value, Tensor) else f'a {type(value).__name__}'}: use Size() and MACs(),"
                " and look at the exported file with inspect()"
            )

    def take(self, node: fx.Node) -> int:
        """Note an input of the program."""
        self.check(node.meta["val"], f"the input {node.name}")
        self.of[node] = self._tensor({"": float(node.meta["val"].numel())}, "input", "the input", False)
        return self.of[node]

    def put(self, call: Call, reads: Sequence[int], elements: Elements, is_last: bool, in_place: bool = False) -> None:
        """Note a kernel that makes what a call returns."""
        self.of[call.node] = self.step(call, base_name(call.operator), reads, elements, is_last, in_place)

    def step(
        self, call: Call, kind: str, reads: Sequence[int], elements: Elements, is_last: bool, in_place: bool
    ) -> int:
        """Note a kernel, and return what it makes."""
        made = self._tensor(elements, kind, call.place, is_last)
        self._steps.append(Step(tuple(reads), made, in_place))
        return made

    def turned(self, tensor: int, is_last: bool) -> int:
        """Return a tensor with its channels last, or not: itself, or a transposed copy of it."""
        if self.is_last[tensor] == is_last:
            return tensor
        if tensor not in self._turned:
            other = self._tensor(self.elements[tensor], "transpose", self._names[tensor], is_last)
            self._steps.append(Step((tensor,), other))
            self._turned |= {tensor: other, other: tensor}
        return self._turned[tensor]

    def is_alone(self, node: fx.Node, kinds: Collection[str]) -> bool:
        """Tell whether a tensor comes from such a kernel and one call alone reads it."""
        made = self.of.get(node, -1)
        same = (other for other, tensor in self.of.items() if tensor == made)
        return self._makers.get(made) in kinds and all(len(other.users) == 1 for other in same)

    def clamp(self, made: int, apart: Collection[str]) -> None:
        """Note a clamp of what a kernel makes: a part of it, but after those of ``apart`` a kernel of its own."""
        if self._makers[made] in apart:
            before = self._tensor(self.elements[made], "clamped", self._names[made], self.is_last[made])
            self._late.add(before)
            place = next(number for number, step in enumerate(self._steps) if step.makes == made)
            self._steps[place] = replace(self._steps[place], makes=before)
            self._steps.insert(place + 1, Step((before,), made, True))
        self._makers[made] = "clamp"

    def made_by(self, weight: fx.Node, elements: int) -> Elements:
        """Return elements that go with the outputs of a weight."""
        return {self._weights.get(weight, ""): float(elements)}

    def scaled(self, tensor: int, elements: int) -> Elements:
        """Return elements whose channels are those of a tensor."""
        own = self.elements[tensor]
        return {maker: count * elements / sum(own.values()) for maker, count in own.items()}

    def ended(self, borders: Collection[int]) -> Activations:
        """Return the run; ``borders`` are the inputs and outputs of the program.

        XNNPACK numbers the clamps that it puts in after all others, and its planner goes by the numbers.
        """
        number = {tensor: tensor + len(self.elements) * (tensor in self._late) for tensor in self.elements}
        return Activations(
            tuple(Step(tuple(map(number.__getitem__, x.reads)), number[x.makes], x.in_place) for x in self._steps),
            {number[tensor]: own for tensor, own in self.elements.items()},
            {number[tensor]: name for tensor, name in self._names.items()},
            frozenset(number[tensor] for tensor in borders),
            self.pointers,
        )

    def _tensor(self, elements: Elements, maker: str, name: str, is_last: bool) -> int:
        tensor = len(self.elements)
        self.elements[tensor], self.is_last[tensor] = elements, is_last
        self._makers[tensor], self._names[tensor] = maker, name
        return tensor
