"""What happens to optimizer, learning rate and weights after a pruning event, as values.

A recipe takes one policy or a tuple of them. Exactly one rule holds for the optimizer state: untouched with
:class:`Keep`, forgotten with :class:`Reset`, otherwise zeroed at pruned positions. The others add to it.

A policy of your own is a frozen dataclass with the base :class:`OptimizerPolicy`.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_prune.errors import CheckpointError, PruningError
from lightning_prune.model.masks import dense_names
from lightning_prune.optimizer import surgery
from lightning_prune.optimizer.context import PolicyContext
from lightning_prune.values import Choice, check_whole


class OptimizerPolicy(Choice):
    """The base of all policies, which does nothing; a subclass says what happens at which moment."""

    rules_state: ClassVar[bool] = False
    """Whether it says what becomes of the optimizer state; of such policies a recipe has one, :class:`Mask` if none."""
    moves_zeros: ClassVar[bool] = False
    """Whether pruned weights must be put back to zero after each step, whatever the optimizer."""
    sets_rate_back: ClassVar[bool] = False
    """Whether it raises a spent learning rate."""
    keeps_weights: ClassVar[bool] = False
    """Whether it keeps whole weights, which a rank has not where they are sharded."""

    @property
    def goes_back_to(self) -> int | None:
        """The step of the run that it must have seen; None when it may begin in any."""
        return None

    def rehearsed(self) -> "OptimizerPolicy":
        """Return the policy for a run of one step, which ``fast_dev_run`` is."""
        return self

    def start(self, context: PolicyContext) -> None:
        """Refuse a run in which it cannot work; take hold of its optimizers until ``context.at_stop`` is called.

        Raises:
            ValueError: another recipe is needed.
            CheckpointError: what it kept is of another run.
            OptimizerStateError: an optimizer cannot be carried.
        """

    def after_step(self, context: PolicyContext) -> None:
        """Follow a completed optimizer step."""

    def before_event(self, context: PolicyContext) -> None:
        """Refuse an event after which it could not do its work.

        Raises:
            PruningError: nothing has been pruned yet.
        """

    def after_event(self, context: PolicyContext) -> None:
        """Do what it is for: the masks are written, the pruned weights are zero."""

    def after_removal(self, kept: dict[str, Any], cut: Callable[[str, Tensor], Tensor]) -> None:
        """Let what it keeps follow a removal of channels.

        Args:
            kept: as in :class:`~lightning_prune.optimizer.context.PolicyContext`.
            cut: dense name, tensor of the former shape -> what is left of it.
        """


@dataclass(frozen=True)
class Mask(OptimizerPolicy):
    """Zero the state of pruned positions; survivors and step counters stay. The default.

    Source: Evci et al. 2020 (RigL), who zero the state of weights whose connection changes; here of removed ones.
    """

    rules_state: ClassVar[bool] = True

    def start(self, context: PolicyContext) -> None:
        """Refuse an optimizer whose state cannot be carried."""
        for optimizer in context.optimizers:
            surgery.check_supported(optimizer, context.parameters)

    def after_step(self, context: PolicyContext) -> None:
        """Look again after the first step, from which on the state exists."""
        if context.step == 1:
            self.start(context)

    def before_event(self, context: PolicyContext) -> None:
        """Refuse an optimizer whose state cannot be carried."""
        self.start(context)

    def after_event(self, context: PolicyContext) -> None:
        """Zero the state."""
        for optimizer in context.optimizers:
            surgery.zero_state(optimizer, context.masks)


@dataclass(frozen=True)
class Keep(OptimizerPolicy):
    """Leave the optimizer state as it is: what every other tool does, for comparison.

    Momentum goes on moving the weights behind the mask; they are put back to zero after each step.
    """

    rules_state: ClassVar[bool] = True
    moves_zeros: ClassVar[bool] = True


@dataclass(frozen=True)
class Reset(OptimizerPolicy):
    """Forget the state of every parameter that owns a mask; the optimizer begins with it anew."""

    rules_state: ClassVar[bool] = True

    def after_event(self, context: PolicyContext) -> None:
        """Forget the state."""
        for optimizer in context.optimizers:
            surgery.reset_state(optimizer, context.masks)


@dataclass(frozen=True)
class Rewarm(OptimizerPolicy):
    """Ramp the learning rate up after an event: step i = 1 … steps after it runs at lr * i / steps.

    The rate is scaled only inside ``optimizer.step`` and put back right after it, so that a scheduler, which reads
    the last rate back from the optimizer, goes on as if nothing had happened. A new event starts a new ramp.

    Args:
        steps: length of the ramp in optimizer steps, at least 1.

    Source: the linear warmup of Goyal et al. 2017 (section 2.2), begun at each event instead of at the start.
    """

    steps: int

    def __post_init__(self) -> None:
        check_whole("Rewarm.steps", self.steps, 1, "optimizer steps")

    def start(self, context: PolicyContext) -> None:
        """Hook into the steps of each optimizer."""
        # "ramps": optimizer -> steps done of its ramp, None outside of one
        ramps = context.kept["ramps"] = context.kept.get("ramps") or [None] * len(context.optimizers)
        _check_optimizers(context, len(ramps))
        for index, optimizer in enumerate(context.optimizers):
            ramp = _Ramp(self.steps, context.kept, index)
            hooks = (
                optimizer.register_step_pre_hook(ramp.warm),
                optimizer.register_step_post_hook(ramp.cool),
            )
            context.at_stop.extend(hook.remove for hook in hooks)
            context.at_stop.append(lambda ramp=ramp, optimizer=optimizer: ramp.put_back(optimizer))

    def after_event(self, context: PolicyContext) -> None:
        """Begin a ramp on each optimizer."""
        context.kept["ramps"] = [0] * len(context.optimizers)


def _check_optimizers(context: PolicyContext, number: int) -> None:
    if number != len(context.optimizers):
        raise CheckpointError(
            f"the restored state of optimizer_policy is of {number} optimizers with pruned parameters,"
            f" this run has {len(context.optimizers)}; resume with the same configure_optimizers"
        )


class _Ramp:
    """Scales the learning rate of one optimizer while it steps.

    Args:
        steps: length of a ramp.
        kept: what the policy keeps.
        index: of the optimizer in ``kept["ramps"]``.
    """

    def __init__(self, steps: int, kept: Mapping[str, Any], index: int) -> None:
        self._steps, self._kept, self._index = steps, kept, index
        self._own_rates: list[float | Tensor] = []

    def warm(self, optimizer: Optimizer, *_: object) -> None:
        """Lower the rates before a step."""
        self.put_back(optimizer)
        ramps = self._kept.get("ramps")  # what a rollback restores may be of another recipe, which has none
        if ramps and (done := ramps[self._index]) is not None:
            self._own_rates = [group["lr"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * ((done + 1) / self._steps)

    def cool(self, optimizer: Optimizer, *_: object) -> None:
        """Put the rates back after the step, which counts as one of the ramp."""
        if self._own_rates:
            done = self._kept["ramps"][self._index] + 1
            self._kept["ramps"][self._index] = done if done < self._steps else None
            self.put_back(optimizer)

    def put_back(self, optimizer: Optimizer) -> None:
        """Give the scheduler its rates back, also where an exception has left a scaled one inside a step."""
        for group, rate in zip(optimizer.param_groups, self._own_rates, strict=False):
            group["lr"] = rate
        self._own_rates = []


class _Rewinding(OptimizerPolicy, ABC):
    """A policy that takes a snapshot after ``step`` optimizer steps and goes back to it after each event."""

    step: int
    key: ClassVar[str]
    """Where the snapshot is kept."""

    def __post_init__(self) -> None:
        check_whole(f"{type(self).__name__}.step", self.step, 0, "optimizer steps")

    @property
    def goes_back_to(self) -> int | None:
        """The step of the snapshot."""
        return self.step

    def rehearsed(self) -> OptimizerPolicy:
        """Return the policy that goes back to the state before the first step."""
        return replace(self, step=0)  # pyright: ignore[reportArgumentType]

    @abstractmethod
    def snapshot(self, context: PolicyContext) -> dict[str, Any]:
        """Return what to go back to."""

    @abstractmethod
    def go_back(self, context: PolicyContext, snapshot: Mapping[str, Any]) -> None:
        """Make it what it was."""

    def start(self, context: PolicyContext) -> None:
        """Refuse a snapshot that would come after the first event; take the one that is due before the first step."""
        if context.first_event is not None and self.step > context.first_event:
            raise ValueError(
                f"optimizer_policy={self!r} goes back to step {self.step}, which comes after the first event"
                f" at step {context.first_event}: take step <= {context.first_event} or a later begin_step"
            )
        self.after_step(context)

    def after_step(self, context: PolicyContext) -> None:
        """Take the snapshot that is due."""
        if context.step == self.step and context.kept.get(self.key) is None:
            context.kept[self.key] = self.snapshot(context)

    def before_event(self, context: PolicyContext) -> None:
        """Refuse an event before the snapshot."""
        if context.kept.get(self.key) is None:
            raise PruningError(
                f"optimizer_policy={self!r} has no snapshot to go back to at the event of step {context.step}: it is"
                " taken in the run itself, so let the first event come later, or take a smaller step"
            )

    def after_event(self, context: PolicyContext) -> None:
        """Go back to the snapshot."""
        self.go_back(context, context.kept[self.key])


@dataclass(frozen=True)
class LRRewind(_Rewinding):
    """Set the learning rate schedulers back after an event to where they were after ``step`` optimizer steps.

    Args:
        step: 0 is the state before the first step.

    Source: Renda, Frankle and Carbin 2020, learning rate rewinding.
    """

    step: int = 0
    sets_rate_back: ClassVar[bool] = True
    key: ClassVar[str] = "rates"

    def start(self, context: PolicyContext) -> None:
        """Refuse a run without schedulers, and a snapshot of other optimizers."""
        if not context.schedulers:
            raise ValueError(
                "optimizer_policy=LRRewind() sets a learning rate scheduler back, and no optimizer with pruned"
                " parameters has one: return a scheduler from configure_optimizers, or leave LRRewind out"
            )
        if context.kept.get(self.key) is not None:
            _check_optimizers(context, len(context.kept[self.key]["groups"]))
        super().start(context)

    def snapshot(self, context: PolicyContext) -> dict[str, Any]:
        """Return the states of the schedulers and the rates that they drive."""
        # OneCycleLR and CyclicLR drive the momentum as well, and none of the three need stand in a scheduler's state
        driven = ("lr", "momentum", "betas")
        return {
            "schedulers": [copy.deepcopy(scheduler.state_dict()) for scheduler in context.schedulers],
            "groups": [
                [{k: copy.deepcopy(group[k]) for k in driven if group.get(k) is not None} for group in o.param_groups]
                for o in context.optimizers
            ],
        }

    def go_back(self, context: PolicyContext, snapshot: Mapping[str, Any]) -> None:
        """Set schedulers and rates back; a rate that is a tensor in place, a captured graph may hold it."""
        for scheduler, state in zip(context.schedulers, snapshot["schedulers"], strict=True):
            scheduler.load_state_dict(copy.deepcopy(state))
        for optimizer, groups in zip(context.optimizers, snapshot["groups"], strict=True):
            for group, rates in zip(optimizer.param_groups, groups, strict=True):
                for key, value in rates.items():
                    if isinstance(group[key], Tensor):
                        group[key].fill_(value)
                    else:
                        group[key] = value


@dataclass(frozen=True)
class RewindWeights(_Rewinding):
    """Set every parameter and buffer back after an event to an early snapshot; what is pruned stays zero.

    The snapshot lies in CPU memory and in every checkpoint. Optimizer state follows its own rule: add :class:`Reset`
    to forget what it learnt since, :class:`LRRewind` to set the learning rate back too.

    Args:
        step: optimizer steps completed when the snapshot is taken; 0 is the state before the first step.

    Source: Frankle and Carbin 2019 (step 0); Frankle et al. 2020 for a later one.
    """

    step: int
    keeps_weights: ClassVar[bool] = True
    key: ClassVar[str] = "weights"

    def snapshot(self, context: PolicyContext) -> dict[str, Tensor]:
        """Copy every parameter and buffer to the CPU, by dense name; a shared one under its first name."""
        first = {id(tensor): name for name, tensor in reversed(dense_names(context.model).items())}
        named = {name: tensor for name, tensor in dense_names(context.model).items() if first[id(tensor)] == name}
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in named.items()}

    @torch.no_grad()
    def go_back(self, context: PolicyContext, snapshot: Mapping[str, Tensor]) -> None:
        """Write the weights and buffers; what is pruned is zeroed again."""
        named = dense_names(context.model)
        for name, tensor in snapshot.items():
            if name not in named or named[name].shape != tensor.shape:
                now = f"shape {tuple(named[name].shape)}" if name in named else "no such tensor"
                raise PruningError(
                    f"{name} was of shape {tuple(tensor.shape)} when RewindWeights took its snapshot, the model now has"
                    f" {now}: RewindWeights cannot go back over a change of shape, remove the channels after training"
                )
        for name, tensor in snapshot.items():
            named[name].copy_(tensor)
        for parameter, mask in context.masks.items():
            parameter.masked_fill_(~mask, 0)

    def after_removal(self, kept: dict[str, Any], cut: Callable[[str, Tensor], Tensor]) -> None:
        """Cut the snapshot."""
        if kept.get(self.key) is not None:
            kept[self.key] = {name: cut(name, tensor) for name, tensor in kept[self.key].items()}


BUILT_IN: tuple[type[OptimizerPolicy], ...] = (Mask, Keep, Reset, Rewarm, LRRewind, RewindWeights)
"""What a recipe names, and a checkpoint may hold."""


def as_policies(policies: OptimizerPolicy | Sequence[OptimizerPolicy]) -> tuple[OptimizerPolicy, ...]:
    """Return the policies as a tuple, checked: no type twice, at most one rule for the optimizer state.

    Raises:
        TypeError: something that is no policy.
        ValueError: policies that contradict each other.
    """
    several: tuple[Any, ...] = tuple(policies) if isinstance(policies, tuple | list) else (policies,)
    for policy in several:
        if not isinstance(policy, OptimizerPolicy):
            names = ", ".join(kind.__name__ for kind in BUILT_IN)
            raise TypeError(f"optimizer_policy must be of {names}, or a tuple of them, got {policy!r}")
    kinds = [type(policy) for policy in several]
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"optimizer_policy holds a policy twice: {several!r}; name each once")
    if sum(kind.rules_state for kind in kinds) > 1:
        raise ValueError(f"optimizer_policy holds more than one of Mask, Keep and Reset: {several!r}; choose one")
    return several
