"""Tensors that a module keeps beside its parameters and buffers: caches of something computed, and others."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, nn

_OWN = frozenset(nn.Module().__dict__)
"""What every module holds: parameters, buffers, hooks."""


def tensors_beside(module: nn.Module) -> list[str]:
    """Return the plain attributes of a module that hold tensors, by themselves or in a container."""
    return [
        name
        for name, value in vars(module).items()
        if name not in _OWN and any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))
    ]


def dicts_of_tensors(model: nn.Module) -> dict[str, dict[Any, Any]]:
    """Return every plain attribute that is a dict of tensors, by its path; empty ones are left out."""
    found: dict[str, dict[Any, Any]] = {}
    for path, module in model.named_modules():
        for name in tensors_beside(module):
            value = vars(module)[name]
            if isinstance(value, dict) and all(isinstance(entry, Tensor) for entry in value.values()):
                found[f"{path}.{name}" if path else name] = value
    return found


def refilled(model: nn.Module, run: Callable[[], object]) -> tuple[str, ...]:
    """Find the caches of a model: its dicts of tensors that a run fills again when they are empty.

    Such as LeViT's ``attention_bias_cache``, filled in eval mode from a parameter and kept from one batch to the next.

    Args:
        model: the model, which this runs; one without dicts of tensors is not run.
        run: runs it; may raise.

    Returns:
        The paths of the attributes.

    Changes:
        the caches are empty; other dicts hold what they held.
    """
    held = dicts_of_tensors(model)

    def filled_again(paths: Iterable[str]) -> set[str] | None:
        for path, value in held.items():
            _set(model, path, copy.copy(value))
        empty(model, paths)
        try:
            run()
        except Exception:
            return None
        return {path for path in paths if _get(model, path)}

    caches = filled_again(held) if held else set()
    if caches is None:
        # One of them is no cache, and its absence stopped the run: each by itself.
        caches = {path for path in held if filled_again([path])}
    put_back(model, held)
    empty(model, caches)
    return tuple(path for path in held if path in caches)


def empty(model: nn.Module, paths: Iterable[str]) -> None:
    """Put an empty dict in the place of each of these attributes.

    Changes:
        the attributes; the dicts themselves stay as they are.
    """
    for path in paths:
        new = copy.copy(_get(model, path))
        new.clear()
        _set(model, path, new)


def put_back(model: nn.Module, held: dict[str, dict[Any, Any]]) -> None:
    """Let the attributes be what :func:`dicts_of_tensors` returned.

    Changes:
        the attributes.
    """
    for path, value in held.items():
        _set(model, path, value)


def _get(model: nn.Module, path: str) -> dict[Any, Any]:
    module, _, name = path.rpartition(".")
    return vars(model.get_submodule(module))[name]


def _set(model: nn.Module, path: str, value: dict[Any, Any]) -> None:
    module, _, name = path.rpartition(".")
    vars(model.get_submodule(module))[name] = value
