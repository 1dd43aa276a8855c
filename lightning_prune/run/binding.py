"""Binds a recipe to a model and refuses what cannot work, before the first step."""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from lightning_prune import schedules
from lightning_prune.compaction import applied_plan, inexact
from lightning_prune.compensation import LastInputs
from lightning_prune.criteria import ActivationCriterion, ObservingCriterion, SampleCriterion, watched
from lightning_prune.distributed import shards
from lightning_prune.errors import NonFiniteError
from lightning_prune.graph import ChannelGroup, ChannelGroups, channel_groups
from lightning_prune.graph.lowered import activations
from lightning_prune.model import masks
from lightning_prune.model.computed import sources
from lightning_prune.model.example import Example, Inputs, tensors_in
from lightning_prune.model.summary import measure_macs, single
from lightning_prune.recipe import Recipe
from lightning_prune.run.lines import stay_line, staying
from lightning_prune.run.pruner import Pruner, cost_left, cost_limit
from lightning_prune.selection import ChannelUnits, ElementUnits, Units
from lightning_prune.selection.budget import smallest_share
from lightning_prune.selection.costs import UnitCosts
from lightning_prune.selection.granularity import Channel, Granularity
from lightning_prune.selection.needs import Each, as_needs, bound_to, final_sparsity, next_stop
from lightning_prune.selection.targets import Target, Targets, recurrent_weights
from lightning_prune.tables import reasons

log = logging.getLogger(__name__)

_RESOLUTION = 1e-4
"""Of shares of a group's channels: one channel in ten thousand."""


def bind(recipe: Recipe, model: nn.Module, example_inputs: Inputs | None, total_steps: int | None = None) -> Pruner:
    """Resolve a recipe on a model and refuse what cannot work, before the first step.

    Args:
        recipe: the recipe.
        model: dense or masked; left as it is.
        example_inputs: arguments of its forward; needed for Channel and for ``count="macs"``.
        total_steps: optimizer steps of the run; None when unknown.

    Raises:
        ValueError: targets, block sizes, shares of the run or the final sparsity cannot be met on this model.
        GraphError: the model cannot be traced with the example input.
    """
    if example_inputs is None and recipe.needs_example:
        name = type(model).__name__
        raise ValueError(
            f"{recipe.granularity} with count={recipe.count!r} needs an example input of {name}: set"
            f" {name}.example_input_array = torch.zeros(1, …), of the shape that its forward takes, or a tuple"
        )
    parameters = masks.dense_parameters(model)
    pruner = Pruner(
        recipe=recipe,
        schedule=schedules.resolve(recipe.schedule, total_steps),
        units=units_of(recipe.granularity, recipe.targets, model, example_inputs),
        parameters=sum(p.numel() for p in set(parameters.values()) if not is_lazy(p)),
        macs=None if example_inputs is None else measure_macs(model, example_inputs),
        base=applied_plan(model),
    )
    pruner = _with_needs(pruner, model, example_inputs)
    counts_whole_network = bool(pruner.needs) or recipe.count in ("params", "macs")
    if recipe.targets == Targets() and not counts_whole_network:
        _tell_what_is_left_out(model, recipe.targets.resolve(model, with_computed=recipe.is_structured))
    final = pruner.schedule.final
    if recipe.count is not None or recipe.is_structured:
        most_removed = pruner.units.most_removable()
        left = cost_left(pruner, most_removed)
        if left > cost_limit(pruner, final) + 1e-6:
            if pruner.needs:
                bound = max(pruner.needs, key=lambda one: one.cost.left(most_removed) / one.limit)
                least, asked, dense = bound.cost.left(most_removed), bound.limit, bound.cost.total
                holders = list(bound.cost.holders(most_removed).items())[:3]
                held = ", ".join(f"{name} ({bound.need.amount(cost)})" for name, cost in holders)
                stay = stay_line(staying([pruner.units], {}, None)) if isinstance(pruner.units, ChannelUnits) else ""
                raise ValueError(
                    f"{bound.need} cannot be met: {bound.need.amount(least)} is the least that can be reached (asked"
                    f" {bound.need.amount(asked)}, dense {bound.need.amount(dense)}). Most of it is held by"
                    f" {held}. Let more be left, lower min_channels, min_share or round_to where they are set, or widen"
                    f" the targets{stay and '. '}{stay}"
                )
            most = 1 - left / cost_left(pruner, dict.fromkeys(most_removed, 0))
            raise ValueError(
                f"{recipe.schedule} asks for sparsity {final:g} of {recipe.count or 'channels'}, but the chosen"
                f" targets can give {most:.4f} at most; lower final_sparsity, min_channels, min_share or round_to, or"
                " widen the targets"
            )
    pruner = _with_floor(pruner)
    criterion = recipe.criterion
    if isinstance(criterion, ObservingCriterion | SampleCriterion) and pruner.schedule.due(-1, 0):
        raise ValueError(
            f"{criterion} watches the {criterion.watches}s of the steps before an event, and {recipe.schedule}"
            " prunes before the first step; let begin_step be at least 1"
        )
    check_seen(criterion, pruner.units, model)
    return pruner


def _with_needs(pruner: Pruner, model: nn.Module, example_inputs: Inputs | None) -> Pruner:
    """Return the pruner with the needs of its recipe counted on the model, and a schedule that ends at them."""
    units, macs, first = pruner.units, pruner.macs, masks.first_names(model)
    if pruner.recipe.need is None or macs is None or example_inputs is None or not isinstance(units, ChannelUnits):
        return pruner
    example = Example.of(example_inputs)
    sizes = {
        name: (parameter.numel(), parameter.dim())
        for name, parameter in masks.dense_parameters(model).items()
        if first[name] == name and not is_lazy(parameter)
    }
    computing = {name: float(own) for name, own in macs.of_parameters(units.shapes).items()}
    inputs = tuple(tuple(x.shape) for x in tensors_in((example.args, dict(example.kwargs))))
    running = partial(activations, model, single(model, example).on_device_of(model))
    costs = UnitCosts(units, pruner.parameters, sizes, computing, macs.total, inputs, running)
    needs = bound_to(as_needs(pruner.recipe.need), costs)
    pruner = replace(pruner, needs=needs, schedule=pruner.schedule.ending(final_sparsity(needs)))
    if isinstance(pruner.recipe.need, Each):
        if met := [need for need in pruner.recipe.need.needs if not any(own.need == need for own in needs)]:
            raise ValueError(f"the network meets {met[0]} as it is, and Each makes another for it: leave it out")
        come, last = 0.0, pruner.schedule.final_step
        for step in range(0 if last is None else last + 1):
            asked = pruner.schedule.due(step - 1, step)
            if asked is not None and asked > come:
                come = min(asked, next_stop(pruner.recipe.need, needs, come))
        if last is not None and come < pruner.schedule.final:
            raise ValueError(
                f"{pruner.recipe.schedule} has too few events to stop at each of {len(needs)} networks, and train it"
                " until the next: more events, by a lower frequency, or over more steps"
            )
    return pruner


def _with_floor(pruner: Pruner) -> Pruner:
    """Return the pruner with the share that each channel group keeps, where the recipe leaves it open.

    It is half of what the same share everywhere would leave at the end. Where widths are bounded otherwise, and the
    budget could not be met with that, it is as much less as it takes.
    """
    units, limit = pruner.units, cost_limit(pruner, pruner.schedule.final)
    if not isinstance(units, ChannelUnits) or units.granularity.min_share is not None:
        return pruner

    def left_at(removed: float) -> float:
        return cost_left(pruner, {name: removed * size for name, size in units.sizes.items()})

    def least_left(given_up: float) -> float:
        return cost_left(pruner, units.keeping(half * (1 - given_up)).most_removable())

    half = (1 - smallest_share(left_at, limit, _RESOLUTION)) / 2
    return replace(pruner, units=units.keeping(half * (1 - smallest_share(least_left, limit, _RESOLUTION))))


def units_of(
    granularity: Granularity | Channel, chosen: Targets, model: nn.Module, example_inputs: Inputs | None
) -> Units:
    """Return the units of a model that may be removed; arguments and errors are those of :func:`bind`."""
    targets = chosen.resolve(model, with_computed=isinstance(granularity, Channel))
    if isinstance(granularity, Granularity):
        for target in targets:
            granularity.check(target)
        if not any(granularity.within(target) for target in targets):
            named = ", ".join(f"{target.name} of shape {target.shape}" for target in targets)
            raise ValueError(f"{granularity} has no full unit in {named}; choose a smaller one or other targets")
        return ElementUnits(granularity, targets)
    parameters = masks.dense_parameters(model)
    example = Example() if example_inputs is None else Example.of(example_inputs)
    found = channel_groups(model, example, allow_inexact=granularity.allow_inexact, attention=granularity.attention)
    removable, left_out = _removable(model, found, targets, parameters)
    groups, refused = _tried(model, found, removable, example)
    names = dict.fromkeys(member.parameter for group in groups for member in group.members)
    shapes = {name: tuple(parameters[name].shape) for name in names if name in parameters}
    return ChannelUnits(granularity, groups, shapes, found, left_out | refused)


def _tell_what_is_left_out(model: nn.Module, targets: Sequence[Target]) -> None:
    """Warn where the default targets hold less than half of the weights: the sparsity is that of the targets."""
    names, first = {target.name for target in targets}, masks.first_names(model)
    weights = {
        n: p for n, p in masks.dense_parameters(model).items() if first[n] == n and not is_lazy(p) and p.dim() > 1
    }
    others = sorted((p.numel(), name) for name, p in weights.items() if name not in names)
    held = sum(weights[name].numel() for name in names & weights.keys())
    whole = held + sum(size for size, _ in others)
    if held < whole / 2:
        largest = others[-1][1]
        if not weights[largest].requires_grad:
            why, advice = "it is frozen", "Unfreeze it"
        elif isinstance(masks.locate(model, largest)[0], nn.Embedding):
            why, advice = "embeddings are chosen by name", f"Write Targets(include=('*', {largest!r}))"
        else:
            why, advice = "it is no weight of a layer of torch's", f"Write Targets(include=('*', {largest!r}))"
        warnings.warn(
            f"the targets hold {held / whole:.0%} of the weights of {type(model).__name__}, and the sparsity is that of"
            f" the targets: {largest} is none, since {why}. {advice}, or name the targets that you mean",
            stacklevel=2,
        )


def _removable(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    targets: Sequence[Target],
    parameters: Mapping[str, nn.Parameter],
) -> tuple[tuple[ChannelGroup, ...], dict[str, str]]:
    """Return the prunable groups all of whose producing weights are targets, and why the other prunable ones stay.

    A parameter that is only added or multiplied, such as a layer scale or a class token, produces nothing.
    """
    names = {target.name for target in targets}
    for own in recurrent_weights(model):
        # The hidden units of a recurrent layer are made by all of its weights at once: one of them stands for all.
        names |= set(own) if names.intersection(own) else set()
    reading = {m.parameter for group in groups for m in group.members if m.role == "input"}
    layers = {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Embedding | nn.Linear | _ConvNd)
        for name in (*module._parameters, *sources(module))
    }
    chosen: list[ChannelGroup] = []
    stay: dict[str, str] = {}
    for group in groups:
        made_by = {m.parameter for m in group.members if m.role == "output" and m.parameter in parameters}
        weights = {name for name in made_by & (reading | layers | names) if parameters[name].dim() > 1}
        if not group.prunable:
            continue
        if not (group.size > 1 and weights & names):
            stay[group.name] = "no target" if group.size > 1 else "a single channel"
        elif lacking := sorted(weights - names):
            stay[group.name] = f"{lacking[0]} makes its channels too and is no target"
            log.warning("channel group %s stays: %s", group.name, stay[group.name])
        else:
            chosen.append(group)
    if not chosen:
        raise ValueError(f"no channel of the chosen targets can be removed; the channel groups are\n{groups}")
    return tuple(chosen), stay


def _tried(
    model: nn.Module, found: ChannelGroups, chosen: tuple[ChannelGroup, ...], example: Example
) -> tuple[tuple[ChannelGroup, ...], dict[str, str]]:
    """Return the groups that can go on a copy, exactly or with leave to change; why others stay, and warn of that."""
    stay: dict[str, str] = {}
    left = [group.name for group in chosen]
    while refused := inexact(model, found, left, (example.args, example.kwargs)):
        stay |= refused
        left = [name for name in left if name not in stay]
    if not left:
        raise ValueError(f"no channel of the chosen targets can be removed exactly:\n{reasons(stay)}")
    if stay:
        warnings.warn(
            f"the channels of {len(stay)} groups stay, because removing them is not exact:\n{reasons(stay)}",
            stacklevel=2,
        )
    return tuple(group for group in chosen if group.name in left), stay


def last_inputs(recipes: Sequence[Recipe], is_near: Callable[[int], bool]) -> LastInputs:
    """Return what keeps the samples of the last steps that these recipes look at.

    Args:
        recipes: of a run.
        is_near: number of optimizer steps -> whether an event comes within so many that looks at samples.
    """
    bounds = [None if recipe.repairing is None else recipe.repairing.megabytes for recipe in recipes if recipe.samples]
    known = [bound for bound in bounds if bound is not None]
    return LastInputs(
        max((recipe.samples for recipe in recipes), default=0),
        is_near,
        megabytes=max(known) if bounds and len(known) == len(bounds) else None,
        is_asked=any(recipe.looking is not None for recipe in recipes),
    )


def check_finite(model: nn.Module) -> None:
    """Refuse a model whose values are broken before the first step.

    Raises:
        NonFiniteError: a parameter or buffer is NaN or infinite.
    """
    broken = [
        name
        for name, tensor in masks.dense_names(model).items()
        if tensor.is_floating_point() and not is_lazy(tensor) and not bool(torch.isfinite(shards.local(tensor)).all())
    ]
    if broken:
        raise NonFiniteError(
            f"{', '.join(broken[:5])} of {type(model).__name__} is NaN or infinite before the first step; nothing was"
            " pruned. Load other weights, or mend the initialisation"
        )


def check_seen(criterion: object, units: Units, model: nn.Module) -> None:
    """Refuse single weights that meet no activation where the criterion watches activations.

    Raises:
        ValueError: a target is not the weight of a layer that is called.
    """
    if isinstance(criterion, ActivationCriterion) and isinstance(units, ElementUnits):
        unseen = sorted(set(units.weights) - dict(watched(model)).keys())
        if unseen:
            raise ValueError(
                f"{criterion} watches what enters Linear and convolution layers, and {unseen[0]} belongs to none that"
                " is called; exclude it, or take another criterion"
            )
