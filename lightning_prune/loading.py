"""Before weights load: the model takes the shape and the masks of the state that comes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from lightning_prune import checkpoints, masks
from lightning_prune.compaction import Compaction
from lightning_prune.errors import CheckpointError
from lightning_prune.recipe import Recipe
from lightning_prune.resuming import check_same
from lightning_prune.run import PruningRun

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


@contextmanager
def naming(path: object) -> Iterator[None]:
    """Let an error that comes up while a checkpoint is read name it.

    Raises:
        CheckpointError: in place of whatever torch raises for a file that is cut off, empty or something else.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError, CheckpointError):
        raise
    except Exception as error:
        raise CheckpointError(
            f"the checkpoint {path} cannot be read: {type(error).__name__}: {error}\nNothing was loaded; if the file is"
            " damaged, take an earlier one"
        ) from error


class CheckpointFiles(CheckpointIO):
    """Takes the place of a strategy's CheckpointIO and does as that one does, with two promises more.

    An error in reading names the file. And Lightning's own writing never leaves a file that is cut off: where the
    system's temporary folder is another disk, Lightning copies from there, and a full disk or a kill in the middle
    would destroy a checkpoint of the same name.

    Args:
        strategy: reads and writes its checkpoints here until :meth:`remove`.
    """

    def __init__(self, strategy: Strategy) -> None:
        self._strategy, self.inner = strategy, strategy.checkpoint_io
        strategy.checkpoint_io = self

    def remove(self) -> None:
        """Give the strategy its own one back."""
        self._strategy.checkpoint_io = self.inner

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ANN401
        """Write as the other one does; the file appears under its name when it is complete."""
        if type(self.inner) is not TorchCheckpointIO or "://" in str(path):
            self.inner.save_checkpoint(checkpoint, path, storage_options)
            return
        part = Path(f"{path}.part")
        try:
            self.inner.save_checkpoint(checkpoint, part, storage_options)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, *args: Any, **options: Any) -> dict[str, Any]:  # noqa: ANN401
        """Read as the other one does.

        Raises:
            CheckpointError: the file cannot be read, or is no checkpoint of Lightning's.
        """
        with naming(path):
            checkpoint = self.inner.load_checkpoint(path, *args, **options)
            if "state_dict" not in checkpoint:
                raise CheckpointError(
                    f"{path} holds no state_dict, so it is no checkpoint of Lightning's; name another"
                )
            return checkpoint

    def remove_checkpoint(self, path: Any) -> None:  # noqa: ANN401
        """Remove as the other one does."""
        self.inner.remove_checkpoint(path)

    def teardown(self) -> None:
        """End as the other one does."""
        self.inner.teardown()
