"""State that is an argument and a result: which output of a call is an input of the next one."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_prune.deploy.program.signature import Feed, MethodSpec, TensorSpec

Feeds = Mapping[str | int, str | int]
"""Input -> output that it takes at the next call, by name or by position: ``{"h": "output_1"}``, ``{1: 1}``."""

Outputs = Sequence[Tensor]


@dataclass(frozen=True)
class Feeding:
    """What inputs take from the call before, by number.

    Args:
        sources: number of the input -> number of the output.
        first: number of the input -> number that it holds throughout at the first call.
    """

    sources: Mapping[int, int] = field(default_factory=dict)
    first: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: MethodSpec) -> "Feeding":
        """Return that of a method."""
        inputs, outputs = ([one.name for one in side] for side in (spec.inputs, spec.outputs))
        places = {inputs.index(feed.input): feed for feed in spec.feeds}
        return cls(
            {place: outputs.index(feed.output) for place, feed in places.items()},
            {place: feed.first for place, feed in places.items()},
        )

    def firsts(self, inputs: Sequence[TensorSpec]) -> dict[int, Tensor]:
        """Return what these inputs hold at the first call, by number, where they are fed."""
        firsts = dict[int, Tensor]()
        for i, value in self.first.items():
            shape, dtype = inputs[i].shape, inputs[i].dtype
            # torch takes no int of more than 64 bits, also where floats hold it
            firsts[i] = torch.full(shape, float(value) if dtype.is_floating_point else value, dtype=dtype)
        return firsts

    def begun(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the inputs of a first call."""
        return tuple(torch.full_like(x, self.first[i]) if i in self.first else x for i, x in enumerate(inputs))

    def fed(self, inputs: Sequence[Tensor], before: Outputs) -> tuple[Tensor, ...]:
        """Return the inputs of a call after another one, by the outputs of that."""
        return tuple(before[self.sources[i]] if i in self.sources else x for i, x in enumerate(inputs))

    def in_a_row(self, run: Callable[..., Outputs], steps: Sequence[Sequence[Tensor]]) -> list[Outputs]:
        """Return the outputs of calls in a row; after the first they take no input that is fed."""
        outputs = list[Outputs]()
        for step in steps:
            outputs.append(run(*(self.fed(step, outputs[-1]) if outputs else step)))
        return outputs


def checked_feeds(feeds: Feeds | None, spec: MethodSpec, inputs: Sequence[Tensor]) -> tuple[Feed, ...]:
    """Return what a caller said of a method as pairs of single tensors.

    Args:
        feeds: an input, or a container of some, -> the output, or the container of outputs, that it takes at the next
            call; each by its name or by its position among the arguments or results.
        spec: of the method.
        inputs: the example; what holds one value throughout begins with it, anything else with zeros.

    Raises:
        TypeError: they are no dict of names and positions.
        ValueError: there is no such input or output, or a pair has another shape or dtype.
    """
    if feeds is None:
        return ()
    if not isinstance(feeds, Mapping):
        raise TypeError(f"feeds: got a {type(feeds).__name__}, must be a dict, as in feeds={{'h': 'output_1'}}")
    example = {one.name: x for one, x in zip(spec.inputs, inputs, strict=True)}
    made = list[Feed]()
    for to, source in feeds.items():
        takes, gives = _meant(to, spec.inputs, "input"), _meant(source, spec.outputs, "output")
        if len(takes) != len(gives):
            raise ValueError(
                f"feeds: input {to!r} is {_listed(takes)}, and output {source!r} is {_listed(gives)}: give as many"
            )
        for one, given in zip(takes, gives, strict=True):
            if (one.shape, one.dtype) != (given.shape, given.dtype):
                fitting = (each for each in spec.outputs if (each.shape, each.dtype) == (one.shape, one.dtype))
                alike = [repr(each.name) for each in fitting]
                hint = f"; of its shape and dtype is {' or '.join(alike)}" if alike else ""
                raise ValueError(f"feeds: output {given} cannot be the next call's input {one}{hint}")
            if one.name in (feed.input for feed in made):
                raise ValueError(f"feeds: input {one.name!r} stands there twice")
            values = example[one.name].flatten()
            is_single = values.numel() > 0 and bool((values == values[0]).all())
            first = float(values[0]) if is_single else 0.0
            if not math.isfinite(first):
                raise ValueError(
                    f"feeds: {one.name!r} is {first} throughout the example, with which it would begin, and a manifest"
                    " holds no such number: take a large one, such as -1e9"
                )
            made.append(Feed(one.name, given.name, first))
    return tuple(made)


def _meant(key: object, specs: Sequence[TensorSpec], kind: str) -> list[TensorSpec]:
    """Return the tensors that a name or a position means."""
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise TypeError(f"feeds: got {key!r:.60} for an {kind}, must be its name or its position")
    tops = list(dict.fromkeys(spec.name.partition(".")[0] for spec in specs))
    name = key if isinstance(key, str) else tops[key] if 0 <= key < len(tops) else ""
    meant = [spec for spec in specs if name and (spec.name == name or spec.name.startswith(f"{name}."))]
    if not meant:
        raise ValueError(f"feeds: there is no {kind} {key!r}; the {kind}s are {_listed(specs)}")
    return meant


def _listed(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(map(str, specs))
