"""What a fit prints: the figures of its lines are gathered here, and said past the progress bar."""

import logging
from collections.abc import Mapping

from torch import nn
from torch.nn.parameter import is_lazy

from lightning_prune.compaction import applied_plan
from lightning_prune.model import masks
from lightning_prune.run.bound import BoundModel
from lightning_prune.run.event import Event
from lightning_prune.run.lines import Size, closing, guard_line, reached_line, repair_line, stay_line, staying
from lightning_prune.run.pruner import describe
from lightning_prune.run.run import PruningRun
from lightning_prune.selection import ChannelUnits
from lightning_prune.tables import lines
from lightning_prune.trainer._course import Course, Settings
from lightning_prune.trainer.internals import say
from lightning_prune.trainer.packages import Trainer, kinds, rank_zero_only

log = logging.getLogger("lightning_prune.trainer")

_OWN = ("sparsity", "distillation")
_METRICS = 3
"""Of metrics that nothing monitors, so many are shown."""


def size_of(model: nn.Module, macs: int | None = None) -> Size:
    """Return how large a model is as it stands: all elements of its parameters, pruned or not.

    Args:
        model: any module.
        macs: multiply-accumulates of its forward; None: not measured.
    """
    tensors = {id(t): t for t in masks.dense_names(model).values() if not is_lazy(t)}.values()
    parameters = sum(t.numel() for t in tensors if isinstance(t, nn.Parameter))
    return Size(parameters, macs, sum(t.numel() * t.element_size() for t in tensors))


def metrics_of(trainer: Trainer, settings: Settings) -> dict[str, float]:
    """Return the metrics that the guard or a callback monitors, or else what has been logged beside the training's."""
    logged = trainer.callback_metrics
    monitors = [] if settings.guard is None else [settings.guard.monitor]
    watching = kinds("callbacks.ModelCheckpoint") + kinds("callbacks.EarlyStopping")
    monitors += [c.monitor for c in trainer.callbacks if isinstance(c, watching) and c.monitor]  # type: ignore[attr-defined]
    others = [name for name in logged if name not in _OWN and not name.startswith("train")][:_METRICS]
    return {name: float(logged[name]) for name in dict.fromkeys(monitors or others) if name in logged}


@rank_zero_only
def tell(trainer: Trainer, settings: Settings, text: str) -> None:
    """Print, or where that is off leave it to the log."""
    text = lines(text)  # names of layers and metrics may hold what moves a cursor
    if settings.verbose:
        say(trainer, text)
    else:
        log.info("%s", text)


@rank_zero_only
def to_loggers(trainer: Trainer, event: Event) -> None:
    """Hand the figures of an event to the loggers at its step, however rarely these look."""
    layers = {f"sparsity/{name.removesuffix('.weight')}": share for name, share in event.layers.items()}
    values = {"sparsity": event.sparsity, **layers, "params": float(event.params)}
    if event.macs is not None:
        values["macs"] = float(event.macs)
    for logger in trainer.loggers:
        logger.log_metrics(values, step=event.step)


class Ending:
    """The figures of a run at its end, taken before masks are folded; :meth:`text` tells them afterwards.

    Args:
        run: that has ended.
        course: of the model.
        metrics: as they were logged last.
    """

    def __init__(self, run: PruningRun, course: Course, metrics: Mapping[str, float]) -> None:
        self._course, self._metrics = course, metrics
        self._left = describe(run.pruners[0], course.model, run.step)
        self._step = run.step
        self._reached = [
            reached_line(pruner.recipe, pruner.schedule.final, reached)
            for pruner, reached in zip(run.pruners, run.reached(course.model), strict=True)
        ]
        live = BoundModel(course.model, run.base).masks()
        self._units = [pruner.units for pruner in run.pruners if isinstance(pruner.units, ChannelUnits)]
        self._masked = {name: int(gone.sum()) for units in self._units for name, gone in units.gone(live).items()}

    def text(self) -> str:
        """Return what the run has come to."""
        model, record = self._course.model, self._course.record
        now, plan = size_of(model), applied_plan(model)
        after = Size(min(self._left.params, now.parameters), self._left.macs, now.bytes, self._metrics)
        zeros = now.parameters - after.parameters
        removed = None if not record.is_done else set() if plan is None else set(plan.removals)
        if not record.is_done:
            where = "the masks stay on: lightning_prune.finalize(model) folds them and removes the channels"
        elif record.checkpoint is None:
            where = "the pruned model is in memory alone: no checkpoint of it was written"
        else:
            where = f"the pruned model is in {record.checkpoint}"
        notes = [
            f"{zeros:,} zeros stay in their places" if zeros and record.is_done else "",
            guard_line(record.trials),
            repair_line(record.events),
            stay_line(staying(self._units, self._masked, removed)),
            where,
        ]
        title = f"after {self._step} steps: {'; '.join(self._reached)}"
        return closing(title, self._course.dense or now, after, notes)
