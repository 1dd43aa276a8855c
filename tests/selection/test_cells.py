"""What is fitted through the points of a cell, against the formula that made them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_prune.selection.cells import STEPS, Cell, Kernel, Point, Step, least_squares, stepped, steps_of

KERNEL = Kernel("point", 100.0, 10.0, 10.0)


def made(step: Step, constant: float, *, seed: int = 0, count: int = 12) -> Cell:
    """Return a cell whose time follows the formula."""
    drawn = np.random.default_rng(seed)
    widths = [(int(out), int(into)) for out, into in drawn.integers(1, 97, (count, 2))]
    times = [constant + 1e-5 * 100 * into * float(stepped(out, step)) + 1e-4 * 10 * into for out, into in widths]
    points = (Point((own,), time, 0.0) for own, time in zip(widths, times, strict=True))
    return Cell("a cell", (KERNEL,), tuple(points))


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_the_step_that_made_the_times_is_seen_and_they_come_back(step: Step):
    cell = made(step, 0.01)
    steps = steps_of([cell, made(step, 0.02, seed=1)])
    assert steps["point"] == step
    assert steps["window"] == steps["grouped"] == (1, 1)
    fit, error = cell.fitted(steps)
    assert error < 1e-12
    for out, into in ((50, 20), (7, 90)):
        expected = 0.01 + 1e-3 * into * float(stepped(out, step)) + 1e-3 * into
        assert cell.features([(out, into)], steps) @ fit == pytest.approx(expected, rel=1e-6)


@given(seed=st.integers(0, 1000), count=st.integers(1, 6))
def test_no_weight_is_negative_and_none_of_the_choices_comes_closer(seed: int, count: int):
    drawn = np.random.default_rng(seed)
    columns, wanted = drawn.normal(size=(count, 3)), drawn.normal(size=count)
    weights, error = least_squares(columns, wanted)
    assert (weights >= 0).all()
    assert error == pytest.approx(float(((columns @ weights - wanted) ** 2).sum()), abs=1e-9)
    for _ in range(50):
        others = np.abs(drawn.normal(size=3)) * (drawn.random(3) < 0.6)
        assert error <= float(((columns @ others - wanted) ** 2).sum()) + 1e-9


@given(width=st.integers(1, 200), step=st.sampled_from(STEPS))
def test_a_width_counts_up_to_its_step(width: int, step: Step):
    size = step[0] if width <= step[1] else step[1]
    assert float(stepped(width, step)) == -(-width // size) * size
