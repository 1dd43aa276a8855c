"""One fit of a model under pruning: what happens at each stage of it, in the order in which they come."""

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from lightning_prune.checkpoints import earlier
from lightning_prune.checkpoints import state as checkpoints
from lightning_prune.checkpoints.files import taking_up
from lightning_prune.compaction import applied_plan
from lightning_prune.compaction.finalization import finalize_or_fold
from lightning_prune.distributed import ranks
from lightning_prune.documents import typed
from lightning_prune.errors import PruningError
from lightning_prune.guard import Trial, Verdict
from lightning_prune.model import masks
from lightning_prune.model.example import Example, FirstForward, example_of
from lightning_prune.model.recalibration import frozen_statistics
from lightning_prune.recipe import Recipe
from lightning_prune.run.event import Event
from lightning_prune.run.lines import Size, event_line
from lightning_prune.run.record import keep
from lightning_prune.run.resuming import differences, without_guard
from lightning_prune.run.run import PruningRun
from lightning_prune.trainer import _averages as averages
from lightning_prune.trainer._course import Course, Settings
from lightning_prune.trainer._files import CheckpointFiles
from lightning_prune.trainer._lines import Ending, metrics_of, size_of, tell, to_loggers
from lightning_prune.trainer._preconditions import (
    check_completes,
    check_length,
    example_on_device,
    is_left_out,
    is_rehearsal,
    selection_warnings,
    total_steps,
)
from lightning_prune.trainer.guard import Guarding
from lightning_prune.trainer.internals import finish_epoch, forget_data, is_over
from lightning_prune.trainer.packages import Trainer, overrides, rank_zero_warn
from lightning_prune.trainer.strategy import is_sharding, shrink, warn_sharded
from lightning_prune.trainer.teaching import Distilling, take_up

log = logging.getLogger(__name__)


class Fit:
    """One fit: made when the Trainer sets it up, dropped when it is torn down or an exception ends it.

    Args:
        trainer: of the fit.
        course: of the model that is fitted; it takes up what the fit leaves.
        settings: what is asked for.
        files: reads and writes the checkpoints of the fit.
    """

    def __init__(self, trainer: Trainer, course: Course, settings: Settings, files: CheckpointFiles) -> None:
        self.trainer, self.course, self.settings, self.files = trainer, course, settings, files
        self.model, self.record = course.model, course.record
        self._resumed: Mapping[str, Any] | None = None
        self._taught: Mapping[str, Any] | None = None
        self._has_trained = False
        self._waiting: FirstForward | None = None
        self._has_warned = False
        keep(self.model, self.record)

    @property
    def expected(self) -> tuple[Recipe, ...] | None:
        """The recipes that a run in a checkpoint must have had to go on here; None: whichever it had."""
        is_any = self.settings.resume_with_other_recipe or is_rehearsal(self.trainer)
        return None if is_any else self.settings.recipes

    def bind(self) -> PruningRun | None:
        """Return the run for this model, with masks attached; None while its first forward pass is waited for."""
        course, recipes = self.course, self.settings.recipes
        if course.run is None:
            if any(recipe.needs_example for recipe in recipes) and example_of(self.model) is None:
                self._waiting = self._waiting or FirstForward(self.model, self._arrive)
                return None
            self._stop_waiting()
            recipes = [recipe.rehearsed() for recipe in recipes] if is_rehearsal(self.trainer) else recipes
            check_length(recipes, self.trainer)
            course.run = PruningRun(recipes, self.model, example_on_device(self.model), total_steps(self.trainer))
            guard = self.settings.guard
            course.guarding = None if guard is None else Guarding(guard, len(recipes))
        return course.run

    def _arrive(self, example: Example) -> None:
        """Begin with the arguments of the first forward pass as the example, before that pass goes on."""
        self._stop_waiting()
        # the masks have to be there before a layer runs; what this pass was asked to be stays as it is
        is_training = self.model.training
        self.start()
        if self._has_trained:
            self._start_pruning()
        self.model.train(is_training)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.remove()
            self._waiting = None
            torch.compiler.set_stance("default")

    def bind_early(self) -> None:
        """Attach the masks before the strategy wraps the model, unless its layers may be made after that."""
        is_late = any(overrides(self.model, hook) for hook in ("setup", "configure_model"))
        if not self.record.is_done and (is_sharding(self.trainer) or not is_late):
            self.bind()

    def bind_for(self, saved: Mapping[str, Any]) -> PruningRun | None:
        """Return the run for weights that are about to load into the model's shape; None where nothing is pruned.

        Args:
            saved: what their checkpoint says of its run; empty without one.
        """
        if self._is_done_in(saved) if saved else self.record.is_done:
            return None
        if self.course.run is not None and self.course.run.base != applied_plan(self.model):
            self.course.run = None
        return self.bind()

    def _is_done_in(self, saved: Mapping[str, Any]) -> bool:
        return saved["is_done"] and not differences(saved["recipes"], self.settings.recipes)

    @taking_up("its run")
    def load(self, checkpoint: dict[str, Any]) -> None:
        """Note where the run of a checkpoint was; its weights are loaded already."""
        self.course.stages.clear()
        finish_epoch(self.trainer, checkpoint)
        forget_data(self.trainer)  # again: a strategy that shards restores after on_fit_start
        entry = checkpoint.get(checkpoints.KEY, {})
        self._taught = take_up(self.settings.distillation, entry, self.settings.resume_with_other_recipe)
        saved = entry.get("run")
        if saved is not None and saved.get("dense") is not None:
            # checkpoints without events counted MACs of all samples of an example that was learnt: they count anew
            self.course.dense = typed(Size, saved["dense"] | ({} if "events" in saved else {"macs": None}))
        self.course.networks.load_state_dict({} if saved is None else saved.get("networks", {}))
        self.record.is_done = saved is not None and self._is_done_in(saved)
        self._resumed = None if saved is None or saved["is_done"] else saved
        if self._resumed is None and not self.record.is_done:
            self.course.run = None
        reached = -1 if self._resumed is None else self._resumed["step"]
        self.record.events = [event for event in self.record.events if event.step <= reached]
        if saved is not None and "events" in saved and (self._resumed is not None or self.record.is_done):
            self.record.events = [Event.of(values) for values in saved["events"]]
        self._note()

    def start(self) -> None:
        """Fit the run to the weights that have loaded."""
        forget_data(self.trainer)
        earlier.serve(self.model, self.course.stages)
        if self.record.is_done:
            return
        run, guarding = self.bind(), self.course.guarding
        if run is None:
            return
        run.rebind(self.model, example_on_device(self.model))
        if self._resumed is None and guarding is not None:
            self._note(guarding.start_fit(run, self.model))
        self._take_up()
        averages.take_masks(self.trainer, self.model)

    def _take_up(self) -> None:
        """Let the run go on as the checkpoint says that was loaded, if one was."""
        saved, run, guarding = self._resumed, self.course.run, self.course.guarding
        self._resumed = None
        if run is None or saved is None or is_rehearsal(self.trainer):
            return
        with taking_up("its run"):
            run.load_state_dict(saved, self.model, self.settings.resume_with_other_recipe)
            is_guarded = guarding is not None and saved.get("guard") is not None
            is_same = is_guarded and not differences(saved["recipes"], self.settings.recipes)
            if guarding is not None and is_same:
                guarding.load_state_dict(saved["guard"])
            text = None if is_same else without_guard(saved.get("guard"), guarding is not None)
        if text:
            warnings.warn(text, stacklevel=2)
        self._note()

    def start_training(self) -> None:
        """Refuse what this run cannot complete; take hold of the optimizers; run an event due before the first step."""
        self._has_trained = True
        trainer, model, course = self.trainer, self.model, self.course
        if self.settings.distillation is not None:
            course.distilling = course.distilling or Distilling(self.settings.distillation)
            units = [] if course.run is None else [pruner.units for pruner in course.run.pruners]
            course.distilling.start(trainer, model, units, self._taught, self.files)
            self.files.companion = course.distilling.companion
            self._taught = None
        if self._waiting is not None:
            # a compiled forward would be traced past what stands in its place
            torch.compiler.set_stance("force_eager")
        else:
            self._start_pruning()

    def _start_pruning(self) -> None:
        """Take hold of the optimizers; run an event due before the first step."""
        trainer, model, course = self.trainer, self.model, self.course
        if course.active is not None:
            self._take_up()  # a strategy that shards restores after on_fit_start
            # a tuner may have fitted a few steps before, or changed the batch size and with it the number of steps
            course.active.set_length(total_steps(trainer))
            check_completes(course.active, trainer, model)
            if course.guarding is not None:
                course.guarding.check(trainer)
            schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
            course.active.start(trainer.optimizers, schedulers, model)
            macs = next((pruner.macs.total for pruner in course.active.pruners if pruner.macs), None)
            dense = course.dense or size_of(model)
            course.dense = dense if dense.macs is not None else replace(dense, macs=macs)
            for text in selection_warnings(trainer, course.active.last_step):
                rank_zero_warn(text)
            if course.guarding is not None:
                course.guarding.catch_up(trainer)
            if course.active.step == 0:
                self._prune()
        elif self.record.is_done and not all(recipe.is_structured for recipe in self.settings.recipes):
            warnings.warn(
                "pruning of this model is done and its masks are folded, so this fit may bring zeros back to life;"
                " PruningCallback(recipe, finalize=False) keeps the masks over several fits",
                stacklevel=2,
            )

    def observe(self, optimizer: Optimizer) -> None:
        """Show the gradients to the criteria that watch them."""
        run = self.course.active
        if run is not None and not is_left_out(self.trainer, optimizer):
            run.observe(self.model, optimizer)

    def end_batch(self) -> None:
        """Run the event that is due, and log how far pruning has come."""
        if self._waiting is not None:
            name = type(self.model).__name__
            raise PruningError(
                f"{name}.forward was not called in the first training step, so there is no example of what it takes:"
                f" call self(…) in training_step, or set {name}.example_input_array to what forward takes"
            )
        self._prune()
        if not self.trainer.barebones:  # which refuses to log
            if self.course.distilling is not None and self.course.distilling.term is not None:
                self.model.log("distillation", self.course.distilling.term)
            if self.course.active is not None:
                self.model.log("sparsity", self.record.sparsity, prog_bar=True, logger=False)

    def _prune(self) -> None:
        """Run the event that is due, if one is and the guard lets it."""
        run, guarding, trainer, model = self.course.active, self.course.guarding, self.trainer, self.model
        if run is None:
            return
        run.after_step(model)
        asked = run.due() if guarding is None else guarding.permit(run, trainer)
        if not asked:
            return
        before = run.asked
        if self.course.dense is not None and not any(before.values()):
            self.course.dense = replace(self.course.dense, metrics=metrics_of(trainer, self.settings))
        if guarding is not None and not guarding.begin(run, trainer, model):
            run.leave_out()
            return
        self.course.networks.keep(run, model)
        events = run.prune(model, asked)
        if guarding is not None:
            guarding.watch.begin(run.step, before, asked)
        averages.take_masks(trainer, model)
        if self.settings.compact_every_event:
            self.course.stages.append(applied_plan(model))
            shrink(run, trainer, model)
            earlier.serve(model, self.course.stages)
        # older checkpoints hold no events, and nothing tells what each layer had lost by then
        layers = None if any(before.values()) else {}
        for event in events:
            layers = self.record.events[-1].layers if self.record.events else layers
            self.record.events.append(event)
            to_loggers(trainer, event)
            tell(trainer, self.settings, event_line(event, self.course.dense or size_of(model), layers))
            for text in event.thin:
                rank_zero_warn(text)
        self._note()
        self._warn_of_frozen_statistics()

    def _warn_of_frozen_statistics(self) -> None:
        """Say once which batch norms keep the statistics of the network before the cut while it trains."""
        frozen = [] if self._has_warned or not self.model.training else frozen_statistics(self.model)
        if frozen:
            self._has_warned = True
            more = f" and {len(frozen) - 5} more" if len(frozen) > 5 else ""
            rank_zero_warn(
                f"{', '.join(frozen[:5])}{more} do not update their statistics (eval mode or momentum=0), so these stay"
                " those of the network before the event: measure them anew after the fit with"
                " lightning_prune.recalibrate(model, loader)"
            )

    def look(self) -> None:
        """Let the guard see what has been logged before a validation."""
        if self.course.active is not None and self.course.guarding is not None:
            self.course.guarding.look(self.trainer)

    def judge(self) -> None:
        """Let the guard judge the event on trial after a validation; put back what failed."""
        run, guarding = self.course.active, self.course.guarding
        if run is not None and guarding is not None:
            judged = guarding.judge(run, self.trainer, self.model)
            if judged is not None and judged.outcome is Verdict.COMMIT:
                text = f"step {run.step}: keep the event of step {judged.step}: {judged.reason}"
                tell(self.trainer, self.settings, text)
                judged = None
            self._note(judged)

    def _note(self, failed: Trial | None = None) -> None:
        """Write down what stands; the events of a trial that was rolled back do not."""
        course, record = self.course, self.record
        record.sparsity = 0.0 if course.run is None else course.run.sparsity
        record.trials = [] if course.guarding is None else list(course.guarding.watch.history)
        if failed is not None:
            earlier.serve(self.model, course.stages)
            record.events = [event for event in record.events if event.step < failed.step]

    def conclude(self) -> PruningRun | None:
        """Let go of the optimizers at the normal end and tell what fell short; return the run that has ended."""
        run, guarding, trainer, model = self.course.active, self.course.guarding, self.trainer, self.model
        if run is None:
            return None
        failed = None if guarding is None else guarding.end(run, trainer, model)
        self._note(failed)
        if failed is not None:
            averages.copy_again(trainer, model, self.settings)
        run.stop()
        if guarding is not None:
            log.log(logging.WARNING if run.unfinished else logging.INFO, guarding.summary(run, model))
        else:
            for pruner in run.unfinished:
                warnings.warn(
                    f"pruning stopped short: asked for sparsity {pruner.schedule.final:g}, kept {pruner.asked:g} at"
                    f" step {run.step}; train longer or let the schedule end earlier",
                    stacklevel=3,
                )
        return run

    def finish_after(self, run: PruningRun, end: Callable[[], object]) -> None:
        """Finish when the training has ended for everybody: averages may be copied in any ``on_train_end``."""
        end()
        self.finish(run)

    def finish(self, run: PruningRun) -> None:
        """Make the model plain, where that is asked for, and tell what came of the run."""
        self.course.networks.keep(run, self.model)
        ending = Ending(run, self.course, metrics_of(self.trainer, self.settings))
        if self.settings.finalize:
            self._finalize()
        tell(self.trainer, self.settings, ending.text())

    def _finalize(self) -> None:
        """Make the model plain and write it; states from before still load into it."""
        trainer, model = self.trainer, self.model
        if is_sharding(trainer):
            warn_sharded(model)
            return
        if self.course.run is not None:
            self.course.run.mask_copies(model)
        before, pruned = applied_plan(model), {name: mask.clone() for name, mask in masks.read(model).items()}
        ranks.copy_from_first(model.buffers())  # what is exact is then the same on all ranks
        finalize_or_fold(model, trainer.optimizers)
        averages.settle(trainer, model)
        self.record.is_done = True
        self.course.stages.append(before)
        earlier.serve(model, self.course.stages, pruned)
        # beside the Trainer's checkpoints, which hold the model with masks, if it writes any
        folder = getattr(trainer.checkpoint_callback, "dirpath", None)
        if folder and not is_rehearsal(trainer):
            path = Path(folder) / "pruned.ckpt"
            trainer.save_checkpoint(path, weights_only=False)  # Lightning 2.6 tells what is left open
            self.record.checkpoint = None if self.files.has_failed else path

    def finish_untrained(self) -> None:
        """Finish where the checkpoint was the last of its run: Lightning then leaves the training out altogether."""
        trainer, run, guarding = self.trainer, self.course.active, self.course.guarding
        if not self._has_trained and is_over(trainer) and trainer.limit_train_batches != 0:  # type: ignore[attr-defined]
            if run is not None and guarding is not None:
                guarding.catch_up(trainer)
            ended = self.conclude()
            if ended is not None:
                self.finish(ended)

    def stop_teaching(self) -> None:
        """Let the teacher go; the next fit of the model has it again."""
        if self.course.distilling is not None:
            self.course.distilling.stop()

    def stop(self) -> None:
        """Let go of model and optimizers; a model that is not finalized stays masked."""
        self._stop_waiting()
        self.stop_teaching()
        if self.course.run is not None:
            self.course.run.stop()
