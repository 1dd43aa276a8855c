"""Copies of a model that share nothing with it and run its own code."""

import copy
from typing import TypeVar

import torch.utils._pytree as pytree
from torch import Tensor, nn

_M = TypeVar("_M", bound=nn.Module)


def plain_copy(model: _M) -> _M:
    """Return a deep copy without what ``torch.compile`` put in front of ``forward``.

    A compiled ``forward`` that Lightning has set on a module belongs to that very object, so a deep copy that kept it
    would go on computing with the original's weights. Tensors with a history, such as a recorded activation,
    which ``copy.deepcopy`` refuses, are copied without it.
    """
    held = pytree.tree_leaves([list(vars(module).values()) for module in model.modules()])
    history = {id(x): x.detach().clone() for x in held if isinstance(x, Tensor) and not x.is_leaf}
    copied = copy.deepcopy(model, history)
    for module in copied.modules():
        # what torch.compile stands in for carries the original under this name (torch 2.13)
        held = vars(module).items()
        compiled = [name for name, value in held if getattr(value, "_torchdynamo_orig_callable", None) is not None]
        for name in compiled:
            del module.__dict__[name]
        # what torch.compile(module) returns has no other forward; to ask for its class would import torch._dynamo
        if (inside := module._modules.get("_orig_mod")) is not None and type(module).__name__ == "OptimizedModule":
            module.__dict__["forward"] = inside.__call__
    return copied
