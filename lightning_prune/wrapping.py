"""Removes channels in the middle of a fit: below the strategy's wrapper, which is built anew."""

import gc
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch.nn.parallel import DistributedDataParallel

from lightning_prune import averages
from lightning_prune.compaction import compact
from lightning_prune.errors import CompactionError, PruningError
from lightning_prune.preconditions import example_inputs_of
from lightning_prune.recipe import Recipe
from lightning_prune.run import PruningRun

log = logging.getLogger(__name__)


def check_can_shrink(recipes: Sequence[Recipe], trainer: Trainer) -> None:
    """Refuse ``compact_every_event`` where no channels go or the strategy cannot take a smaller model.

    Raises:
        ValueError: no recipe prunes channels.
        PruningError: the strategy is neither a single device nor DDP.
    """
    if not any(recipe.is_structured for recipe in recipes):
        raise ValueError("compact_every_event removes channels, and no recipe has granularity=Channel(); leave it out")
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        raise PruningError(
            f"compact_every_event works on a single device and under DDP, not with {type(trainer.strategy).__name__}:"
            " leave it out, and the channels go at the end of the fit"
        )


def shrink(run: PruningRun, trainer: Trainer, model: LightningModule) -> None:
    """Remove the channels that an event has masked out, from the model and from the optimizers' state.

    Changes:
        the model, the optimizers' state, the run's snapshots; the strategy's wrapper is another one.
    """
    plan = run.next_removal(model)
    if plan is None:
        return
    inputs = example_inputs_of(model) or ()
    try:
        with unwrapped(trainer):
            stay = compact(model, plan, example_inputs=inputs, optimizer=trainer.optimizers).put_back
    except CompactionError as error:
        stay = dict.fromkeys(plan.removals, str(error))
    if stay:
        reasons = "\n".join(f"{name}: {reason}" for name, reason in stay.items())
        warnings.warn(f"these channel groups stay masked, because removing them is not exact:\n{reasons}", stacklevel=2)
    cut = plan.only(set(plan.removals) - set(stay))
    averages.lose(trainer, cut)
    run.follow(cut, stay)
    log.info("step %d: %d parameters after removal", run.step, sum(p.numel() for p in model.parameters()))


@contextmanager
def unwrapped(trainer: Trainer) -> Iterator[None]:
    """Take the model out of its DDP wrapper, whose reducer holds the old shapes, and wrap it anew afterwards."""
    strategy = trainer.strategy
    if not (isinstance(strategy, DDPStrategy) and isinstance(strategy.model, DistributedDataParallel)):
        yield
        return
    strategy.model = strategy.lightning_module
    gc.collect()
    try:
        yield
    finally:
        strategy.configure_ddp()
