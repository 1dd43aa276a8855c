"""How a fit with pruning ends: the model becomes plain, and what fell short is said."""

import warnings

from lightning.pytorch import LightningModule, Trainer

from lightning_prune.compaction.finalization import finalize as finalize_model
from lightning_prune.distributed import ranks
from lightning_prune.errors import CompactionError
from lightning_prune.model import masks
from lightning_prune.run.run import PruningRun
from lightning_prune.trainer import averages
from lightning_prune.trainer.strategy import is_sharding, warn_sharded


def warn_unfinished(run: PruningRun) -> None:
    """Name what each recipe asked for and what was kept, where that is less."""
    for pruner in run.unfinished:
        asked = pruner.schedule.final_sparsity
        warnings.warn(
            f"pruning stopped short: asked for sparsity {asked:g}, kept {pruner.asked:g} at step {run.step};"
            " train longer or let the schedule end earlier",
            stacklevel=3,
        )


def make_plain(trainer: Trainer, pl_module: LightningModule) -> bool:
    """Finalize; False where the weights are sharded, which has to be done in one process later."""
    if is_sharding(trainer):
        warn_sharded(pl_module)
        return False
    ranks.copy_from_first(pl_module.buffers())  # what is exact is then the same on all ranks
    try:
        finalize_model(pl_module, optimizer=trainer.optimizers)
    except CompactionError as error:
        warnings.warn(f"the channels stay, at zero, because removing them is not exact: {error}", stacklevel=2)
        masks.fold(pl_module)
    averages.settle(trainer, pl_module)
    return True
