"""Carries optimizer policies out on plain optimizers and schedulers; knows nothing of Lightning."""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_prune.errors import CheckpointError, PruningError
from lightning_prune.model.frame import Frame
from lightning_prune.model.masks import dense_names, refresh
from lightning_prune.optimizer import surgery as optimizer_surgery
from lightning_prune.optimizer.policies import (
    Keep,
    LRRewind,
    OptimizerPolicy,
    Reset,
    Rewarm,
    RewindWeights,
    as_policies,
)
from lightning_prune.optimizer.spent_rate import SpentRate

_P = TypeVar("_P", bound=OptimizerPolicy)

_RATES = ("lr", "momentum", "betas")
"""What schedulers write into a param group; OneCycleLR and CyclicLR drive the momentum as well."""


class Scheduler(Protocol):
    """What is asked of a learning rate scheduler; those of torch.optim.lr_scheduler have it."""

    optimizer: Optimizer

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state."""
        ...


class PolicyRuntime:
    """Carries policies out on the optimizers that own a target, and on the schedulers of those.

    Call :meth:`start` when optimizers and schedulers exist, :meth:`after_step` after each completed optimizer step,
    :meth:`after_event` after the masks of an event are written, :meth:`settle` when training breaks off, and
    :meth:`stop` at its end. Holds neither the model nor anything of Lightning.

    Args:
        policies: one policy or several, see :func:`lightning_prune.optimizer.policies.as_policies`.
        parameters: the live parameters that own a mask.
    """

    def __init__(self, policies: OptimizerPolicy | Sequence[OptimizerPolicy], parameters: Sequence[Parameter]) -> None:
        several = as_policies(policies)
        self._keep, self._reset = _find(several, Keep), _find(several, Reset)
        self._rewarm, self._lr_rewind = _find(several, Rewarm), _find(several, LRRewind)
        self._rewind_weights = _find(several, RewindWeights)
        self._parameters = list(parameters)
        self._optimizers: list[Optimizer] = []
        self._schedulers: list[Scheduler] = []
        self._handles: list[RemovableHandle] = []
        self._own_rates: dict[int, list[float | Tensor]] = {}
        self._ramps: list[int | None] = []
        self._spent = SpentRate()
        self._weights: dict[str, Tensor] | None = None
        self._rates: dict[str, list[Any]] | None = None

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
            ValueError: LRRewind without a scheduler, or a snapshot that would come after the first event.
            OptimizerStateError: an optimizer whose state cannot be carried.
            CheckpointError: the restored state belongs to another number of optimizers.

        Changes:
            hooks on the optimizers, until :meth:`stop`.
        """
        self.stop()
        owned = set(self._parameters)
        self._optimizers = [o for o in optimizers if owned & set(optimizer_surgery.parameters_of(o))]
        self._schedulers = [s for s in schedulers if any(s.optimizer is o for o in self._optimizers)]
        self._ramps = self._ramps or [None] * len(self._optimizers)
        self._check(first_event)
        if self._rewarm:
            for index, optimizer in enumerate(self._optimizers):
                self._handles.append(optimizer.register_step_pre_hook(partial(self._warm, index)))
                self._handles.append(optimizer.register_step_post_hook(partial(self._cool, index)))
        self._take_snapshots(step, model)

    def stop(self) -> None:
        """Let go of the optimizers: hooks go, learning rates are the schedulers' own. Snapshots stay."""
        self.settle()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def settle(self) -> None:
        """Put the schedulers' own learning rates back where an exception left a scaled one inside a step."""
        for index in list(self._own_rates):
            self._put_back(index)

    def moves_zeros(self, optimizer: Optimizer) -> bool:
        """Say whether pruned weights must be zeroed again after each step of this optimizer."""
        return bool(self._keep) or not optimizer_surgery.keeps_zeros(optimizer)

    def after_step(self, step: int, model: nn.Module) -> None:
        """Take the snapshots that are due when ``step`` optimizer steps are completed.

        Raises:
            OptimizerStateError: an optimizer whose state, which exists from its first step on, cannot be carried.
        """
        if step == 1:
            self._check_optimizers()
        self._spent.see(self._optimizers)
        self._take_snapshots(step, model)

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
        self.check_event(step)
        self._carry_state(masks)
        if self._schedulers and not self._lr_rewind:
            self._spent.warn(self._optimizers, step)
        if self._weights is not None:
            _restore_weights(model, self._weights, masks)
        if self._rates is not None:
            self._restore_rates(self._rates)
        if self._rewarm:
            self._ramps = [0] * len(self._optimizers)

    def narrow(self, frame: Frame) -> None:
        """Let the snapshot of the weights follow a removal of channels."""
        if self._weights is not None:
            self._weights = {name: frame.narrow(name, tensor) for name, tensor in self._weights.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return snapshots and ramps: CPU tensors and plain values, ``torch.load(weights_only=True)`` reads them."""
        return {"weights": self._weights, "rates": self._rates, "ramps": list(self._ramps)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, before or after :meth:`start`."""
        self._weights, self._rates = state_dict["weights"], state_dict["rates"]
        self._ramps = list(state_dict["ramps"])

    def _check(self, first_event: int | None) -> None:
        if len(self._ramps) != len(self._optimizers):
            raise CheckpointError(
                f"the restored state of optimizer_policy is of {len(self._ramps)} optimizers with pruned parameters,"
                f" this run has {len(self._optimizers)}; resume with the same configure_optimizers"
            )
        if self._lr_rewind and not self._schedulers:
            raise ValueError(
                "optimizer_policy=LRRewind() sets a learning rate scheduler back, and no optimizer with pruned"
                " parameters has one: return a scheduler from configure_optimizers, or leave LRRewind out"
            )
        for policy in (self._lr_rewind, self._rewind_weights):
            if policy and first_event is not None and policy.step > first_event:
                raise ValueError(
                    f"optimizer_policy={policy!r} goes back to step {policy.step}, which comes after the first event"
                    f" at step {first_event}: take step <= {first_event} or a later begin_step"
                )
        self._check_optimizers()

    def _check_optimizers(self) -> None:
        if not (self._keep or self._reset):
            for optimizer in self._optimizers:
                optimizer_surgery.check_supported(optimizer, self._parameters)

    def _take_snapshots(self, step: int, model: nn.Module) -> None:
        if self._rewind_weights == RewindWeights(step) and self._weights is None:
            self._weights = _weights_of(model)
        if self._lr_rewind == LRRewind(step) and self._rates is None:
            self._rates = {
                "schedulers": [copy.deepcopy(scheduler.state_dict()) for scheduler in self._schedulers],
                "groups": [_rates_of(optimizer) for optimizer in self._optimizers],
            }

    def check_event(self, step: int) -> None:
        """Refuse an event that could not be carried, before anything is pruned.

        Raises:
            PruningError: a snapshot that a policy needs has not been taken yet.
            OptimizerStateError: an optimizer whose state cannot be carried.
        """
        for policy, snapshot in ((self._rewind_weights, self._weights), (self._lr_rewind, self._rates)):
            if policy and snapshot is None:
                raise PruningError(
                    f"optimizer_policy={policy!r} has no snapshot to go back to at the event of step {step}: it is"
                    " taken in the run itself, so let the first event come later, or take a smaller step"
                )
        self._check_optimizers()

    def _carry_state(self, masks: Mapping[Parameter, Tensor]) -> None:
        if self._keep:
            return
        for optimizer in self._optimizers:
            if self._reset:
                optimizer_surgery.reset_state(optimizer, masks)
            else:
                optimizer_surgery.zero_state(optimizer, masks)

    def _restore_rates(self, snapshot: Mapping[str, list[Any]]) -> None:
        for scheduler, state in zip(self._schedulers, snapshot["schedulers"], strict=True):
            scheduler.load_state_dict(copy.deepcopy(state))
        for optimizer, groups in zip(self._optimizers, snapshot["groups"], strict=True):
            for group, rates in zip(optimizer.param_groups, groups, strict=True):
                for key, value in rates.items():
                    if isinstance(group[key], Tensor):
                        group[key].fill_(value)
                    else:
                        group[key] = value

    def _warm(self, index: int, optimizer: Optimizer, *_: object) -> None:
        self._put_back(index)
        done = self._ramps[index]
        if self._rewarm and done is not None:
            self._own_rates[index] = [group["lr"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * ((done + 1) / self._rewarm.steps)

    def _cool(self, index: int, optimizer: Optimizer, *_: object) -> None:
        done = self._ramps[index]
        if self._put_back(index) and self._rewarm and done is not None:
            self._ramps[index] = done + 1 if done + 1 < self._rewarm.steps else None

    def _put_back(self, index: int) -> bool:
        rates = self._own_rates.pop(index, None)
        for group, rate in zip(self._optimizers[index].param_groups, rates or (), strict=False):
            group["lr"] = rate
        return rates is not None


def _find(policies: Sequence[OptimizerPolicy], kind: type[_P]) -> _P | None:
    return next((policy for policy in policies if isinstance(policy, kind)), None)


def _rates_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    return [
        {key: copy.deepcopy(group[key]) for key in _RATES if key in group and group[key] is not None}
        for group in optimizer.param_groups
    ]


def _weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Copy every parameter and buffer to the CPU, by dense name; a shared one under its first name."""
    first: dict[int, str] = {}
    named = dense_names(model)
    for name, tensor in named.items():
        first.setdefault(id(tensor), name)
    return {name: named[name].detach().to("cpu", copy=True) for name in first.values()}


@torch.no_grad()
def _restore_weights(model: nn.Module, snapshot: Mapping[str, Tensor], masks: Mapping[Parameter, Tensor]) -> None:
    named = dense_names(model)
    for name, tensor in snapshot.items():
        if name not in named or named[name].shape != tensor.shape:
            now = f"shape {tuple(named[name].shape)}" if name in named else "no such tensor"
            raise PruningError(
                f"{name} was of shape {tuple(tensor.shape)} when RewindWeights took its snapshot, the model now has"
                f" {now}: RewindWeights cannot go back over a change of shape, remove the channels after training"
            )
    for name, tensor in snapshot.items():
        named[name].copy_(tensor)
    for parameter, mask in masks.items():
        parameter.masked_fill_(~mask, 0)
    refresh(model)
