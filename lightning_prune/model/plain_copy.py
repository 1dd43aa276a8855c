"""Copies of a model that share nothing with it and run its own code."""

import copy
from typing import TypeVar

import torch.utils._pytree as pytree
from torch import Tensor, nn

_M = TypeVar("_M", bound=nn.Module)


def _compiled(module: nn.Module) -> list[str]:
    """Return the methods in place of which a module has compiled ones: these carry the original (torch 2.13)."""
    return [n for n, value in vars(module).items() if getattr(value, "_torchdynamo_orig_callable", None) is not None]


def is_compiled(module: nn.Module) -> bool:
    """Say whether a call of the module runs what ``torch.compile`` made of it; what is inside does not count."""
    return getattr(module, "_compiled_call_impl", None) is not None or bool(_compiled(module))


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
        for name in _compiled(module):
            del module.__dict__[name]
        # what torch.compile(module) returns has no other forward; to ask for its class would import torch._dynamo
        if (inside := module._modules.get("_orig_mod")) is not None and type(module).__name__ == "OptimizedModule":
            module.__dict__["forward"] = inside.__call__
    return copied
