"""What happens to optimizer, learning rate and weights after a pruning event, as values.

A recipe takes one policy or a tuple of them. Exactly one rule holds for the optimizer state: untouched with
:class:`Keep`, forgotten with :class:`Reset`, otherwise zeroed at pruned positions. The others add to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_prune.values import Choice


def _check_int(owner: object, name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{type(owner).__name__}.{name} must be an int, a number of optimizer steps, got {value!r}")
    if value < least:
        raise ValueError(f"{type(owner).__name__}.{name} must be at least {least}, got {value}")


@dataclass(frozen=True)
class Mask(Choice):
    """Zero the state of pruned positions; survivors and step counters stay. The default.

    Source: Evci et al. 2020 (RigL), who zero the state of weights whose connection changes; here of removed ones.
    """


@dataclass(frozen=True)
class Keep(Choice):
    """Leave the optimizer state as it is: what every other tool does, for comparison.

    Momentum goes on moving the weights behind the mask; they are put back to zero after each step.
    """


@dataclass(frozen=True)
class Reset(Choice):
    """Forget the state of every parameter that owns a mask; the optimizer begins with it anew."""


@dataclass(frozen=True)
class Rewarm(Choice):
    """Ramp the learning rate up after an event: step i = 1 … steps after it runs at lr * i / steps.

    The rate is scaled only inside ``optimizer.step`` and put back right after it, so that a scheduler, which reads
    the last rate back from the optimizer, goes on as if nothing had happened. A new event starts a new ramp.

    Args:
        steps: length of the ramp in optimizer steps, at least 1.

    Source: the linear warmup of Goyal et al. 2017 (section 2.2), begun at each event instead of at the start.
    """

    steps: int

    def __post_init__(self) -> None:
        _check_int(self, "steps", self.steps, 1)


@dataclass(frozen=True)
class LRRewind(Choice):
    """Set the learning rate schedulers back after an event to where they were after ``step`` optimizer steps.

    Args:
        step: 0 is the state before the first step.

    Source: Renda, Frankle and Carbin 2020, learning rate rewinding.
    """

    step: int = 0

    def __post_init__(self) -> None:
        _check_int(self, "step", self.step, 0)


@dataclass(frozen=True)
class RewindWeights(Choice):
    """Set every parameter and buffer back after an event to an early snapshot; what is pruned stays zero.

    The snapshot lies in CPU memory and in every checkpoint. Optimizer state follows its own rule: add :class:`Reset`
    to forget what it learnt since, :class:`LRRewind` to set the learning rate back too.

    Args:
        step: optimizer steps completed when the snapshot is taken; 0 is the state before the first step.

    Source: Frankle and Carbin 2019 (step 0); Frankle et al. 2020 for a later one.
    """

    step: int

    def __post_init__(self) -> None:
        _check_int(self, "step", self.step, 0)


OptimizerPolicy = Mask | Keep | Reset | Rewarm | LRRewind | RewindWeights
_STATE_RULES = (Mask, Keep, Reset)
_ALL = (Mask, Keep, Reset, Rewarm, LRRewind, RewindWeights)


def as_policies(policies: OptimizerPolicy | Sequence[OptimizerPolicy]) -> tuple[OptimizerPolicy, ...]:
    """Return the policies as a tuple, checked: no type twice, at most one rule for the optimizer state.

    Raises:
        TypeError: something that is no policy.
        ValueError: policies that contradict each other.
    """
    several: tuple[Any, ...] = tuple(policies) if isinstance(policies, tuple | list) else (policies,)
    names = ", ".join(kind.__name__ for kind in _ALL)
    for policy in several:
        if not isinstance(policy, _ALL):
            raise TypeError(f"optimizer_policy must be of {names}, or a tuple of them, got {policy!r}")
    kinds = [type(policy) for policy in several]
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"optimizer_policy holds a policy twice: {several!r}; name each once")
    if sum(kind in _STATE_RULES for kind in kinds) > 1:
        raise ValueError(f"optimizer_policy holds more than one of Mask, Keep and Reset: {several!r}; choose one")
    return several
