"""Before weights load: the model takes the shape and the masks of the state that comes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_prune.checkpoints import state as checkpoints
from lightning_prune.compaction import Compaction
from lightning_prune.errors import CheckpointError
from lightning_prune.model import masks
from lightning_prune.recipe import Recipe
from lightning_prune.run.resuming import check_same
from lightning_prune.run.run import PruningRun

RunFor = Callable[[Trainer, LightningModule, Mapping[str, Any]], PruningRun | None]
"""(trainer, model, what the checkpoint says of the run) -> the run for the model's present shape; None: no pruning."""

_FINISHED = "_iterator_finished"
"""The field of a torchdata StatefulDataLoader's state that says whether its epoch is over."""


class Loading:
    """A load_state_dict pre-hook: lets the model take the shape and masks of the state that is about to load.

    A copy of the model, deep or pickled, gets one that knows no trainer.

    Args:
        trainer: whose checkpoint is being restored.
        run_for: sets up pruning where it goes on.
        running: returns the run that is in the middle of training, if there is one.
        recipes: those that a run must have had to go on here; None: whichever it had.
    """

    def __init__(
        self,
        trainer: Trainer | None = None,
        run_for: RunFor | None = None,
        running: Callable[[], PruningRun | None] = lambda: None,
        recipes: Sequence[Recipe] | None = None,
    ) -> None:
        self._trainer, self._run_for, self._running, self._recipes = trainer, run_for, running, recipes

    def __deepcopy__(self, memo: dict[int, Any]) -> "Loading":
        return Loading()

    def __reduce__(self) -> tuple[type["Loading"], tuple[()]]:
        return Loading, ()

    def __call__(self, model: LightningModule, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
        """Adapt the model; give a state without masks those that the run wants."""
        if prefix:
            return
        checkpoint, running = restored(self._trainer), self._running()
        if running is not None and not checkpoint:
            _take_over(running, model, state_dict)
            return
        if self._trainer is not None:
            # Lightning does so only after the weights have loaded, which rounds those of a 64-true run
            self._trainer.precision_plugin.convert_module(model)
        entry = checkpoint.get(checkpoints.KEY, {})
        checkpoints.check(model, state_dict, entry)
        run = self._resumed(model, entry.get("run"))
        if not checkpoints.fits(model, state_dict):
            checkpoints.adapt(model, state_dict, entry)
        if run is None and self._trainer and self._run_for:
            run = self._run_for(self._trainer, model, entry.get("run", {}))
        if run is not None:
            run.attach(model)
            checkpoints.add_masks(model, state_dict)

    def _resumed(self, model: LightningModule, saved: Mapping[str, Any] | None) -> PruningRun | None:
        """Return the run that goes on, set up on the shape that the model had when it began; None for a new one."""
        is_fit = self._trainer is not None and self._trainer.state.fn == "fit"
        if not (is_fit and self._trainer and self._run_for and saved):
            return None
        if self._recipes is not None:
            check_same(saved["recipes"], self._recipes)
        if saved["is_done"]:
            return None
        checkpoints.take_base(model, None if saved["base"] is None else Compaction.from_json(saved["base"]))
        return self._run_for(self._trainer, model, saved)


def _take_over(run: PruningRun, model: LightningModule, state_dict: dict[str, Any]) -> None:
    """Let weights that somebody loads in the middle of training be pruned like those before.

    The masks of the state count, and a state without any brings back all weights; then the run starts over, and what
    the schedule asks for by now goes after the next step.

    Raises:
        CheckpointError: a tensor of the state has another shape than in the model, whose optimizers cannot follow.
    """
    checkpoints.add_masks(model, state_dict)
    for name, tensor in model.state_dict().items():
        if name in state_dict and state_dict[name].shape != tensor.shape:
            raise CheckpointError(
                f"{name} has shape {tuple(state_dict[name].shape)} in the state that is loaded and"
                f" {tuple(tensor.shape)} in the model, and training is under way: load it before the fit, or resume"
                " from a checkpoint with trainer.fit(…, ckpt_path=…)"
            )
    if any(_differs(mask, state_dict.get(f"{name}_mask")) for name, mask in masks.read(model).items()):
        run.start_over()


def _differs(mask: Tensor, loaded: Tensor | None) -> bool:
    return loaded is not None and not torch.equal(mask, loaded.to(mask.device).bool())


def restored(trainer: Trainer | None) -> dict[str, Any]:
    """Return the checkpoint that is being restored, empty outside of that: Lightning hands it to no earlier hook."""
    return {} if trainer is None else trainer._checkpoint_connector._loaded_checkpoint


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
