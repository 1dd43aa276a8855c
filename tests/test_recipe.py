"""A recipe is a checked value."""

from typing import Any

import pytest

from lightning_prune.criteria import Random, Taylor
from lightning_prune.optimizer.policies import LRRewind, Mask, Reset, RewindWeights
from lightning_prune.recipe import Recipe
from lightning_prune.schedules import Iterative, OneShot, Polynomial
from lightning_prune.selection.allocation import ERK, Uniform
from lightning_prune.selection.granularity import Block, Channel, Element, NOfM
from lightning_prune.selection.targets import Targets


def bad(value: Any) -> Any:
    """A value of a wrong type, which a type checker would not let through."""
    return value


HALF = OneShot(0.5, begin_step=1)


def test_defaults() -> None:
    recipe = Recipe(schedule=HALF)
    assert recipe == Recipe(
        schedule=HALF,
        granularity=Element(),
        criterion=None,
        allocation=None,
        targets=Targets(),
        count=None,
        optimizer_policy=Mask(),
    )
    assert not recipe.is_structured
    assert Recipe(schedule=HALF, granularity=Channel()).is_structured


def test_recipes_are_frozen_and_hashable() -> None:
    recipe = Recipe(schedule=HALF, granularity=Block((4, 1)), optimizer_policy=(LRRewind(), RewindWeights(3)))
    assert (
        len({recipe, Recipe(schedule=HALF, granularity=Block((4, 1)), optimizer_policy=(LRRewind(), RewindWeights(3)))})
        == 1
    )
    with pytest.raises(AttributeError):
        recipe.count = "macs"  # type: ignore[misc]


def test_parts_that_fit_together() -> None:
    Recipe(schedule=OneShot(2 / 3), granularity=NOfM(1, 3))
    Recipe(schedule=OneShot(0.3), granularity=NOfM(2, 4), count="params")
    Recipe(schedule=Polynomial(0.9), criterion=Taylor(), allocation=ERK(), count="macs")
    Recipe(schedule=lambda step: 0.5, criterion=lambda name, w: w.abs(), allocation=lambda share, of: {})
    Recipe(schedule=Iterative(0.9), criterion=Random(3), allocation=Uniform(), optimizer_policy=Reset())


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (
            {"schedule": OneShot(0.0)},
            ValueError,
            r"Recipe.schedule ends at sparsity 0.0; it must lie in \(0, 1\), or no",
        ),
        ({"schedule": lambda step: step / 10}, ValueError, "Recipe.schedule ends at sparsity 4.6.*; it must lie in"),
        (
            {"schedule": 0.5},
            TypeError,
            r"Recipe.schedule must be a function or a value such as OneShot\(0.5\), got 0.5",
        ),
        ({"schedule": OneShot}, TypeError, "Recipe.schedule must be a function or a value such as OneShot"),
        (
            {"criterion": "taylor"},
            TypeError,
            r"Recipe.criterion must be a function.*such as Magnitude\(\), got 'taylor'",
        ),
        ({"criterion": Taylor}, TypeError, "Recipe.criterion must be a function or a value such as Magnitude"),
        ({"allocation": 0.5}, TypeError, r"Recipe.allocation must be a function .*such as Global\(\), got 0.5"),
        ({"allocation": ERK}, TypeError, "Recipe.allocation must be a function or a value such as Global"),
        (
            {"granularity": "channel"},
            TypeError,
            r"Recipe.granularity must be Element\(\), NOfM\(n, m\), .* got 'channel'",
        ),
        ({"granularity": Channel}, TypeError, r"Recipe.granularity must be Element\(\), .* got <class"),
        ({"targets": "*"}, TypeError, r"Recipe.targets must be Targets\(include=…, exclude=…\), got '\*'"),
        ({"count": "flops"}, ValueError, 'Recipe.count must be "channels", "params" or "macs", got \'flops\''),
        (
            {"count": "channels"},
            ValueError,
            r'Recipe.count = "channels" needs granularity=Channel\(\), got Element\(\)',
        ),
        ({"optimizer_policy": "mask"}, TypeError, "optimizer_policy must be of Mask, Keep"),
        (
            {"granularity": NOfM(2, 4), "schedule": OneShot(0.6)},
            ValueError,
            r"NOfM\(n=2, m=4\) ends at sparsity 0.5, and the schedule at 0.6; set final_sparsity=0.5",
        ),
        (
            {"granularity": NOfM(1, 3), "schedule": OneShot(0.67)},
            ValueError,
            "set final_sparsity=0.6666666666666667",
        ),
        (
            {"granularity": NOfM(2, 4), "schedule": OneShot(0.4)},
            ValueError,
            "ends at sparsity 0.5, and the schedule at 0",
        ),
    ],
)
def test_bad_recipes(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Recipe(**{"schedule": HALF, **arguments})


def test_everything_is_named() -> None:
    with pytest.raises(TypeError):
        bad(Recipe)(HALF)
    with pytest.raises(TypeError, match="schedule"):
        bad(Recipe)()
