"""A trained model pruned to several needs, a network for each: what a smaller one keeps, the larger ones keep too."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from lightning_prune.compaction.finalization import finalize
from lightning_prune.data.losses import Loss
from lightning_prune.data.metrics import MetricLike
from lightning_prune.data.passes import own_random_state
from lightning_prune.model.example import Inputs, example_of, remember
from lightning_prune.model.plain_copy import plain_copy
from lightning_prune.optimizer.policies import Mask
from lightning_prune.recipe import Recipe
from lightning_prune.run.binding import bind
from lightning_prune.run.event import Event
from lightning_prune.run.pruner import describe
from lightning_prune.selection.needs import Need, as_needs
from lightning_prune.trained._whole import as_it_was
from lightning_prune.trained.prune import REPAIR, STEPS, Known, check, completed
from lightning_prune.trained.pruned import Pruned


@dataclass(frozen=True)
class Nested:
    """A network that meets one of several needs.

    Args:
        need: that it meets.
        model: compact, in eval mode; the same object where a larger network's channels meet this need too.
        pruned: what was done to the dense model to get there.
    """

    need: Need
    model: nn.Module
    pruned: Pruned


def prune_each(
    model: nn.Module,
    recipe: Recipe,
    data: Iterable[Any] | Any,  # noqa: ANN401 - a LightningDataModule of either package
    *,
    loss: Loss | None = None,
    metric: MetricLike | None = None,
    measure_on: Iterable[Any] | Any | None = None,  # noqa: ANN401 - as data
    example_inputs: Inputs | None = None,
    samples: int = 512,
    progress: bool = True,
) -> tuple[Nested, ...]:
    """Prune a trained model to each of the recipe's needs, where :func:`prune` meets all of them with one network.

    The network of the need that asks for least comes first, and the others are cut from its channels, one from the
    other: the channels of a smaller network are among those of all larger ones. Weights are repaired at each cut, so
    that their values differ.

    Args:
        model: trained; left as it is.
        recipe: with as many needs as networks are wanted.
        data: as in :func:`prune`, and so are the arguments that follow.
        loss: for criteria that watch gradients.
        metric: of each network.
        measure_on: data for the metric.
        example_inputs: arguments of forward.
        samples: how many samples are looked at, at most.
        progress: whether a bar shows the rounds.

    Returns:
        a network for each need, in the order of the needs.

    Raises:
        ValueError: the recipe has no need, the dense model meets one as it is, one cannot be met, or measure_on is
            named without a metric.
        TypeError, PruningError, NonFiniteError, CompactionError: as :func:`prune`.

    Example:
        >>> import torch
        >>> from lightning_prune import Channel, OneShot, Params
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> needs = Params(0.7), Params(0.4)
        >>> recipe = Recipe(granularity=Channel(), need=needs, schedule=OneShot())
        >>> large, small = prune_each(net, recipe, [torch.randn(64, 8)], progress=False)
        >>> net[0].out_features, large.model[0].out_features, small.model[0].out_features
        (16, 11, 6)
    """
    check(model, recipe, loss, metric, measure_on, samples, progress=progress)
    needs = as_needs(recipe.need)
    if not needs:
        raise ValueError("prune_each makes a network for each need, and the recipe has none: Recipe(need=(…, …))")
    recipes = [replace(recipe, need=need, repair=recipe.repair or REPAIR, optimizer_policy=Mask()) for need in needs]
    # plain_copy leaves the caller's model out of whatever goes wrong
    copied, networks = plain_copy(model), dict[int, Nested]()
    with own_random_state(), as_it_was(copied):
        known = Known.of(copied, recipes[0], data, loss, metric, measure_on, example_inputs, samples, progress=progress)
        known.doubt()
        pruners = [bind(completed(each), copied, known.example, STEPS) for each in recipes]
        order = sorted(range(len(needs)), key=lambda number: pruners[number].schedule.final)
        pruners[order[0]].attach(copied)
        last: tuple[nn.Module, tuple[Event, ...], str] | None = None
        scales = None
        for number in order:
            pruner = pruners[number]
            pruner.progress.scales = scales  # what a channel counts is measured in the dense network
            if last is None or describe(pruner, copied, 0).sparsity < pruner.schedule.final - 1e-9:
                done, chosen_by = known.pruned(pruner, recipes[number])
                network = plain_copy(copied)
                finalize(network, known.example)
                for text in (text for event in done for text in event.thin):
                    warnings.warn(text, stacklevel=2)
                if example_of(network) is None:
                    remember(network, known.example)  # so that it can be exported as it is
                if not any(parameter.requires_grad for parameter in model.parameters()):
                    network.requires_grad_(False)
                last = network, (*(() if last is None else last[1]), *done), chosen_by
                scales = pruner.progress.scales
            network, events, chosen_by = last
            networks[number] = Nested(needs[number], network, known.told(network, pruner, events, chosen_by))
    return tuple(networks[number] for number in range(len(needs)))
