"""Finalize: remove the channels that are masked out, fold every mask into its weight, and leave plain modules."""

import logging
import warnings
from collections.abc import Sequence
from typing import TypeVar

from torch import nn
from torch.optim import Optimizer

from lightning_prune.compaction import Compaction, compact
from lightning_prune.compaction.copies import following_copies, with_copies
from lightning_prune.errors import CompactionError, PruningError
from lightning_prune.graph import ChannelGroups, channel_groups
from lightning_prune.model import masks
from lightning_prune.model.example import Example, Inputs, example_of
from lightning_prune.tables import reasons

_M = TypeVar("_M", bound=nn.Module)

log = logging.getLogger(__name__)


def finalize(
    model: _M,
    example_inputs: Inputs | None = None,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
) -> _M:
    """Make pruning permanent: smaller layers where whole channels are masked out, plain weights everywhere.

    The compact model is compared with the masked one on the example input before anything is final. Where masks of
    ``Channel(allow_inexact=True)`` cover channels over which a normalisation runs, removing them changes what the model
    computes: by how much is logged as a warning.

    Args:
        model: a masked model; one without masks is returned as it is.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments; None: the model's
            ``example_input_array``, or what its first forward pass under pruning took. Needed only when channels were
            pruned.
        optimizer: the optimizers whose state goes along; parameter objects stay the same.

    Returns:
        the same model.

    Raises:
        PruningError: channels are to be removed and there is no example input.
        CompactionError: the compact model would compute something else; the model stays masked.

    Changes:
        the model in place: shapes, size attributes, hooks; the optimizers' state.
    """
    masks.zero_pruned(model)  # somebody may have copied averages over it
    if masks.structured_names(model):
        example = example_of(model) if example_inputs is None else Example.of(example_inputs)
        if example is None:
            raise PruningError(
                f"channels of {type(model).__name__} are masked, and removing them needs an example input:"
                " finalize(model, torch.zeros(1, …)) or set example_input_array"
            )
        example = example.on_device_of(model)
        plan, groups = _plan(model, example)
        plan, stay = with_copies(plan, groups, following_copies(model, plan, groups))
        if stay:
            warnings.warn(f"these channel groups stay, at zero:\n{reasons(stay)}", stacklevel=2)
        if plan.keep:
            report = compact(model, plan, example_inputs=example, optimizer=optimizer)
            if report.changes:
                log.warning(
                    "channels under a normalisation are gone: the outputs changed by up to %.2g of the largest one;"
                    " fine-tune, or prune without allow_inexact",
                    max(report.changes.values()),
                )
    masks.fold(model)
    return model


def finalize_or_fold(model: nn.Module, optimizer: Optimizer | Sequence[Optimizer] | None = None) -> None:
    """Finalize; where removing the channels is not exact they stay, at zero, and a warning says so.

    Raises:
        PruningError: channels are to be removed and there is no example input.

    Changes:
        as of :func:`finalize`.
    """
    try:
        finalize(model, optimizer=optimizer)
    except CompactionError as error:
        warnings.warn(f"the channels stay, at zero, because removing them is not exact: {error}", stacklevel=2)
        masks.fold(model)


def _plan(model: nn.Module, example: Example) -> tuple[Compaction, ChannelGroups]:
    """Plan from the masks; what they were made for is not known, so the first way of looking that explains them.

    Channels under a normalisation go only where masks cover more than exact removals tell.
    """
    plans: list[tuple[Compaction, ChannelGroups]] = []
    for attention in ("heads", "width"):
        groups = channel_groups(model, example, attention=attention)
        plans.append((Compaction.from_masks(model, groups), groups))
        if _explains(plans[-1][0], model):
            return plans[-1]
    for attention in ("heads", "width"):
        wider = channel_groups(model, example, allow_inexact=True, attention=attention)
        more = Compaction.from_masks(model, wider)
        if any(removal.is_inexact for removal in more.removals.values()):
            plans.append((more, wider))
            if _explains(more, model):
                return more, wider
    return plans[0] if len(plans) == 2 else plans[2]


def _explains(plan: Compaction, model: nn.Module) -> bool:
    """Tell whether each whole slice that the masks of channels take out goes with the plan."""
    names = set(masks.structured_names(model))
    for name, mask in masks.read(model).items():
        for axis in range(mask.dim()) if name in names else ():
            others = [other for other in range(mask.dim()) if other != axis]
            gone = int((~(mask.any(dim=others) if others else mask)).sum())
            if gone > len(plan.removed.get(name, {}).get(axis, ())):
                return False
    return True
