"""What is used of Lightning's insides, each with the version it was read in and what would let it go."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

_FINISHED = "_iterator_finished"
"""The field of a torchdata StatefulDataLoader's state that says whether its epoch is over."""


def restored(trainer: Trainer) -> dict[str, Any]:
    """Return the checkpoint that is being restored, empty outside of that: Lightning hands it to no earlier hook."""
    return trainer._checkpoint_connector._loaded_checkpoint


def forget_data(trainer: Trainer) -> None:
    """Let Lightning ask for the training data again when it resumes.

    Whoever asks for ``estimated_stepping_batches``, as we and OneCycleLR do, has it set them up, and then Lightning 2.6
    leaves out putting them back to the position that they had when the checkpoint was written.
    """
    if trainer.ckpt_path is not None:
        trainer.fit_loop._combined_loader = None


def finish_epoch(checkpoint: dict[str, Any]) -> None:
    """Let torchdata's loader begin the next epoch where a checkpoint was written after the last batch of one.

    Lightning 2.6 asks for no batch after the last one, so the loader does not know that its epoch is over, and after a
    resume the next epoch would be empty.

    Changes:
        the states of the loaders in the checkpoint.
    """
    loop = checkpoint.get("loops", {}).get("fit_loop")
    if loop is not None and loop["epoch_loop.batch_progress"]["is_last_batch"]:
        for state in loop["state_dict"].get("combined_loader", ()):
            if _FINISHED in state:
                state[_FINISHED] = True


def count_epoch(checkpoint: dict[str, Any], is_validating: bool) -> None:
    """Let a checkpoint count the epoch in which it is written.

    A run that was resumed after the last batch of an epoch leaves that out (Lightning 2.6), so that a resume from its
    own checkpoints would take the epoch for finished.

    Args:
        checkpoint: of a fit that is under way.
        is_validating: whether it is written during a validation.

    Changes:
        the progress of the epochs in the checkpoint.
    """
    loop = checkpoint.get("loops", {}).get("fit_loop")
    if loop is None:
        return
    batches = loop["epoch_loop.batch_progress"]
    done, begun = batches["current"]["completed"], batches["current"]["ready"]
    is_between_epochs = batches["is_last_batch"] and done == begun and not is_validating
    for progress in (loop["epoch_progress"]["total"], loop["epoch_progress"]["current"]):
        is_uncounted = progress["ready"] == progress["processed"] == progress["completed"]
        if begun and is_uncounted and not is_between_epochs:
            progress["ready"] = progress["started"] = progress["processed"] + 1


class SelectingCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint that leaves to its subclass which states are kept."""

    def sizes(self, trainer: Trainer) -> dict[str, Tensor]:
        """Return values that stand beside the logged metrics."""
        raise NotImplementedError

    def select(self, trainer: Trainer, values: dict[str, Tensor]) -> None:
        """Keep this state or leave it.

        Args:
            trainer: of the fit.
            values: name -> logged metric or size.
        """
        raise NotImplementedError

    def path_for(self, trainer: Trainer, values: dict[str, Tensor]) -> str:
        """Return a path, by the name that was asked for, at which no file lies."""
        return self._get_metric_interpolated_filepath_name(values, trainer)

    def save(self, trainer: Trainer, path: str) -> None:
        """Write the checkpoint and tell the loggers; nothing else is written at this step."""
        self._save_checkpoint(trainer, path)

    def delete(self, trainer: Trainer, path: str, newest: str) -> None:
        """Delete a file, unless it is the newest, lies elsewhere or is the one that the fit has resumed from."""
        if self._should_remove_checkpoint(trainer, path, newest):
            self._remove_checkpoint(trainer, path)

    def _monitor_candidates(self, trainer: Trainer) -> dict[str, Tensor]:
        return super()._monitor_candidates(trainer) | self.sizes(trainer)

    def _save_monitor_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        self.select(trainer, monitor_candidates)
