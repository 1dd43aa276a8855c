"""Arguments that significance and sensitivity share, checked."""

from typing import Any

from torch import nn

from lightning_prune.model.summary import Inputs, as_tuple, example_of
from lightning_prune.selection.granularity import Channel, Granularity
from lightning_prune.selection.targets import Targets


def check_units(granularity: object, targets: object) -> None:
    """Raise TypeError for what says no units, or not whose."""
    if not isinstance(granularity, Granularity | Channel):
        raise TypeError(
            f"granularity must be Element(), NOfM(n, m), Block(shape) or Channel(), got {granularity!r:.80}"
        )
    if not isinstance(targets, Targets):
        raise TypeError(f"targets must be Targets(include=…, exclude=…), got {targets!r:.80}")


def inputs_for(
    model: nn.Module, granularity: Granularity | Channel, example_inputs: Inputs | None
) -> tuple[Any, ...] | None:
    """Return positional arguments to trace a model with: as given, or its own example.

    Raises:
        ValueError: there are none, and channels need them.
    """
    inputs = example_of(model) if example_inputs is None else as_tuple(example_inputs)
    if inputs is None and isinstance(granularity, Channel):
        raise ValueError(
            f"{granularity} needs an example input of {type(model).__name__}: pass example_inputs=torch.zeros(1, …), or"
            " set its example_input_array"
        )
    return inputs
