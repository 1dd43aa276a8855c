"""Removes channels in the middle of a fit: below the strategy's wrapper, which is built anew."""

import logging
import sys
import warnings
from collections.abc import Sequence

from tqdm import tqdm

from lightning_prune.compaction import compact, refused
from lightning_prune.distributed import ranks
from lightning_prune.errors import PruningError
from lightning_prune.model.example import Example
from lightning_prune.recipe import Recipe
from lightning_prune.run.run import PruningRun
from lightning_prune.tables import reasons
from lightning_prune.trainer import _averages as averages
from lightning_prune.trainer._preconditions import example_on_device
from lightning_prune.trainer.internals import unwrapped
from lightning_prune.trainer.packages import LightningModule, Trainer, kinds

log = logging.getLogger(__name__)

INEXACT = "step %d: channels under a normalisation are gone: the outputs changed by up to %.2g of the largest one"


def is_sharding(trainer: Trainer) -> bool:
    """Say whether the strategy leaves a part of each weight on each rank, in configure_model."""
    return isinstance(trainer.strategy, kinds("strategies.ModelParallelStrategy"))


def check_strategy(trainer: Trainer, model: LightningModule) -> None:
    """Refuse a strategy that hides weights from masks, and a model to shard that has no weights yet.

    Raises:
        PruningError: the strategy flattens or partitions parameters, or layers are built only when they are sharded.
    """
    if isinstance(trainer.strategy, kinds("strategies.FSDPStrategy") + kinds("strategies.DeepSpeedStrategy")):
        raise PruningError(
            f"{type(trainer.strategy).__name__} flattens or partitions parameters, so masks have no place on them."
            " Write Trainer(strategy='ddp'), or where one device cannot hold the model"
            " Trainer(strategy=ModelParallelStrategy(data_parallel_size=…, tensor_parallel_size=1)), and in"
            f" {type(model).__name__}.configure_model torch.distributed.fsdp.fully_shard(layer,"
            " mesh=self.device_mesh['data_parallel'])"
        )
    if is_sharding(trainer):
        empty = next((name for name, parameter in model.named_parameters() if parameter.is_meta), None)
        if empty or next(model.parameters(), None) is None:
            raise PruningError(
                f"{empty or type(model).__name__} has no values yet, and masks go on before {type(model).__name__}"
                ".configure_model shards: build the layers in __init__, on the CPU, and shard them in configure_model"
            )


def warn_sharded(model: LightningModule) -> None:
    """Say how a model is finalized whose weights are sharded."""
    kind = type(model).__name__
    warnings.warn(
        f"the weights of {kind} are sharded over several ranks, so its masks stay on. Make one file of the last"
        " checkpoint with `python -m lightning.fabric.utilities.consolidate_checkpoint PATH`, and finalize in one"
        f" process: finalize({kind}.load_from_checkpoint('PATH.consolidated')), where {kind} derives from PruningMixin",
        stacklevel=2,
    )


def check_can_shrink(recipes: Sequence[Recipe], trainer: Trainer) -> None:
    """Refuse ``compact_every_event`` where no channels go or the strategy cannot take a smaller model.

    Raises:
        ValueError: no recipe prunes channels.
        PruningError: the strategy is neither a single device nor DDP.
    """
    if not any(recipe.is_structured for recipe in recipes):
        raise ValueError("compact_every_event removes channels, and no recipe has granularity=Channel(); leave it out")
    taken = kinds("strategies.SingleDeviceStrategy") + kinds("strategies.DDPStrategy")
    if not isinstance(trainer.strategy, taken):
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
    example = example_on_device(model) or Example()
    with ranks.together("the removal of channels"):
        # buffers may differ between ranks, and with them what is exact
        stay, changes = ranks.from_first(lambda: refused(model, plan, (example.args, example.kwargs)))
        cut = plan.only(set(plan.removals) - set(stay))
        if cut.removals:
            with unwrapped(trainer):
                compact(model, cut, optimizer=trainer.optimizers)
    if stay:
        warnings.warn(
            f"these channel groups stay masked, because removing them is not exact:\n{reasons(stay)}", stacklevel=2
        )
    if changes:
        with tqdm.external_write_mode(file=sys.stderr):  # a handler would write into the bar's line
            log.warning(INEXACT, run.step, max(changes.values()))
    averages.lose(trainer, model, cut)
    run.cut(cut, stay)
    log.info("step %d: %d parameters after removal", run.step, sum(p.numel() for p in model.parameters()))
