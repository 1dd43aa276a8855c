"""Weight averages that Lightning keeps beside the model: they get its masks and lose its channels too."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lightning_prune.checkpoints import state as checkpoints
from lightning_prune.compaction import Compaction, applied_plan
from lightning_prune.model import masks
from lightning_prune.run.removal import removed_since


class Loaded:
    """A load_state_dict post-hook: the averages take the form of the model, so that their own state can load.

    A copy of the model, deep or pickled, gets one that knows no trainer.
    """

    def __init__(self, trainer: Trainer | None = None) -> None:
        self._trainer = trainer

    def __deepcopy__(self, memo: dict[int, Any]) -> "Loaded":
        return Loaded()

    def __reduce__(self) -> tuple[type["Loaded"], tuple[()]]:
        return Loaded, ()

    def __call__(self, model: LightningModule, incompatible_keys: object) -> None:
        """Give the averages the model's shapes and masks; what changes its shape is zero until it loads."""
        for average in averaged(self._trainer) if self._trainer else ():
            checkpoints.take_base(average, applied_plan(model))
            _mask(average, model)


def averaged(trainer: Trainer) -> list[nn.Module]:
    """Return the averaged copies of the model that the Trainer's callbacks hold."""
    kinds = (WeightAveraging, StochasticWeightAveraging)
    held = [callback._average_model for callback in trainer.callbacks if isinstance(callback, kinds)]  # type: ignore[attr-defined]
    return [
        average.module if isinstance(average, AveragedModel) else average for average in held if average is not None
    ]


def counts_of_averages(trainer: Trainer) -> list[Tensor]:
    """Return how many models each average holds, as the tensors that count."""
    held = [callback._average_model for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]
    counts = [average.n_averaged for average in held if average is not None]
    others = [c.n_averaged for c in trainer.callbacks if isinstance(c, StochasticWeightAveraging)]  # type: ignore[attr-defined]
    return counts + [count for count in others if count is not None]


def take_masks(trainer: Trainer, model: LightningModule) -> None:
    """Give the averages the model's masks; what is pruned becomes zero in them and stays so."""
    for average in averaged(trainer):
        _mask(average, model)


def lose(trainer: Trainer, plan: Compaction) -> None:
    """Remove the channels of a plan from the averages too."""
    for average in averaged(trainer):
        plan.rebuild(average)


def copy_again(trainer: Trainer, model: LightningModule, pruning: object) -> None:
    """Give the model its averaged weights again, where that was done already and a rollback came after it.

    Args:
        trainer: whose callbacks hold the averages.
        model: as the rollback left it.
        pruning: the callback that rolled back; those that stand before it have had their turn.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if callback is pruning:
            return
        if isinstance(callback, WeightAveraging):
            callback._copy_average_to_current(model)


def settle(trainer: Trainer, model: LightningModule) -> None:
    """Bring the averages into the form of the finalized model: without masks, without the removed channels."""
    for average in averaged(trainer):
        plan = removed_since(model, applied_plan(average))
        if plan is not None:
            plan.rebuild(average)
        masks.fold(average)


def _mask(average: nn.Module, model: nn.Module) -> None:
    live, structured = masks.read(model), set(masks.structured_names(model))
    masks.detach(average, set(masks.read(average)) - set(live))
    masks.attach(average, structured, is_structured=True)
    masks.attach(average, set(live) - structured)
    masks.write(average, live.items())
