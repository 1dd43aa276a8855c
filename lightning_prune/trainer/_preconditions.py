"""What pruning asks of a Trainer before it begins, and refuses where it could not complete."""

from collections.abc import Iterable

import torch
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from lightning_prune.model.example import Example, example_of
from lightning_prune.optimizer.surgery import parameters_of
from lightning_prune.recipe import Recipe
from lightning_prune.run.run import PruningRun
from lightning_prune.schedules import timed
from lightning_prune.trainer.internals import SelectingCheckpoint
from lightning_prune.trainer.packages import LightningModule, Trainer, kinds


def example_on_device(model: LightningModule) -> Example | None:
    """Return the model's example on its device, or None."""
    example = example_of(model)
    return None if example is None else example.on_device_of(model)


def is_rehearsal(trainer: Trainer) -> bool:
    """Say whether this is a ``fast_dev_run``, which shows one event at the final sparsity."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def total_steps(trainer: Trainer) -> int | None:
    """Return the optimizer steps of the whole run, or None when Lightning cannot tell, as in manual optimization."""
    if is_rehearsal(trainer) or not trainer.lightning_module.automatic_optimization:
        return None
    steps = trainer.estimated_stepping_batches
    return int(steps) if 0 < steps < float("inf") else None


def check_length(recipes: Iterable[Recipe], trainer: Trainer) -> None:
    """Refuse a share of the run where nobody knows how long that is.

    Raises:
        ValueError: it names the field, why the length is unknown, and what to write.
    """
    if is_rehearsal(trainer) or total_steps(trainer) is not None:
        return
    name = type(trainer.lightning_module).__name__
    if not trainer.lightning_module.automatic_optimization:
        reason = f"{name} optimizes by hand, and Lightning cannot tell how often it will step; give it as an int"
    elif 0 in (trainer.num_training_batches, trainer.limit_train_batches):  # type: ignore[attr-defined]
        reason = (
            "there is no batch to train on: the loader is empty, drop_last took its only one, or limit_train_batches"
        )
    elif trainer.max_epochs == -1:
        reason = "only max_time or a callback ends it; give it as an int, or set Trainer(max_steps=…) beside max_time"
    else:
        reason = "the training data have no length (iterable data); give it as an int, or set Trainer(max_steps=…)"
    for recipe in recipes:
        schedule = timed(recipe.schedule)
        for field, value in schedule.steps.items():
            if isinstance(value, float):
                raise ValueError(
                    f"{type(recipe.schedule).__name__}.{field} = {value!r} is a share of the run, and its number of"
                    f" optimizer steps is unknown: {reason}"
                )


def check_completes(run: PruningRun, trainer: Trainer, pl_module: LightningModule) -> None:
    """Refuse a schedule whose last event lies behind the end of the run, where that end is known."""
    total, last = total_steps(trainer), run.last_step
    finders = kinds("callbacks.BatchSizeFinder") + kinds("callbacks.LearningRateFinder")
    is_tuning = any(isinstance(callback, finders) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    if total is None or last is None or is_tuning or not pl_module.automatic_optimization:
        return
    total += run.step - trainer.global_step
    if last > total:
        raise ValueError(
            f"the schedule ends at step {last}, but this run has only {total} optimizer steps, so it would not reach"
            f" its final sparsity; set end_step to at most {total} (or a share such as 0.7), or train longer"
        )


def is_left_out(trainer: Trainer, optimizer: Optimizer) -> bool:
    """Say whether the gradient scaler of 16-mixed will leave this step out because a gradient overflowed."""
    if trainer.scaler is None:
        return False
    gradients = [p.grad for p in parameters_of(optimizer) if p.grad is not None]
    return not bool(torch.isfinite(get_total_norm(gradients)))


def selection_warnings(trainer: Trainer, last: int | None) -> list[str]:
    """Say which callbacks of a pruning Trainer would choose or stop at a state from before the target, and what to do.

    Args:
        trainer: whose fit has started.
        last: the step at which the schedules reach the target; None when they do not tell.
    """
    texts = []
    for other in trainer.callbacks:  # type: ignore[attr-defined]
        is_plain = isinstance(other, kinds("callbacks.ModelCheckpoint")) and not isinstance(other, SelectingCheckpoint)
        if is_plain and other.monitor:
            texts.append(
                f"ModelCheckpoint(monitor={other.monitor!r}) keeps the best of the whole run, most likely from before"
                ' the target sparsity, and ckpt_path="best" would hand that out: write'
                f" SparsityCheckpoint(monitor={other.monitor!r}, mode={other.mode!r}) instead"
            )
        is_stopping = isinstance(other, kinds("callbacks.EarlyStopping"))
        if is_stopping and last is not None and (trainer.min_steps or 0) <= last:
            texts.append(
                f"EarlyStopping(monitor={other.monitor!r}) may end the fit before step {last}, where the schedule"
                f" reaches the target sparsity: write Trainer(min_steps=N) with N above {last}, so that the model can"
                " recover too"
            )
    return texts
