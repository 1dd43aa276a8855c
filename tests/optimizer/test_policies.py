"""Optimizer policies as values."""

from collections.abc import Callable
from typing import Any

import pytest

from lightning_prune.optimizer.policies import Keep, LRRewind, Mask, Reset, Rewarm, RewindWeights, as_policies


def bad(value: Any) -> Any:
    """A value of a wrong type, which a type checker would not let through."""
    return value


def test_policies_are_values() -> None:
    assert Rewarm(5) == Rewarm(steps=5)
    assert LRRewind() == LRRewind(step=0)
    assert repr((Mask(), RewindWeights(3))) == "(Mask(), RewindWeights(step=3))"
    assert len({Mask(), Mask(), Keep(), Reset()}) == 3


@pytest.mark.parametrize(
    ("build", "error", "text"),
    [
        (lambda: Rewarm(0), ValueError, "Rewarm.steps must be at least 1, got 0"),
        (lambda: Rewarm(bad(2.5)), TypeError, "Rewarm.steps must be an int, a number of optimizer steps, got 2.5"),
        (lambda: Rewarm(True), TypeError, "Rewarm.steps must be an int"),
        (lambda: LRRewind(-1), ValueError, "LRRewind.step must be at least 0, got -1"),
        (lambda: RewindWeights(-3), ValueError, "RewindWeights.step must be at least 0, got -3"),
        (lambda: as_policies(bad("mask")), TypeError, "must be of Mask, Keep, .* or a tuple of them, got 'mask'"),
        (lambda: as_policies((Mask(), bad(5))), TypeError, "got 5"),
        (lambda: as_policies((Mask(), Keep())), ValueError, "more than one of Mask, Keep and Reset: .*choose one"),
        (lambda: as_policies((LRRewind(1), LRRewind(2))), ValueError, "a policy twice: .*name each once"),
    ],
)
def test_bad_policies_are_refused(build: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        build()


def test_one_or_several() -> None:
    assert as_policies(Mask()) == (Mask(),)
    assert as_policies([LRRewind(), RewindWeights(3)]) == (LRRewind(), RewindWeights(3))
