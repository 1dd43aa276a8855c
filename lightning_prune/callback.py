"""When to prune in a Lightning run: hooks, logging and checkpoints; no maths."""

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_prune import checkpoints, masks, schedules
from lightning_prune.errors import CompactionError, PruningError
from lightning_prune.finalization import finalize as finalize_model
from lightning_prune.pruner import Event
from lightning_prune.recipe import Recipe
from lightning_prune.report import example_of
from lightning_prune.run import PruningRun, rehearsal

log = logging.getLogger(__name__)


class PruningCallback(Callback):
    """Prunes a LightningModule while it trains, and leaves plain, smaller modules at the end of the fit.

    Args:
        recipe: one recipe, or several with different targets.
        finalize: fold the masks and remove the channels at the normal end of the fit. False: the masks stay, and
            :func:`lightning_prune.finalize` does it later.

    Example:
        >>> from lightning_prune.schedules import OneShot
        >>> callback = PruningCallback(Recipe(schedule=OneShot(final_sparsity=0.5, begin_step=30)))
    """

    def __init__(self, recipe: Recipe | Sequence[Recipe], finalize: bool = True) -> None:
        self.recipes: tuple[Recipe, ...] = (recipe,) if isinstance(recipe, Recipe) else tuple(recipe)
        for given in self.recipes:
            if not isinstance(given, Recipe):
                raise TypeError(f"PruningCallback takes a Recipe or a list of them, got {given!r}")
        if not self.recipes:
            raise ValueError("PruningCallback got an empty list of recipes; pass at least one")
        self.finalize = finalize
        self.events: list[Event] = []
        self.is_done = False
        self._run: PruningRun | None = None
        self._model: LightningModule | None = None
        self._total_steps: int | None = None
        self._state: dict[str, Any] | None = None
        self._load_hook: RemovableHandle | None = None

    @property
    def sparsity(self) -> float:
        """The sparsity reached so far, in what the recipe counts."""
        return 0.0 if self._run is None else self._run.sparsity

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach the masks, before the strategy wraps the model and weights load."""
        _check_alone(trainer)
        self._load_hook = pl_module.register_load_state_dict_pre_hook(_Loading(self, trainer))
        if stage == "fit":
            if self._model is not pl_module:
                self._model, self._run, self._state, self.is_done = pl_module, None, None, False
            self._total_steps = _total_steps(trainer)
            if not (self.is_done or self._run or is_overridden("configure_model", pl_module)):
                self._bind(trainer, pl_module)

    def _bind(self, trainer: Trainer, pl_module: LightningModule) -> PruningRun:
        if self._run is None:
            recipes = [rehearsal(r) for r in self.recipes] if trainer.fast_dev_run else self.recipes
            self._run = PruningRun(recipes, pl_module, example_of(pl_module), self._total_steps)
        return self._run

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit the run to the weights that have loaded; refuse a schedule that this run cannot complete."""
        if not self.is_done:
            run = self._bind(trainer, pl_module)
            run.rebind(pl_module, example_of(pl_module))
            if self._state is not None:
                run.load_state_dict(self._state, pl_module)
                self._state = None
            _check_completes(run, trainer, pl_module, self._total_steps)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take hold of optimizers and schedulers; run an event that is due before the first step."""
        if self._run is not None and not self.is_done:
            schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
            self._run.start(trainer.optimizers, schedulers, pl_module)
            self._prune(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Show the gradients to the criteria that watch them: unscaled, before clipping."""
        if self._run is not None and not self.is_done:
            self._run.observe(pl_module, optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Run the event that is due, after the optimizer step and before a checkpoint of this batch is written."""
        if self._run is not None and not self.is_done:
            self._prune(trainer, pl_module)
            self.log("sparsity", self._run.sparsity, prog_bar=True, logger=False)

    def _prune(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run is not None:
            for event in self._run.prune_if_due(pl_module):
                self.events.append(event)
                _log_event(trainer, event)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finalize at the normal end; say so when the run stopped short of its target."""
        if self._run is None or self.is_done:
            return
        self._run.stop()
        for pruner in self._run.unfinished:
            asked = schedules.final_sparsity(pruner.schedule)
            warnings.warn(
                f"pruning stopped short: asked for sparsity {asked:g}, kept {pruner.asked:g} at step {self._run.step};"
                " train longer or let the schedule end earlier",
                stacklevel=2,
            )
        if self.finalize:
            _finalize(trainer, pl_module)
            self.is_done = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of the optimizers; the model stays masked, so that the run can be resumed."""
        if self._run is not None:
            self._run.stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the load hook away again."""
        if self._load_hook is not None:
            self._load_hook.remove()
            self._load_hook = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write what a resume needs beside the weights: plain values and tensors, no pickled modules."""
        entry = checkpoints.describe(pl_module)
        if self._run is not None:
            entry["run"] = {"is_done": self.is_done} | ({} if self.is_done else self._run.state_dict())
        checkpoint[checkpoints.KEY] = entry

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take up a run that was stopped; the weights are loaded already."""
        saved = checkpoint.get(checkpoints.KEY, {}).get("run")
        if saved is not None and trainer.state.fn == "fit":
            self.is_done = saved["is_done"]
            self._state = None if self.is_done else saved
            if self.is_done:
                masks.detach(pl_module)


class _Loading:
    """A load_state_dict pre-hook: lets the model take the shape and masks of the state that is about to load.

    A copy of the model, deep or pickled, gets one that knows neither callback nor trainer.
    """

    def __init__(self, callback: PruningCallback | None = None, trainer: Trainer | None = None) -> None:
        self._callback = callback
        self._trainer = trainer

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Loading":
        return _Loading()

    def __reduce__(self) -> tuple[type["_Loading"], tuple[()]]:
        return _Loading, ()

    def __call__(self, model: LightningModule, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
        if prefix:
            return
        if not checkpoints.fits(model, state_dict):
            checkpoints.adapt(model, state_dict, self._entry())
        if self._callback and self._trainer and self._trainer.state.fn == "fit" and not self._callback.is_done:
            self._callback._bind(self._trainer, model).attach(model)
            checkpoints.add_masks(model, state_dict)

    def _entry(self) -> dict[str, Any] | None:
        """Return what the checkpoint that is being restored says of pruning; Lightning does not hand it to hooks."""
        path = self._trainer.ckpt_path if self._trainer else None
        if self._trainer is None or path is None:
            return None
        return self._trainer.strategy.load_checkpoint(path, True).get(checkpoints.KEY)


def _check_alone(trainer: Trainer) -> None:
    count = sum(isinstance(callback, PruningCallback) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    if count > 1:
        raise PruningError(
            f"the Trainer has {count} PruningCallbacks; keep one and give it all recipes: PruningCallback([a, b])"
        )


def _total_steps(trainer: Trainer) -> int | None:
    """Return the optimizer steps of the whole run, or None when Lightning cannot tell."""
    if trainer.fast_dev_run:
        return None
    steps = trainer.estimated_stepping_batches
    return int(steps) if 0 < steps < float("inf") else None


def _check_completes(run: PruningRun, trainer: Trainer, pl_module: LightningModule, total: int | None) -> None:
    """Refuse a schedule whose last event lies behind the end of the run, where that end is known."""
    is_tuning = any(isinstance(c, BatchSizeFinder | LearningRateFinder) for c in trainer.callbacks)  # type: ignore[attr-defined]
    last = run.last_step
    if total is None or last is None or is_tuning or not pl_module.automatic_optimization:
        return
    if last > total:
        raise ValueError(
            f"the schedule ends at step {last}, but this run has only {total} optimizer steps, so it would not reach"
            f" its final sparsity; set end_step to at most {total} (or a share such as 0.7), or train longer"
        )


def _finalize(trainer: Trainer, pl_module: LightningModule) -> None:
    try:
        finalize_model(pl_module, optimizer=trainer.optimizers)
    except CompactionError as error:
        warnings.warn(f"the channels stay, at zero, because removing them is not exact: {error}", stacklevel=2)
        masks.fold(pl_module)


@rank_zero_only
def _log_event(trainer: Trainer, event: Event) -> None:
    layers = {f"sparsity/{name.removesuffix('.weight')}": share for name, share in event.layers.items()}
    values = {"sparsity": event.sparsity, **layers, "params": float(event.params)}
    if event.macs is not None:
        values["macs"] = float(event.macs)
    for logger in trainer.loggers:
        logger.log_metrics(values, step=event.step)
    macs = "" if event.macs is None else f", {event.macs:,} MACs"
    log.info(
        "step %d: sparsity %.4f (asked %.4f), %s parameters%s left",
        event.step, event.sparsity, event.asked, f"{event.params:,}", macs,
    )
