"""Whether the learning rate had been spent before an event, said once in the log."""

import logging
from collections.abc import Iterable

from torch import Tensor
from torch.optim import Optimizer

log = logging.getLogger(__name__)

SPENT = 0.1
"""Share of a run's highest learning rate below which what is left learns too slowly to make up for an event."""


class SpentRate:
    """Follows the highest learning rate of a run; rates that are tensors are left out, they may lie on a device."""

    def __init__(self) -> None:
        self._highest = 0.0
        self._has_warned = False

    def see(self, optimizers: Iterable[Optimizer]) -> None:
        """Take note of the rates after a step."""
        self._highest = max(self._highest, _highest_of(optimizers))

    def warn(self, optimizers: Iterable[Optimizer], step: int) -> None:
        """Say in the log, once, that the rate had fallen below a tenth of its highest before the event of ``step``."""
        rate = _highest_of(optimizers)
        if self._has_warned or rate >= SPENT * self._highest:
            return
        self._has_warned = True
        log.warning(
            "the learning rate had fallen to %.2g, from %.2g, at the pruning event of step %d: what is left may learn"
            " too slowly to make up for it. Let the events come earlier, or set the schedulers back with"
            " optimizer_policy=LRRewind()",
            *(rate, self._highest, step),
        )


def _highest_of(optimizers: Iterable[Optimizer]) -> float:
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    return max((rate for rate in rates if not isinstance(rate, Tensor)), default=0.0)
