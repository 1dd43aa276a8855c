"""One pruning event: a recipe bound to a model, and the step from a sparsity to masks, weights and a record."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune import masks, schedules
from lightning_prune.allocation import Candidates
from lightning_prune.budget import Budget, smallest_share
from lightning_prune.criteria import GradientCriterion, Observations, Scores
from lightning_prune.errors import PruningError
from lightning_prune.granularity import Granularity
from lightning_prune.graph import ChannelGroup, channel_groups
from lightning_prune.recipe import Recipe
from lightning_prune.report import Macs, measure_macs
from lightning_prune.schedules import Schedule
from lightning_prune.selection import ChannelUnits, ElementUnits, Units
from lightning_prune.targets import Target


@dataclass(frozen=True)
class Event:
    """What one pruning event did.

    Args:
        step: completed optimizer steps.
        asked: the sparsity that the schedule asked for.
        sparsity: the sparsity reached, in what the recipe counts.
        layers: dense name of each masked weight with two or more axes -> share of it that is pruned.
        params: parameters left in the whole network.
        macs: multiply-accumulates left in it; None without an example input.
    """

    step: int
    asked: float
    sparsity: float
    layers: Mapping[str, float]
    params: int
    macs: int | None


@dataclass
class Pruner:
    """A recipe bound to one model by :func:`bind`; it holds names and numbers, never modules.

    Args:
        recipe: the recipe.
        schedule: its schedule with every share of the run turned into steps.
        units: what may be removed.
        parameters: number of parameters of the dense network.
        macs: multiply-accumulates of the dense network; None without an example input.
        observed: what a gradient criterion has seen since the last event.
        asked: the sparsity of the last event.
    """

    recipe: Recipe
    schedule: Schedule
    units: Units
    parameters: int
    macs: Macs | None
    observed: Observations = field(default_factory=Observations)
    asked: float = 0.0

    @property
    def is_finished(self) -> bool:
        """Whether the final sparsity has been asked for."""
        return self.asked >= schedules.final_sparsity(self.schedule)

    @property
    def is_watching(self) -> bool:
        """Whether a gradient criterion still has an event ahead."""
        return isinstance(self.recipe.criterion, GradientCriterion) and not self.is_finished

    @property
    def budget(self) -> Budget | None:
        """What "params" or "macs" count; None when the sparsity counts units."""
        if self.recipe.count == "macs" and self.macs is not None:
            return Budget(self.macs.total, self.macs.per_weight)
        if self.recipe.count == "params":
            return Budget(self.parameters, {n: float(torch.Size(s).numel()) for n, s in self.units.shapes.items()})
        return None

    def attach(self, model: nn.Module) -> None:
        """Put all-True masks on the parameters that this pruner masks; see :func:`masks.attach`."""
        masks.attach(model, self.units.shapes, is_structured=self.recipe.is_structured)

    def observe(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Let a gradient criterion see this step's gradients; any other criterion looks at nothing.

        Args:
            parameters: dense name -> parameter, of those that the stepping optimizer holds.
        """
        if isinstance(self.recipe.criterion, GradientCriterion):
            for name in self.units.shapes:
                if name in parameters:
                    self.observed.add(self.recipe.criterion, name, parameters[name])


def bind(
    recipe: Recipe, model: nn.Module, example_inputs: tuple[Any, ...] | None, total_steps: int | None = None
) -> Pruner:
    """Resolve a recipe on a model and refuse what cannot work, before the first step.

    Args:
        recipe: the recipe.
        model: dense or masked; left as it is.
        example_inputs: positional arguments of its forward; needed for Channel and for ``count="macs"``.
        total_steps: optimizer steps of the run; None when unknown.

    Raises:
        ValueError: targets, block sizes, shares of the run or the final sparsity cannot be met on this model.
        GraphError: the model cannot be traced with the example input.
    """
    if example_inputs is None and (recipe.is_structured or recipe.count == "macs"):
        name = type(model).__name__
        raise ValueError(
            f"{recipe.granularity} with count={recipe.count!r} needs an example input of {name}: set"
            f" {name}.example_input_array = torch.zeros(1, …), of the shape that its forward takes"
        )
    parameters = masks.dense_parameters(model)
    pruner = Pruner(
        recipe=recipe,
        schedule=schedules.resolve(recipe.schedule, total_steps),
        units=_units(recipe, model, example_inputs, parameters),
        parameters=sum(p.numel() for p in {id(p): p for p in parameters.values()}.values()),
        macs=None if example_inputs is None else measure_macs(model, example_inputs),
    )
    _check_reachable(pruner)
    return pruner


def _units(
    recipe: Recipe, model: nn.Module, example_inputs: tuple[Any, ...] | None, parameters: Mapping[str, nn.Parameter]
) -> Units:
    targets = recipe.targets.resolve(model)
    if isinstance(recipe.granularity, Granularity):
        for target in targets:
            recipe.granularity.check(target)
        return ElementUnits(recipe.granularity, targets)
    groups = _removable(channel_groups(model, example_inputs), targets, parameters)
    names = dict.fromkeys(member.parameter for group in groups for member in group.members)
    shapes = {name: tuple(parameters[name].shape) for name in names if name in parameters}
    return ChannelUnits(recipe.granularity, groups, shapes)


def _removable(
    groups: Sequence[ChannelGroup], targets: Sequence[Target], parameters: Mapping[str, nn.Parameter]
) -> tuple[ChannelGroup, ...]:
    """Return the prunable groups all of whose producing weights are targets."""
    names = {target.name for target in targets}

    def is_chosen(group: ChannelGroup) -> bool:
        made_by = {m.parameter for m in group.members if m.role == "output" and m.parameter in parameters}
        weights = {name for name in made_by if parameters[name].dim() > 1}
        return group.prunable and group.size > 1 and bool(weights) and weights <= names

    chosen = tuple(group for group in groups if is_chosen(group))
    if not chosen:
        raise ValueError(f"no channel of the chosen targets can be removed; the channel groups are\n{groups}")
    return chosen


def _check_reachable(pruner: Pruner) -> None:
    """Refuse a final sparsity that is not met even when everything goes that may go."""
    final = schedules.final_sparsity(pruner.schedule)
    if pruner.recipe.count is None and not pruner.recipe.is_structured:
        return
    most_removed = pruner.units.most_removable()
    left = _cost(pruner, most_removed)
    if left > _limit(pruner, final) + 1e-6:
        most = 1 - left / _cost(pruner, dict.fromkeys(most_removed, 0))
        raise ValueError(
            f"{pruner.schedule} asks for sparsity {final:g} of {pruner.recipe.count or 'channels'}, but the chosen"
            f" targets can give {most:.4f} at most; lower final_sparsity, min_channels or round_to, or widen the targets"
        )


def prune_step(
    pruner: Pruner,
    model: nn.Module,
    sparsity: float,
    carry: Callable[[Mapping[nn.Parameter, Tensor]], None] | None = None,
    step: int = 0,
) -> Event:
    """Prune a masked model to a cumulative sparsity: the whole corridor of one event.

    Args:
        pruner: a recipe bound to this model, whose masks the model carries.
        model: the model.
        sparsity: what to reach, in [0, 1), in what the recipe counts.
        carry: called with the masks by Parameter after the weights are zero, to carry the optimizers along.
        step: completed optimizer steps, for the record.

    Raises:
        NonFiniteError: a weight or score is NaN or infinite; nothing is changed then.

    Changes:
        masks and weights of the model, and what ``carry`` changes; the pruner's observations start anew.
    """
    current = masks.read(model)
    scores = Scores(pruner.recipe.criterion, _scored(pruner, model), pruner.observed, current)
    scores.check()
    candidates = pruner.units.candidates(scores, current)
    removed = allocate(pruner, candidates, sparsity)
    chosen = pruner.units.masks(candidates, removed, scores)
    masks.write(model, chosen)
    if carry is not None:
        carry(masks.masks_by_parameter(model))
    pruner.observed.clear()
    pruner.asked = sparsity
    return describe(pruner, model, step)


def _scored(pruner: Pruner, model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters whose scores count: the trainable ones among those with a mask."""
    parameters = masks.dense_parameters(model)
    return {name: parameters[name] for name in pruner.units.shapes if parameters[name].requires_grad}


def allocate(pruner: Pruner, candidates: Candidates, sparsity: float) -> dict[str, int]:
    """Return how many units go per target or channel group to reach this sparsity.

    Where the sparsity counts single weights, blocks or n:m blocks it is the share itself; where it counts channels,
    parameters or MACs, the smallest share is searched whose cost comes down to what may be left.
    """

    def spread(share: float) -> dict[str, int]:
        return pruner.units.removed(pruner.recipe.allocation(share, candidates), candidates)

    if isinstance(pruner.recipe.granularity, Granularity) and pruner.budget is None:
        share = sparsity / pruner.recipe.granularity.full_sparsity
        if share > 1 + 1e-9:
            raise PruningError(
                f"{pruner.recipe.granularity} cannot reach sparsity {sparsity:g}; it ends at {pruner.recipe.granularity.full_sparsity:g}"
            )
        return spread(min(share, 1.0))
    share = smallest_share(lambda s: _cost(pruner, spread(s)), _limit(pruner, sparsity), 0.5 / candidates.total)
    return spread(share)


def _cost(pruner: Pruner, removed: Mapping[str, int]) -> float:
    """Return what is left, in what the recipe counts, when so many units go."""
    if pruner.budget is not None:
        return pruner.budget.remaining(pruner.units.densities(removed))
    return _total(pruner) - sum(removed.values())


def _limit(pruner: Pruner, sparsity: float) -> float:
    """Return what may be left at this sparsity, in what the recipe counts."""
    if pruner.budget is not None:
        return pruner.budget.total * (1 - sparsity)
    return _total(pruner) - round(_total(pruner) * sparsity)


def _total(pruner: Pruner) -> int:
    return sum(pruner.units.sizes.values())


def describe(pruner: Pruner, model: nn.Module, step: int) -> Event:
    """Return the state of a masked model as the record of an event."""
    live = masks.read(model)
    left = {name: int(torch.count_nonzero(mask)) for name, mask in live.items()}
    densities = {name: left[name] / max(mask.numel(), 1) for name, mask in live.items()}
    macs = None if pruner.macs is None else Budget(pruner.macs.total, pruner.macs.per_weight).remaining(densities)
    if pruner.budget is None:
        sparsity = pruner.units.sparsity(live)
    else:
        sparsity = 1 - pruner.budget.remaining(densities) / pruner.budget.total
    return Event(
        step=step,
        asked=pruner.asked,
        sparsity=sparsity,
        layers={name: 1 - densities[name] for name, mask in live.items() if mask.dim() > 1},
        params=pruner.parameters - sum(mask.numel() - left[name] for name, mask in live.items()),
        macs=None if macs is None else round(macs),
    )
