"""What a criterion has seen since the last event."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_prune.criteria.watching import ActivationCriterion, GradientCriterion
from lightning_prune.criteria.weights import wide
from lightning_prune.distributed.ranks import average, check_same
from lightning_prune.distributed.shards import is_sharded
from lightning_prune.errors import PruningError


@dataclass
class Observations:
    """The running sums of an observing criterion: for each parameter the sum of its terms and how many there were.

    Args:
        sums: dense name -> sum of the observed terms, shape of the parameter, float32 or wider, as what
            ``observe`` gets is.
        steps: dense name -> number of terms.
        past: dense names whose terms are from before the last event. They count until new ones come: with optimizers
            that take turns, not every parameter has a gradient between two events.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    past: set[str] = field(default_factory=set)

    @torch.no_grad()
    def add(self, criterion: GradientCriterion, name: str, weight: Tensor) -> None:
        """Add what this step's gradient (``weight.grad``) says; a parameter without one is left alone."""
        if weight.grad is not None:
            self._add(name, criterion.observe(weight.detach().to(wide(weight)), weight.grad.to(wide(weight))))

    @torch.no_grad()
    def see(self, criterion: ActivationCriterion, name: str, layer: nn.Module, inputs: Tensor) -> None:
        """Add what enters a layer in this forward pass."""
        self._add(name, criterion.observe(layer, inputs.detach().to(wide(inputs))))

    def _add(self, name: str, term: Tensor) -> None:
        if name in self.sums and name not in self.past:
            self.sums[name].add_(term)
            self.steps[name] += 1
        else:
            self.past.discard(name)
            self.sums[name], self.steps[name] = term.to(wide(term), copy=True), 1

    def mean(self, name: str, what: str = "gradient") -> Tensor:
        """Return the mean of the terms of one parameter. See :meth:`total`."""
        total, steps = self.total(name, what)
        return total / steps

    def total(self, name: str, what: str = "gradient") -> tuple[Tensor, int]:
        """Return the sum of the terms of one parameter and how many there were.

        Args:
            name: dense name.
            what: was to be observed, for the message.

        Raises:
            PruningError: none was ever observed.
        """
        if name not in self.sums:
            raise PruningError(
                f"{name} has had no {what} yet, so a criterion that watches {what}s cannot score it; let begin_step be"
                " at least 1, or exclude this parameter, which a loss may not reach, as the pooler of a text encoder:"
                f" Targets(exclude=({name!r},))"
            )
        return self.sums[name], self.steps[name]

    def agree(self) -> None:
        """Make what the ranks have seen their mean; sums that are alike keep their bits, and sharded ones are one.

        Raises:
            PruningError: some rank has seen other parameters, or another number of steps.
        """
        check_same(self.steps, "number of observed gradients")
        average({name: total for name, total in self.sums.items() if not is_sharded(total)})

    def cut(self, cut: Callable[[str, Tensor], Tensor]) -> None:
        """Follow a removal of channels: ``cut`` takes a dense name and a sum, and returns what is left of it."""
        self.sums = {name: cut(name, total) for name, total in self.sums.items()}

    def clear(self) -> None:
        """Forget everything."""
        self.sums, self.steps, self.past = {}, {}, set()

    def start_anew(self) -> None:
        """Begin a new mean of each parameter at its next gradient."""
        self.past = set(self.sums)
