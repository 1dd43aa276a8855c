"""Criteria that run the model on samples when an event comes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_prune.criteria.weights import Criterion, WeightCriterion, wide
from lightning_prune.errors import PruningError
from lightning_prune.model.summary import as_evaluated
from lightning_prune.values import Choice

Run = Callable[[nn.Module], Any]
"""Runs a model on one batch of samples, and returns what it gives."""


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
            PruningError: there are no samples.
            TypeError: it returns nothing that scores.
        """
        if inputs is None:
            raise PruningError(
                f"{self} looks at inputs of the last steps before an event, and has none: call self(…) in"
                " training_step, or take another criterion"
            )
        with as_evaluated(model), torch.enable_grad():
            scoring = self.seen(model, inputs, names, columns)
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

    def of_channels(self, others: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what is known of channels, by channel group, in place of other scores, shape (size,); -inf stays."""
        known = dict(others)
        for name, scores in others.items():
            if (own := self.channels.get(name)) is not None:
                numbered = torch.tensor([own.get(index, 0.0) for index in range(len(scores))]).to(scores)
                known[name] = numbered.masked_fill(scores == -torch.inf, -torch.inf)
        return known

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """Return the scores of single weights."""
        return self.scores[name] if name in self.scores else torch.zeros_like(weight, dtype=wide(weight))
