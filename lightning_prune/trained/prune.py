"""A trained model pruned in one call: no Trainer, no optimizer, the same recipe and the same corridor."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from tqdm import tqdm

from lightning_prune.compaction.finalization import finalize
from lightning_prune.compaction.resize import set_tensor
from lightning_prune.compensation import Call, LeastSquares, Reconstruction, Repair, joined
from lightning_prune.compensation.least_squares import MIN_SAMPLES
from lightning_prune.criteria import Criterion, GradientCriterion, ObservingCriterion, scorable
from lightning_prune.data.batches import arguments_of, first_batches, loader_of
from lightning_prune.data.losses import Loss, check_loss, differentiable, loss_of, trainless_copy
from lightning_prune.data.metrics import MetricLike, check_metric, evaluate, named
from lightning_prune.data.passes import Passes, own_random_state
from lightning_prune.errors import PruningError, ScoringError
from lightning_prune.model import masks
from lightning_prune.model.example import Example, Inputs, example_of, learnt, remember, sample_count
from lightning_prune.model.summary import Summary, as_evaluated, summarize
from lightning_prune.optimizer.policies import Mask
from lightning_prune.recipe import Recipe
from lightning_prune.run.binding import bind
from lightning_prune.run.event import Event
from lightning_prune.run.lines import stay_line, staying
from lightning_prune.run.pruner import Pruner, prune_step
from lightning_prune.schedules import Schedule, resolve, timed
from lightning_prune.selection import ChannelUnits
from lightning_prune.values import check_whole

_STEPS = 100
"""Optimizer steps that a share of the run stands for, where there is no run: a schedule's events become rounds."""

REPAIR = LeastSquares(samples=512, megabytes=256)
"""Where the recipe leaves it open. Beside no training there is more memory than at the events of one."""


@dataclass(frozen=True)
class Pruned:
    """What :func:`prune` did; ``str()`` of it tells it in a few lines.

    Args:
        before: the model before, by layers.
        after: the model after.
        events: one record a round.
        stayed: channel group -> why its channels stay; empty for single weights.
        chosen_by: the criterion of the last round and, where the one that was meant cannot score this model, why.
        metric: name of the metric; empty without one.
        metric_before: its value before; None without a metric.
        metric_after: its value after.
    """

    before: Summary
    after: Summary
    events: tuple[Event, ...]
    stayed: Mapping[str, str] = field(default_factory=dict)
    chosen_by: str = ""
    metric: str = ""
    metric_before: float | None = None
    metric_after: float | None = None

    @property
    def repairs(self) -> tuple[Repair, ...]:
        """What repair did to each layer in the last round, in the order in which they run; empty without."""
        return self.events[-1].repairs

    def __str__(self) -> str:
        left = self.after.parameters - self.after.zeros + self.after.blank
        lines = [f"parameters  {self.before.parameters:,} -> {left:,}"]
        if self.before.macs is not None and self.after.effective_macs is not None:
            lines.append(f"MACs        {self.before.macs:,} -> {self.after.effective_macs:,}")
        if self.metric_before is not None and self.metric_after is not None:
            lines.append(f"{self.metric:<11} {self.metric_before:.4f} -> {self.metric_after:.4f}")
        every = [repair for event in self.events for repair in event.repairs]
        if every:
            mended, layers = {repair.name for repair in every if repair.is_done}, {repair.name for repair in every}
            lines.append(f"repaired    {len(mended)} of {len(layers)} layers")
        lines.append(f"chosen by   {self.chosen_by}")
        lines.append(stay_line(self.stayed))
        return "\n".join(filter(None, lines))


def prune(
    model: nn.Module,
    recipe: Recipe,
    data: Iterable[Any] | Any,  # noqa: ANN401 - a LightningDataModule of either package
    *,
    loss: Loss | None = None,
    metric: MetricLike | None = None,
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
        metric: a torchmetrics metric, or ``metric(model, batch) -> scalar``, over all of the data; None: not measured.
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
        PruningError: the model carries masks, or cannot run on the samples to look at; nothing has changed.
        NonFiniteError: weights, scores or what enters a layer are NaN or infinite; nothing has changed.
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
    _check(model, recipe, loss)
    check_whole("samples", samples, 1)
    if metric is not None:
        check_metric(metric)
    recipe = replace(recipe, repair=recipe.repair or REPAIR, optimizer_policy=Mask())
    tried = _completed(recipe)
    # refused before the data are touched; where a need ends the schedule, the steps are all that is known here
    _rounds(tried.schedule if tried.need is None else timed(tried.schedule).ending(0.5))
    with own_random_state():
        passes = Passes(loader_of(data), model)
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
        measured = None if metric is None else evaluate(trainless_copy(model), passes, metric)
        with _as_it_was(model):
            pruner = bind(tried, model, example, _STEPS)
            rounds = _rounds(pruner.schedule)
            stayed = staying([pruner.units], {}, None) if isinstance(pruner.units, ChannelUnits) else {}
            pruner.attach(model)
            events: list[Event] = []
            refused = chosen_by = ""
            for step, sparsity in tqdm(rounds, "pruning", unit="round", disable=not progress, leave=False):
                try:
                    event, criterion = _event(pruner, model, step, sparsity, batches, inputs, loss)
                except ScoringError as error:
                    if recipe.criterion is not None or events:
                        raise
                    pruner, refused = replace(pruner, recipe=recipe), f", for {error}"
                    event, criterion = _event(pruner, model, step, sparsity, batches, inputs, loss)
                events.append(event)
                chosen_by = f"{criterion}{refused}"
                for text in event.thin:
                    warnings.warn(text, stacklevel=2)
            finalize(model, example)
            reached = None if metric is None else evaluate(trainless_copy(model), passes, metric)
            if example_of(model) is None:
                remember(model, example)  # so that it can be exported as it is
            after = summarize(model, example)
    return Pruned(
        before=before,
        after=after,
        events=tuple(events),
        stayed=stayed,
        chosen_by=chosen_by,
        metric="" if metric is None else named(metric),
        metric_before=measured,
        metric_after=reached,
    )


def _check(model: nn.Module, recipe: Recipe, loss: Loss | None) -> None:
    """Refuse what cannot be pruned, before the data are touched."""
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


def _completed(recipe: Recipe) -> Recipe:
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
        schedule = resolve(chosen, _STEPS)
    except ValueError as error:
        raise ValueError(
            f"{error}. There is no run here, and a share of it counts as one of {_STEPS} steps: give begin and end both"
            " as shares, or both in steps"
        ) from error
    last = schedule.final_step
    if last is None:
        raise ValueError(f"{chosen} does not tell when it ends: take OneShot, Linear or another built-in one")
    due = [(step, schedule.due(step - 1, step)) for step in range(last + 1)]
    return [(step, sparsity) for step, sparsity in due if sparsity is not None and sparsity > 0]


def _event(
    pruner: Pruner,
    model: nn.Module,
    step: int,
    sparsity: float,
    batches: list[Any],
    inputs: Example,
    loss: Loss | None,
) -> tuple[Event, Criterion | ObservingCriterion]:
    """Let a criterion that watches see all batches on a copy, then prune; return the record and what scored."""
    criterion = pruner.criterion
    if isinstance(criterion, ObservingCriterion) and not (pruner.recipe.criterion is None and loss is None):
        copied = trainless_copy(model)
        handles = pruner.watch(copied)
        try:
            for index, batch in enumerate(batches):
                if isinstance(criterion, GradientCriterion):
                    copied.zero_grad()
                    differentiable(loss_of(copied, batch, index, loss), index).backward()
                    pruner.observe(masks.dense_parameters(copied))
                else:
                    with torch.enable_grad():
                        arguments_of(copied, batch)(copied)
        finally:
            for handle in handles:
                handle.remove()
    criterion = pruner.criterion_for(scorable(model, pruner.units.shapes, criterion))
    return prune_step(pruner, model, sparsity, step=step, inputs=Call("", inputs)), criterion


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Put the model back as it was when anything goes wrong; let weights that are all frozen change meanwhile."""
    parameters = list(model.parameters())
    tensors = [
        (tensor, tensor.data, tensor.detach().clone(), None if tensor.grad is None else tensor.grad.clone())
        for tensor in (*parameters, *model.buffers())
    ]
    # parameters, hooks, sizes, caches, the plan: whatever a module holds, the tables that others refer to in place
    held = [
        (module, dict(vars(module)), {name: dict(own) for name, own in vars(module).items() if isinstance(own, dict)})
        for module in model.modules()
    ]
    frozen = [parameter for parameter in parameters if not parameter.requires_grad and parameter.is_floating_point()]
    thawed = frozen if len(frozen) == len(parameters) else []
    try:
        with as_evaluated(model):
            for parameter in thawed:
                parameter.requires_grad_(True)
            yield
    except BaseException:
        for module, own, tables in held:
            vars(module).clear()
            vars(module).update(own)
            for name, entries in tables.items():
                own[name].clear()
                own[name].update(entries)
        with torch.no_grad():
            for tensor, data, values, gradient in tensors:
                set_tensor(tensor, data, gradient)
                tensor.copy_(values)
        raise
    finally:
        for parameter in thawed:
            parameter.requires_grad_(False)
