"""What an optimizer policy may see and change: the model, its optimizers and schedulers, and what it keeps itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer


class Scheduler(Protocol):
    """What is asked of a learning rate scheduler; those of torch.optim.lr_scheduler have it."""

    optimizer: Optimizer

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state."""
        ...


@dataclass(frozen=True)
class PolicyContext:
    """A run at one moment, as the methods of a policy get it; policies are frozen and hold nothing of it.

    Args:
        model: the model, masked or not.
        optimizers: those that hold a pruned parameter.
        schedulers: those of these optimizers.
        parameters: the live parameters that own a mask.
        step: completed optimizer steps, more than 0 at the start of a resumed run.
        kept: what the policies of one recipe keep from one call to the next, each under a name of its own: plain values
            and CPU tensors, for they stand in every checkpoint.
        masks: after an event the live masks, True = keep, by the parameter that the optimizer holds.
        first_event: at the start the step of the first event, if it is known.
        at_stop: called, last one first, when the run lets go of the optimizers.
    """

    model: nn.Module
    optimizers: Sequence[Optimizer]
    schedulers: Sequence[Scheduler]
    parameters: Sequence[Parameter]
    step: int
    kept: dict[str, Any]
    masks: Mapping[Parameter, Tensor] = field(default_factory=dict)
    first_event: int | None = None
    at_stop: list[Callable[[], object]] = field(default_factory=list)
