"""What networks keep of the scores that their channels had before, as the choice of widths saw them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
from torch import Tensor, nn

from lightning_prune import Channel
from lightning_prune.run import pruner
from lightning_prune.run.binding import units_of
from lightning_prune.selection.costs import widths_within
from lightning_prune.selection.targets import Targets


class Scores:
    """Scores of a dense network.

    Args:
        example: an input.
    """

    def __init__(self, example: Tensor) -> None:
        self._example = example
        self.values: dict[str, np.ndarray] = {}
        """Channel group -> its scores, highest first; of the first choice of widths inside of :meth:`noted`."""

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Take up the scores by which widths are chosen."""

        def noting(units: Any, candidates: Any, *rest: Any) -> Any:  # noqa: ANN401
            for name in units.sizes:
                scores = candidates.scores[name] / candidates.scales.get(name, 1.0)
                self.values.setdefault(name, np.sort(scores.flatten().double().numpy())[::-1])
            return widths_within(units, candidates, *rest)

        with mock.patch.object(pruner, "widths_within", noting):
            yield

    def widths(self, net: nn.Module) -> dict[str, int]:
        """Return the width of each channel group in a pruned network; a group that is left with one is none there."""
        left = units_of(Channel(), Targets(), net, (self._example,)).sizes
        return {name: left.get(name, 1) for name in self.values}

    def kept(self, widths: dict[str, int]) -> float:
        """Return the share of all scores that the best channels of such widths have."""
        return float(
            sum(own[: widths[name]].sum() for name, own in self.values.items())
            / sum(own.sum() for own in self.values.values())
        )
