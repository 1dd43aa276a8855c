"""Units that are gone for a while: zeroed in place and put back bit by bit."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lightning_prune.model import masks
from lightning_prune.model.example import Example, Inputs, example_of
from lightning_prune.run.binding import units_of
from lightning_prune.selection import ChannelUnits, ElementUnits, Units
from lightning_prune.selection.granularity import Channel, Granularity
from lightning_prune.selection.targets import Targets

Gone = Mapping[str, Tensor]
"""Dense name -> bool mask of the parameter's shape, True = zeroed."""


def units_for(
    model: nn.Module, granularity: Granularity | Channel, targets: Targets, example_inputs: Inputs | None
) -> Units:
    """Return what a study removes from a model.

    Args:
        model: dense or masked.
        granularity: the units.
        targets: whose.
        example_inputs: of ``forward``, for channels; None: the model's own example.

    Raises:
        TypeError: granularity or targets are of another type.
        ValueError: there is no example input, and channels need it.
    """
    if not isinstance(granularity, Granularity | Channel):
        raise TypeError(
            f"granularity must be Element(), NOfM(n, m), Block(shape) or Channel(), got {granularity!r:.80}"
        )
    if not isinstance(targets, Targets):
        raise TypeError(f"targets must be Targets(include=…, exclude=…), got {targets!r:.80}")
    inputs = example_of(model) if example_inputs is None else Example.of(example_inputs)
    if inputs is None and isinstance(granularity, Channel):
        raise ValueError(
            f"{granularity} needs an example input of {type(model).__name__}: pass example_inputs=torch.zeros(1, …), or"
            " set its example_input_array"
        )
    return units_of(granularity, targets, model, inputs)


def live_masks(model: nn.Module, units: Units) -> dict[str, Tensor]:
    """Return the masks of everything in the units: those that the model carries, all True elsewhere."""
    carried = masks.read(model)
    parameters = masks.dense_parameters(model)
    return {
        name: carried.get(name, torch.ones(shape, dtype=torch.bool, device=parameters[name].device))
        for name, shape in units.shapes.items()
    }


def one_gone(units: Units, name: str, index: int, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what goes with one unit.

    Args:
        units: of the model.
        name: target or channel group.
        index: of the unit among those of this name, in row-major order.
        scores: of the elements, by which n:m blocks choose what stays.
    """
    if isinstance(units, ChannelUnits):
        group = units.found[name]
        gone = {}
        for member in group.members:
            if member.parameter in units.shapes:
                mask = gone.setdefault(member.parameter, torch.zeros(units.shapes[member.parameter], dtype=torch.bool))
                mask.index_fill_(member.axis, torch.from_numpy(member.indices[index]), True)
        return gone
    if not isinstance(units, ElementUnits):
        raise TypeError(f"units of another kind: {units!r:.80}")
    (target,) = (target for target in units.targets if target.name == name)
    shape = units.granularity.units(torch.empty(target.shape, device="meta"), target).shape
    keep = torch.ones(shape, dtype=torch.bool)
    keep.view(-1)[index] = False
    return {name: ~units.granularity.elements(keep, scores[name].cpu(), target)}


@contextmanager
def held(model: nn.Module, names: Iterable[str]) -> Iterator[Callable[[Gone], None]]:
    """Yield a function that zeroes entries of these parameters, and of no others; afterwards they have their bits back.

    Each call starts from the parameters as they were.

    Changes:
        the parameters, in place.
    """
    parameters = masks.dense_parameters(model)
    places = {name: (parameters[name].data, parameters[name].data.clone()) for name in names}

    def zero(gone: Gone) -> None:
        for name, (data, saved) in places.items():
            data.copy_(saved)
            if name in gone:
                data.masked_fill_(gone[name].to(data.device), 0)

    try:
        yield zero
    finally:
        zero({})


@contextmanager
def without(model: nn.Module, gone: Gone) -> Iterator[None]:
    """Zero entries of the model's parameters inside the block. See :func:`held`."""
    with held(model, gone) as zero:
        zero(gone)
        yield
