"""Widths that keep most score within a cost."""

import itertools

import numpy as np
import pytest

from lightning_prune.selection import knapsack
from lightning_prune.selection.budget import Terms
from lightning_prune.selection.knapsack import Problem


def instance(groups: int, widths: int, seed: int, reach: int = 1) -> Problem:
    """Return a network in which each group reads the ``reach`` before it; values rise with the width, ever less."""
    random = np.random.default_rng(seed)
    names = [f"g{number}" for number in range(groups)]
    values = {name: np.cumsum(np.sort(random.lognormal(0, 1, widths))[::-1]) for name in names}
    sizes = np.arange(1, widths + 1)
    terms: Terms = [((name,), random.uniform(0, 3) * sizes) for name in names]
    for distance in range(1, reach + 1):
        pairs = zip(names, names[distance:], strict=False)
        terms += [(pair, random.uniform(0.1, 1) * np.multiply.outer(sizes, sizes)) for pair in pairs]
    return Problem(values, terms)


def best_of_all(problem: Problem, limit: float) -> float:
    """Return the most that any choice keeps within the limit, by trying all."""
    names = list(problem.values)
    choices = itertools.product(*(range(len(problem.values[name])) for name in names))
    each = (dict(zip(names, choice, strict=True)) for choice in choices)
    return max(problem.value(index) for index in each if problem.cost(index) <= limit)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_the_choice_is_within_the_limit_and_the_bound_above_all_choices(
    monkeypatch: pytest.MonkeyPatch, seed: int, share: float
):
    monkeypatch.setattr(knapsack, "_FEW", 0)
    problem = instance(groups=5, widths=4, seed=seed, reach=2)
    limit = share * problem.cost(dict.fromkeys(problem.values, 3))
    found, best = problem.solve(limit), best_of_all(problem, limit)
    assert problem.cost(found.index) <= limit * (1 + 1e-9)
    assert found.value == pytest.approx(problem.value(found.index))
    assert found.bound >= best - 1e-9
    assert 0.93 * best <= found.value <= best + 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_of_few_choices_the_best_is_taken(seed: int):
    problem = instance(groups=5, widths=4, seed=seed, reach=2)
    limit = 0.4 * problem.cost(dict.fromkeys(problem.values, 3))
    found = problem.solve(limit)
    assert found.value == pytest.approx(best_of_all(problem, limit))
    assert found.gap == 0


def test_many_groups_come_within_a_thousandth_of_the_bound():
    problem = instance(groups=120, widths=12, seed=0)
    found = problem.solve(0.4 * problem.cost(dict.fromkeys(problem.values, 11)))
    assert found.gap < 1e-3


def test_groups_that_are_all_coupled_are_solved_without_a_bound(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(knapsack, "_LARGEST", 64)
    monkeypatch.setattr(knapsack, "_FEW", 0)
    problem = instance(groups=6, widths=4, seed=1, reach=5)
    limit = 0.5 * problem.cost(dict.fromkeys(problem.values, 3))
    found = problem.solve(limit)
    assert found.bound == found.gap == np.inf
    assert problem.cost(found.index) <= limit
    assert found.value >= 0.9 * best_of_all(problem, limit)


def test_everything_stays_where_the_limit_allows_it():
    problem = instance(groups=4, widths=3, seed=2)
    whole = dict.fromkeys(problem.values, 2)
    assert problem.solve(problem.cost(whole)).index == whole


def test_a_limit_below_the_narrowest_widths_is_refused_with_what_can_be_had():
    problem = instance(groups=3, widths=3, seed=3)
    least = problem.cost(dict.fromkeys(problem.values, 0))
    assert problem.solve(least).index == dict.fromkeys(problem.values, 0)
    with pytest.raises(ValueError, match=r"cannot come down to .*is the least that can be left"):
        problem.solve(0.99 * least)
