"""A model in the shapes that it had when recipes were bound to it; channels that have left since are pruned there.

What a recipe says counts against that model: shares of a layer's units, widths that a group may have, the shapes that
ERK weighs, parameters and MACs. So units, budgets and candidates keep its shapes, and this file alone translates.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from lightning_prune.compaction import Compaction
from lightning_prune.criteria import CHUNK, Criterion, Observations, ObservingCriterion, Scores
from lightning_prune.distributed import shards
from lightning_prune.distributed.threads import one_thread
from lightning_prune.model import masks
from lightning_prune.model.frame import Frame
from lightning_prune.run.removal import removed_since
from lightning_prune.selection import ChannelUnits


class BoundModel:
    """The model, seen in those shapes; made where it is looked at, for a removal in between leaves it behind.

    Args:
        model: masked.
        base: the removals that had shaped it when recipes were bound to it.
    """

    def __init__(self, model: nn.Module, base: Compaction | None) -> None:
        self._model = model
        self.removed = removed_since(model, base)
        shapes = {} if self.removed is None else {name: self.removed.shapes[name] for name in self.removed.keep}
        self._frame = Frame(shapes, {} if self.removed is None else self.removed.keep)

    def masks(self) -> dict[str, Tensor]:
        """Return the mask of every masked parameter, False where a channel has left."""
        return {name: self._frame.widen(name, mask, False) for name, mask in masks.read(self._model).items()}

    def scores(
        self, criterion: Criterion | ObservingCriterion, weights: Mapping[str, Tensor], observed: Observations
    ) -> Scores:
        """Return the scores of these parameters, -inf where they are pruned or have left."""
        live = masks.read(self._model)
        return _Scores(self._frame, criterion, weights, observed, live, shards.spread_of(weights))

    def columns(self, units: ChannelUnits) -> dict[str, dict[str, Tensor]]:
        """Return the weights that read channels -> channel group -> the number of each entry's channel, -1 for none.

        Numbers are of the shape of the weight now.
        """
        found: dict[str, dict[str, Tensor]] = {}
        for group in units.groups:
            for member in group.members:
                if member.role == "input" and member.parameter in units.shapes:
                    shape, indices = units.shapes[member.parameter], torch.from_numpy(member.indices)
                    number = torch.full((shape[member.axis],), -1)
                    number[indices] = torch.arange(group.size)[:, None]
                    aligned = number.view(-1, *(1,) * (len(shape) - member.axis - 1)).expand(shape)
                    found.setdefault(member.parameter, {})[group.name] = self._frame.narrow(member.parameter, aligned)
        return found

    @one_thread()
    def write(self, chosen: Iterable[tuple[str, Tensor]]) -> None:
        """Overwrite the masks; see :func:`lightning_prune.model.masks.write`."""
        masks.write(self._model, ((name, self._frame.narrow(name, mask)) for name, mask in chosen))

    def shape_now(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape that a parameter, once of this shape, must have now."""
        return self._frame.shape_now(name, shape)


class _Scores(Scores):
    def __init__(
        self,
        frame: Frame,
        criterion: Criterion | ObservingCriterion,
        weights: Mapping[str, Tensor],
        observed: Observations,
        pruned: Mapping[str, Tensor],
        spread: shards.Spread,
    ) -> None:
        super().__init__(criterion, weights, observed, pruned, spread)
        self._frame = frame

    def filled(self, name: str, pruned: float) -> Tensor:
        return self._frame.widen(name, super().filled(name, pruned), pruned)

    def chunks(self, name: str) -> Iterator[Tensor]:
        if name in self._frame.keep:
            yield from self[name].flatten().split(CHUNK)
        else:
            yield from super().chunks(name)
