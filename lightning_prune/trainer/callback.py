"""When to prune in a Lightning run: hooks, logging and checkpoints; no maths."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_prune.checkpoints import state as checkpoints
from lightning_prune.compaction import applied_plan
from lightning_prune.distillation import Distillation
from lightning_prune.errors import PruningError
from lightning_prune.guard import Guard, Trial
from lightning_prune.recipe import Recipe
from lightning_prune.run.pruner import Event
from lightning_prune.run.resuming import differences, without_guard
from lightning_prune.run.run import PruningRun, rehearsal
from lightning_prune.trainer import averages
from lightning_prune.trainer.files import CheckpointFiles
from lightning_prune.trainer.finishing import make_plain, warn_unfinished
from lightning_prune.trainer.guard import Guarding
from lightning_prune.trainer.preconditions import (
    check_completes,
    example_inputs_of,
    forget_data,
    is_left_out,
    is_rehearsal,
    total_steps,
)
from lightning_prune.trainer.resume import Loading, count_epoch, finish_epoch
from lightning_prune.trainer.strategy import check_can_shrink, check_strategy, is_sharding, shrink
from lightning_prune.trainer.teaching import Distilling, check_can_distil, take_up

log = logging.getLogger(__name__)


class PruningCallback(Callback):
    """Prunes a LightningModule while it trains, and leaves plain, smaller modules at the end of the fit.

    Args:
        recipe: one recipe, or several with different targets.
        guard: puts an event back when the validation metric falls too far after it; None: none does.
        finalize: fold the masks and remove the channels at the normal end of the fit. False: the masks stay, and
            :func:`lightning_prune.finalize` does it later.
        distillation: lets the dense model, or another teacher, teach this one in every step of the fit; None: nobody
            does.
        compact_every_event: remove the channels at each event instead of carrying masks to the end, so that training
            itself gets faster; on one device and under DDP.
        resume_with_other_recipe: let this recipe go on from here where a checkpoint is of a run with another one,
            which is refused otherwise.

    Example:
        >>> from lightning_prune.schedules import OneShot
        >>> callback = PruningCallback(Recipe(schedule=OneShot(final_sparsity=0.5, begin_step=30)))
    """

    def __init__(
        self,
        recipe: Recipe | Sequence[Recipe],
        *,
        guard: Guard | None = None,
        distillation: Distillation | None = None,
        finalize: bool = True,
        compact_every_event: bool = False,
        resume_with_other_recipe: bool = False,
    ) -> None:
        self.recipes: tuple[Recipe, ...] = (recipe,) if isinstance(recipe, Recipe) else _several(recipe)
        if not isinstance(guard, Guard | None):
            raise TypeError(
                f'PruningCallback.guard takes a Guard, such as Guard("val_acc", "max", 0.01), got {guard!r}'
            )
        if not isinstance(distillation, Distillation | None):
            raise TypeError(
                f"PruningCallback.distillation takes a Distillation, such as Distillation(temperature=4.0, weight=0.5),"
                f" got {distillation!r}"
            )
        self.guard = guard
        self.distillation = distillation
        self.finalize = finalize
        self.compact_every_event = compact_every_event
        self.resume_with_other_recipe = resume_with_other_recipe
        self.events: list[Event] = []
        self.is_done = False
        self.is_from_module = False
        self._run: PruningRun | None = None
        self._guarding: Guarding | None = None
        self._distilling: Distilling | None = None
        self._taught: Mapping[str, Any] | None = None
        self._model: LightningModule | None = None
        self._state: dict[str, Any] | None = None
        self._has_trained = False
        self._load_hooks: list[RemovableHandle | CheckpointFiles] = []

    @property
    def sparsity(self) -> float:
        """The sparsity reached so far, in what the recipe counts."""
        return 0.0 if self._run is None else self._run.sparsity

    @property
    def trials(self) -> list[Trial]:
        """What the guard has judged: events that were kept and events that were rolled back, in order."""
        return [] if self._guarding is None else list(self._guarding.watch.history)

    @property
    def is_on_trial(self) -> bool:
        """Whether the guard has yet to judge the last event."""
        return self._guarding is not None and self._guarding.watch.trial is not None

    @property
    def _active(self) -> PruningRun | None:
        return None if self.is_done else self._run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach the masks, before the strategy wraps the model and weights load.

        A module with a ``setup`` or ``configure_model`` of its own may make layers or loaders there, which run after
        this hook: it gets its masks before the weights of a checkpoint load, or else when the fit starts.
        """
        _check_alone(trainer)
        check_strategy(trainer, pl_module)
        if self.compact_every_event:
            check_can_shrink(self.recipes, trainer)
        if self.distillation is not None:
            check_can_distil(trainer)
        self._unhook()
        self._files = CheckpointFiles(trainer.strategy)
        self._load_hooks = [
            pl_module.register_load_state_dict_pre_hook(self._loading(trainer)),
            pl_module.register_load_state_dict_post_hook(averages.Loaded(trainer)),
            self._files,
        ]
        if stage == "fit":
            if self._model is not pl_module:
                self._model, self._run, self._state, self.is_done, self.events = pl_module, None, None, False, []
                self._guarding = self._distilling = self._taught = None
            is_late = any(is_overridden(hook, pl_module) for hook in ("setup", "configure_model"))
            if not self.is_done and (is_sharding(trainer) or not is_late):
                self._bind(trainer, pl_module)

    def _bind(self, trainer: Trainer, pl_module: LightningModule) -> PruningRun:
        if self._run is None:
            recipes = [rehearsal(r) for r in self.recipes] if is_rehearsal(trainer) else self.recipes
            self._run = PruningRun(recipes, pl_module, example_inputs_of(pl_module), total_steps(trainer))
            self._guarding = None if self.guard is None else Guarding(self.guard, len(recipes))
        return self._run

    def _loading(self, trainer: Trainer) -> Loading:
        expected = None if self.resume_with_other_recipe or is_rehearsal(trainer) else self.recipes
        return Loading(
            trainer, self._run_for, lambda: self._run if self._run and self._run.is_started else None, expected
        )

    def _is_done_in(self, saved: Mapping[str, Any]) -> bool:
        return saved["is_done"] and not differences(saved["recipes"], self.recipes)

    def _run_for(self, trainer: Trainer, pl_module: LightningModule, saved: Mapping[str, Any]) -> PruningRun | None:
        """Return the run for weights that are about to load into this shape; None where nothing is pruned."""
        if trainer.state.fn != "fit" or (self._is_done_in(saved) if saved else self.is_done):
            return None
        if self._run is not None and self._run.base != applied_plan(pl_module):
            self._run = None
        return self._bind(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit the run to the weights that have loaded."""
        forget_data(trainer)
        self._has_trained = False
        if not self.is_done:
            run = self._bind(trainer, pl_module)
            run.rebind(pl_module, example_inputs_of(pl_module))
            if self._state is None and self._guarding is not None:
                self._forget(self._guarding.start_fit(run, pl_module))
            self._take_up(trainer, pl_module)
            averages.take_masks(trainer, pl_module)

    def _take_up(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the run go on as the checkpoint says that was loaded, if one was."""
        if self._run is not None and self._state is not None and not is_rehearsal(trainer):
            self._run.load_state_dict(self._state, pl_module, self.resume_with_other_recipe)
            is_same = not differences(self._state["recipes"], self.recipes)
            if self._guarding is not None and self._state.get("guard") is not None and is_same:
                self._guarding.load_state_dict(self._state["guard"])
            elif text := without_guard(self._state.get("guard"), self._guarding is not None):
                warnings.warn(text, stacklevel=2)
        self._state = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what this run cannot complete; take hold of the optimizers; run an event due before the first step."""
        self._has_trained = True
        self._teach(trainer, pl_module)
        if self._active is not None:
            self._take_up(trainer, pl_module)  # a strategy that shards restores after on_fit_start
            check_completes(self._active, trainer, pl_module)
            if self._guarding is not None:
                self._guarding.check(trainer)
            schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
            self._active.start(trainer.optimizers, schedulers, pl_module)
            _warn_of_selection(trainer)
            if self._guarding is not None:
                self._guarding.catch_up(trainer)
            if self._active.step == 0:
                self._prune(trainer, pl_module)
        elif self.is_done and not all(recipe.is_structured for recipe in self.recipes):
            warnings.warn(
                "pruning of this model is done and its masks are folded, so this fit may bring zeros back to life;"
                " PruningCallback(recipe, finalize=False) keeps the masks over several fits",
                stacklevel=2,
            )

    def _teach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the teacher of this model begin, which is the model itself where none has been yet."""
        if self.distillation is not None:
            self._distilling = self._distilling or Distilling(self.distillation)
            units = [] if self._run is None else [pruner.units for pruner in self._run.pruners]
            self._distilling.start(trainer, pl_module, units, self._taught, self._files)
            self._files.companion = self._distilling.companion
            self._taught = None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Show the gradients to the criteria that watch them: unscaled, before clipping."""
        if self._active is not None and not is_left_out(trainer, optimizer):
            self._active.observe(pl_module, optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Run the event that is due, after the optimizer step and before a checkpoint of this batch is written."""
        if self._distilling is not None and self._distilling.term is not None and not trainer.barebones:
            pl_module.log("distillation", self._distilling.term)
        if self._active is not None:
            self._prune(trainer, pl_module)
            if not trainer.barebones:
                pl_module.log("sparsity", self._active.sparsity, prog_bar=True, logger=False)

    def _prune(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run, guarding = self._run, self._guarding
        if run is None:
            return
        run.after_step(pl_module)
        asked = run.due() if guarding is None else guarding.permit(run, trainer)
        if not asked:
            return
        before = run.asked
        if guarding is not None and not guarding.begin(run, trainer, pl_module):
            run.leave_out()
            return
        events = run.prune(pl_module, asked)
        if guarding is not None:
            guarding.watch.begin(run.step, before, asked)
        averages.take_masks(trainer, pl_module)
        if self.compact_every_event:
            shrink(run, trainer, pl_module)
        for event in events:
            self.events.append(event)
            _log_event(trainer, event)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the guard judge the event on trial; put back what failed."""
        is_of_fit = trainer.state.fn == "fit" and not trainer.sanity_checking
        if is_of_fit and self._active is not None and self._guarding is not None:
            self._forget(self._guarding.judge(self._active, trainer, pl_module))

    def _forget(self, failed: Trial | None) -> None:
        """Take the events of a trial that was rolled back off the record."""
        if failed is not None:
            self.events = [event for event in self.events if event.step < failed.step]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finalize at the normal end; say so when the run stopped short of its target."""
        self._stop_teaching()
        self._finish(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finalize where the checkpoint was the last of its run: Lightning then leaves the training out altogether."""
        if not self._has_trained and trainer.fit_loop.done and trainer.limit_train_batches != 0:  # type: ignore[attr-defined]
            if self._active is not None and self._guarding is not None:
                self._guarding.catch_up(trainer)
            self._finish(trainer, pl_module)

    def _finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._active is None:
            return
        failed = None if self._guarding is None else self._guarding.end(self._active, trainer, pl_module)
        if failed is not None:
            self._forget(failed)
            averages.copy_again(trainer, pl_module, self)
        self._active.stop()
        if self._guarding is None:
            warn_unfinished(self._active)
        else:
            is_short = bool(self._active.unfinished)
            log.log(logging.WARNING if is_short else logging.INFO, self._guarding.summary(self._active, pl_module))
        if self.finalize:
            self.is_done = make_plain(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of model and optimizers; the model stays masked, so that the run can be resumed."""
        self._stop_teaching()
        self._unhook()  # Lightning calls no teardown after an exception
        if self._run is not None:
            self._run.stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the load hook away again."""
        self._stop_teaching()
        self._unhook()

    def _stop_teaching(self) -> None:
        if self._distilling is not None:
            self._distilling.stop()

    def _unhook(self) -> None:
        for hook in self._load_hooks:
            hook.remove()
        self._load_hooks.clear()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write what a resume needs beside the weights: plain values and tensors, no pickled modules."""
        entry = checkpoints.describe(pl_module)
        entry["distillation"] = None if self._distilling is None else self._distilling.state_dict()
        if self._run is not None:
            recipes = [recipe.describe() for recipe in self.recipes]
            entry["run"] = {"is_done": self.is_done, "recipes": recipes}
            entry["run"] |= {} if self.is_done else self._run.state_dict()
            entry["run"]["guard"] = None if self._guarding is None else self._guarding.state_dict(trainer)
        checkpoint[checkpoints.KEY] = entry
        if trainer.training or trainer.validating:
            count_epoch(checkpoint, trainer.validating)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take up a run that was stopped; the weights are loaded already."""
        if trainer.state.fn == "fit":
            finish_epoch(checkpoint)
            forget_data(trainer)  # again: a strategy that shards restores after on_fit_start
            entry = checkpoint.get(checkpoints.KEY, {})
            self._taught = take_up(self.distillation, entry, self.resume_with_other_recipe)
            saved = entry.get("run")
            self.is_done = saved is not None and self._is_done_in(saved)
            self._state = None if saved is None or saved["is_done"] else saved
            if self._state is None and not self.is_done:
                self._run = None
            self.events = [event for event in self.events if self._state and event.step <= self._state["step"]]


def _several(recipes: Sequence[Recipe]) -> tuple[Recipe, ...]:
    several: tuple[Any, ...] = tuple(recipes) if isinstance(recipes, list | tuple) else (recipes,)
    for recipe in several:
        if not isinstance(recipe, Recipe):
            raise TypeError(f"PruningCallback takes a Recipe or a list of them, got {recipe!r}")
    if not several:
        raise ValueError("PruningCallback got an empty list of recipes; pass at least one")
    return several


def _check_alone(trainer: Trainer) -> None:
    count = sum(isinstance(callback, PruningCallback) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    if count > 1:
        raise PruningError(
            f"the Trainer has {count} PruningCallbacks; keep one and give it all recipes: PruningCallback([a, b])"
        )


def _warn_of_selection(trainer: Trainer) -> None:
    from lightning_prune.trainer.sparsity_checkpoint import selection_warnings  # which knows this callback

    for text in selection_warnings(trainer):
        rank_zero_warn(text)


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
        event.step,
        event.sparsity,
        event.asked,
        f"{event.params:,}",
        macs,
    )
