"""Going through a loader several times, the same way each time."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from lightning_prune.errors import PruningError
from lightning_prune.model.masks import device_of
from lightning_prune.trainer.internals import move_data_to_device, sized_len


class Passes:
    """A loader that is gone through several times and must give as many batches each time.

    Every pass starts from the same random state, so that a loader that shuffles or augments gives the same data as
    long as it draws from the global generators.

    Args:
        loader: gives batches; starts anew whenever it is asked.
        model: batches go to its device.
        seed: of the random state of each pass.

    Raises:
        TypeError: the loader cannot be iterated over.
    """

    def __init__(self, loader: Iterable[Any], model: nn.Module, seed: int = 0) -> None:
        if not isinstance(loader, Iterable):
            raise TypeError(
                f"data must give batches when iterated over, got {loader!r:.80}: of a data set"
                " DataLoader(data, batch_size=64) makes them"
            )
        self._loader = loader
        self.device = device_of(model)
        self._seed = seed
        self._expected = sized_len(loader)  # pyright: ignore[reportArgumentType]
        self._made = 0

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of one pass on the model's device.

        Raises:
            ValueError: the loader is empty.
            PruningError: it ended before it had given as many batches as it says, or as in the first pass.
        """
        seed_all(self._seed)
        self._made += 1
        count = 0
        for batch in self._loader:
            count += 1
            yield move_data_to_device(batch, self.device)
        if count == 0 and self._made == 1:
            raise ValueError("the loader is empty; pass one that gives at least one batch")
        if self._expected is not None and count < self._expected:
            raise PruningError(
                f"the loader ended early: it gave {count} batches in pass {self._made} where {self._expected} were"
                " expected, so what was measured cannot be compared. Pass one that starts anew each time it is"
                " iterated over, such as a DataLoader, instead of a generator or an iterator"
            )
        self._expected = count


def seed_all(seed: int) -> None:
    """Seed the global generators of torch, NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@contextmanager
def own_random_state() -> Iterator[None]:
    """Put the global generators of torch, NumPy and Python back afterwards."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
