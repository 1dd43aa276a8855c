"""What a checkpoint says about pruning, and how a model takes the shape that a checkpoint has.

A checkpoint needs no pickled modules: masked weights show in the names of its state dict (``weight_orig`` beside
``weight_mask``), sizes in its shapes, and what neither tells stands as plain values under :data:`KEY`.
"""

import sys
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_prune import criteria, schedules
from lightning_prune.compaction import Compaction, applied_plan, reshape_like, set_plan
from lightning_prune.errors import CheckpointError
from lightning_prune.guard import Guard
from lightning_prune.model import masks
from lightning_prune.optimizer import policies
from lightning_prune.recipe import Recipe
from lightning_prune.selection import allocation, granularity, targets

KEY = "lightning_prune"
VERSION = 1

VALUES = (
    *(Recipe, targets.Targets),
    *(granularity.Element, granularity.NOfM, granularity.Block, granularity.Channel),
    *(schedules.OneShot, schedules.Linear, schedules.Polynomial, schedules.Exponential),
    *(schedules.OneCycle, schedules.Iterative),
    *(criteria.Magnitude, criteria.Random, criteria.Taylor, criteria.Fisher, criteria.Wanda),
    *(allocation.Uniform, allocation.ERK, allocation.Global, allocation.FromSensitivity),
    Guard,
    *policies.BUILT_IN,
)
"""What a recipe is made of: plain values, which ``torch.load(weights_only=True)`` may read among hyperparameters."""

_BEFORE = (criteria.Magnitude, criteria.Random, criteria.Taylor)
"""Defined in ``lightning_prune.criteria`` itself when older checkpoints were written."""

_FORMER_MODULES = {
    "lightning_prune.allocation": allocation,
    "lightning_prune.granularity": granularity,
    "lightning_prune.policies": policies,
    "lightning_prune.targets": targets,
}
"""Where recipes were defined before the folders were made -> where that is now."""

torch.serialization.add_safe_globals(
    [
        *VALUES,
        *((kind, f"lightning_prune.criteria.{kind.__name__}") for kind in _BEFORE),
        *(
            (kind, f"{name}.{kind.__name__}")
            for name, home in _FORMER_MODULES.items()
            for kind in VALUES
            if kind.__module__ == home.__name__
        ),
    ]
)
# torch.load(weights_only=False) imports the modules that a pickle names, and hyperparameters of checkpoints written
# before the folders were made name the former ones; goes with 1.0
for _name, _home in _FORMER_MODULES.items():
    sys.modules.setdefault(_name, _home)


def describe(model: nn.Module) -> dict[str, Any]:
    """Return what a checkpoint must say of the model besides its state dict: plain values only.

    Returns:
        ``version``; ``structured``: dense names whose masks cover whole channels; ``compaction``: the plan of what is
        removed already as JSON, or None.
    """
    plan = applied_plan(model)
    return {
        "version": VERSION,
        "structured": list(masks.structured_names(model)),
        "compaction": None if plan is None else plan.to_json(),
    }


def check(model: nn.Module, state_dict: Mapping[str, Tensor], entry: Mapping[str, Any]) -> None:
    """Refuse what the model cannot take; see :func:`adapt`.

    Raises:
        CheckpointError: the entry is of a newer version; the checkpoint is of a model built with other shapes, or holds
            a mask of another shape than its weight.
    """
    if entry.get("version", VERSION) > VERSION:
        raise CheckpointError(
            f"the checkpoint says {KEY} version {entry['version']}, this package reads up to {VERSION}; upgrade it"
        )
    masked = masked_in(state_dict, model)
    _check_masks(state_dict, masked)
    if "compaction" in entry:
        _check_built_alike(model, dense_state(state_dict, masked), _plan_in(entry))


def masked_in(state_dict: Mapping[str, Any], model: nn.Module) -> tuple[str, ...]:
    """Return the dense names of the model's parameters that are masked in a state dict.

    A name counts only when ``_orig`` and ``_mask`` stand side by side and the model has that parameter, so a buffer
    of the user's that happens to be called ``attn_mask`` is none.
    """
    known = masks.dense_parameters(model)
    return tuple(name for name in known if f"{name}_orig" in state_dict and f"{name}_mask" in state_dict)


def fits(model: nn.Module, state_dict: Mapping[str, Any]) -> bool:
    """Say whether a state dict has the masks and the shapes that the model has already."""
    wanted = masked_in(state_dict, model)
    if set(wanted) != set(masks.read(model)):
        return False
    dense = dense_state(state_dict, wanted)
    return all(t.shape == dense[name].shape for name, t in masks.dense_names(model).items() if name in dense)


def adapt(model: nn.Module, state_dict: Mapping[str, Tensor], entry: Mapping[str, Any] | None) -> None:
    """Let the model take the shape and the masks of a state dict, so that it can be loaded strictly.

    Args:
        model: dense, masked or compact.
        state_dict: of a dense, masked or compact model of the same class.
        entry: what stood under :data:`KEY` in its checkpoint; None: the state dict has to speak for itself.

    Raises:
        CheckpointError: the entry is of a newer version; the checkpoint is of a model built with other shapes, or holds
            a mask of another shape than its weight. Nothing has changed then.

    Changes:
        hooks, mask buffers, shapes and size attributes of the model's layers; its weights are to be loaded next.
    """
    entry = entry or {}
    check(model, state_dict, entry)
    plan = _plan_in(entry)
    wanted = masked_in(state_dict, model)
    dense = dense_state(state_dict, wanted)
    masks.detach(model, set(masks.read(model)) - set(wanted))
    known = [p for p in (applied_plan(model), plan) if p is not None]
    reshape_like(model, dense, {k: v for p in known for k, v in p.attributes.items()})
    set_plan(model, plan)
    flat = any(state_dict[f"{name}_mask"].dim() == 1 for name in wanted)
    structured = set(entry.get("structured", wanted if flat else ()))
    masks.attach(model, [name for name in wanted if name in structured], is_structured=True)
    masks.attach(model, [name for name in wanted if name not in structured])


def _plan_in(entry: Mapping[str, Any]) -> Compaction | None:
    text = entry.get("compaction")
    return None if text is None else Compaction.from_json(text)


def _check_masks(state_dict: Mapping[str, Tensor], masked: Iterable[str]) -> None:
    for name in masked:
        weight, mask = state_dict[f"{name}_orig"], state_dict[f"{name}_mask"]
        if weight.shape != mask.shape:
            raise CheckpointError(
                f"the checkpoint's mask of {name} has shape {tuple(mask.shape)} and its weight {tuple(weight.shape)}:"
                " it is damaged; take another one"
            )


def _check_built_alike(model: nn.Module, dense: Mapping[str, Tensor], plan: Compaction | None) -> None:
    """Refuse shapes that differ from the model's for another reason than that channels have left."""
    own, first = applied_plan(model), masks.first_names(model)
    for name, tensor in masks.dense_names(model).items():
        if name in dense and not is_lazy(tensor) and dense[name].shape != tensor.shape:
            here = own.shapes.get(first[name], tensor.shape) if own else tensor.shape
            there = plan.shapes.get(first[name], dense[name].shape) if plan else dense[name].shape
            if tuple(here) != tuple(there):
                raise CheckpointError(
                    f"{name} was built with shape {tuple(there)} in the checkpoint's model and with {tuple(here)} in"
                    f" this {type(model).__name__}: build it with the same arguments"
                )


def take_base(model: nn.Module, base: Compaction | None) -> None:
    """Let the model take the shape that it had when a run was set up, before its weights load.

    Args:
        model: dense, masked or compact.
        base: the removals that had shaped it then; None: the shape that it was built with.

    Changes:
        hooks, mask buffers, shapes and size attributes of the model's layers.
    """
    current = applied_plan(model)
    if current == base:
        return
    masks.detach(model)
    shapes = current.shapes if base is None and current is not None else base.shapes_after if base is not None else {}
    known = {path: follows for plan in (current, base) if plan is not None for path, follows in plan.attributes.items()}
    reshape_like(model, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, known)
    set_plan(model, base)


def dense_state(state_dict: Mapping[str, Tensor], masked: Iterable[str]) -> dict[str, Tensor]:
    """Return a state dict under dense names: ``weight_orig`` as ``weight``, mask buffers left out."""
    dense = dict(state_dict)
    for name in masked:
        dense[name] = dense.pop(f"{name}_orig")
        del dense[f"{name}_mask"]
    return dense


def add_masks(model: nn.Module, state_dict: MutableMapping[str, Tensor]) -> None:
    """Rename what the model has masked and the state dict has not, so that an unmasked state can be loaded.

    Changes:
        the state dict: ``weight`` becomes ``weight_orig`` beside an all-True ``weight_mask``.
    """
    for name in masks.read(model):
        if name in state_dict and f"{name}_orig" not in state_dict:
            weight = state_dict.pop(name)
            state_dict[f"{name}_orig"] = weight
            state_dict[f"{name}_mask"] = torch.ones_like(weight, dtype=torch.bool)
