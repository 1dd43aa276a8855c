"""Checkpoint files that are whole or not there, and errors that name them."""

import errno
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.strategies import Strategy

from lightning_prune.checkpoints.files import check_claims, no_checkpoint, reading
from lightning_prune.documents import whole
from lightning_prune.errors import CheckpointError
from lightning_prune.trainer.internals import exists, is_plain_writer, trust

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No space on the device, disk quota exceeded, file too large."""


Companion = Callable[[Mapping[str, Any]], tuple[str, dict[str, Any]] | None]
"""A checkpoint -> name and contents of a file that has to lie beside it; None: it needs none."""


class CheckpointFiles(CheckpointIO):
    """Takes the place of a strategy's CheckpointIO and does as that one does, with three promises more.

    An error in reading names the file. Lightning's own writing never leaves a file that is cut off: where the system's
    temporary folder is another disk, Lightning copies from there, and a full disk or a kill in the middle would
    destroy a checkpoint of the same name. And a full disk does not end the training: the checkpoint is left out with a
    warning, and no older one is deleted until one could be written again.

    Args:
        strategy: reads and writes its checkpoints here until :meth:`remove`.
    """

    def __init__(self, strategy: Strategy) -> None:
        self._strategy, self.inner = strategy, strategy.checkpoint_io
        strategy.checkpoint_io = self
        self.has_failed = False
        self._written = set[str]()
        self.companion: Companion = lambda checkpoint: None

    def remove(self) -> None:
        """Give the strategy its own one back."""
        self._strategy.checkpoint_io = self.inner

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ANN401
        """Write as the other one does; the file appears under its name when it is complete."""
        try:
            needed = self.companion(checkpoint)
            if needed is not None and not exists(self.beside(path, needed[0])):
                self._write(needed[1], self.beside(path, needed[0]), None)
            self._write(checkpoint, path, storage_options)
            self._written.add(str(path))
            self.has_failed = False
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self.has_failed = True
            warnings.warn(
                f"the checkpoint {path} could not be written: {error}. Training goes on, and older checkpoints are kept"
                " until one can be written again: free some space",
                stacklevel=2,
            )

    def beside(self, path: Any, name: str) -> str:  # noqa: ANN401
        """Return the path of a file in the folder of a checkpoint."""
        return os.path.join(os.path.dirname(str(path)), name)

    def _write(self, checkpoint: dict[str, Any], path: Any, storage_options: Any) -> None:  # noqa: ANN401
        if not is_plain_writer(self.inner) or "://" in str(path):
            self.inner.save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as written:
            self.inner.save_checkpoint(checkpoint, written, storage_options)

    def load_checkpoint(self, path: Any, *args: Any, **options: Any) -> dict[str, Any]:  # noqa: ANN401
        """Read as the other one does.

        Raises:
            CheckpointError: the file cannot be read, claims more than it holds, or is no checkpoint of Lightning's.
        """
        with reading(path):
            checkpoint = self.inner.load_checkpoint(path, *args, **options)
            if options.get("weights_only") is not False:
                check_claims(path, checkpoint)
        if not isinstance(checkpoint, Mapping) or "state_dict" not in checkpoint:
            raise CheckpointError(no_checkpoint(path, checkpoint))
        return checkpoint

    def load_own(self, path: Any) -> dict[str, Any]:  # noqa: ANN401
        """Read a checkpoint of this fit; with whatever a user's hyperparameters are made of, where it has written it.

        One that a resumed checkpoint names was written by whoever wrote that, and its pickled objects run code.
        """
        is_trusted = str(path) in self._written
        return self.load_checkpoint(path, **trust(self.inner.load_checkpoint, is_trusted=is_trusted))

    def remove_checkpoint(self, path: Any) -> None:  # noqa: ANN401
        """Remove as the other one does; keep it where the one that should replace it could not be written."""
        if not self.has_failed:
            self.inner.remove_checkpoint(path)

    def teardown(self) -> None:
        """End as the other one does."""
        self.inner.teardown()
