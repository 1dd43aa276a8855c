"""Budgets of the whole network and the search for the smallest share that meets one."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_prune.selection.budget import Budget, smallest_share


def test_what_no_parameter_owns_stays() -> None:
    budget = Budget(total=1000, per_parameter={"a": 300, "b": 500})
    assert budget.remaining({}) == 1000
    assert budget.remaining({"a": 0.0, "b": 0.0}) == 200
    assert budget.remaining({"a": 0.5, "unknown": 0.0}) == 850


def steps_down(costs: list[int]) -> Callable[[float], float]:
    """A cost that falls by these numbers, one unit at a time, as the share rises."""
    return lambda share: float(sum(costs) - sum(costs[: round(share * len(costs))]))


@given(costs=st.lists(st.integers(0, 50), min_size=1, max_size=60), asked=st.floats(0, 1))
def test_the_limit_is_met_and_one_unit_fewer_would_miss_it(costs: list[int], asked: float) -> None:
    cost, n = steps_down(costs), len(costs)
    limit = sum(costs) * asked
    share = smallest_share(cost, limit, 0.5 / n)
    units = round(share * n)
    assert cost(share) <= limit + 1e-6
    assert units == 0 or sum(costs[units - 1 :]) > limit


def test_a_rounding_error_asks_for_no_further_unit() -> None:
    units = 1000
    limit = 0.1 * 3 * units - 0.3 * units + 0.5 * units - 1e-10
    share = smallest_share(lambda s: float(units - round(s * units)), limit, 0.5 / units)
    assert round(share * units) == 500


def test_nothing_to_do() -> None:
    assert smallest_share(lambda share: 10 - share, 10, 0.1) == 0.0


def test_what_cannot_be_reached_is_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match="cannot come down to 10: with everything removable gone 60 is left"):
        smallest_share(lambda share: 100 - 40 * share, 10, 0.01)


def test_cost_is_asked_for_a_logarithm_of_the_units() -> None:
    asked: list[float] = []

    def cost(share: float) -> float:
        asked.append(share)
        return 1e6 * (1 - share)

    smallest_share(cost, 123_456, 0.5e-6)
    assert len(asked) <= 3 + math.ceil(math.log2(2e6))


@given(
    levels=st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=30),
    resolution=st.floats(max_value=1, allow_infinity=False) | st.just(0.0) | st.just(1e-300),
)
def test_the_search_ends_whatever_the_cost(levels: list[float], resolution: float) -> None:
    """Costs that rise, repeat or are no numbers, as an allocation of one's own may give, and any resolution."""
    asked = 0

    def cost(share: float) -> float:
        nonlocal asked
        asked += 1
        assert asked <= 60
        return {0.0: 100.0, 1.0: 0.0}.get(share, levels[int(share * len(levels)) % len(levels)])

    assert 0 <= smallest_share(cost, 50, resolution) <= 1
