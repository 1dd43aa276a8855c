"""How much and when: completed optimizer steps -> cumulative sparsity.

A schedule is any callable ``schedule(step) -> sparsity`` in [0, 1) that never falls. The built-in ones also say at
which steps their events fall: at ``begin_step``, every ``frequency`` steps after it, and at ``end_step``. A function
of your own has an event at every step at which its value rises.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from lightning_prune.values import Choice, check_number, check_sparsity, check_whole

Schedule = Callable[[int], float]


FOREVER = 2**62
"""A step that no run reaches: what a function of the user's own gives there is taken for its final sparsity."""


class TimedSchedule(Choice, ABC):
    """A schedule that says when its events fall; the base of the built-in ones. See :func:`timed`."""

    timing: ClassVar[tuple[str, ...]] = ()
    """The fields that say at which step it begins and at which it has reached its final sparsity."""

    final_sparsity: float | None

    @property
    def final(self) -> float:
        """The sparsity at which it ends.

        Raises:
            ValueError: it has none yet: what the network needs says it (see :class:`~lightning_prune.Recipe`).
        """
        if self.final_sparsity is None:
            raise ValueError(
                f"{type(self).__name__} has no final_sparsity: write {type(self).__name__}(0.5), or say in the recipe"
                " what is needed, as in need=MACs(0.5)"
            )
        return self.final_sparsity

    def ending(self, sparsity: float) -> "TimedSchedule":
        """Return the schedule that ends at this sparsity."""
        return replace(self, final_sparsity=sparsity)  # pyright: ignore[reportArgumentType]

    @abstractmethod
    def __call__(self, step: int) -> float:
        """Return the cumulative sparsity after ``step`` completed optimizer steps."""

    @abstractmethod
    def due(self, before: int, now: int) -> float | None:
        """Return the sparsity of the latest event in (before, now], or None when none falls there.

        Args:
            before: completed optimizer steps when last asked; -1 at the start.
            now: completed optimizer steps.

        Raises:
            ValueError: a step is still a share of the run (see :func:`resolve`).
        """

    @property
    def steps(self) -> dict[str, int | float]:
        """Where it begins and ends, by name of the field."""
        return {name: getattr(self, name) for name in self.timing}

    def with_steps(self, steps: Mapping[str, int | float]) -> "TimedSchedule":
        """Return the schedule that begins and ends there."""
        known = {name: step for name, step in steps.items() if name in self.timing}
        return replace(self, **known) if known else self  # pyright: ignore[reportArgumentType]

    @property
    def first_step(self) -> int | None:
        """The step at which it begins; None where only its values tell."""
        return self.step_of(self.timing[0]) if self.timing else None

    @property
    def final_step(self) -> int | None:
        """The step at which it reaches its final sparsity; None where only its values tell."""
        return self.step_of(self.timing[-1]) if self.timing else None

    def step_of(self, name: str) -> int:
        """Return a field as an optimizer step.

        Raises:
            ValueError: it is a share of the run.
        """
        value = self.steps[name]
        if isinstance(value, float):
            raise ValueError(
                f"{type(self).__name__}.{name} = {value!r} is a share of the run, so a sparsity hangs on the run's"
                " length; ask lightning_prune.schedules.resolve(schedule, total_steps)"
            )
        return value

    def _check(self) -> None:
        """Check the fields that all built-in schedules have."""
        if self.final_sparsity is not None:
            check_sparsity(f"{type(self).__name__}.final_sparsity", self.final_sparsity)
        for step, value in self.steps.items():
            name = f"{type(self).__name__}.{step}"
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} must be an optimizer step or a share of the run, got {value!r}")
            if isinstance(value, float) and not 0 <= value <= 1:
                raise ValueError(
                    f"{name} = {value!r} is a float, hence a share of the run, and must lie in [0, 1]; for an"
                    f" optimizer step write the int {int(value) if math.isfinite(value) else 1}"
                )
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value!r}")


@dataclass(frozen=True, repr=False)
class Rising(TimedSchedule):
    """A function of the user's own: it has an event at every step at which its value rises.

    Args:
        function: step -> sparsity.
    """

    function: Schedule
    final_sparsity: float | None = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "final_sparsity", self(FOREVER))

    def __call__(self, step: int) -> float:
        """Return what the function gives."""
        return float(self.function(step))

    def __repr__(self) -> str:
        return repr(self.function)

    def due(self, before: int, now: int) -> float | None:
        """Return the sparsity by now if it has risen since."""
        asked = self(now)
        return asked if asked > (self(before) if before >= 0 else 0.0) else None


@dataclass(frozen=True)
class OneShot(TimedSchedule):
    """All at one step: s(t) = s_f for t >= t0, and 0 before.

    Args:
        final_sparsity: s_f, in [0, 1); None: where the recipe's ``need`` ends it.
        begin_step: t0, in completed optimizer steps; a float is a share of the run.

    Example:
        >>> schedule = OneShot(final_sparsity=0.5, begin_step=30)
        >>> schedule(29), schedule(30)
        (0.0, 0.5)
    """

    timing: ClassVar[tuple[str, ...]] = ("begin_step",)

    final_sparsity: float | None = None
    begin_step: int | float = 0

    def __post_init__(self) -> None:
        self._check()

    def __call__(self, step: int) -> float:
        """Return the cumulative sparsity after ``step`` completed optimizer steps."""
        return self.final if step >= self.step_of("begin_step") else 0.0

    def due(self, before: int, now: int) -> float | None:
        """Return the final sparsity when the one event falls there."""
        return self.final if before < self.step_of("begin_step") <= now else None


@dataclass(frozen=True)
class Gradual(TimedSchedule):
    """A rise from ``initial_sparsity`` at ``begin_step`` to exactly ``final_sparsity`` at ``end_step``.

    s(t) = s_i + (s_f - s_i) * rise(p), with p = (t - t0) / (t1 - t0) in [0, 1] and rise(1) = 1.

    Args:
        final_sparsity: s_f, in [0, 1), held from ``end_step`` on; None: where the recipe's ``need`` ends it.
        begin_step: t0, in completed optimizer steps; a float is a share of the run.
        end_step: t1 > t0, likewise.
        frequency: optimizer steps from one event to the next.
        initial_sparsity: s_i, in [0, final_sparsity].
    """

    timing: ClassVar[tuple[str, ...]] = ("begin_step", "end_step")

    final_sparsity: float | None = None
    begin_step: int | float = 0
    end_step: int | float = 1.0
    frequency: int = 100
    initial_sparsity: float = 0.0

    def __post_init__(self) -> None:
        self._check()
        name = type(self).__name__
        check_sparsity(f"{name}.initial_sparsity", self.initial_sparsity)
        if self.final_sparsity is not None and self.initial_sparsity > self.final_sparsity:
            raise ValueError(
                f"{name}.initial_sparsity = {self.initial_sparsity} is above final_sparsity = {self.final_sparsity};"
                " a schedule only rises"
            )
        check_whole(f"{name}.frequency", self.frequency, 1, "optimizer steps")
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
        begin, end = self.step_of("begin_step"), self.step_of("end_step")
        if step >= end:
            return self.final
        if step < begin:
            return 0.0
        progress = (step - begin) / (end - begin)
        return self.initial_sparsity + (self.final - self.initial_sparsity) * self.rise(progress)

    def due(self, before: int, now: int) -> float | None:
        """Return the sparsity of the latest event in (before, now], or None when none falls there."""
        begin, end = self.step_of("begin_step"), self.step_of("end_step")
        latest = end if now >= end else now - (now - begin) % self.frequency
        return self(latest) if begin <= latest and before < latest <= now else None


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
        check_number("Polynomial.exponent", self.exponent, above=0, why="; the paper has 3")

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
        check_number("Exponential.rate", self.rate, above=0)

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
        check_number("OneCycle.alpha", self.alpha, above=0, why="; the paper has 14")
        # beyond, exp(beta - alpha p) overflows
        check_number("OneCycle.beta", self.beta, -100, 100, why="; the paper has 5")

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
        if self.final == self.initial_sparsity:
            return 1.0
        start, end = 1 - self.initial_sparsity, 1 - self.final
        return (start - start * (end / start) ** progress) / (self.final - self.initial_sparsity)


def timed(schedule: Schedule) -> TimedSchedule:
    """Return a schedule that says when its events fall, which the built-in ones do by themselves."""
    return schedule if isinstance(schedule, TimedSchedule) else Rising(schedule)


def resolve(schedule: Schedule, total_steps: int | None) -> TimedSchedule:
    """Return the schedule with shares of the run turned into steps.

    Args:
        schedule: any schedule.
        total_steps: optimizer steps of the whole run; None when unknown.

    Raises:
        ValueError: a share is used while the length of the run is unknown; begin and end fall together.
    """
    resolved = timed(schedule)
    shares = {name: value for name, value in resolved.steps.items() if isinstance(value, float)}
    if shares and total_steps is None:
        raise ValueError(
            f"{type(schedule).__name__}.{next(iter(shares))} is a share of the run, but the number of optimizer steps"
            " is unknown (iterable data without max_steps): give it as an int, or set Trainer(max_steps=…)"
        )
    try:
        return resolved.with_steps({name: round(share * (total_steps or 0)) for name, share in shares.items()})
    except ValueError as error:
        told = ", ".join(f"{name}: {share:g} of {total_steps} steps" for name, share in shares.items())
        raise ValueError(f"{error} ({told})") from None


BUILT_IN: tuple[type[TimedSchedule], ...] = (OneShot, Linear, Polynomial, Exponential, OneCycle, Iterative)
"""What a recipe names, and a checkpoint may hold."""
