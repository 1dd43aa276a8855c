"""What is used of Lightning's insides, undocumented as they are; read in 2.4.0 and in 2.6.6, to whose lines links lead.

Nothing else in the package touches them. Each says what of Lightning's would let it go.
"""

import copy
import gc
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import move_data_to_device
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from lightning_prune.model.example import is_plain
from lightning_prune.trainer.packages import (
    AnyModelCheckpoint,
    LightningModule,
    Trainer,
    is_lightning_module,
    kinds,
    version_of,
)

__all__ = ["is_param_in_hook_signature", "move_data_to_device", "sized_len"]

_FINISHED = "_iterator_finished"
"""The field of a torchdata StatefulDataLoader's state that says whether its epoch is over (torchdata 0.11)."""


def restored(trainer: Trainer) -> dict[str, Any]:
    """Return the checkpoint that is being restored, empty outside of that.

    Goes with a hook that gets the checkpoint before the weights load:
    https://github.com/Lightning-AI/pytorch-lightning/blob/2.6.6/src/lightning/pytorch/trainer/connectors/checkpoint_connector.py#L84
    """
    return trainer._checkpoint_connector._loaded_checkpoint


def forget_data(trainer: Trainer) -> None:
    """Let Lightning ask for the training data again when it resumes.

    Whoever asks for ``estimated_stepping_batches``, as we and OneCycleLR do, has it set them up, and then it leaves out
    putting them back to the position that they had when the checkpoint was written. Goes with
    https://github.com/Lightning-AI/pytorch-lightning/issues/20550
    """
    if trainer.ckpt_path is not None:
        trainer.fit_loop._combined_loader = None


def finish_epoch(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Let torchdata's loader begin the next epoch where a checkpoint was written after the last batch of one.

    Since 2.5 Lightning asks for no batch after the last one, so the loader does not know that its epoch is over, and
    after a resume the next epoch would be empty. Goes when the state of the loaders is taken after the epoch:
    https://github.com/Lightning-AI/pytorch-lightning/blob/2.6.6/src/lightning/pytorch/loops/fit_loop.py#L523

    Changes:
        the states of the loaders in the checkpoint.
    """
    loop = checkpoint.get("loops", {}).get("fit_loop")
    if version_of(trainer) >= (2, 5) and loop is not None and loop["epoch_loop.batch_progress"]["is_last_batch"]:
        for state in loop["state_dict"].get("combined_loader", ()):
            if _FINISHED in state:
                state[_FINISHED] = True


def count_epoch(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Let a checkpoint count the epoch in which it is written.

    Since 2.5 a run that was resumed after the last batch of an epoch leaves that out, so that a resume from its own
    checkpoints would take the epoch for finished. Goes when a resumed run counts each epoch that it begins:
    https://github.com/Lightning-AI/pytorch-lightning/blob/2.6.6/src/lightning/pytorch/loops/fit_loop.py#L447

    Args:
        trainer: whose fit is under way.
        checkpoint: that it is about to write.

    Changes:
        the progress of the epochs in the checkpoint.
    """
    loop = checkpoint.get("loops", {}).get("fit_loop")
    if version_of(trainer) < (2, 5) or loop is None:
        return
    batches = loop["epoch_loop.batch_progress"]
    done, begun = batches["current"]["completed"], batches["current"]["ready"]
    is_between_epochs = batches["is_last_batch"] and done == begun and not trainer.validating
    for progress in (loop["epoch_progress"]["total"], loop["epoch_progress"]["current"]):
        is_uncounted = progress["ready"] == progress["processed"] == progress["completed"]
        if begun and is_uncounted and not is_between_epochs:
            progress["ready"] = progress["started"] = progress["processed"] + 1


def load_module(kind: type[LightningModule], path: Path, *, is_trusted: bool) -> LightningModule:
    """Return a module of a checkpoint, on the CPU.

    Args:
        kind: class of the module.
        path: of the checkpoint.
        is_trusted: read pickled objects too; the caller has looked at what is in the file.
    """
    return kind.load_from_checkpoint(path, map_location="cpu", **trust(kind.load_from_checkpoint, is_trusted))


def loadable(model: nn.Module) -> dict[str, Any]:
    """Return what ``load_from_checkpoint`` wants of a checkpoint beside the state; nothing for a plain module.

    Hyperparameters are those that ``weights_only=True`` reads: the class has its defaults for others.
    """
    if not is_lightning_module(model):
        return {}
    plain = {name: value for name, value in model.hparams.items() if is_plain(value)}
    named = {model.CHECKPOINT_HYPER_PARAMS_NAME: model._hparams_name, model.CHECKPOINT_HYPER_PARAMS_KEY: plain}
    return {"pytorch-lightning_version": version("lightning"), **(named if plain else {})}


def trust(reading: Callable[..., Any], is_trusted: bool = True) -> dict[str, Any]:
    """Return the options by which a call of Lightning's reads pickled objects of a checkpoint, or refuses to."""
    # 2.4 and 2.5 know no weights_only and would hand it to the module
    knows = "weights_only" in inspect.signature(reading).parameters
    return {"weights_only": not is_trusted} if knows else {}


def exists(path: str) -> bool:
    """Say whether there is a file, on any file system that Lightning writes checkpoints to."""
    return get_filesystem(path).exists(path)


def is_plain_writer(files: object) -> bool:
    """Say whether this is Lightning's own reading and writing of checkpoints, of either package, and no subclass."""
    return type(files) in kinds("plugins.TorchCheckpointIO", is_fabric=True)


def averages_of(trainer: Trainer) -> list[nn.Module]:
    """Return the averaged copies of the model that the Trainer's callbacks hold.

    Goes when the callbacks show them: https://github.com/Lightning-AI/pytorch-lightning/blob/2.6.6/src/lightning/pytorch/callbacks/weight_averaging.py#L104
    """
    wanted = kinds("callbacks.WeightAveraging") + kinds("callbacks.StochasticWeightAveraging")
    held = [callback._average_model for callback in trainer.callbacks if isinstance(callback, wanted)]  # type: ignore[attr-defined]
    return [
        average.module if isinstance(average, AveragedModel) else average for average in held if average is not None
    ]


def counts_of_averages(trainer: Trainer) -> list[Tensor]:
    """Return how many models each average holds, as the tensors that count."""
    kept, stochastic = kinds("callbacks.WeightAveraging"), kinds("callbacks.StochasticWeightAveraging")
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    averages = [callback._average_model for callback in callbacks if isinstance(callback, kept)]
    counts = [average.n_averaged for average in averages if average is not None]
    others = [callback.n_averaged for callback in callbacks if isinstance(callback, stochastic)]
    return counts + [count for count in others if count is not None]


def copy_average(callback: Any, model: LightningModule) -> None:  # noqa: ANN401
    """Give the model the average that a callback keeps, where it keeps one that it copies at the end of the fit.

    https://github.com/Lightning-AI/pytorch-lightning/blob/2.6.6/src/lightning/pytorch/callbacks/weight_averaging.py#L352
    """
    if isinstance(callback, kinds("callbacks.WeightAveraging")):
        callback._copy_average_to_current(model)


@contextmanager
def unwrapped(trainer: Trainer) -> Iterator[None]:
    """Take the model out of its DDP wrapper, whose reducer holds the old shapes, and wrap it anew afterwards.

    Goes when a strategy can be told that parameters have changed: https://github.com/Lightning-AI/pytorch-lightning/blob/2.6.6/src/lightning/pytorch/strategies/ddp.py#L284
    """
    strategy: Any = trainer.strategy
    if not (
        isinstance(strategy, kinds("strategies.DDPStrategy")) and isinstance(strategy.model, DistributedDataParallel)
    ):
        yield
        return
    strategy.model = strategy.lightning_module
    gc.collect()  # the old reducer's hooks go with it; while they live, backward meets the old shapes
    try:
        yield
    finally:
        strategy.configure_ddp()


def intercept(strategy: Strategy, name: str, ours: Callable[..., Any]) -> Callable[[], None]:
    """Let a call of the strategy go to us, with the original as first argument; return what ends that.

    Goes when a callback can change the loss before the backward pass, and can ask for a call after the ``on_train_end``
    of all callbacks and of the module, while the model still lies where it trained:
    https://github.com/Lightning-AI/pytorch-lightning/blob/2.6.6/src/lightning/pytorch/strategies/strategy.py#L192

    Args:
        strategy: of the fit.
        name: of the method: "training_step", "backward" or "on_train_end", which is the last hook of all.
        ours: takes the original and its arguments.
    """
    setattr(strategy, name, partial(ours, getattr(strategy, name)))
    return partial(delattr, strategy, name)


def is_over(trainer: Trainer) -> bool:
    """Say whether the fit has nothing left to train: https://github.com/Lightning-AI/pytorch-lightning/blob/2.6.6/src/lightning/pytorch/loops/fit_loop.py#L173."""
    return trainer.fit_loop.done


def say(trainer: Trainer, text: str) -> None:
    """Print on the first process, past the progress bar where there is one.

    TQDM's swallows what is printed while none of its bars is open, as before the first step and after the last. Goes
    when it prints then: https://github.com/Lightning-AI/pytorch-lightning/blob/2.6.6/src/lightning/pytorch/callbacks/progress/tqdm_progress.py#L444
    """
    if not trainer.is_global_zero:
        return
    bar: Any = trainer.progress_bar_callback
    if isinstance(bar, kinds("callbacks.TQDMProgressBar")):
        bars = (bar._train_progress_bar, bar._val_progress_bar)
        bar = bar if any(open_bar is not None and not open_bar.disable for open_bar in bars) else None
    (print if bar is None else bar.print)(text)


def batches_done(trainer: Trainer) -> int:
    """Return the training batches of the whole fit: https://github.com/Lightning-AI/pytorch-lightning/blob/2.6.6/src/lightning/pytorch/loops/training_epoch_loop.py#L99."""
    return trainer.fit_loop.epoch_loop.total_batch_idx


def is_validation_next(trainer: Trainer) -> bool:
    """Say whether a validation follows the batch that is done: https://github.com/Lightning-AI/pytorch-lightning/blob/2.6.6/src/lightning/pytorch/loops/training_epoch_loop.py#L529."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def validate_now(trainer: Trainer) -> None:
    """Run the validation loop between two training steps, as Lightning does at ``val_check_interval``.

    Only the guard looks at it: no checkpoint is written and nothing stops the fit by it. Goes when a callback can ask
    for a validation; this repeats what stands at https://github.com/Lightning-AI/pytorch-lightning/blob/2.6.6/src/lightning/pytorch/loops/training_epoch_loop.py#L395
    """
    run: Any = trainer
    loop, callbacks, connector = run.fit_loop.epoch_loop.val_loop, run.callbacks, run._logger_connector
    selecting = kinds("callbacks.Checkpoint") + kinds("callbacks.EarlyStopping")
    first_loop_iter = connector._first_loop_iter
    run.validating = True
    run.callbacks = [callback for callback in callbacks if not isinstance(callback, selecting)]
    try:
        loop.setup_data()
        loop.restarting = False  # a whole validation, wherever the checkpoint was written
        loop.run()
    finally:
        run.callbacks = callbacks
        run.training = True
        connector._first_loop_iter = first_loop_iter


def validation_batches(module: LightningModule) -> Iterator[Any]:
    """Yield the batches on which a module's Trainer validates, as its hooks hand them on; none without such.

    A loader's workers, its generator and its running iterator stay untouched: it may be in use. Goes when a batch can
    be handed through the hooks: https://github.com/Lightning-AI/pytorch-lightning/blob/2.6.6/src/lightning/pytorch/core/module.py#L355
    """
    for loader in tree_leaves(module.trainer.val_dataloaders):
        if loader is None:
            return
        own = loader
        if isinstance(loader, DataLoader):
            own = copy.copy(loader)
            own.num_workers, own.timeout, own.pin_memory, own.generator = 0, 0, False, None
        for batch in own:
            yield module._apply_batch_transfer_handler(module._on_before_batch_transfer(batch))


def validation_samples(trainer: Trainer) -> int | None:
    """Return how many samples a validation sees, None where its loaders do not tell."""
    loaders = tree_leaves(trainer.val_dataloaders)
    if not all(isinstance(loader, DataLoader) and loader.batch_size for loader in loaders):
        return None
    try:
        sizes = [len(loader.dataset) for loader in loaders]
    except TypeError:  # an iterable data set
        return None
    seen = (batches * loader.batch_size for batches, loader in zip(trainer.num_val_batches, loaders, strict=True))
    return sum(int(min(size, count * trainer.world_size)) for size, count in zip(sizes, seen, strict=True))


class SelectingCheckpoint(AnyModelCheckpoint):
    """A ModelCheckpoint that leaves to its subclass which states are kept.

    Goes when ModelCheckpoint takes a rule: https://github.com/Lightning-AI/pytorch-lightning/blob/2.6.6/src/lightning/pytorch/callbacks/model_checkpoint.py#L927
    """

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
