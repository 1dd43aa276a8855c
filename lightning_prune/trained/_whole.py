"""A model as it was: all that it holds, put back after an error and between networks that are tried."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lightning_prune.compaction.resize import set_tensor
from lightning_prune.model.summary import as_evaluated


class Whole:
    """All that a model holds at a moment: tensors, and whatever its modules have.

    Args:
        model: of any shape; left as it is.
    """

    def __init__(self, model: nn.Module) -> None:
        self._tensors = [
            (tensor, tensor.data, tensor.detach().clone(), None if tensor.grad is None else tensor.grad.clone())
            for tensor in (*model.parameters(), *model.buffers())
        ]
        # parameters, hooks, sizes, caches, the plan: whatever a module holds, the tables that others refer to in place
        self._held = [
            (
                module,
                dict(vars(module)),
                {name: dict(own) for name, own in vars(module).items() if isinstance(own, dict)},
            )
            for module in model.modules()
        ]

    def put_back(self) -> None:
        """Make the model what it was then, in the same objects.

        Changes:
            the model.
        """
        for module, own, tables in self._held:
            vars(module).clear()
            vars(module).update(own)
            for name, entries in tables.items():
                own[name].clear()
                own[name].update(entries)
        with torch.no_grad():
            for tensor, data, values, gradient in self._tensors:
                set_tensor(tensor, data, gradient)
                tensor.copy_(values)


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[Whole]:
    """Put the model back as it was when anything goes wrong; let weights that are all frozen change meanwhile."""
    parameters, whole = list(model.parameters()), Whole(model)
    frozen = [parameter for parameter in parameters if not parameter.requires_grad and parameter.is_floating_point()]
    thawed = frozen if len(frozen) == len(parameters) else []
    try:
        with as_evaluated(model):
            for parameter in thawed:
                parameter.requires_grad_(True)
            yield whole
    except BaseException:
        whole.put_back()
        raise
    finally:
        for parameter in thawed:
            parameter.requires_grad_(False)
