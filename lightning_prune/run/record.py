"""What came of pruning a model, as plain values that outlive the run and stay with the model."""

from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from lightning_prune.errors import PruningError
from lightning_prune.guard import Trial
from lightning_prune.run.event import Event

_HELD_AS = "_pruning_record"


@dataclass
class Record:
    """What came of pruning a model: plain values, which outlive the fit and go with a copy.

    Args:
        events: those that stand, in order; of a resumed run, those of its checkpoint first.
        trials: what the guard has judged, in order.
        sparsity: reached so far, in what the recipe counts.
        is_done: whether the model is finalized.
        checkpoint: the checkpoint of the finalized model; None where none was written.
        best_checkpoint: the same of the best model that a SparsityCheckpoint has kept.
    """

    events: list[Event] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    sparsity: float = 0.0
    is_done: bool = False
    checkpoint: Path | None = None
    best_checkpoint: Path | None = None


def keep(model: nn.Module, record: Record) -> None:
    """Let the model hold the record of its pruning."""
    model.__dict__[_HELD_AS] = record


def history(model: nn.Module) -> Record:
    """Return what came of pruning a model: its events, the guard's trials, the sparsity reached.

    A project may copy the callback that its user gave it (darts and neuralforecast do), so that the user's own object
    never sees a fit; the record stays with the model that was fitted.

    Raises:
        PruningError: no fit has pruned this model.
    """
    record = model.__dict__.get(_HELD_AS)
    if not isinstance(record, Record):
        raise PruningError(
            f"no fit has pruned this {type(model).__name__}; pass the LightningModule that the Trainer fitted"
        )
    return record
