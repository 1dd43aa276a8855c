"""A stopped run goes on: with the recipes that it had, or, where that is wanted, with other ones."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from lightning_prune.compensation import NoRepair
from lightning_prune.criteria import Magnitude
from lightning_prune.documents import typed
from lightning_prune.errors import CheckpointError
from lightning_prune.optimizer.policies import as_policies
from lightning_prune.recipe import Recipe
from lightning_prune.run.pruner import Pruner, describe
from lightning_prune.selection import ChannelUnits
from lightning_prune.selection.allocation import Global

Described = Mapping[str, str]
"""What :meth:`Recipe.describe` returns."""

_UNITS = {"granularity", "targets", "count", "need"}

_LATER = {"repair": repr(NoRepair()), "need": repr(None)}
"""Fields that recipes in older checkpoints lack, with what they mean by that."""

_COUNTED: Mapping[str, Any] = {"step": int, "looked_at": int, "waits_at": int, "stay": tuple[str, ...]}
_OBSERVED: Mapping[str, Any] = {
    "asked": float,
    "steps": Mapping[str, int],
    "past": tuple[str, ...],
    "schedule": Mapping[str, float],
    "scales": Mapping[str, float] | None,
    "min_share": float | None,
}
"""Types of what the states of a run and of its pruners hold."""

_FORMER: Mapping[str, Any] = {"criterion": Magnitude(), "allocation": Global(), "repair": NoRepair()}
"""What older recipes said in fields that they left alone; their runs go on with that where it is left open now."""


def changed(old: Described, recipe: Recipe) -> set[str]:
    """Return the names of the fields in which a recipe differs from one that was described; {}: from none, in all."""
    known = {**_LATER, **old} if old else old
    same = _going_on(recipe, known)
    return {name for name, text in same.describe().items() if known.get(name) != text}


def _going_on(recipe: Recipe, saved: Described) -> Recipe:
    """Return the recipe with the defaults of the time at which the saved one was written."""
    former = {
        name: value
        for name, value in _FORMER.items()
        if getattr(recipe, name) is None and saved.get(name) == repr(value)
    }
    return replace(recipe, **former)


def differences(saved: Sequence[Described], recipes: Sequence[Recipe]) -> list[str]:
    """Return a line for each field in which the recipes differ from those of a checkpoint; [] when none does."""
    if len(saved) != len(recipes):
        return [f"recipes: it has {len(saved)}, this run has {len(recipes)}"]
    prefix = "recipe {}: " if len(recipes) > 1 else ""
    return [
        f"{prefix.format(index)}{name} was {text}, is {recipe.describe().get(name)}"
        for index, (old, recipe) in enumerate(zip(saved, recipes, strict=True))
        for name, text in {**_LATER, **old}.items()
        if name in changed(old, recipe)
    ]


def check_same(saved: Sequence[Described], recipes: Sequence[Recipe]) -> None:
    """Refuse to go on with other recipes.

    Raises:
        CheckpointError: they differ from those of the checkpoint; it says in what.
    """
    lines = differences(saved, recipes)
    if lines:
        raise CheckpointError(
            "the checkpoint is of a run with another recipe:\n"
            + "\n".join(lines)
            + "\nresume with the recipe that it has, or go on with the new one from here:"
            " PruningCallback(…, resume_with_other_recipe=True)"
        )


def paired(saved: Sequence[Described], recipes: Sequence[Recipe]) -> list[int | None]:
    """Return for each recipe the index of the one in the checkpoint that it goes on with; None for a new one.

    That is one without any difference, otherwise the one at the same place.
    """
    found: dict[int, int] = {}
    for here, recipe in enumerate(recipes):
        same = [there for there, old in enumerate(saved) if not changed(old, recipe) and there not in found.values()]
        if same:
            found[here] = here if here in same else same[0]
    for here in range(min(len(recipes), len(saved))):
        if here not in found and here not in found.values():
            found[here] = here
    return [found.get(here) for here in range(len(recipes))]


def take_up(
    pruners: Sequence[Pruner], state: Mapping[str, Any], model: nn.Module
) -> tuple[list[Pruner], list[Mapping[str, Any]], bool]:
    """Let pruners go on from the state of a run, as far as it fits their recipes.

    Returns:
        The pruners that go on, the states that their policies go on with, and whether any recipe is another one than
        in the state.

    Raises:
        CheckpointError: the model lacks a channel group, or policies go back to a step of which the state has nothing.
        TypeError: the state holds values of other types than any run's.

    Changes:
        the progress of the pruners.
    """
    for kinds, held in ((_COUNTED, state), *((_OBSERVED, each) for each in state["pruners"])):
        for name in kinds.keys() & held.keys():
            typed(kinds[name], held[name])
    recipes = [pruner.recipe for pruner in pruners]
    indices = paired(state["recipes"], recipes)
    told = [
        changed({}, r) if i is None else changed(state["recipes"][i], r) for r, i in zip(recipes, indices, strict=True)
    ]
    policies = dict(enumerate(state["policies"]))
    kept = [
        _policy_state(recipe, policies.get(-1 if index is None else index), differing, state["step"])
        for recipe, index, differing in zip(recipes, indices, told, strict=True)
    ]
    going_on = []
    for pruner, index, differing in zip(pruners, indices, told, strict=True):
        if index is None or differing & _UNITS:
            # what is pruned by now stays, and counts as asked for
            pruner.progress.asked = describe(pruner, model, state["step"]).sparsity
            going_on.append(pruner)
            continue
        saved = state["pruners"][index]
        pruner = replace(pruner, recipe=_going_on(pruner.recipe, state["recipes"][index]))
        if "schedule" in differing and isinstance(pruner.units, ChannelUnits):
            saved = {**saved, "min_share": pruner.units.granularity.min_share}
        restored = pruner.restored({**saved, "schedule": {}} if "schedule" in differing else saved, model)
        if "criterion" in differing:
            restored.observed.clear()
            restored.progress.scales = None
        going_on.append(restored)
    return going_on, kept, any(told)


def _policy_state(recipe: Recipe, saved: Mapping[str, Any] | None, differing: set[str], step: int) -> Mapping[str, Any]:
    """Return the state that the policies of a recipe go on with: the saved one where it is of the same policies."""
    if saved is not None and not differing & (_UNITS | {"optimizer_policy"}):
        return saved
    for policy in as_policies(recipe.optimizer_policy):
        back = policy.goes_back_to
        if differing and back is not None and back < step:
            raise CheckpointError(
                f"optimizer_policy={policy!r} goes back to step {back}, and this run goes on from step {step} of"
                " one with another recipe, which has kept nothing of that step for it; leave the policy out"
            )
    # a list says where optimizers stand, such as in a ramp, and is no loss
    if saved is not None and any(value is not None and not isinstance(value, list) for value in saved.values()):
        warnings.warn("what the optimizer_policy of the checkpoint's recipe had kept is dropped", stacklevel=2)
    return {}


def without_guard(saved: Mapping[str, Any] | None, has_guard: bool) -> str | None:
    """Return what is to be said where the guard of a checkpoint is not taken up; None for nothing.

    Args:
        saved: state of the guard in the checkpoint; None: it had none.
        has_guard: whether this run has one, of its own beginning.
    """
    if saved is not None and saved.get("snapshot") is not None:
        return (
            "the checkpoint was written while a guard had an event on trial; this run has no such guard, so the event"
            " stays as it is, judged by nothing"
        )
    if saved is not None and not has_guard:
        return (
            "the checkpoint is of a run with a guard, and this one has none: later events are judged by nothing. Resume"
            " with the same PruningCallback(…, guard=…) to go on guarded"
        )
    return None
