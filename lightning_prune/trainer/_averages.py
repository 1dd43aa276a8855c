"""Weight averages that Lightning keeps beside the model: they get its masks and lose its channels too."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.checkpoints import state as checkpoints
from lightning_prune.compaction import Compaction, applied_plan
from lightning_prune.model import masks
from lightning_prune.optimizer.surgery import take
from lightning_prune.run.removal import removed_since
from lightning_prune.trainer.internals import averages_of, copy_average
from lightning_prune.trainer.packages import LightningModule, Trainer


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
        for average in averages_of(self._trainer) if self._trainer else ():
            checkpoints.take_base(average, applied_plan(model))
            _mask(average, model)


def take_masks(trainer: Trainer, model: LightningModule) -> None:
    """Give the averages the model's masks; what is pruned becomes zero in them and stays so."""
    for average in averages_of(trainer):
        _mask(average, model)


def lose(trainer: Trainer, model: LightningModule, plan: Compaction) -> None:
    """Remove the channels of a plan, that the model has lost, from the averages too.

    Those of other callbacks, and of the model itself, are known by their shapes: a mapping by the names of parameters,
    a list in their order, or a copy of the model as the ``module`` of another, as AveragedModel and timm hold it. What
    was kept from before a removal is cut like an average.
    """
    for average in averages_of(trainer):
        plan.rebuild(average)
    order, torchs = [name for name, _ in model.named_parameters()], vars(nn.Module())
    held = [value for name, value in vars(model).items() if name not in torchs]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        held += vars(callback).values()
    for value in held:
        if isinstance(value, dict):
            _cut(value, plan)
        elif isinstance(value, list) and len(value) == len(order):
            by_name = dict(zip(order, value, strict=True))
            _cut(by_name, plan)
            value[:] = by_name.values()
        elif isinstance(value, nn.Module):
            copied = value._modules.get("module")
            named = {} if copied is None else masks.dense_names(copied)
            shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
            if copied is not None and plan.shapes.items() <= shapes.items():
                plan.rebuild(copied)


def _cut(tensors: dict[Any, Any], plan: Compaction) -> None:
    for name in plan.keep:
        tensor = tensors.get(name)
        if isinstance(tensor, Tensor) and tuple(tensor.shape) == plan.shapes[name]:
            left = {axis: torch.tensor(kept) for axis, kept in plan.keep[name].items()}
            tensors[name] = take(tensor, left).requires_grad_(tensor.requires_grad)


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
        copy_average(callback, model)


def settle(trainer: Trainer, model: LightningModule) -> None:
    """Bring the averages into the form of the finalized model: without masks, without the removed channels."""
    for average in averages_of(trainer):
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
