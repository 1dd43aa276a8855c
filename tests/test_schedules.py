"""Schedules against their closed formulas, and the steps at which their events fall."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_prune.schedules import (
    BUILT_IN,
    Exponential,
    Gradual,
    Iterative,
    Linear,
    OneCycle,
    OneShot,
    Polynomial,
    resolve,
    timed,
)

GRADUAL = [kind for kind in BUILT_IN if issubclass(kind, Gradual)]


def bad(value: Any) -> Any:
    """A value of a wrong type, which a type checker would not let through."""
    return value


def reference(kind: type[Gradual], p: np.ndarray, start: float, final: float) -> np.ndarray:
    """The papers' own forms, written out."""
    if kind is Linear:
        return start + (final - start) * p
    if kind is Polynomial:
        return final + (start - final) * (1 - p) ** 3
    if kind is Exponential:
        return start + (final - start) * (1 - np.exp(-5 * p)) / (1 - np.exp(-5))
    if kind is OneCycle:
        return start + (final - start) * (1 + np.exp(-14 + 5)) / (1 + np.exp(-14 * p + 5))
    return 1 - (1 - start) * ((1 - final) / (1 - start)) ** p


@pytest.mark.parametrize("kind", GRADUAL)
@given(
    begin=st.integers(0, 50),
    length=st.integers(1, 300),
    sparsities=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)).map(sorted),
)
def test_formula(kind: type[Gradual], begin: int, length: int, sparsities: list[float]) -> None:
    start, final = sparsities
    end = begin + length
    schedule = kind(final_sparsity=final, begin_step=begin, end_step=end, initial_sparsity=start)
    steps = np.arange(begin, end)
    expected = reference(kind, (steps - begin) / length, start, final)
    got = np.array([schedule(int(step)) for step in steps])
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)
    assert np.all(np.diff([*got, schedule(end)]) >= -1e-12)
    assert [schedule(step) for step in (end, end + 1, 10**9)] == [final] * 3
    assert all(schedule(step) == 0 for step in range(begin))


@pytest.mark.parametrize("kind", GRADUAL)
@given(begin=st.integers(0, 30), length=st.integers(1, 60), frequency=st.integers(1, 40))
def test_events_fall_at_begin_then_every_frequency_and_at_the_end(
    kind: type[Gradual], begin: int, length: int, frequency: int
) -> None:
    end = begin + length
    schedule = kind(0.9, begin_step=begin, end_step=end, frequency=frequency, initial_sparsity=0.1)
    seen = {step: timed(schedule).due(step - 1, step) for step in range(end + 50)}
    expected = {*range(begin, end, frequency), end}
    assert {step for step, asked in seen.items() if asked is not None} == expected
    assert all(seen[step] == schedule(step) for step in expected)
    assert seen[end] == 0.9


@given(begin=st.integers(0, 20), frequency=st.integers(1, 9), looks=st.lists(st.integers(1, 25), min_size=1))
def test_when_several_steps_pass_the_latest_event_counts(begin: int, frequency: int, looks: list[int]) -> None:
    schedule = Linear(0.8, begin_step=begin, end_step=begin + 40, frequency=frequency)
    events = [*range(begin, begin + 40, frequency), begin + 40]
    before = -1
    for gap in looks:
        now = before + gap
        inside = [step for step in events if before < step <= now]
        assert timed(schedule).due(before, now) == (schedule(inside[-1]) if inside else None)
        before = now


def test_one_shot() -> None:
    schedule = OneShot(final_sparsity=0.5, begin_step=30)
    assert [schedule(step) for step in (0, 29, 30, 31)] == [0.0, 0.0, 0.5, 0.5]
    assert [timed(schedule).due(step - 1, step) for step in (29, 30, 31)] == [None, 0.5, None]
    assert timed(schedule).due(10, 99) == 0.5
    assert timed(OneShot(0.5)).due(-1, 0) == 0.5


def test_iterative_takes_the_same_share_of_what_remains() -> None:
    schedule = Iterative(final_sparsity=0.9, begin_step=10, end_step=60, frequency=10)
    left = 1 - np.array([schedule(step) for step in range(10, 61, 10)])
    np.testing.assert_allclose(left[1:] / left[:-1], 0.1 ** (1 / 5))


def test_exponential_closes_in_geometrically() -> None:
    schedule = Exponential(final_sparsity=0.5, begin_step=0, end_step=100, rate=3)
    target = 0.5 / (1 - np.exp(-3))
    gaps = target - np.array([schedule(step) for step in range(0, 101, 20)])
    np.testing.assert_allclose(gaps[1:] / gaps[:-1], np.exp(-0.6))


def test_parameters_of_the_curves() -> None:
    assert Polynomial(0.8, begin_step=0, end_step=10, exponent=1.0)(3) == pytest.approx(0.24)
    assert Exponential(0.8, begin_step=0, end_step=10, rate=1e-6)(3) == pytest.approx(0.24)
    assert OneCycle(0.8, begin_step=0, end_step=10, alpha=8, beta=4)(5) == pytest.approx(0.8 * (1 + np.exp(-4)) / 2)


def test_a_function_has_an_event_wherever_it_rises() -> None:
    def stairs(step: int) -> float:
        return min(0.75, step // 10 * 0.25)

    events = [step for step in range(50) if timed(stairs).due(step - 1, step) is not None]
    assert events == [10, 20, 30]
    assert timed(stairs).due(5, 25) == 0.5
    assert timed(lambda step: 0.5).due(-1, 0) == 0.5
    assert timed(lambda step: 0.5).due(0, 1) is None
    assert timed(stairs).final_sparsity == 0.75
    assert (timed(stairs).first_step, timed(stairs).final_step) == (None, None)
    assert resolve(stairs, 10) == timed(stairs)
    assert repr(timed(stairs)) == repr(stairs)


def test_a_function_of_numpy_numbers_leaves_plain_ones() -> None:
    schedule: Callable[[int], Any] = lambda step: np.clip(np.float64(step) / 10, 0, 0.5)  # noqa: E731
    assert type(timed(schedule).due(0, 3)) is float
    assert type(timed(schedule).final_sparsity) is float


def test_shares_of_the_run() -> None:
    schedule = resolve(Polynomial(0.8, begin_step=0.1, end_step=0.7), 1000)
    assert schedule == Polynomial(0.8, begin_step=100, end_step=700)
    assert (schedule.first_step, schedule.final_step) == (100, 700)
    assert resolve(Linear(0.8, begin_step=30), 200) == Linear(0.8, begin_step=30, end_step=200)
    assert resolve(OneShot(0.5, begin_step=0.25), 101) == OneShot(0.5, begin_step=25)
    assert resolve(OneShot(0.5, begin_step=3), None) == OneShot(0.5, begin_step=3)
    assert resolve(OneShot(0.5, begin_step=1.0), 40)(40) == 0.5


@pytest.mark.parametrize(
    "ask",
    [lambda s: s(5), lambda s: s.first_step, lambda s: s.final_step, lambda s: s.due(1, 5)],
    ids=["call", "first", "final", "due"],
)
@pytest.mark.parametrize("schedule", [Polynomial(0.8, begin_step=0.1, end_step=0.7), OneShot(0.8, begin_step=0.5)])
def test_a_share_of_an_unknown_run_tells_no_sparsity(schedule: Any, ask: Callable[[Any], object]) -> None:
    with pytest.raises(ValueError, match=r"_step = 0\.\d is a share of the run.*resolve\(schedule, total_steps\)"):
        ask(schedule)


@pytest.mark.parametrize("kind", [OneShot, *GRADUAL])
@pytest.mark.parametrize("value", [1.0, 1.5, -0.1, float("nan"), float("inf")])
def test_sparsity_outside_of_its_range(kind: Any, value: float) -> None:
    with pytest.raises(
        ValueError, match=rf"{kind.__name__}.final_sparsity must be a number at least 0 and below 1, got {value}"
    ):
        kind(final_sparsity=value)


@pytest.mark.parametrize("kind", GRADUAL)
@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"begin_step": 10, "end_step": 10}, ValueError, "begin_step = 10 must lie before end_step = 10; .*OneShot"),
        ({"begin_step": 20, "end_step": 10}, ValueError, "begin_step = 20 must lie before end_step = 10"),
        ({"begin_step": 0.7, "end_step": 0.3}, ValueError, "begin_step = 0.7 must lie before end_step = 0.3"),
        ({"frequency": 0}, ValueError, "frequency must be at least 1, got 0"),
        ({"frequency": -5}, ValueError, "frequency must be at least 1, got -5"),
        ({"frequency": 10**500}, ValueError, r"frequency must be below 2\*\*64, got one of 1661 bits"),
        ({"frequency": 2.5}, TypeError, "frequency must be an int, a number of optimizer steps, got 2.5"),
        ({"frequency": True}, TypeError, "frequency must be an int"),
        ({"initial_sparsity": 0.9}, ValueError, "initial_sparsity = 0.9 is above final_sparsity = 0.8"),
        ({"initial_sparsity": 1.0}, ValueError, "initial_sparsity must be a number at least 0 and below 1, got 1.0"),
        ({"begin_step": -1}, ValueError, "begin_step must not be negative, got -1"),
        ({"end_step": 1500.0}, ValueError, r"end_step = 1500.0 is a float, .*\[0, 1\]; .*write the int 1500"),
        ({"end_step": float("nan")}, ValueError, "end_step = nan is a float"),
        ({"end_step": "0.7"}, TypeError, "end_step must be an optimizer step or a share of the run, got '0.7'"),
        ({"begin_step": True}, TypeError, "begin_step must be an optimizer step"),
        ({"final_sparsity": "0.8"}, TypeError, "final_sparsity must be a number at least 0 and below 1, got '0.8'"),
    ],
)
def test_bad_arguments(kind: Any, arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"{kind.__name__}.{text}"):
        kind(**{"final_sparsity": 0.8, **arguments})


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Polynomial(0.8, exponent=0), "Polynomial.exponent must be a number above 0, got 0; the paper has 3"),
        (lambda: Polynomial(0.8, exponent=bad(float("nan"))), "Polynomial.exponent must be a number above 0, got nan"),
        (lambda: Exponential(0.8, rate=-1), "Exponential.rate must be a number above 0, got -1"),
        (lambda: OneCycle(0.8, alpha=0), "OneCycle.alpha must be a number above 0, got 0; the paper has 14"),
        (lambda: OneCycle(0.8, beta=1e3), r"OneCycle.beta must be a number at least -100 and at most 100, got 1000.0"),
        (lambda: resolve(Linear(0.8, begin_step=70), 50), r"end_step = 50; .*OneShot \(end_step: 1 of 50 steps\)"),
        (
            lambda: resolve(Linear(0.8, begin_step=100, end_step=0.5), 32),
            r"end_step = 16; .*: 0.5 of 32 steps",
        ),
        (lambda: resolve(Linear(0.8, begin_step=0.01, end_step=0.02), 10), "begin_step = 0 must lie before end_step"),
        (lambda: resolve(OneShot(0.8, begin_step=0.5), None), "OneShot.begin_step is a share of the run, but the numb"),
        (
            lambda: resolve(Linear(0.8), None),
            "Linear.end_step is a share of the run.*give it as an int, or set Trainer",
        ),
    ],
)
def test_bad_curves_and_shares(build: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        build()
