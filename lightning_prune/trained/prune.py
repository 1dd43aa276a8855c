"""A trained model pruned in one call: no Trainer, no optimizer, the same recipe and the same corridor."""

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from tqdm import tqdm

from lightning_prune.compaction.finalization import finalize
from lightning_prune.compensation import Call, LeastSquares, Reconstruction, joined
from lightning_prune.compensation.least_squares import MIN_SAMPLES
from lightning_prune.criteria import Criterion, GradientCriterion, ObservingCriterion, scorable
from lightning_prune.data.batches import arguments_of, first_batches, loader_of
from lightning_prune.data.losses import Loss, check_loss, differentiable, loss_of, trainless_copy
from lightning_prune.data.metrics import (
    MetricLike,
    check_droppable,
    check_metric,
    evaluate,
    is_higher_better,
    named,
    spoken,
)
from lightning_prune.data.passes import Passes, own_random_state
from lightning_prune.errors import PruningError, ScoringError
from lightning_prune.guard import Guard
from lightning_prune.model import masks
from lightning_prune.model.example import Example, Inputs, example_of, learnt, remember, sample_count
from lightning_prune.model.summary import Summary, summarize
from lightning_prune.optimizer.policies import Mask
from lightning_prune.recipe import Recipe
from lightning_prune.run.binding import bind
from lightning_prune.run.event import Event
from lightning_prune.run.lines import staying
from lightning_prune.run.pruner import Pruner, prune_step
from lightning_prune.schedules import Schedule, resolve, timed
from lightning_prune.selection import ChannelUnits
from lightning_prune.selection.needs import Each
from lightning_prune.study.tried import Tried
from lightning_prune.trained._search import furthest, smallest
from lightning_prune.trained._whole import as_it_was
from lightning_prune.trained.pruned import Pruned
from lightning_prune.values import check_bool, check_number, check_whole

STEPS = 100
"""Optimizer steps that a share of the run stands for, where there is no run: a schedule's events become rounds."""

REPAIR = LeastSquares(samples=512, megabytes=256)
"""Where the recipe leaves it open. Beside no training there is more memory than at the events of one."""


def prune(
    model: nn.Module,
    recipe: Recipe,
    data: Iterable[Any] | Any,  # noqa: ANN401 - a LightningDataModule of either package
    *,
    loss: Loss | None = None,
    metric: MetricLike | None = None,
    measure_on: Iterable[Any] | Any | None = None,  # noqa: ANN401 - as data
    max_drop: float | None = None,
    higher_is_better: bool | None = None,
    trials: int = 8,
    example_inputs: Inputs | None = None,
    samples: int = 512,
    progress: bool = True,
) -> Pruned:
    """Prune a trained model without training it: score, cut, let what is left take over for what went, remove.

    A schedule with several events goes in as many rounds; shares of the run count as shares of 100 steps.

    Args:
        model: in any mode and on any device; it comes back in the same one.
        recipe: as for a fit. Policies of the optimizer do nothing. Where it leaves repair open, what is left of all
            units takes over for what went; with NoRepair() batch norms keep the statistics of the model before. Where
            it names no criterion, channels go by :class:`~lightning_prune.Reconstruction` if what is left is repaired
            and all of them can be scored so; otherwise what goes is chosen by Fisher with a loss, and by Magnitude
            without.
        data: batches of inputs, of pairs (inputs, targets) or of dicts, or a LightningDataModule, whose training data
            is taken. Labels are needed for criteria that watch gradients and for metrics alone.
        loss: ``loss(model, batch) -> scalar`` for criteria that watch gradients; None: the LightningModule's own
            ``training_step``.
        metric: a torchmetrics metric, or ``metric(model, batch) -> scalar``, over all of ``measure_on``; None: not
            measured.
        measure_on: data for the metric, such as a validation set that repair has not seen; None: those of ``data``.
        max_drop: how much worse the metric may become, in its own unit: 0.01 of an accuracy in [0, 1] is one point. The
            recipe then says how far it goes at most, and the smallest network within the drop is searched by halves:
            each is pruned from the dense model, repaired and measured. None: all the way.
        higher_is_better: of the metric; None: what a torchmetrics metric says, True for a function.
        trials: how many networks are tried at most.
        example_inputs: arguments of forward; None: the model's ``example_input_array``, else the first
            samples of the data.
        samples: how many samples are looked at, at most: for scores up to the end of a batch, for repair and
            :class:`~lightning_prune.Reconstruction` no more than they say themselves, and as one batch. Where batches
            have several shapes, those are looked at of the shape that most samples have, and a warning says how many.
        progress: whether a bar shows the rounds.

    Returns:
        What was done.

    Raises:
        TypeError: an argument or a batch is of another kind.
        ValueError: there are no data, too few for repair, or the recipe does not fit the model; nothing has changed.
        PruningError: the model carries masks, cannot run on the samples to look at, or no network is within the drop;
            nothing has changed.
        NonFiniteError: weights, scores, what enters a layer or the dense model's metric are NaN or infinite; nothing
            has changed.
        CompactionError: the compact model would compute something else; nothing has changed.

    Changes:
        the model: smaller layers (channels), zeros (single weights), repaired weights. It has no masks afterwards.
        Whatever is raised, an interrupt too, leaves it as it was.

    Example:
        >>> from lightning_prune import Channel, OneShot
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> data = [torch.randn(64, 8)]
        >>> recipe = Recipe(granularity=Channel(), schedule=OneShot(0.5))
        >>> pruned = prune(net, recipe, data, progress=False)
        >>> net[0].out_features, pruned.after.parameters
        (8, 108)
    """
    check(model, recipe, loss, metric, measure_on, samples, progress=progress)
    if isinstance(recipe.need, Each):
        raise ValueError(f"prune makes one network, and {recipe.need} needs several: call prune_each")
    guard = None
    if max_drop is not None:
        check_number("max_drop", max_drop, 0, why=": it is a drop of the metric, in its own unit")
        check_whole("trials", trials, 1, "networks")
        if higher_is_better is not None:
            check_bool("higher_is_better", higher_is_better)
        if metric is None:
            raise ValueError(
                f"max_drop={max_drop:g} is a drop of a metric, and none is named: pass metric=MulticlassAccuracy(10)"
                " of torchmetrics, or metric=lambda model, batch: …"
            )
        guard = Guard(named(metric), "max" if is_higher_better(metric, higher_is_better) else "min", max_drop)
    recipe = replace(recipe, repair=recipe.repair or REPAIR, optimizer_policy=Mask())
    # refused before the data are touched; where a need ends the schedule, the steps are all that is known here
    schedule = completed(recipe).schedule
    _rounds(schedule if recipe.need is None else timed(schedule).ending(0.5))
    with own_random_state():
        known = Known.of(model, recipe, data, loss, metric, measure_on, example_inputs, samples, progress=progress)
        if guard is None:
            known.doubt()
        elif metric is not None and known.measured is not None:
            check_droppable(metric, known.measured)
        with as_it_was(model) as whole:
            if guard is None or known.measured is None:
                pruned = known.cut(recipe)
            else:
                measured, before = known.measured, known.before
                counts = guard.max_drop, guard.mode == "max", before.parameters, before.macs
                dense = Tried(recipe.counted, guard.monitor, measured, *counts)
                far = furthest(completed(recipe), model, known.example, STEPS)
                pruned = smallest(recipe, known.cut, model, whole, far, guard, dense, trials, progress=progress)
            for text in (text for event in pruned.events for text in event.thin):
                warnings.warn(text, stacklevel=2)
            if example_of(model) is None:
                remember(model, known.example)  # so that it can be exported as it is
    return pruned


@dataclass(frozen=True, eq=False)
class Known:
    """A trained model, what it is pruned by, and what is known of it before.

    Args:
        model: dense.
        measuring: passes over the data for the metric.
        batches: the first of the data.
        inputs: the samples that repair and criteria look at, as one batch.
        example: of what forward takes.
        before: the model, by layers.
        loss: for criteria that watch gradients.
        metric: of the model.
        measured: its value.
        progress: whether a bar shows the rounds.
    """

    model: nn.Module
    measuring: Passes
    batches: list[Any]
    inputs: Example
    example: Example
    before: Summary
    loss: Loss | None
    metric: MetricLike | None
    measured: float | None
    progress: bool

    @classmethod
    def of(
        cls,
        model: nn.Module,
        recipe: Recipe,
        data: Iterable[Any] | Any,  # noqa: ANN401 - a LightningDataModule of either package
        loss: Loss | None,
        metric: MetricLike | None,
        measure_on: Iterable[Any] | Any | None,  # noqa: ANN401 - as data
        example_inputs: Inputs | None,
        samples: int,
        *,
        progress: bool,
    ) -> "Known":
        """Look at the data and measure the dense model; arguments and errors are those of :func:`prune`."""
        passes = Passes(loader_of(data), model)
        measuring = passes if measure_on is None else Passes(loader_of(measure_on), model)
        batches = first_batches(passes, samples)
        inputs = _looked_at(model, batches, samples, recipe)
        own = example_of(model) if example_inputs is None else Example.of(example_inputs)
        example = (learnt(inputs) if own is None else own).on_device_of(model)
        try:
            before = summarize(model, example)
        except ValueError as error:
            if own is not None:
                raise
            raise ValueError(
                f"{error}. These are the first samples that data gave: it must give batches of what forward takes, and"
                " of a list of single samples DataLoader(samples, batch_size=32) makes them"
            ) from error
        measured = None if metric is None else evaluate(trainless_copy(model), measuring, metric)
        return cls(model, measuring, batches, inputs, example, before, loss, metric, measured, progress)

    def doubt(self) -> None:
        """Warn of a metric that says nothing of the dense model, and so nothing of what pruning costs."""
        if self.metric is not None and self.measured is not None and not math.isfinite(self.measured):
            warnings.warn(
                f"{spoken(named(self.metric))} of the dense model is {self.measured}, so it cannot say what pruning"
                " costs: look at the metric, the weights and the data",
                stacklevel=3,
            )

    def cut(self, recipe: Recipe) -> Pruned:
        """Prune the model by a recipe, in eval mode; where it is left open, by the criterion that can score."""
        pruner = bind(completed(recipe), self.model, self.example, STEPS)
        pruner.attach(self.model)
        events, chosen_by = self.pruned(pruner, recipe)
        finalize(self.model, self.example)
        return self.told(self.model, pruner, events, chosen_by)

    def pruned(self, pruner: Pruner, recipe: Recipe) -> tuple[tuple[Event, ...], str]:
        """Prune the masked model in all rounds; return their records, and what chose in the last."""
        events: list[Event] = []
        refused = chosen_by = ""
        for step, sparsity in tqdm(
            _rounds(pruner.schedule), "pruning", unit="round", disable=not self.progress, leave=False
        ):
            try:
                event, criterion = self._event(pruner, step, sparsity)
            except ScoringError as error:
                if recipe.criterion is not None or events:
                    raise
                pruner, refused = replace(pruner, recipe=recipe), f", for {error}"
                event, criterion = self._event(pruner, step, sparsity)
            events.append(event)
            chosen_by = f"{criterion}{refused}"
        return tuple(events), chosen_by

    def told(self, model: nn.Module, pruner: Pruner, events: tuple[Event, ...], chosen_by: str) -> Pruned:
        """Return what was done to a model, measured."""
        metric = self.metric
        return Pruned(
            before=self.before,
            after=summarize(model, self.example),
            events=events,
            stayed=staying([pruner.units], {}, None) if isinstance(pruner.units, ChannelUnits) else {},
            chosen_by=chosen_by,
            metric="" if metric is None else named(metric),
            metric_before=self.measured,
            metric_after=None if metric is None else evaluate(trainless_copy(model), self.measuring, metric),
        )

    def _event(self, pruner: Pruner, step: int, sparsity: float) -> tuple[Event, Criterion | ObservingCriterion]:
        """Let a criterion that watches see all batches on a copy, then prune; return the record and what scored."""
        criterion, model = pruner.criterion, self.model
        if isinstance(criterion, ObservingCriterion) and not (pruner.recipe.criterion is None and self.loss is None):
            copied = trainless_copy(model)
            handles = pruner.watch(copied)
            try:
                for index, batch in enumerate(self.batches):
                    if isinstance(criterion, GradientCriterion):
                        copied.zero_grad()
                        differentiable(loss_of(copied, batch, index, self.loss), index).backward()
                        pruner.observe(masks.dense_parameters(copied))
                    else:
                        with torch.enable_grad():
                            arguments_of(copied, batch)(copied)
            finally:
                for handle in handles:
                    handle.remove()
        criterion = pruner.criterion_for(scorable(model, pruner.units.shapes, criterion))
        return prune_step(pruner, model, sparsity, step=step, inputs=Call("", self.inputs)), criterion


def check(
    model: nn.Module,
    recipe: Recipe,
    loss: Loss | None,
    metric: MetricLike | None,
    measure_on: object,
    samples: int,
    *,
    progress: bool,
) -> None:
    """Refuse what cannot be pruned, before the data are touched; arguments are those of :func:`prune`."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"prune(model, recipe, data): model must be an nn.Module, got {model!r:.80}")
    if not isinstance(recipe, Recipe):
        raise TypeError(
            "prune(model, recipe, data): recipe must be one Recipe(schedule=…), such as Recipe(granularity=Channel(),"
            f" schedule=OneShot(0.5)), got {recipe!r:.80}; of several call prune for each in turn"
        )
    name = type(model).__name__
    if lazy := [own for own, parameter in model.named_parameters() if is_lazy(parameter)]:
        raise ValueError(f"{lazy[0]} of {name} has no shape yet: run it on a batch first, model(inputs)")
    if meta := [own for own, parameter in model.named_parameters() if parameter.is_meta]:
        raise ValueError(
            f"{meta[0]} of {name} is on the meta device: bring the model to a device with its weights first"
        )
    if masks.is_masked(model):
        raise PruningError(f"{name} carries masks of another run: call finalize(model) first")
    if loss is not None or isinstance(recipe.criterion, GradientCriterion):
        check_loss(model, loss)
    check_whole("samples", samples, 1)
    check_bool("progress", progress)
    if metric is not None:
        check_metric(metric)
    elif measure_on is not None:
        raise ValueError("measure_on is data for a metric, and none is named: pass metric=, or leave measure_on out")


def _looked_at(model: nn.Module, batches: list[Any], samples: int, recipe: Recipe) -> Example:
    """Return the samples that repair and criteria look at, as one batch; warn of those that are left out."""
    arguments = [arguments_of(model, batch) for batch in batches]
    most = min(samples, recipe.samples or samples)
    inputs = joined(arguments, most)
    held = sum(sample_count((example.args, dict(example.kwargs))) for example in arguments)
    count = sample_count((inputs.args, dict(inputs.kwargs)))
    if recipe.samples and count < min(held, most):
        warnings.warn(
            f"repair and criteria look at {count} of the {held} samples, those of the most frequent shape ({inputs}):"
            " let the loader give one shape, or more batches of it",
            stacklevel=3,
        )
    if recipe.repairing is not None and count < MIN_SAMPLES:
        raise ValueError(
            f"{count} samples are too few for repair, which would fit their noise: give at least {MIN_SAMPLES}"
            " (some hundred are better), or write Recipe(…, repair=NoRepair())"
        )
    return inputs


def completed(recipe: Recipe) -> Recipe:
    """Return the recipe that is tried first.

    Where channels go and it names no criterion, what repair can make up for least stays. The first round comes after
    step 0, so that a criterion that watches has seen something.
    """
    if recipe.criterion is None and recipe.is_structured and recipe.repairing is not None:
        criterion = Reconstruction(samples=recipe.repairing.samples, rows=recipe.repairing.rows)
        recipe = replace(recipe, criterion=criterion)
    schedule = timed(recipe.schedule)
    is_at_once = dict(schedule.steps) == {"begin_step": 0}
    return replace(recipe, schedule=schedule.with_steps({"begin_step": 1})) if is_at_once else recipe


def _rounds(chosen: Schedule) -> list[tuple[int, float]]:
    """Return the step and sparsity of each event of a schedule."""
    try:
        schedule = resolve(chosen, STEPS)
    except ValueError as error:
        raise ValueError(
            f"{error}. There is no run here, and a share of it counts as one of {STEPS} steps: give begin and end both"
            " as shares, or both in steps"
        ) from error
    last = schedule.final_step
    if last is None:
        raise ValueError(f"{chosen} does not tell when it ends: take OneShot, Linear or another built-in one")
    due = [(step, schedule.due(step - 1, step)) for step in range(last + 1)]
    return [(step, sparsity) for step, sparsity in due if sparsity is not None and sparsity > 0]
