"""Numbers as people read them, and the round ones that an axis is marked with."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_prune.study.report._numbers import brief, log_ticks, share, ticks

DRAWN = st.floats(-1e150, 1e150)


@given(st.floats())
def test_any_number_is_brief(value: float) -> None:
    assert 0 < len(brief(value)) <= 10


@given(st.floats(1e-3, 1e14))
def test_three_digits_stay(value: float) -> None:
    text = brief(value)
    number, _, unit = text.replace(",", "").partition(" ")
    assert float(number) * 1000.0 ** " kMGT".index(unit or " ") == pytest.approx(value, rel=1e-3)
    assert brief(-value) == f"−{text}"


def test_shares() -> None:
    assert [share(v) for v in (0, 0.5, 0.905, 0.99999, 1)] == ["0 %", "50 %", "90.5 %", "100 %", "100 %"]
    assert share(math.nan) == "NaN"


@given(DRAWN, DRAWN, st.integers(2, 10))
def test_ticks_lie_inside_and_rise(one: float, other: float, count: int) -> None:
    low, high = min(one, other), max(one, other)
    found = ticks(low, high, count)
    room = 1e-6 * max(abs(low), abs(high)) + 1e-12
    assert found == sorted(set(found))
    assert 1 <= len(found) <= count + 1
    assert all(low - room <= tick <= high + room for tick in found)


@given(st.floats(1e-300, 1e300), st.floats(1, 1e12))
def test_log_ticks_lie_inside_and_rise(low: float, ratio: float) -> None:
    high = min(low * ratio, 1e305)
    found = log_ticks(low, high)
    assert found == sorted(set(found))
    assert 1 <= len(found) <= 14
    assert all(low * (1 - 1e-6) <= tick <= high * (1 + 1e-6) for tick in found)
