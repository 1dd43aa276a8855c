"""The quality guard in a Lightning run: validates, takes snapshots, and puts back what a failed event changed."""

import logging
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lightning_prune.documents import typed
from lightning_prune.errors import PruningError, SnapshotError
from lightning_prune.guard import Guard, Trial, Verdict, Watch
from lightning_prune.guard.guard import monitored
from lightning_prune.guard.snapshots import Snapshot
from lightning_prune.run.run import PruningRun
from lightning_prune.trainer.internals import (
    averages_of,
    batches_done,
    counts_of_averages,
    is_validation_next,
    unwrapped,
    validate_now,
    validation_samples,
)
from lightning_prune.trainer.packages import LightningModule, Trainer, kinds
from lightning_prune.trainer.strategy import is_sharding

log = logging.getLogger(__name__)


class _RunState:
    """The state of a pruning run as a snapshot holds it: the count of steps goes on when it is put back."""

    def __init__(self, run: PruningRun, model: LightningModule) -> None:
        self._run, self._model = run, model

    def state_dict(self) -> dict[str, Any]:
        return self._run.state_dict(with_inputs=False)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._run.load_state_dict({**state, "step": self._run.step}, self._model)


class _Counts:
    """Numbers that are changed in place, as a snapshot holds them."""

    def __init__(self, counts: Sequence[Tensor]) -> None:
        self._counts = counts

    def state_dict(self) -> dict[str, Any]:
        return {str(index): count.clone() for index, count in enumerate(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for index, count in enumerate(self._counts):
            count.copy_(state[str(index)])


class Guarding:
    """Carries out what a :class:`Guard` decides, for one run of one model.

    Args:
        guard: what is allowed.
        recipes: how many recipes the run has.
    """

    def __init__(self, guard: Guard, recipes: int) -> None:
        self.guard = guard
        self.watch = Watch(guard, recipes)
        self._snapshot: Snapshot | None = None
        self._judged_at = -1
        self._is_overdue = False
        self._is_waiting = False
        self._logged_before: Tensor | None = None
        self._seen: list[float] = []
        self._has_doubted, self._has_told_rise = False, False

    def check(self, trainer: Trainer) -> None:
        """Raise PruningError when nothing would ever be validated, or a snapshot would not fit into a checkpoint."""
        if any(isinstance(callback, kinds("callbacks.StochasticWeightAveraging")) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise PruningError(
                "Guard does not work beside StochasticWeightAveraging, which takes schedulers away in the middle of the"
                " fit, so that an event from before could not be rolled back: use EMAWeightAveraging, or leave one out"
            )
        if is_sharding(trainer):
            raise PruningError(
                "Guard does not work on sharded weights: a checkpoint written while an event is on trial could not hold"
                " the shards of its snapshot. Train with DDPStrategy or on one device, or leave the guard out"
            )
        if not trainer.enable_validation:
            raise PruningError(
                f"Guard(monitor={self.guard.monitor!r}) judges by validation, and this fit has none: give it"
                " val_dataloaders and the module a validation_step, and leave limit_val_batches above 0"
            )

    def permit(self, run: PruningRun, trainer: Trainer) -> dict[int, float]:
        """Return what the event that is due may prune to, {} for none; validates the dense model if nothing has yet."""
        if self.watch.trial is not None or self.watch.is_stopped:
            return {}
        asked = run.due()
        if not asked:
            return {}
        if self.watch.needs_baseline and not self._is_waiting:
            validate_now(trainer)
            self._is_waiting = self.watch.needs_baseline
            if self._is_waiting:
                _warn(
                    "step %d: the event waits until a validation gives a finite %s, to measure a drop from",
                    run.step,
                    self.guard.monitor,
                )
        return self.watch.permit(asked, run.asked)

    def begin(self, run: PruningRun, trainer: Trainer, model: LightningModule) -> bool:
        """Take the snapshot left of an event; False: there is no room for it, so the event has to be left out."""
        if self.watch.baseline is not None and not self._has_doubted:
            self._has_doubted = True
            before = self._seen[:-1] if self.guard.baseline is None else ()
            for doubt in self.guard.doubts(self.watch.baseline, before, validation_samples(trainer)):
                _warn("step %d: Guard: %s", run.step, doubt)
        try:
            self._snapshot = Snapshot.take(*_parts(run, trainer, model), where=self.guard.snapshot)
        except SnapshotError as error:
            _warn("step %d: the event is left out, because nothing could undo it: %s", run.step, error)
        if trainer.strategy.reduce_boolean_decision(self._snapshot is not None, all=True):
            return True
        if self._snapshot is not None:  # another rank had no room
            self._snapshot.drop()
            self._snapshot = None
        return False

    def start_fit(self, run: PruningRun, model: LightningModule) -> Trial | None:
        """Begin a fit that takes up no checkpoint; roll back what an interrupted one left on trial, and return it.

        Optimizers and schedulers are those of the new fit and stay as they are.
        """
        self._judged_at, self._is_overdue, self._is_waiting = -1, False, False
        if self._snapshot is None:
            return None
        others = self._snapshot.restore_model(model)
        run.load_state_dict({**others["run"], "step": run.step}, model)
        self._snapshot.drop()
        self._snapshot = None
        self.watch.end()
        _warn("step %d: roll back the event that an interrupted fit left on trial", run.step)
        return self.watch.history[-1]

    def catch_up(self, trainer: Trainer) -> None:
        """Validate where the checkpoint was written left of a validation: a resumed Lightning run leaves that out."""
        if self._is_overdue:
            self._is_overdue = False
            validate_now(trainer)

    def look(self, trainer: Trainer) -> None:
        """Note before a validation what has been logged by then."""
        value = trainer.callback_metrics.get(self.guard.monitor)
        self._logged_before = value if isinstance(value, Tensor) else None

    def judge(self, run: PruningRun, trainer: Trainer, model: LightningModule) -> Trial | None:
        """Look at the metric after a validation; return the event that was kept or rolled back, or None."""
        if trainer.sanity_checking:
            if self.guard.monitor not in trainer.callback_metrics:
                _warn(
                    "Guard(monitor=%r): the sanity check logged no such metric, but %s",
                    *(self.guard.monitor, ", ".join(sorted(trainer.callback_metrics)) or "none"),
                )
            return None
        self._judged_at = batches_done(trainer)
        value = torch.tensor(monitored("Guard", self.guard.monitor, trainer.callback_metrics), dtype=torch.float64)
        if trainer.callback_metrics[self.guard.monitor] is self._logged_before:
            raise PruningError(
                f"Guard(monitor={self.guard.monitor!r}) judges by validation, and the last one did not log it: it is a"
                f" metric of the training. Name one that {type(model).__name__}.validation_step logs"
            )
        self._logged_before = None
        on_trial = self.watch.trial
        reduced = float(trainer.strategy.reduce(value, reduce_op="mean"))
        verdict = self.watch.judge(reduced)
        if not on_trial and not self.watch.history and math.isfinite(reduced):
            self._seen.append(reduced)
        baseline, limit = self.watch.baseline, self.guard.max_drop
        can_rise = on_trial is not None and self.guard.baseline is None and limit > 0 and not self._has_told_rise
        if can_rise and baseline is not None and not self.guard.allows(baseline, reduced):
            self._has_told_rise = True
            _warn(
                "step %d: %s %.4g is better than the baseline %.4g by more than Guard(max_drop=%g) lets it be worse: it"
                " is still being learnt. Begin pruning later, or give Guard(baseline=…)",
                *(run.step, self.guard.monitor, reduced, baseline, limit),
            )
        return self._carry_out(verdict, run, trainer, model) if on_trial else None

    def end(self, run: PruningRun, trainer: Trainer, model: LightningModule) -> Trial | None:
        """Roll back what is still on trial at the end of the fit; return it."""
        return self._carry_out(self.watch.end(), run, trainer, model)

    def summary(self, run: PruningRun, model: LightningModule) -> str:
        """Return in words what was asked, what was kept, and why."""
        finals = [pruner.schedule.final for pruner in run.pruners]
        return self.watch.summary(finals, list(run.asked.values()), run.reached(model))

    def _carry_out(self, verdict: Verdict, run: PruningRun, trainer: Trainer, model: LightningModule) -> Trial | None:
        if verdict is Verdict.WAIT or self._snapshot is None:
            return None
        trial = self.watch.history[-1]
        if verdict is Verdict.ROLL_BACK:
            with unwrapped(trainer):
                self._snapshot.restore(*_parts(run, trainer, model))
        self._snapshot.drop()
        self._snapshot = None
        if verdict is Verdict.ROLL_BACK:
            _warn("step %d: roll back the event of step %d: %s", run.step, trial.step, trial.reason)
        return trial

    def state_dict(self, trainer: Trainer) -> dict[str, Any]:
        """Return the score, the snapshot of an event on trial, and whether a validation is about to come."""
        is_unjudged = trainer.training and self._judged_at != batches_done(trainer)
        return {
            "watch": self.watch.state_dict(),
            "judged_at": self._judged_at,
            "is_overdue": is_unjudged and is_validation_next(trainer),
            "snapshot": None if self._snapshot is None else self._snapshot.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` returned."""
        self.watch.load_state_dict(state["watch"])
        self._is_overdue, self._judged_at = typed(bool, state["is_overdue"]), typed(int, state["judged_at"])
        saved = state["snapshot"]
        self._snapshot = None if saved is None else Snapshot.from_state_dict(saved, where=self.guard.snapshot)


def _warn(text: str, *values: object) -> None:
    """Log a warning past TQDM's bars, in the middle of whose line a handler would write it."""
    with tqdm.external_write_mode(file=sys.stderr):
        log.warning(text, *values)


def _parts(run: PruningRun, trainer: Trainer, model: LightningModule) -> tuple[Any, ...]:
    """Return all that an event and the steps after it change, as a snapshot takes it."""
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    others: dict[str, Any] = {"run": _RunState(run, model)}
    others["counts of averages"] = _Counts(counts_of_averages(trainer))
    others |= {f"average {index}": average for index, average in enumerate(averages_of(trainer))}
    if trainer.scaler is not None:
        others["scaler"] = trainer.scaler
    return model, trainer.optimizers, schedulers, others
