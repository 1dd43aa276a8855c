"""What each weight or channel does to the loss, and whether that can be believed."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.criteria import (
    ActivationCriterion,
    Fisher,
    GradientCriterion,
    Magnitude,
    Observations,
    ObservingCriterion,
    Scores,
    Taylor,
    Wanda,
    scorable,
    watch,
)
from lightning_prune.data.losses import Loss, check_loss, differentiable, loss_of, trainless_copy
from lightning_prune.data.passes import Passes, own_random_state
from lightning_prune.model import masks
from lightning_prune.model.example import Inputs
from lightning_prune.run.binding import check_seen
from lightning_prune.selection import Units
from lightning_prune.selection.granularity import Channel, Element, Granularity
from lightning_prune.selection.targets import Targets
from lightning_prune.study._removal import live_masks, units_for
from lightning_prune.study.deletion import Deletion, drawn, measure
from lightning_prune.tables import Table, Tabular
from lightning_prune.values import check_whole

AnyCriterion = Callable[[str, Tensor], Tensor] | ObservingCriterion

_ALL = (Taylor(), Fisher(), Wanda())


@dataclass(frozen=True, eq=False)
class Significance(Tabular, Mapping[str, Tensor]):
    """Target or channel group -> score of each of its units by the first criterion; printed or in a notebook, a table.

    It is a criterion itself: ``Recipe(criterion=table)`` ranks by these scores, as they were measured.

    Args:
        tables: criterion -> target or channel group -> score of each unit, float32 or wider: of the shape of the
            weight for Element, flat for channels; -inf where a unit is removed already.
        elements: dense name -> score of each element by the first criterion, shape of the parameter.
        deletion: what removing units did to the loss; None: it was not measured.
        left_out: criterion that was not asked for by name -> why it cannot score this model.
    """

    tables: Mapping[str, Mapping[str, Tensor]]
    elements: Mapping[str, Tensor] = field(repr=False)
    deletion: Deletion | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        table = next(iter(self.tables.values()))
        if name not in table:
            raise KeyError(f"nothing was measured of {name!r}; there are {', '.join(table)}")
        return table[name]

    def __iter__(self) -> Iterator[str]:
        return iter(next(iter(self.tables.values())))

    def __len__(self) -> int:
        return len(next(iter(self.tables.values())))

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """Return the scores of the elements of one parameter, its shape; 0 for one that does not score.

        Raises:
            ValueError: the parameter has another shape than when it was measured.
        """
        scores = self.elements.get(name)
        if scores is None:
            return torch.zeros_like(weight)
        if scores.shape != weight.shape:
            raise ValueError(
                f"{name} has shape {tuple(weight.shape)} and had {tuple(scores.shape)} when its significance was"
                " measured; measure it again"
            )
        return scores.to(weight.device)

    def table(self) -> Table:
        """Return a row for each target or channel group, with the range of each criterion's scores."""
        head = ["", "units", *(f"{name}: lowest, median, highest" for name in self.tables)]
        rows = list[list[str]]()
        for name in self:
            rows.append([name, f"{self[name].numel():,}"])
            for scores in (own[name] for own in self.tables.values()):
                there = scores[scores > -torch.inf].double()
                span = (there.min(), there.median(), there.max()) if there.numel() else ()
                rows[-1].append("  ".join(f"{float(score):.2e}" for score in span) or "all removed")
        deletion = () if self.deletion is None else (str(self.deletion),)
        note = "\n".join((*(f"left out: {why}" for why in self.left_out.values()), *deletion))
        return Table(head, rows, note=note)


def significance(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    criteria: AnyCriterion | Sequence[AnyCriterion] | None = None,
    granularity: Granularity | Channel = Element(),  # noqa: B008
    loss: Loss | None = None,
    validate: int | None = None,
    targets: Targets = Targets(),  # noqa: B008
    example_inputs: Inputs | None = None,
    seed: int = 0,
) -> Significance:
    """Score every weight or channel of a model on the loader's batches; prove it by deletion.

    One pass of forward and backward through a copy in eval mode; the model itself is not touched. Gradients are those
    of each batch's mean loss, so a loader with small batches says more of single samples. With ``validate`` that many
    units, drawn at random, are then removed one at a time, and the loss is measured in a pass over the loader for
    each: the rank correlation of scores and changes says whether a criterion can be believed on this model.

    Args:
        model: dense or masked, in any mode.
        loader: gives batches, as many in each pass.
        criteria: one or several; the first is the one whose scores the mapping holds. None: ``Taylor()``, ``Fisher()``
            and ``Wanda()``, those of them that can score every target.
        granularity: the units that are scored: weights, blocks or channels.
        loss: ``loss(model, batch) -> scalar``; None: what the ``training_step`` of a LightningModule returns, run
            without a Trainer and with ``self.log`` doing nothing.
        validate: how many units to remove; all, where there are fewer. None: none.
        targets: what may be pruned; for Channel the layers whose output channels may go.
        example_inputs: of ``forward``, for Channel; None: the model's ``example_input_array``.
        seed: of the draw of units and of the random state in which each pass starts.

    Returns:
        the scores, and what deletion showed.

    Raises:
        ValueError: an argument out of its range, an empty loader, or a loss that is no scalar.
        TypeError: an argument of another type.
        NonFiniteError: a loss, weight or score is NaN or infinite.
        PruningError: the loader ended early, or a weight takes no part in the loss.

    Source:
        The criteria name theirs; the check against deletion is that of Molchanov et al. 2017 and 2019 (their oracle).
    """
    chosen = _checked(criteria, validate)
    check_loss(model, loss)
    with own_random_state(), torch.inference_mode(False):
        copied = trainless_copy(model)
        units = units_for(copied, granularity, targets, example_inputs)
        able, left_out = [], {}
        for criterion in chosen:
            try:
                check_seen(criterion, units, copied)
                able.append(criterion)
            except ValueError as error:
                if criteria is not None:  # what is asked for by name is refused, what comes by default left out
                    raise
                left_out[str(criterion)] = str(error)
        passes = Passes(loader, copied, seed)
        observed = _observe(copied, passes, loss, units, able)
        scores = [_scores(criterion, copied, units, seen) for criterion, seen in zip(able, observed, strict=True)]
        tables = {str(criterion): _by_unit(units, one, copied) for criterion, one in zip(able, scores, strict=True)}
        elements = {name: scores[0][name].clone() for name in scores[0]}
        if validate is None:
            return Significance(tables, elements, left_out=left_out)
        rivals = {str(Magnitude()): _by_unit(units, _scores(Magnitude(), copied, units, Observations()), copied)}
        gone = {name: table == -torch.inf for name, table in rivals[str(Magnitude())].items()}
        sample = drawn(units.sizes, gone, validate, seed)
        deletion = measure(copied, passes, loss, units, sample, elements, {**tables, **rivals})
        return Significance(tables, elements, deletion, left_out)


def _checked(criteria: AnyCriterion | Sequence[AnyCriterion] | None, validate: int | None) -> tuple[AnyCriterion, ...]:
    criteria = _ALL if criteria is None else criteria
    several: tuple[Any, ...] = tuple(criteria) if isinstance(criteria, list | tuple) else (criteria,)
    if not several:
        raise ValueError("criteria is empty; pass one, such as Taylor()")
    for one in several:
        if isinstance(one, type) or not (callable(one) or isinstance(one, ObservingCriterion)):
            raise TypeError(f"criteria must be values such as Taylor() or functions, got {one!r}")
    if len({str(one) for one in several}) < len(several):
        raise ValueError(f"criteria names one twice: {', '.join(map(str, several))}")
    if validate is not None:
        check_whole("validate", validate, 3, "units to remove", ": a rank correlation needs as many")
    return several


def _observe(
    model: nn.Module, passes: Passes, loss: Loss | None, units: Units, criteria: Sequence[AnyCriterion]
) -> list[Observations]:
    """Show one pass of gradients and activations to each criterion that watches them."""
    observed = [Observations() for _ in criteria]
    pairs = list(zip(criteria, observed, strict=True))
    for criterion, one in pairs:
        if isinstance(criterion, ActivationCriterion):
            watch(model, units.shapes, partial(one.see, criterion))
    parameters = masks.dense_parameters(model)
    for parameter in model.parameters():
        parameter.grad = None
    with torch.enable_grad():
        for index, batch in enumerate(passes):
            differentiable(loss_of(model, batch, index, loss), index).backward()
            for criterion, one in pairs:
                if isinstance(criterion, GradientCriterion):
                    for name in units.shapes:
                        one.add(criterion, name, parameters[name])
            for parameter in model.parameters():
                parameter.grad = None
    return observed


def _scores(criterion: AnyCriterion, model: nn.Module, units: Units, observed: Observations) -> Scores:
    weights = scorable(model, units.shapes, criterion)
    scores = Scores(criterion, weights, observed, masks.read(model))  # pyright: ignore[reportArgumentType]
    scores.check()
    return scores


def _by_unit(units: Units, scores: Scores, model: nn.Module) -> dict[str, Tensor]:
    found = units.candidates(scores, live_masks(model, units)).scores
    return {name: found[name].clone() for name in units.sizes}
