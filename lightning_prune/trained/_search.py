"""The smallest network that keeps a metric: how far a recipe may go, by bisection."""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace

from torch import nn
from tqdm import tqdm

from lightning_prune.errors import PruningError
from lightning_prune.guard import Guard
from lightning_prune.model.example import Example
from lightning_prune.recipe import Recipe
from lightning_prune.run.binding import bind
from lightning_prune.schedules import timed
from lightning_prune.selection import ChannelUnits
from lightning_prune.selection.costs import progress as come
from lightning_prune.selection.granularity import Granularity
from lightning_prune.selection.needs import Partway, as_needs
from lightning_prune.study.tried import Attempt, Tried
from lightning_prune.trained._whole import Whole
from lightning_prune.trained.pruned import Pruned

_BEGINNING = 0.01
"""Of the way to a need: a recipe that goes no further than this has nothing to search."""


def partway(recipe: Recipe, share: float) -> Recipe:
    """Return the recipe that goes so far on the way from the dense network to where this one ends."""
    if recipe.need is not None:
        return replace(recipe, need=tuple(Partway(need, share) for need in as_needs(recipe.need)))
    schedule = timed(recipe.schedule)
    return replace(recipe, schedule=schedule.ending(share * schedule.final))


def furthest(recipe: Recipe, model: nn.Module, example: Example, steps: int) -> float:
    """Return which share of the way to its end a recipe can go: less than 1 where a need lies beyond the least.

    Raises:
        ValueError: a recipe that ends at one sparsity alone, or goes hardly anywhere.
    """
    if isinstance(recipe.granularity, Granularity) and recipe.granularity.must_be_full and recipe.count is None:
        raise ValueError(
            f"max_drop bounds how far a recipe goes, and {recipe.granularity} ends at"
            f" {recipe.granularity.full_sparsity:g} or not at all: leave max_drop out and look at the metric"
        )
    if recipe.need is None:
        return 1.0
    pruner = bind(partway(recipe, _BEGINNING), model, example, steps)
    units = pruner.units
    if isinstance(units, ChannelUnits) and pruner.has_open_floor:
        units = units.keeping(0.0)
    most = units.most_removable()
    # a hair less: the least itself may lie beyond by rounding
    return min(1.0, _BEGINNING * come(pruner.needs, most) * (1 - 1e-6))


def smallest(
    recipe: Recipe,
    cut: Callable[[Recipe], Pruned],
    model: nn.Module,
    whole: Whole,
    far: float,
    guard: Guard,
    dense: Tried,
    trials: int,
    *,
    progress: bool,
) -> Pruned:
    """Prune as far as the guard allows.

    Args:
        recipe: where it may go at most.
        cut: prunes the model by a recipe and measures it.
        model: dense.
        whole: of it.
        far: share of the way to the end of the recipe that is tried first; then halves of what is open.
        guard: what is allowed.
        dense: what is known of the dense network, with no attempts yet.
        trials: how many networks are tried at most.
        progress: whether a bar shows them.

    Raises:
        PruningError: no network that was tried is within the drop.

    Changes:
        the model.
    """
    for doubt in guard.doubts(dense.base):
        warnings.warn(doubt, stacklevel=3)
    low, high, share = 0.0, far, far
    attempts, best = list[Attempt](), list[tuple[Pruned, Whole]]()
    bar = tqdm(range(trials), "searching", unit="network", disable=not progress, leave=False)
    for _ in bar:
        pruned = cut(partway(recipe, share))
        value = math.nan if pruned.metric_after is None else pruned.metric_after
        is_kept, reason = guard.allows(value, dense.base), guard.explain(value, dense.base)
        asked, macs = pruned.events[-1].asked, pruned.after.effective_macs
        attempts.append(Attempt(share, asked, pruned.left, macs, value, is_kept, reason))
        bar.set_postfix_str(f"{1 - asked:.0%} left: {reason}")
        if is_kept:
            low, best = share, [(pruned, Whole(model))]
        else:
            high = share
        whole.put_back()
        model.eval()  # in which it is run here; whoever put it there gives every module its own mode back
        if low == far:
            break
        share = (low + high) / 2
    tried = replace(dense, attempts=tuple(attempts))
    if not best:
        raise PruningError(
            f"none of {len(attempts)} networks keeps {guard.monitor} within {guard.max_drop:g} of {dense.base:.4g}, the"
            " mildest neither: allow more (max_drop), more trials, or more samples for repair, or train while it is"
            f" pruned (PruningCallback with a Guard). Nothing was pruned. Tried:\n{tried}"
        )
    chosen, held = best[0]
    held.put_back()
    return replace(chosen, tried=tried)
