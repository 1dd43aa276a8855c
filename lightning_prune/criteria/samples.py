"""Criteria that run the model on samples when an event comes."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_prune.criteria.weights import Criterion, WeightCriterion, wide
from lightning_prune.errors import NonFiniteError, PruningError
from lightning_prune.model.summary import as_evaluated
from lightning_prune.values import Choice

Run = Callable[[nn.Module], Any]
"""Runs a model on one batch of samples, and returns what it gives."""

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Of norms: their names in torch."""


class SampleCriterion(Choice, ABC):
    """A criterion that runs the model on samples at each event, and scores by what it sees.

    They are those of the last steps before the event, or of :func:`~lightning_prune.prune`'s data. Neither labels nor
    gradients of the training come with them.
    """

    watches: ClassVar[str] = "input"
    """What it watches, in words, for messages."""

    samples: int = 256
    """How many samples it looks at, at most, over all ranks; a field of this name leaves it to the recipe's author."""

    @abstractmethod
    def seen(
        self, model: nn.Module, inputs: Run, names: Sequence[str], columns: Mapping[str, Mapping[str, Tensor]]
    ) -> Criterion:
        """Return what scores now that the samples are there: a function of name and weight, or :class:`Seen`.

        A function's scores are averaged over the ranks, each of which has its own samples; what a :class:`Seen` says of
        channels must be the same on all of them.

        Args:
            model: masked, in eval mode; gradients are recorded. It must be left as it is.
            inputs: ``inputs(model)`` runs it on all samples, as one batch.
            names: what is to be scored: channel groups, or dense names of weights.
            columns: dense name of each weight that reads channels -> channel group -> the number of the channel at each
                entry, -1 where it belongs to none; shape of the weight. Empty where no channels go.
        """

    def look(
        self, model: nn.Module, inputs: Run | None, names: Sequence[str], columns: Mapping[str, Mapping[str, Tensor]]
    ) -> Criterion:
        """Return what :meth:`seen` does, with the model in eval mode for as long.

        Raises:
            PruningError: there are no samples, or parameters, gradients or statistics of the model have changed.
            TypeError: it returns nothing that scores.
        """
        if inputs is None:
            raise PruningError(
                f"{self} looks at inputs of the last steps before an event, and has none: call self(…) in"
                " training_step, or take another criterion"
            )
        before = _state(model)
        with as_evaluated(model), torch.enable_grad():
            scoring = self.seen(model, inputs, names, columns)
        for name, (tensor, version) in _state(model).items():
            if name not in before or before[name][0] is not tensor or before[name][1] != version:
                raise PruningError(
                    f"{self}.seen(…) changed {name}, and must leave the model as it is: take gradients with"
                    " torch.autograd.grad(…) in place of backward(), stay in eval mode, and change a copy.deepcopy"
                )
        if not callable(scoring):
            raise TypeError(f"{self}.seen(…) must return a function of name and weight, or Seen(…), got {scoring!r}")
        return scoring

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """Refuse: a weight alone does not tell.

        Raises:
            PruningError: always; :meth:`seen` returns what scores.
        """
        raise PruningError(
            f"{self} scores {name} by what it sees of samples: it works in a fit and in prune(model, recipe, data),"
            " which show it some, and not in a study of weights; take another criterion here"
        )


def _state(model: nn.Module) -> dict[str, tuple[Tensor, int]]:
    """Return parameters, their gradients and running statistics, each with the number of its changes."""
    held = dict(model.named_parameters())
    held |= {f"the gradient of {name}": own.grad for name, own in held.items() if own.grad is not None}
    # other buffers may be caches, which a forward pass fills
    held |= {name: own for name, own in model.named_buffers() if name.rpartition(".")[2] in _STATISTICS}
    return {name: (own, 0 if own.is_inference() else own._version) for name, own in held.items()}


@dataclass(frozen=True)
class Seen(WeightCriterion):
    """Scores that are known.

    Args:
        scores: dense name -> those of its weights; weights without a name here have no worth of their own.
        channels: channel group -> number of a channel -> its score, in place of what its weights sum up to; channels
            without a number here score 0.
    """

    scores: Mapping[str, Tensor] = field(default_factory=dict)
    channels: Mapping[str, Mapping[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for part, example in (("scores", "{name: tensor}"), ("channels", "{group: {number: score}}")):
            if not isinstance(own := getattr(self, part), Mapping):
                raise TypeError(f"Seen.{part} must be {example}, got {type(own).__name__}")
        for group, own in self.channels.items():
            if not isinstance(own, Mapping):
                raise TypeError(
                    f"Seen.channels[{group!r}] must be {{number of a channel: score}}, got {type(own).__name__}; of a"
                    " score for each channel write dict(enumerate(scores.tolist()))"
                )

    def of_channels(self, others: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what is known of channels, by channel group, in place of other scores, shape (size,); -inf stays.

        Raises:
            ValueError: there is no such group, or no channel of that number.
            NonFiniteError: a score is NaN or infinite.
        """
        if lacking := sorted(self.channels.keys() - others.keys()):
            raise ValueError(
                f"Seen.channels[{lacking[0]!r}] is of no channel group that is to be scored; these are"
                f" {', '.join(others)}"
            )
        known = dict(others)
        for name, own in self.channels.items():
            scores = others[name]
            if outside := [number for number in own if number not in range(len(scores))]:
                raise ValueError(
                    f"Seen.channels[{name!r}] scores channel {outside[0]!r}; {name} has the numbers 0 to"
                    f" {len(scores) - 1}"
                )
            if infinite := [number for number, score in own.items() if not math.isfinite(score)]:
                raise NonFiniteError(
                    f"Seen.channels[{name!r}] scores channel {infinite[0]} with {float(own[infinite[0]])}; scores are"
                    " finite numbers, higher = keep"
                )
            numbered = torch.tensor([own.get(index, 0.0) for index in range(len(scores))]).to(scores)
            known[name] = numbered.masked_fill(scores == -torch.inf, -torch.inf)
        return known

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """Return the scores of single weights."""
        return self.scores[name] if name in self.scores else torch.zeros_like(weight, dtype=wide(weight))
