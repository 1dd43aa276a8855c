"""Finalize: remove the channels that are masked out, fold every mask into its weight, and leave plain modules."""

from collections.abc import Sequence
from typing import TypeVar

from torch import nn
from torch.optim import Optimizer

from lightning_prune import masks
from lightning_prune.compaction import Compaction, compact
from lightning_prune.errors import PruningError
from lightning_prune.graph import channel_groups
from lightning_prune.report import Inputs, as_tuple, example_of, on_device_of

_M = TypeVar("_M", bound=nn.Module)


def finalize(
    model: _M,
    example_inputs: Inputs | None = None,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
) -> _M:
    """Make pruning permanent: smaller layers where whole channels are masked out, plain weights everywhere.

    The compact model is compared with the masked one on the example input before anything is final.

    Args:
        model: a masked model; one without masks is returned as it is.
        example_inputs: a tensor or tuple of positional arguments; None: the model's ``example_input_array``. Needed
            only when channels were pruned.
        optimizer: the optimizers whose state goes along; parameter objects stay the same.

    Returns:
        the same model.

    Raises:
        PruningError: channels are to be removed and there is no example input.
        CompactionError: the compact model would compute something else; the model stays masked.

    Changes:
        the model in place: shapes, size attributes, hooks, mask buffers; the optimizers' state.
    """
    if masks.structured_names(model):
        inputs = example_of(model) if example_inputs is None else as_tuple(example_inputs)
        if inputs is None:
            raise PruningError(
                f"channels of {type(model).__name__} are masked, and removing them needs an example input:"
                " finalize(model, torch.zeros(1, …)) or set example_input_array"
            )
        inputs = on_device_of(model, inputs)
        plan = Compaction.from_masks(model, channel_groups(model, inputs))
        if plan.keep:
            compact(model, plan, example_inputs=inputs, optimizer=optimizer)
    masks.fold(model)
    return model
