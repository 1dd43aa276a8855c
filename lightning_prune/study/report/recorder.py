"""Writes down, during a Lightning fit, what a report draws."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lightning_prune.guard import Verdict
from lightning_prune.guard.guard import monitored
from lightning_prune.model.summary import summarize
from lightning_prune.run.event import Event
from lightning_prune.run.pruner import Pruner
from lightning_prune.study.report._loggers import to_loggers
from lightning_prune.study.report._origin import origin
from lightning_prune.study.report._ranked import Watched
from lightning_prune.study.report._sections import fit_sections
from lightning_prune.study.report.history import History, Scores
from lightning_prune.trainer.callback import pruning_callback_of
from lightning_prune.trainer.packages import AnyCallback, LightningModule, Trainer
from lightning_prune.trainer.strategy import is_sharding


class Recorder(AnyCallback):
    """Writes down what a :class:`Report` draws of a fit: metrics, sparsity, scores, layers before and after.

    It reads what is there anyway: the logged metrics after each validation, the scores when an event ranks them, and
    one forward pass of the example input before and after the fit to count multiply-accumulates. A ``trainer.validate``
    ahead of the fit gives it the metrics of the model before; without one, those of the last validation before the
    first event count as such. Its state goes into checkpoints, so a resumed run has the whole history. It may stand
    before or after the PruningCallback.

    Args:
        monitor: keys of the validation metrics to follow; a single key, or several. None: the guard's if there is
            one, otherwise all that are logged.
        figures: whether the figures go to the Trainer's loggers when the fit ends, to those that take figures.

    Example:
        >>> Recorder("val_acc").history.metrics
        {}
    """

    def __init__(self, monitor: str | Sequence[str] | None = None, *, figures: bool = True) -> None:
        keys = (monitor,) if isinstance(monitor, str) else monitor
        if keys is not None and (not keys or any(not isinstance(key, str) or not key for key in keys)):
            raise ValueError(
                f'Recorder.monitor must be the key of a metric, such as "val_acc", several of them, or None; got'
                f" {monitor!r}"
            )
        self.monitor = None if keys is None else tuple(keys)
        self.figures = figures
        self.history = History()
        self._model: LightningModule | None = None
        self._past: tuple[Event, ...] = ()
        self._offset: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin a new history with a new model, at its fit or at a validation ahead of that."""
        if stage in ("fit", "validate") and self._model is not pl_module:
            self._model, self._past, self.history = pl_module, (), History(model=type(pl_module).__name__)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the model, unless a checkpoint told what it was like."""
        self._watch(trainer)
        if self.history.before is None and not is_sharding(trainer):
            self.history = replace(self.history, before=summarize(pl_module))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Be there when the first event ranks its scores."""
        self._watch(trainer)
        self.history = replace(self.history, origin=origin(trainer))
        callback = pruning_callback_of(trainer)
        is_counting = callback is not None and not callback.is_done
        self._offset = None if is_counting else self.history.last_step - trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """See what the last step, and a guard since, has left."""
        self._look(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See what the last step has left, before a guard judges it."""
        self._look(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the metrics; those of a validation ahead of the fit stand at step 0."""
        if trainer.state.fn == "validate" and self.history.before is None:
            self.history = self.history.with_metrics(0, self._metrics(trainer))
        elif trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.history = self.history.with_metrics(self._step(trainer), self._metrics(trainer))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See what the last step has left."""
        self._look(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look at the model that came out, and send the figures while the loggers are open."""
        if stage != "fit" or trainer.interrupted:
            return
        pruners = _pruners(trainer)
        for index, pruner in enumerate(pruners):
            if isinstance(watched := pruner.recipe.allocation, Watched):
                pruners[index] = replace(pruner, recipe=replace(pruner.recipe, allocation=watched.inner))
        if not is_sharding(trainer):
            self.history = replace(self.history, after=summarize(pl_module))
        if self.figures and trainer.is_global_zero:
            figures = [figure for section in fit_sections(self.history) for figure in section.figures]
            to_loggers(figures, trainer.loggers, self.history.last_step)

    def _metrics(self, trainer: Trainer) -> dict[str, float]:
        """Return the metrics that are followed, as the last validation logged them."""
        callback, logged = pruning_callback_of(trainer), trainer.callback_metrics
        guard = None if callback is None else callback.guard
        keys = (guard.monitor,) if self.monitor is None and guard is not None else self.monitor
        if keys is None:
            return {name: float(value) for name, value in logged.items() if name != "sparsity"}
        return {key: monitored("Recorder", key, logged) for key in keys}

    def _step(self, trainer: Trainer) -> int:
        callback = pruning_callback_of(trainer)
        run = None if callback is None else callback.run
        return run.step if self._offset is None and run is not None else trainer.global_step + (self._offset or 0)

    def _watch(self, trainer: Trainer) -> None:
        pruners = _pruners(trainer)
        for index, pruner in enumerate(pruners):
            if not isinstance(inner := pruner.recipe.allocation, Watched):
                pruners[index] = replace(pruner, recipe=replace(pruner.recipe, allocation=Watched(inner)))

    def _look(self, trainer: Trainer) -> None:
        callback = pruning_callback_of(trainer)
        if callback is None or callback.run is None or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        step, trials = self._step(trainer), tuple(callback.trials)
        # events before a resume, less what has been rolled back since, and those after it
        replaced = {trial.step for trial in trials if trial.outcome is Verdict.ROLL_BACK}
        replaced |= {event.step for event in callback.events}
        events = (*(event for event in self._past if event.step not in replaced), *callback.events)
        fresh = [
            scores
            for pruner in _pruners(trainer)
            if isinstance(watched := pruner.recipe.allocation, Watched)
            for scores in watched.take(step, pruner.units.removed)
        ]
        self.history = replace(
            self.history.with_sparsity(step, callback.sparsity),
            events=events,
            trials=trials,
            scores=_standing((*self.history.scores, *fresh), events),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the history as plain values."""
        return self.history.document()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the history of a checkpoint."""
        self.history = History.from_document(state_dict)
        self._past = self.history.events


def _standing(scores: Sequence[Scores], events: Sequence[Event]) -> tuple[Scores, ...]:
    """Return the scores of the last two events that took something of each name: the last may yet be rolled back."""
    steps = {event.step for event in events}
    kept: dict[str, list[Scores]] = {}
    for one in scores:
        if one.step in steps:
            earlier = kept.setdefault(one.name, [])
            if one.removed or not earlier:
                kept[one.name] = [*(other for other in earlier if other.removed), one]
    return tuple(one for found in kept.values() for one in found[-2:])


def _pruners(trainer: Trainer) -> list[Pruner]:
    callback = pruning_callback_of(trainer)
    return [] if callback is None or callback.run is None else callback.run.pruners
