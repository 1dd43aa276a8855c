"""The four questions that every kind of units answers, and the masks that come out."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from torch import Tensor

from lightning_prune.criteria import Scores
from lightning_prune.distributed.shards import Spread
from lightning_prune.selection.allocation import Candidates

Masks = Mapping[str, Tensor]
"""Dense name -> bool mask of the parameter's shape, True = keep."""

ALL: Masks = MappingProxyType({})
"""For ``in_play``: no weight has left with a channel of another recipe."""


class Units(Protocol):
    """The units that one recipe may remove from one model."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Dense name -> shape of every parameter that gets a mask."""
        ...

    @property
    def weights(self) -> Sequence[str]:
        """Dense names of the targets among them: the weights that the units are made of, or the channels by."""
        ...

    @property
    def sizes(self) -> Mapping[str, int]:
        """Target or channel group -> number of its units."""
        ...

    def chosen(self) -> list[str] | None:
        """Return the names of the channel groups that the units belong to; None where units are no channels."""
        ...

    def only(self, names: Sequence[str] | None, parameters: Collection[str]) -> "Units":
        """Return the units of these targets or channel groups, such as :meth:`chosen` names, of these parameters.

        Raises:
            CheckpointError: the model has no such channel group.
        """
        ...

    def check_spread(self, spread: Spread) -> None:
        """Refuse rows of targets, of which each rank holds some, that cut units apart.

        Raises:
            PruningError: a unit lies on several ranks, or may.
        """
        ...

    def most_removable(self) -> dict[str, int]:
        """Return how many units of each target or channel group may go at most."""
        ...

    def standing(self, masks: Masks, in_play: Masks = ALL) -> tuple[float, Masks]:
        """Return what share of the units' own measure (weights of the targets; channels) is gone, and what leaves.

        The latter are the masks with what goes along without being masked: False there as well.
        """
        ...

    def candidates(self, scores: Scores, masks: Masks, in_play: Masks = ALL) -> Candidates:
        """Return every unit with its score: -inf where the masks removed it already."""
        ...

    def removed(self, shares: Mapping[str, float], candidates: Candidates) -> dict[str, int]:
        """Return how many units go per name, those removed already included."""
        ...

    def densities(self, removed: Mapping[str, float]) -> dict[str, float]:
        """Return the share of each parameter's elements that is left when so many units go."""
        ...

    def masks(self, candidates: Candidates, removed: Mapping[str, int], scores: Scores) -> Iterator[tuple[str, Tensor]]:
        """Yield (dense name, bool mask) of every masked parameter, one at a time."""
        ...
