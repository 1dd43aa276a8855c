"""Carries optimizer policies out on plain optimizers and schedulers; knows nothing of Lightning."""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_prune.optimizer.context import PolicyContext, Scheduler
from lightning_prune.optimizer.policies import Mask, OptimizerPolicy, as_policies
from lightning_prune.optimizer.surgery import keeps_zeros, parameters_of

log = logging.getLogger(__name__)

SPENT = 0.1
"""Share of a run's highest learning rate below which what is left learns too slowly to make up for an event."""


class PolicyRuntime:
    """Carries policies out on the optimizers that own a target, and on the schedulers of those.

    Call :meth:`start` when optimizers and schedulers exist, :meth:`after_step` after each completed optimizer step,
    :meth:`after_event` after the masks of an event are written, and :meth:`stop` at the end. Holds neither the model
    nor anything of Lightning.

    Args:
        policies: one policy or several, see :func:`lightning_prune.optimizer.policies.as_policies`.
        parameters: the live parameters that own a mask.
    """

    def __init__(self, policies: OptimizerPolicy | Sequence[OptimizerPolicy], parameters: Sequence[Parameter]) -> None:
        several = as_policies(policies)
        rule = [policy for policy in several if policy.rules_state] or [Mask()]
        self._policies = (*rule, *(policy for policy in several if not policy.rules_state))
        self._parameters = list(parameters)
        self._optimizers: list[Optimizer] = []
        self._schedulers: list[Scheduler] = []
        self._kept: dict[str, Any] = {}
        self._at_stop: list[Callable[[], object]] = []
        self._highest_rate = 0.0
        self._has_warned = False

    def start(
        self,
        optimizers: Sequence[Optimizer],
        schedulers: Sequence[Scheduler],
        model: nn.Module,
        step: int = 0,
        first_event: int | None = None,
    ) -> None:
        """Take hold of optimizers and schedulers; take the snapshots that are due at ``step``.

        Args:
            optimizers: all optimizers of the run.
            schedulers: all schedulers of the run.
            model: the model, masked or not.
            step: completed optimizer steps, more than 0 in a resumed run.
            first_event: step of the first event if it is known.

        Raises:
            ValueError: a policy cannot work here, such as LRRewind without a scheduler.
            OptimizerStateError: an optimizer whose state cannot be carried.
            CheckpointError: the restored state belongs to another number of optimizers.

        Changes:
            hooks on the optimizers, until :meth:`stop`.
        """
        self.stop()
        owned = set(self._parameters)
        self._optimizers = [o for o in optimizers if owned & set(parameters_of(o))]
        self._schedulers = [s for s in schedulers if any(s.optimizer is o for o in self._optimizers)]
        try:
            for policy in self._policies:
                policy.start(self._context(model, step, first_event=first_event))
        except Exception:
            self.stop()
            raise

    def _context(self, model: nn.Module, step: int, **more: Any) -> PolicyContext:
        return PolicyContext(
            *(model, self._optimizers, self._schedulers, self._parameters, step, self._kept),
            at_stop=self._at_stop,
            **more,
        )

    def stop(self) -> None:
        """Let go of the optimizers: hooks go, learning rates are the schedulers' own. Snapshots stay."""
        while self._at_stop:
            self._at_stop.pop()()

    def moves_zeros(self, optimizer: Optimizer) -> bool:
        """Say whether pruned weights must be zeroed again after each step of this optimizer."""
        return any(policy.moves_zeros for policy in self._policies) or not keeps_zeros(optimizer)

    def after_step(self, step: int, model: nn.Module) -> None:
        """Take the snapshots that are due when ``step`` optimizer steps are completed.

        Raises:
            OptimizerStateError: an optimizer whose state, which exists from its first step on, cannot be carried.
        """
        self._highest_rate = max(self._highest_rate, self._rate())
        for policy in self._policies:
            policy.after_step(self._context(model, step))

    def before_event(self, step: int, model: nn.Module) -> None:
        """Refuse an event that could not be carried, before anything is pruned.

        Raises:
            PruningError: a snapshot that a policy needs has not been taken yet.
            OptimizerStateError: an optimizer whose state cannot be carried.
        """
        for policy in self._policies:
            policy.before_event(self._context(model, step))

    def after_event(self, step: int, masks: Mapping[Parameter, Tensor], model: nn.Module) -> None:
        """Carry the policies out after an event.

        Args:
            step: completed optimizer steps.
            masks: the live masks, True = keep, by the parameter that the optimizer holds.
            model: the masked model.

        Raises:
            PruningError: a snapshot that a policy needs has not been taken yet; nothing has changed then.
            OptimizerStateError: an optimizer whose state cannot be carried; nothing has changed then.

        Changes:
            weights and buffers (RewindWeights), optimizer state, learning rates and schedulers (LRRewind).
        """
        self.before_event(step, model)
        rate = self._rate()
        can_be_set_back = bool(self._schedulers) and not any(policy.sets_rate_back for policy in self._policies)
        if can_be_set_back and rate < SPENT * self._highest_rate and not self._has_warned:
            self._has_warned = True
            log.warning(
                "the learning rate had fallen to %.2g, from %.2g, at the pruning event of step %d: what is left may"
                " learn too slowly to make up for it. Let the events come earlier, or set the schedulers back with"
                " optimizer_policy=LRRewind()",
                *(rate, self._highest_rate, step),
            )
        for policy in self._policies:
            policy.after_event(self._context(model, step, masks=masks))

    def after_removal(self, cut: Callable[[str, Tensor], Tensor]) -> None:
        """Let what the policies keep follow a removal of channels; see :meth:`OptimizerPolicy.after_removal`."""
        for policy in self._policies:
            policy.after_removal(self._kept, cut)

    def state_dict(self) -> dict[str, Any]:
        """Return what the policies keep: CPU tensors and plain values, ``torch.load(weights_only=True)`` reads them."""
        return {name: copy.copy(value) for name, value in self._kept.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, before or after :meth:`start`."""
        self._kept.clear()
        self._kept.update({name: copy.copy(value) for name, value in state_dict.items()})

    def _rate(self) -> float:
        """Return the highest rate now; one that is a tensor may lie on a device and is not waited for."""
        rates = [group["lr"] for optimizer in self._optimizers for group in optimizer.param_groups]
        return max((rate for rate in rates if not isinstance(rate, Tensor)), default=0.0)
