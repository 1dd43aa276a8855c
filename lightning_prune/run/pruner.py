"""One pruning event: a recipe bound to a model, and the step from a sparsity to masks, weights and a record."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_prune.compaction import Compaction
from lightning_prune.compensation import Call, record, record_or_say, refit, usual
from lightning_prune.criteria import (
    ActivationCriterion,
    Criterion,
    Fisher,
    GradientCriterion,
    Magnitude,
    Observations,
    ObservingCriterion,
    SampleCriterion,
    Scores,
    Seen,
    scorable,
    watch,
)
from lightning_prune.distributed import ranks, shards
from lightning_prune.distributed.threads import on_threads, one_thread
from lightning_prune.errors import PruningError
from lightning_prune.model import masks
from lightning_prune.model.summary import Macs
from lightning_prune.optimizer.policies import as_policies
from lightning_prune.recipe import Recipe
from lightning_prune.run.bound import BoundModel
from lightning_prune.run.event import Event, thin
from lightning_prune.run.progress import Progress
from lightning_prune.schedules import TimedSchedule
from lightning_prune.selection import ChannelUnits, Masks, Units
from lightning_prune.selection.allocation import Candidates, Global, Uniform
from lightning_prune.selection.budget import Budget, smallest_share
from lightning_prune.selection.costs import progress, widths_within
from lightning_prune.selection.counts import means
from lightning_prune.selection.granularity import Channel, Granularity
from lightning_prune.selection.needs import Bound, aimed_at, final_sparsity


@dataclass(frozen=True, eq=False)
class Pruner:
    """A recipe bound to a model by :func:`lightning_prune.run.binding.bind`; it holds names and numbers, not modules.

    It stays as it is through a run, but for its progress.

    Args:
        recipe: the recipe.
        schedule: its schedule with every share of the run turned into steps.
        units: what may be removed.
        parameters: number of parameters of the dense network.
        macs: multiply-accumulates of the dense network; None without an example input.
        progress: how far it has come.
        others: channels that other recipes remove in the same run.
        needs: what the recipe needs of this model.
        base: the removals that had shaped the model when it was bound; names, shapes and costs are of that model.
    """

    recipe: Recipe
    schedule: TimedSchedule
    units: Units
    parameters: int
    macs: Macs | None
    progress: Progress = field(default_factory=Progress)
    others: tuple[ChannelUnits, ...] = ()
    needs: tuple[Bound, ...] = ()
    base: Compaction | None = None

    @property
    def asked(self) -> float:
        """The sparsity of the last event."""
        return self.progress.asked

    def at(self, sparsity: float) -> "Pruner":
        """Return the pruner of an event to this sparsity: where each need has a network, it aims at the next."""
        needs = aimed_at(self.recipe.need, self.needs, sparsity)
        return replace(self, needs=needs, schedule=self.schedule.ending(final_sparsity(needs))) if needs else self

    @property
    def observed(self) -> Observations:
        """What an observing criterion has seen since then."""
        return self.progress.observed

    @property
    def is_finished(self) -> bool:
        """Whether the final sparsity has been asked for."""
        return self.asked >= self.schedule.final

    @property
    def is_watching(self) -> bool:
        """Whether an observing criterion still has an event ahead."""
        return isinstance(self.criterion, ObservingCriterion) and not self.is_finished

    @property
    def criterion(self) -> Criterion | ObservingCriterion:
        """What watches the run: the recipe's, or where it leaves that open, what scores by gradients."""
        return Fisher() if self.recipe.criterion is None else self.recipe.criterion

    def criterion_for(self, weights: Collection[str]) -> Criterion | ObservingCriterion:
        """Return what scores these parameters: where the recipe leaves it open, Magnitude unless all have been seen."""
        if self.recipe.criterion is None and not self.observed.sums.keys() >= set(weights):
            return Magnitude()
        return self.criterion

    @property
    def has_open_floor(self) -> bool:
        """Whether the share that each channel group keeps was not asked for, and gives way where it has to."""
        return isinstance(self.recipe.granularity, Channel) and self.recipe.granularity.min_share is None

    @property
    def budgets(self) -> dict[str, Budget]:
        """What "params" and, with an example input, "macs" count."""
        sizes = {name: float(torch.Size(shape).numel()) for name, shape in self.units.shapes.items()}
        macs = self.macs and Budget(self.macs.total, self.macs.of_parameters(sizes))
        return {"params": Budget(self.parameters, sizes)} | ({} if macs is None else {"macs": macs})

    @property
    def budget(self) -> Budget | None:
        """What the recipe counts: "params" or "macs"; None when the sparsity counts units."""
        return self.budgets.get(self.recipe.count or "")

    @cached_property
    def unit_costs(self) -> dict[str, dict[str, float]]:
        """Return "params" and "macs" -> target or channel group -> what the first of its units to go saves."""
        none = dict.fromkeys(self.units.sizes, 0)
        first = {name: self.units.densities(none | {name: 1}) for name, size in self.units.sizes.items() if size}
        return {
            kind: {name: budget.total - budget.remaining(densities) for name, densities in first.items()}
            for kind, budget in self.budgets.items()
        }

    def candidates(self, scores: Scores, live: Masks, seen: Seen | None = None) -> Candidates:
        """Return the units that may be removed, with what each costs; masks in the shapes of the bound model.

        Gradients tell the loss, which compares as it is, also per cost. Any other score of a channel grows with number
        and scale of the weights that go with it, so it counts in parts of the mean of its group in the dense network.
        """
        candidates = replace(self.units.candidates(scores, live, self.in_play(live)), costs=self.unit_costs)
        if seen is not None and seen.channels:
            candidates = replace(candidates, scores=seen.of_channels(candidates.scores))
        if not self.recipe.is_structured:
            return candidates
        if scores.are_losses:
            cost = None if self.recipe.count == "channels" else self.recipe.count
            return replace(candidates, default=Global(cost=cost))
        known = self.progress.scales
        return replace(candidates, scales=means(candidates) if known is None else known, default=Uniform())

    def in_play(self, live: Masks) -> dict[str, Tensor]:
        """Return the weights that have not left with another recipe's channels, where some could: True = in play."""
        inside: dict[str, Tensor] = {}
        for units in self.others:
            for name, left in units.left(live).items():
                if name in self.units.shapes:
                    left = left.to(live[name].device)
                    inside[name] = inside[name] & left if name in inside else left
        return inside

    def state_dict(self) -> dict[str, Any]:
        """Return what was asked and observed, the steps of the schedule, and the names of the units' channel groups."""
        return {
            "asked": self.asked,
            "sums": {name: shards.whole(total) for name, total in self.observed.sums.items()},
            "steps": self.observed.steps,
            "past": sorted(self.observed.past),
            "groups": self.units.chosen(),
            "schedule": self.schedule.steps,
            "scales": self.progress.scales,
            "min_share": self.units.granularity.min_share if isinstance(self.units, ChannelUnits) else None,
        }

    def restored(self, state: Mapping[str, Any], model: nn.Module) -> "Pruner":
        """Return the pruner of which :meth:`state_dict` was taken: of the same channel groups, with the same events.

        Raises:
            CheckpointError: the model has no such channel groups.

        Changes:
            the progress, which both share.
        """
        parameters = masks.dense_parameters(model)
        sums = dict(state["sums"])
        if not isinstance(self.criterion, ActivationCriterion):  # inputs are whole on every rank
            sums = {name: shards.sharded_like(total, parameters[name]) for name, total in sums.items()}
        # in place: hooks on the layers of an activation criterion hold it, and a guard restores while they are there
        self.progress.asked = state["asked"]
        self.progress.observed = Observations(sums, dict(state["steps"]), set(state["past"]))
        self.progress.scales = state.get("scales", {})  # a run from before there were any goes on without
        units = self.units.only(state["groups"], parameters)
        if isinstance(units, ChannelUnits):
            units = units.keeping(state.get("min_share", 0.0))
        return replace(self, schedule=self.schedule.with_steps(state["schedule"]), units=units)

    def attach(self, model: nn.Module) -> None:
        """Put all-True masks on the parameters that this pruner masks; see :func:`masks.attach`."""
        masks.attach(model, self.units.shapes, is_structured=self.recipe.is_structured)

    def observe(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Let a gradient criterion see this step's gradients; any other criterion looks at nothing.

        Args:
            parameters: dense name -> parameter, of those that the stepping optimizer holds.
        """
        if isinstance(self.criterion, GradientCriterion):
            for name in self.units.shapes:
                if name in parameters:
                    self.observed.add(self.criterion, name, parameters[name])

    def watch(self, model: nn.Module) -> list[RemovableHandle]:
        """Let an activation criterion see what enters the layers from now on, while gradients are recorded.

        Any other criterion looks at nothing. Removing the handles ends it.
        """
        criterion = self.criterion
        if not isinstance(criterion, ActivationCriterion):
            return []

        def see(name: str, layer: nn.Module, inputs: Tensor) -> None:
            if self.is_watching:
                self.observed.see(criterion, name, layer, inputs)

        return watch(model, self.units.shapes, see)


def prune_step(
    pruner: Pruner,
    model: nn.Module,
    sparsity: float,
    carry: Callable[[Mapping[nn.Parameter, Tensor]], None] | None = None,
    step: int = 0,
    inputs: Call | None = None,
    unrepaired: str = "",
) -> Event:
    """Prune a masked model to a cumulative sparsity: the whole corridor of one event.

    Args:
        pruner: a recipe bound to this model, whose masks the model carries.
        model: the model.
        sparsity: what to reach, in [0, 1), in what the recipe counts.
        carry: called with the masks by Parameter after the weights are zero, to carry the optimizers along.
        step: completed optimizer steps, for the record.
        inputs: run the model on the samples that the recipe looks at; None: there are none.
        unrepaired: why nothing can be repaired with them; empty where it can.

    Raises:
        NonFiniteError: a weight, a score or what enters a layer is NaN or infinite; nothing is changed then.
        PruningError: a target lost its mask, since its module was replaced; nothing is changed then. Or another rank
            failed, or the masks of the ranks differ: then it is raised on all of them.

    Changes:
        masks and weights of the model, and what ``carry`` changes; the pruner's observations start anew.
    """
    # where samples run through the model, products of whole matrices are worth all threads
    threads, wanted, repairs = torch.get_num_threads(), {}, []
    with ranks.together(f"the pruning event of step {step}"), one_thread():
        shards.reshard(model)
        check_masked(pruner, model)
        bound, weights = BoundModel(model, pruner.base), scorable(model, pruner.units.shapes, pruner.criterion)
        pruner.observed.agree()
        criterion, units = pruner.criterion_for(weights), pruner.units
        repair = None if unrepaired else pruner.recipe.repairing
        with on_threads(threads):
            columns = bound.columns(units) if isinstance(units, ChannelUnits) and inputs is not None else {}
            if isinstance(criterion, SampleCriterion):
                criterion = criterion.look(model, inputs, list(units.sizes if columns else weights), columns)
            if inputs is not None and repair is not None:
                if pruner.recipe.repair is None:
                    wanted, unrepaired = record_or_say(model, inputs, repair)
                else:
                    wanted = record(model, inputs, repair)
                if wanted and columns and pruner.recipe.is_open:
                    criterion = usual(model, inputs, list(units.sizes), columns, repair) or criterion
        scores = bound.scores(criterion, weights, pruner.observed)
        scores.check()
        candidates = pruner.candidates(scores, bound.masks(), criterion if isinstance(criterion, Seen) else None)
        removed = allocate(pruner.at(sparsity), candidates, sparsity)
        ranks.check_same(removed, "number of removed units")
        bound.write(pruner.units.masks(candidates, removed, scores))
        if inputs is not None and repair is not None and wanted:
            with on_threads(threads):
                repairs = refit(model, inputs, wanted, repair)
        if carry is not None:
            carry(masks.masks_by_parameter(model))
        masks.check_same(model)
    pruner.progress.asked = sparsity
    if pruner.progress.scales is None and candidates.scales:
        pruner.progress.scales = candidates.scales
    if pruner.is_finished:
        pruner.observed.clear()
    else:
        pruner.observed.start_anew()
    bottlenecks = thin(candidates, removed, sparsity, pruner.recipe.granularity)
    unrepaired = "" if pruner.recipe.repairing is None else unrepaired
    return replace(describe(pruner, model, step), repairs=tuple(repairs), thin=bottlenecks, unrepaired=unrepaired)


def check_masked(pruner: Pruner, model: nn.Module) -> None:
    """Raise PruningError where a parameter that this pruner masks is no longer there or has no mask of its shape.

    The same where it is sharded over the ranks in a way that this recipe cannot work on.
    """
    live, bound = masks.read(model), BoundModel(model, pruner.base)
    for name, first in pruner.units.shapes.items():
        shape_now, shape = tuple(live[name].shape) if name in live else None, bound.shape_now(name, first)
        if shape_now != shape:
            raise PruningError(
                f"{name} had a mask of shape {shape} when pruning was set up and now has"
                f" {f'one of shape {shape_now}' if shape_now else 'none'}: its module was replaced. Replace modules"
                " before, in __init__ or configure_model"
            )
    spread = shards.spread_of(scorable(model, pruner.units.shapes, pruner.criterion))
    if spread.is_sharded:
        policy, looking = pruner.recipe.optimizer_policy, pruner.recipe.looking
        is_kept = any(each.keeps_weights for each in as_policies(policy))
        if is_kept or looking is not None:
            raise PruningError(
                f"{f'{policy} keeps' if is_kept else f'{looking} looks at'} whole weights, and"
                f" {next(iter(spread.rows))} is sharded over several ranks: leave it out, or train with DDP"
            )
        pruner.units.check_spread(spread)


def allocate(pruner: Pruner, candidates: Candidates, sparsity: float) -> dict[str, int]:
    """Return how many units go per target or channel group to reach this sparsity.

    Of single weights, blocks or n:m blocks it is the share itself; where something else counts, the smallest share is
    searched whose cost comes down to what may be left.
    """

    def spread(share: float) -> dict[str, int]:
        return pruner.units.removed(allocation(share, candidates), candidates)

    allocation = pruner.recipe.allocation or candidates.default
    if isinstance(pruner.recipe.granularity, Granularity) and pruner.budget is None:
        full = pruner.recipe.granularity.full_sparsity
        if sparsity / full > 1 + 1e-9:
            raise PruningError(f"{pruner.recipe.granularity} cannot reach sparsity {sparsity:g}; it ends at {full:g}")
        return spread(min(sparsity / full, 1.0))
    units, limit = pruner.units, cost_limit(pruner, sparsity)
    try:
        is_open = pruner.recipe.allocation is None and isinstance(allocation, Global)
        if pruner.needs and is_open and isinstance(units, ChannelUnits):
            return widths_within(units, candidates, pruner.needs, sparsity / pruner.schedule.final)[0]
        share = smallest_share(lambda s: cost_left(pruner, spread(s)), limit, 0.5 / candidates.total)
    except ValueError:
        # an allocation may spare what the budget needs; the floor that nobody asked for gives way to it
        if not (isinstance(units, ChannelUnits) and pruner.has_open_floor and units.granularity.min_share):
            raise
        return allocate(replace(pruner, units=units.keeping(0.0)), candidates, sparsity)
    return spread(share)


def cost_left(pruner: Pruner, removed: Mapping[str, float]) -> float:
    """Return what is left, in what the recipe counts, when so many units go; with needs the share of the way."""
    if pruner.needs:
        return 1 - final_sparsity(pruner.needs) * progress(pruner.needs, removed)
    if pruner.budget is not None:
        return pruner.budget.remaining(pruner.units.densities(removed))
    return sum(pruner.units.sizes.values()) - sum(removed.values())


def cost_limit(pruner: Pruner, sparsity: float) -> float:
    """Return what may be left at this sparsity, in what the recipe counts."""
    if pruner.needs or pruner.budget is not None:
        return (1 - sparsity) * (1.0 if pruner.budget is None else pruner.budget.total)
    total = sum(pruner.units.sizes.values())
    return total - round(total * sparsity)


def describe(pruner: Pruner, model: nn.Module, step: int) -> Event:
    """Return the state of a masked model as the record of an event."""
    pruner, first = pruner.at(pruner.asked), masks.first_names(model)
    live = BoundModel(model, pruner.base).masks()
    live = {name: mask for name, mask in live.items() if first[name] == name}
    gone = pruner.units.gone(live) if isinstance(pruner.units, ChannelUnits) and pruner.needs else {}
    sparsity, live = pruner.units.standing(live, pruner.in_play(live))
    left = {name: int(torch.count_nonzero(mask)) for name, mask in live.items()}
    densities = {name: left[name] / max(mask.numel(), 1) for name, mask in live.items()}
    macs = pruner.budgets["macs"].remaining(densities) if pruner.macs else None
    if pruner.needs:
        sparsity = float(1 - cost_left(pruner, {name: int(own.sum()) for name, own in gone.items()}))
    elif pruner.budget is not None:
        sparsity = 1 - pruner.budget.remaining(densities) / pruner.budget.total
    return Event(
        step=step,
        asked=pruner.asked,
        sparsity=sparsity,
        layers={name: 1 - densities[name] for name, mask in live.items() if mask.dim() > 1},
        params=pruner.parameters - sum(mask.numel() - left[name] for name, mask in live.items()),
        macs=None if macs is None else round(macs),
    )
