"""What was tried, as a value and a table."""

import math
from dataclasses import replace

import pytest

from lightning_prune.study import Attempt, Tried

ATTEMPTS = (
    Attempt(1.0, 0.9, 100, 1_000, 0.70, False, "fell"),
    Attempt(0.5, 0.45, 550, 5_500, 0.90, True, "within"),
    Attempt(0.75, 0.675, 325, 3_250, 0.60, False, "fell"),
    Attempt(0.625, 0.5625, 437, 4_375, 0.89, True, "within"),
    Attempt(0.6875, 0.61875, 381, 3_812, math.nan, False, "was nan"),
)
TRIED = Tried("MACs", "acc", 0.9, 0.02, True, 1_000, 10_000, attempts=ATTEMPTS)


def test_the_furthest_within_the_drop_is_the_best():
    assert TRIED.best is ATTEMPTS[3]
    assert replace(TRIED, attempts=ATTEMPTS[:1]).best is None


def test_the_pareto_set_has_none_that_is_beaten():
    assert TRIED.pareto == (ATTEMPTS[0], ATTEMPTS[3], ATTEMPTS[1])
    again = replace(ATTEMPTS[3], share=0.63)  # the same network once more
    doubled = replace(TRIED, attempts=(*ATTEMPTS, again))
    assert len(doubled.pareto) == 3
    assert str(doubled).count("beaten") == 1
    lower = replace(TRIED, higher_is_better=False)
    assert lower.pareto == (ATTEMPTS[0], ATTEMPTS[2])


@pytest.mark.parametrize(
    ("attempt", "cost"),
    [
        (ATTEMPTS[0], 1_000.0),
        (replace(ATTEMPTS[0], macs=None), 100.0),
        (replace(ATTEMPTS[0], milliseconds=1.5), 1.5),
    ],
)
def test_time_counts_where_it_was_measured(attempt: Attempt, cost: float):
    assert attempt.cost == cost


def test_the_table_goes_from_the_largest_to_the_smallest():
    assert str(TRIED).splitlines() == [
        "MACs left  parameters    MACs     acc",
        "------------------------------------------------------------------------",
        "     100%       1,000  10,000  0.9000  dense",
        "    55.0%         550   5,500  0.9000  within the drop",
        "    43.8%         437   4,375  0.8900  chosen",
        "    38.1%         381   3,812     nan  too much",
        "    32.5%         325   3,250  0.6000  too much, beaten by a smaller one",
        "    10.0%         100   1,000  0.7000  too much",
        "acc may be 0.02 worse than that of the dense network",
    ]


def test_milliseconds_have_a_column_where_there_are_some():
    timed = replace(TRIED, milliseconds=4.0, attempts=(replace(ATTEMPTS[1], milliseconds=2.0), ATTEMPTS[2]))
    head, _, dense, first, second, _ = str(timed).splitlines()
    assert "ms" in head.split()
    assert dense.split()[3] == "4"
    assert first.split()[3] == "2"
    assert second.split()[3] == "0.6000"


def test_what_is_not_known_has_no_column():
    bare = replace(TRIED, macs=None, attempts=(replace(ATTEMPTS[1], macs=None),))
    assert str(bare).splitlines()[0].split() == ["MACs", "left", "parameters", "acc"]
