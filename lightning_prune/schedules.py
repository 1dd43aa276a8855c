"""How much and when: completed optimizer steps -> cumulative sparsity.

A schedule is any callable ``schedule(step) -> sparsity`` in [0, 1) that never falls. The built-in ones also say at
which steps their events fall: at ``begin_step``, every ``frequency`` steps after it, and at ``end_step``. A function
of your own has an event at every step at which its value rises.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from lightning_prune.values import Choice

Schedule = Callable[[int], float]


def _check_sparsity(owner: object, name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{type(owner).__name__}.{name} must be a number in [0, 1), got {value!r}")
    if not 0 <= value < 1:
        raise ValueError(f"{type(owner).__name__}.{name} must lie in [0, 1), got {value!r}: it is the share removed")


def _check_number(owner: object, name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{type(owner).__name__}.{name} must be a number, got {value!r}")


def _check_step(owner: object, name: str, value: int | float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{type(owner).__name__}.{name} must be an optimizer step or a share of the run, got {value!r}")
    if isinstance(value, float) and not 0 <= value <= 1:
        raise ValueError(
            f"{type(owner).__name__}.{name} = {value!r} is a float, hence a share of the run, and must lie in"
            f" [0, 1]; for an optimizer step write the int {int(value) if math.isfinite(value) else 1}"
        )
    if value < 0:
        raise ValueError(f"{type(owner).__name__}.{name} must not be negative, got {value!r}")


def _in_steps(owner: object, name: str) -> int:
    value = getattr(owner, name)
    if isinstance(value, float):
        raise ValueError(
            f"{type(owner).__name__}.{name} = {value!r} is a share of the run, so a sparsity hangs on the run's length;"
            " ask lightning_prune.schedules.resolve(schedule, total_steps)"
        )
    return value


@dataclass(frozen=True)
class OneShot(Choice):
    """All at one step: s(t) = s_f for t >= t0, and 0 before.

    Args:
        final_sparsity: s_f, in [0, 1).
        begin_step: t0, in completed optimizer steps; a float is a share of the run.

    Example:
        >>> schedule = OneShot(final_sparsity=0.5, begin_step=30)
        >>> schedule(29), schedule(30)
        (0.0, 0.5)
    """

    final_sparsity: float
    begin_step: int | float = 0

    def __post_init__(self) -> None:
        _check_sparsity(self, "final_sparsity", self.final_sparsity)
        _check_step(self, "begin_step", self.begin_step)

    def __call__(self, step: int) -> float:
        """Return the cumulative sparsity after ``step`` completed optimizer steps."""
        return self.final_sparsity if step >= _in_steps(self, "begin_step") else 0.0


@dataclass(frozen=True)
class Gradual(ABC):
    """A rise from ``initial_sparsity`` at ``begin_step`` to exactly ``final_sparsity`` at ``end_step``.

    s(t) = s_i + (s_f - s_i) * rise(p), with p = (t - t0) / (t1 - t0) in [0, 1] and rise(1) = 1.

    Args:
        final_sparsity: s_f, in [0, 1), held from ``end_step`` on.
        begin_step: t0, in completed optimizer steps; a float is a share of the run.
        end_step: t1 > t0, likewise.
        frequency: optimizer steps from one event to the next.
        initial_sparsity: s_i, in [0, final_sparsity].
    """

    final_sparsity: float
    begin_step: int | float = 0
    end_step: int | float = 1.0
    frequency: int = 100
    initial_sparsity: float = 0.0

    def __post_init__(self) -> None:
        _check_sparsity(self, "final_sparsity", self.final_sparsity)
        _check_sparsity(self, "initial_sparsity", self.initial_sparsity)
        _check_step(self, "begin_step", self.begin_step)
        _check_step(self, "end_step", self.end_step)
        name = type(self).__name__
        if self.initial_sparsity > self.final_sparsity:
            raise ValueError(
                f"{name}.initial_sparsity = {self.initial_sparsity} is above final_sparsity = {self.final_sparsity};"
                " a schedule only rises"
            )
        if isinstance(self.frequency, bool) or not isinstance(self.frequency, int):
            raise TypeError(f"{name}.frequency must be a whole number of optimizer steps, got {self.frequency!r}")
        if self.frequency <= 0:
            raise ValueError(f"{name}.frequency must be at least 1 optimizer step, got {self.frequency}")
        if type(self.begin_step) is type(self.end_step) and self.begin_step >= self.end_step:
            raise ValueError(
                f"{name}.begin_step = {self.begin_step} must lie before end_step = {self.end_step};"
                " for one single event use OneShot"
            )

    @abstractmethod
    def rise(self, progress: float) -> float:
        """Return the share of the way done at ``progress`` in [0, 1]; must be 1 at 1."""

    def __call__(self, step: int) -> float:
        """Return the cumulative sparsity after ``step`` completed optimizer steps."""
        begin, end = _in_steps(self, "begin_step"), _in_steps(self, "end_step")
        if step >= end:
            return self.final_sparsity
        if step < begin:
            return 0.0
        progress = (step - begin) / (end - begin)
        return self.initial_sparsity + (self.final_sparsity - self.initial_sparsity) * self.rise(progress)

    def last_event(self, step: int) -> int | None:
        """Return the latest step <= ``step`` at which an event falls, or None before the first."""
        begin, end = _in_steps(self, "begin_step"), _in_steps(self, "end_step")
        if step < begin:
            return None
        return end if step >= end else step - (step - begin) % self.frequency


@dataclass(frozen=True)
class Linear(Gradual):
    """Equal steps: rise(p) = p.

    Example:
        >>> Linear(final_sparsity=0.8, begin_step=0, end_step=100, frequency=10)(50)
        0.4
    """

    def rise(self, progress: float) -> float:
        """Return p."""
        return progress


@dataclass(frozen=True)
class Polynomial(Gradual):
    """Fast at first, then ever more careful: rise(p) = 1 - (1 - p)^exponent.

    Args:
        exponent: 3 in the paper.

    Source:
        Zhu and Gupta 2017, "To prune, or not to prune", equation 1.

    Example:
        >>> Polynomial(final_sparsity=0.8, begin_step=0, end_step=100, frequency=10)(50)
        0.7000000000000001
    """

    exponent: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_number(self, "exponent", self.exponent)
        if not self.exponent > 0:
            raise ValueError(f"Polynomial.exponent must be positive, got {self.exponent!r}; the paper has 3")

    def rise(self, progress: float) -> float:
        """Return 1 - (1 - p)^exponent."""
        return 1 - (1 - progress) ** self.exponent


@dataclass(frozen=True)
class Exponential(Gradual):
    """Approaches geometrically: rise(p) = (1 - exp(-rate p)) / (1 - exp(-rate)).

    The distance to where it would end shrinks by the same factor from event to event; the denominator makes it arrive
    exactly at ``end_step``.

    Args:
        rate: how steep; towards 0 it becomes Linear.

    Example:
        >>> schedule = Exponential(final_sparsity=0.8, begin_step=0, end_step=100, frequency=10)
        >>> round(schedule(50), 4), schedule(100)
        (0.7393, 0.8)
    """

    rate: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_number(self, "rate", self.rate)
        if not self.rate > 0:
            raise ValueError(f"Exponential.rate must be positive, got {self.rate!r}")

    def rise(self, progress: float) -> float:
        """Return (1 - exp(-rate p)) / (1 - exp(-rate))."""
        return math.expm1(-self.rate * progress) / math.expm1(-self.rate)


@dataclass(frozen=True)
class OneCycle(Gradual):
    """Slow, fast, slow: rise(p) = (1 + exp(-alpha + beta)) / (1 + exp(-alpha p + beta)).

    Args:
        alpha: steepness; 14 in the paper.
        beta: offset; 5 in the paper.

    Source:
        Hubens et al. 2021, "One-Cycle Pruning: Pruning ConvNets Under a Tight Training Budget", equation 4.

    Example:
        >>> schedule = OneCycle(final_sparsity=0.8, begin_step=0, end_step=100, frequency=10)
        >>> round(schedule(10), 3), round(schedule(50), 3), schedule(100)
        (0.021, 0.705, 0.8)
    """

    alpha: float = 14.0
    beta: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_number(self, "alpha", self.alpha)
        _check_number(self, "beta", self.beta)
        if not self.alpha > 0:
            raise ValueError(f"OneCycle.alpha must be positive, got {self.alpha!r}; the paper has 14")
        if not -100 <= self.beta <= 100:
            raise ValueError(f"OneCycle.beta must lie in [-100, 100], got {self.beta!r}; the paper has 5")

    def rise(self, progress: float) -> float:
        """Return (1 + exp(-alpha + beta)) / (1 + exp(-alpha p + beta))."""
        return (1 + math.exp(-self.alpha + self.beta)) / (1 + math.exp(-self.alpha * progress + self.beta))


@dataclass(frozen=True)
class Iterative(Gradual):
    """Removes the same share of what remains at each event: 1 - s(t) = (1 - s_i) ((1 - s_f) / (1 - s_i))^p.

    With n equal intervals that share is 1 - ((1 - s_f) / (1 - s_i))^(1/n): the iterative magnitude pruning of the
    lottery ticket hypothesis, to be paired with ``RewindWeights``.

    Source:
        Frankle and Carbin 2019, "The Lottery Ticket Hypothesis", section 1 (p^(1/n) % a round).

    Example:
        >>> schedule = Iterative(final_sparsity=0.875, begin_step=0, end_step=30, frequency=10)
        >>> [round(schedule(t), 4) for t in (10, 20, 30)]
        [0.5, 0.75, 0.875]
    """

    def rise(self, progress: float) -> float:
        """Return the share of the way from s_i to s_f at which what remains has shrunk geometrically."""
        if self.final_sparsity == self.initial_sparsity:
            return 1.0
        left, end = 1 - self.initial_sparsity, 1 - self.final_sparsity
        return (left - left * (end / left) ** progress) / (self.final_sparsity - self.initial_sparsity)


def resolve(schedule: Schedule, total_steps: int | None) -> Schedule:
    """Return the schedule with shares of the run turned into steps.

    Args:
        schedule: any schedule.
        total_steps: optimizer steps of the whole run; None when unknown.

    Raises:
        ValueError: a share is used while the length of the run is unknown; begin and end fall together.
    """
    shares = {name: value for name, value in steps_of(schedule).items() if isinstance(value, float)}
    if shares and total_steps is None:
        raise ValueError(
            f"{type(schedule).__name__}.{next(iter(shares))} is a share of the run, but the number of optimizer steps"
            " is unknown (iterable data without max_steps): give it as an int, or set Trainer(max_steps=…)"
        )
    return with_steps(schedule, {name: round(share * (total_steps or 0)) for name, share in shares.items()})


def steps_of(schedule: Schedule) -> dict[str, int | float]:
    """Return where a built-in schedule begins and ends, by name of the field; {} of a function of the user's own."""
    names = ("begin_step", "end_step") if isinstance(schedule, Gradual) else ("begin_step",)
    return {name: getattr(schedule, name) for name in names} if isinstance(schedule, Gradual | OneShot) else {}


def with_steps(schedule: Schedule, steps: Mapping[str, int | float]) -> Schedule:
    """Return a schedule that begins and ends there; a function of the user's own has no such fields and stays."""
    return replace(schedule, **steps) if steps and isinstance(schedule, Gradual | OneShot) else schedule


def final_step(schedule: Schedule) -> int | None:
    """Return the step at which the schedule reaches its final sparsity; None for a function of the user's own."""
    if isinstance(schedule, Gradual):
        return _in_steps(schedule, "end_step")
    return _in_steps(schedule, "begin_step") if isinstance(schedule, OneShot) else None


def first_step(schedule: Schedule) -> int | None:
    """Return the step at which the schedule begins; None for a function of the user's own."""
    return _in_steps(schedule, "begin_step") if isinstance(schedule, Gradual | OneShot) else None


def final_sparsity(schedule: Schedule) -> float:
    """Return the sparsity at which the schedule ends."""
    return schedule.final_sparsity if isinstance(schedule, Gradual | OneShot) else float(schedule(2**62))


def due(schedule: Schedule, before: int, now: int) -> float | None:
    """Return the sparsity of the latest event in (before, now], or None when none falls there.

    Args:
        schedule: a schedule whose steps are all ints (see :func:`resolve`).
        before: completed optimizer steps when last asked; -1 at the start.
        now: completed optimizer steps.
    """
    if isinstance(schedule, Gradual):
        step = schedule.last_event(now)
        return schedule(step) if step is not None and step > before else None
    if isinstance(schedule, OneShot):
        return schedule.final_sparsity if before < _in_steps(schedule, "begin_step") <= now else None
    asked = float(schedule(now))
    return asked if asked > (schedule(before) if before >= 0 else 0.0) else None
