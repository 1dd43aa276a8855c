"""Before weights load: the model takes the shape and the masks of the state that comes."""

from contextlib import ExitStack
from typing import Any

from lightning_prune.checkpoints import earlier
from lightning_prune.checkpoints import state as checkpoints
from lightning_prune.errors import CheckpointError
from lightning_prune.model import masks
from lightning_prune.run.resuming import check_same
from lightning_prune.trainer import _averages as averages
from lightning_prune.trainer._files import CheckpointFiles
from lightning_prune.trainer.fit import Fit
from lightning_prune.trainer.internals import restored
from lightning_prune.trainer.packages import LightningModule, Trainer
from lightning_prune.trainer.strategy import is_sharding


class Loading:
    """A load_state_dict pre-hook: lets the model take the shape and masks of the state that is about to load.

    A copy of the model, deep or pickled, gets one that knows no trainer.

    Args:
        trainer: whose checkpoint is being restored.
        fit: that goes on where the checkpoint was written; None: the Trainer only validates, tests or predicts.
    """

    def __init__(self, trainer: Trainer | None = None, fit: Fit | None = None) -> None:
        self._trainer, self._fit = trainer, fit

    def __deepcopy__(self, memo: dict[int, Any]) -> "Loading":
        return Loading()

    def __reduce__(self) -> tuple[type["Loading"], tuple[()]]:
        return Loading, ()

    def __call__(self, model: LightningModule, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
        """Adapt the model; give a state without masks those that the run wants."""
        if prefix:
            return
        checkpoint = {} if self._trainer is None else restored(self._trainer)
        running = None if self._fit is None else self._fit.course.run
        if running is not None and running.is_started and not checkpoint:
            for name in earlier.strangers(model, state_dict):
                raise CheckpointError(
                    f"{name} has shape {tuple(state_dict[name].shape)} in the state that is loaded and"
                    f" {tuple(masks.dense_names(model)[name].shape)} in the model, and training is under way: load it"
                    " before the fit, or resume from a checkpoint with trainer.fit(…, ckpt_path=…)"
                )
            return  # the masks hold
        if self._trainer is not None:
            # Lightning does so only after the weights have loaded, which rounds those of a 64-true run
            self._trainer.precision_plugin.convert_module(model)
        if checkpoint:
            earlier.forget(model)
        saved = checkpoint.get(checkpoints.KEY, {})
        checkpoints.check(model, {}, saved)
        if saved and "version" not in saved:  # with nothing of its run the fit would prune from the beginning
            raise CheckpointError(
                f"what the checkpoint says under {checkpoints.KEY!r} is damaged: it has no version; take another one"
            )
        if self._trainer is not None and is_sharding(self._trainer) and self._trainer.ckpt_path is not None:
            masks.put(model, {})  # weights load before the masks that belong to them: those come in on_load_checkpoint
        entry = checkpoints.upgraded(model, state_dict, saved)
        checkpoints.check(model, state_dict, entry)
        checkpoints.take_example(model, entry)
        saved = entry.get("run")
        if self._fit is not None and saved and self._fit.expected is not None:
            check_same(saved["recipes"], self._fit.expected)
        run = None
        if self._fit is not None and saved and not saved["is_done"]:
            # a run that goes on is set up on the shape that the model had when it began
            checkpoints.take_base(model, checkpoints.plan_in({"compaction": saved.get("base")}))
            run = self._fit.bind_for(saved)
        # a bare state dict does not say what is masked: masks hold
        if not checkpoint and not entry["masks"] and not earlier.strangers(model, state_dict):
            entry["masks"] = masks.ours(model)
        elif not checkpoints.fits(model, state_dict, entry):
            checkpoints.adapt(model, state_dict, entry)
        if run is None and self._fit is not None:
            run = self._fit.bind_for(saved or {})
        if run is not None:
            run.attach(model)
        masks.put(model, entry["masks"])


def attended(trainer: Trainer, model: LightningModule, fit: Fit | None, files: CheckpointFiles) -> ExitStack:
    """Be there whenever a state loads into the model; closing what is returned ends that and gives the files back.

    Args:
        trainer: whose checkpoints load.
        model: of the trainer.
        fit: that is about to begin, if it is one.
        files: stand in the place of the strategy's own.

    Changes:
        the load_state_dict hooks of the model.
    """
    undo = ExitStack()
    undo.callback(files.remove)
    undo.callback(model.register_load_state_dict_pre_hook(Loading(trainer, fit)).remove)
    undo.callback(model.register_load_state_dict_post_hook(averages.Loaded(trainer)).remove)
    return undo
