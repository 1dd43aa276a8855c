"""What a checkpoint says about pruning, and how a model takes the shape that a checkpoint has.

A checkpoint needs no pickled modules: its state dict is that of a plain model, with zeros where it is pruned, sizes
show in its shapes, and masks and what else is to be known stand as tensors and plain values under :data:`KEY`.
"""

import sys
from collections.abc import Collection, Mapping, MutableMapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_prune import compensation, criteria, schedules
from lightning_prune.checkpoints._shapes import unexplained
from lightning_prune.compaction import Compaction, applied_plan, plan_told_by, reshape_like, set_plan
from lightning_prune.compaction.resize import Undo, all_or_nothing
from lightning_prune.errors import CheckpointError
from lightning_prune.guard import Guard
from lightning_prune.model import masks
from lightning_prune.model.example import Example, example_of, remember, stored
from lightning_prune.optimizer import policies
from lightning_prune.recipe import Recipe
from lightning_prune.selection import allocation, granularity, needs, targets

KEY = "lightning_prune"
VERSION = 2

VALUES = (
    *(Recipe, targets.Targets),
    *(*schedules.BUILT_IN, *granularity.BUILT_IN, *allocation.BUILT_IN, *policies.BUILT_IN),
    *(*criteria.BUILT_IN, *compensation.BUILT_IN, *needs.BUILT_IN, Guard),
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
    """Return what a checkpoint must say of the model besides its state dict: plain values and masks.

    Returns:
        ``version``; ``masks``: dense name -> mask, bool, True = keep; ``structured``: the names among them whose masks
        cover whole channels; ``compaction``: the plan of what is removed already as JSON, or None; ``example``: of what
        forward takes, where the model was given one.
    """
    plan = applied_plan(model)
    return {
        "version": VERSION,
        "masks": {name: mask.cpu() for name, mask in masks.ours(model).items()},
        "structured": list(masks.structured_names(model)),
        "compaction": None if plan is None else plan.to_json(),
        "example": stored(model),
    }


def entry_beside(state_dict: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a state dict without an entry says of itself: the plan of a compact model, or None."""
    plan = plan_told_by(state_dict)
    return None if plan is None else {"compaction": plan}


def upgraded(
    model: nn.Module, state_dict: MutableMapping[str, Tensor], entry: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return an entry with its masks, those of a checkpoint of format 1 among them.

    In format 1 masked weights showed in the names of the state dict: ``weight_orig`` beside ``weight_mask``.

    Args:
        model: into which the state dict will load.
        state_dict: of any format.
        entry: what stood under :data:`KEY` in its checkpoint; None: nothing.

    Raises:
        CheckpointError: a mask has another shape than its weight.

    Changes:
        the state dict: it has the names of a plain model.
    """
    entry = dict(entry or {})
    found = {name: state_dict[f"{name}_mask"].bool() for name in masked_in(state_dict, model)}
    entry["masks"] = {**entry.get("masks", {}), **found}
    for name in found:
        state_dict[name] = state_dict.pop(f"{name}_orig")
        del state_dict[f"{name}_mask"]
    if "structured" not in entry and any(mask.dim() == 1 for mask in found.values()):
        entry["structured"] = list(found)
    for name, mask in entry["masks"].items():
        if name in state_dict and state_dict[name].shape != mask.shape:
            raise CheckpointError(
                f"the checkpoint's mask of {name} has shape {tuple(mask.shape)} and its weight"
                f" {tuple(state_dict[name].shape)}: it is damaged; take another one"
            )
    for name, mask in found.items():  # torch's own methods leave weights as they are behind the mask
        state_dict[name] = torch.where(mask, state_dict[name], 0)
    return entry


def masked_in(state_dict: Mapping[str, Any], model: nn.Module) -> tuple[str, ...]:
    """Return the dense names of the model's parameters that are masked in a state dict of format 1.

    A name counts only when ``_orig`` and ``_mask`` stand side by side in the place of a parameter that the model has,
    so a buffer of the user's that happens to be called ``attn_mask`` is none, nor is what torch's own methods write.
    """
    own = [name for name, _ in model.named_parameters(remove_duplicate=False) if name not in state_dict]
    return tuple(name for name in own if f"{name}_orig" in state_dict and f"{name}_mask" in state_dict)


def check_entry(entry: object) -> None:
    """Refuse what stands under :data:`KEY` in a checkpoint where it is damaged.

    Raises:
        CheckpointError: it is, or of a newer version.
    """
    version = entry.get("version", VERSION) if isinstance(entry, Mapping) else None
    held = entry.get("masks", {}) if isinstance(entry, Mapping) else None
    example = entry.get("example") if isinstance(entry, Mapping) else None
    is_sound = isinstance(held, Mapping) and all(isinstance(mask, Tensor) for mask in held.values())
    is_sound &= isinstance(example, Mapping | None) and {"args", "kwargs"} <= set(example or ("args", "kwargs"))
    run = entry.get("run") if isinstance(entry, Mapping) else None
    is_sound &= run is None or (isinstance(run, Mapping) and _is_run(run))
    if not isinstance(version, int) or not is_sound:
        raise CheckpointError(f"what the checkpoint says under {KEY!r} is damaged, got {entry!r:.80}; take another one")
    if version > VERSION:
        raise CheckpointError(
            f"the checkpoint says {KEY} version {version}, this package reads up to {VERSION}; upgrade it"
        )


def _is_run(run: Mapping[str, Any]) -> bool:
    """Whether what a checkpoint says of a run has what is looked at before the weights load."""
    recipes, step = run.get("recipes"), 0 if run.get("is_done") is True else run.get("step")
    is_described = isinstance(recipes, list | tuple) and all(isinstance(recipe, Mapping) for recipe in recipes)
    return is_described and isinstance(run.get("is_done"), bool) and type(step) is int and step >= 0


def check(model: nn.Module, state_dict: Mapping[str, Tensor], entry: Mapping[str, Any]) -> None:
    """Refuse what the model cannot take; see :func:`adapt`.

    Raises:
        CheckpointError: the entry is damaged or of a newer version; the checkpoint is of a model built with other
            shapes.
    """
    check_entry(entry)
    if "compaction" in entry:
        _check_built_alike(model, state_dict, plan_in(entry))


def fits(model: nn.Module, state_dict: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    """Say whether an upgraded entry and its state dict have the masks and the shapes that the model has already."""
    shapes = all(t.shape == state_dict[n].shape for n, t in masks.dense_names(model).items() if n in state_dict)
    return shapes and set(entry["masks"]) == set(masks.ours(model))


def adapt(
    model: nn.Module,
    state_dict: MutableMapping[str, Tensor],
    entry: Mapping[str, Any] | None,
    undo: Undo | None = None,
) -> dict[str, Any]:
    """Let the model take the shape and the masks of a state dict, so that it can be loaded strictly.

    Args:
        model: dense, masked or compact.
        state_dict: of a dense, masked or compact model of the same class.
        entry: what stood under :data:`KEY` in its checkpoint; None: the state is of a model without masks, and its
            shapes speak for themselves.
        undo: log of the loading that this is a part of; None: nobody will ask for it.

    Returns:
        the entry, upgraded.

    Raises:
        CheckpointError: the entry is of a newer version; the checkpoint is of a model built with other shapes, has
            shapes that pruning does not explain, or holds a mask of another shape than its weight. Nothing has changed
            then.

    Changes:
        hooks, masks, shapes and size attributes of the model's layers, whose weights are to be loaded next; a state
        dict of format 1 becomes a plain one; the log.
    """
    is_bare = entry is None
    check(model, {}, entry or {})
    entry = upgraded(model, state_dict, entry)
    check(model, state_dict, entry)
    if is_bare and (reason := unexplained(model, state_dict)) is not None:
        raise CheckpointError(f"{reason}: it is no state of this model pruned; build the model with the same arguments")
    plan, structured, own = plan_in(entry), entry.get("structured", ()), masks.dense_names(model)
    # names that the model lacks are left to the loading to judge
    wanted = {name: mask for name, mask in entry["masks"].items() if name in own}
    known = [p.attributes.items() for p in (applied_plan(model), plan) if p is not None]
    follow = {path: (name, axis) for attributes in known for path, (name, axis) in attributes if name in own}
    with all_or_nothing() as log:
        earlier = {name: mask.clone() for name, mask in masks.ours(model).items()}
        log.append(partial(_mask_as, model, earlier, masks.structured_names(model)))
        masks.detach(model, [n for n in masks.read(model) if n not in wanted and f"{n}_orig" not in state_dict])
        reshape_like(model, state_dict, follow, log)
        set_plan(model, plan, log)
        log.append(partial(_unmask, model))  # before shapes go back, which masks that are new do not fit
        _mask_as(model, wanted, structured)
    if undo is not None:
        undo.extend(log)
    return entry


def _mask_as(model: nn.Module, wanted: Mapping[str, Tensor], structured: Collection[str]) -> None:
    masks.attach(model, [name for name in wanted if name in structured], is_structured=True)
    masks.attach(model, [name for name in wanted if name not in structured])
    masks.put(model, wanted)


def _unmask(model: nn.Module) -> None:
    masks.put(model, {})  # so that the weights stay as they are
    masks.detach(model, masks.ours(model))


def restore(model: nn.Module, checkpoint: Mapping[str, Any], *, strict: bool = True) -> None:
    """Let a model take what a checkpoint holds: its shape, its masks, its weights.

    Args:
        model: dense, masked or compact.
        checkpoint: of Lightning's, or a bare state dict, of a model built with the same arguments; it stays as it is.
        strict: refuse a state with other names than the model's.

    Raises:
        CheckpointError: see :func:`adapt`.
        RuntimeError: the names of a state are others than the model's; its shape and its masks are as they were.

    Changes:
        the model.
    """
    held = checkpoint.get("state_dict", checkpoint)
    state = dict(held)
    with all_or_nothing() as undo:
        entry = adapt(model, state, checkpoint[KEY] if KEY in checkpoint else entry_beside(held), undo)
        model.load_state_dict(state, strict=strict)
    take_example(model, entry)


def take_example(model: nn.Module, entry: Mapping[str, Any]) -> None:
    """Let a model without an example of its own have that of a checkpoint."""
    if example_of(model) is None and (example := entry.get("example")) is not None:
        # those written before this was told were learnt, nearly all
        is_learnt = example.get("is_learnt", True)
        remember(model, Example(tuple(example["args"]), example["kwargs"], is_learnt))


def plan_in(entry: Mapping[str, Any]) -> Compaction | None:
    """Return the plan that an entry holds.

    Raises:
        CheckpointError: it cannot be read.
    """
    text = entry.get("compaction")
    try:
        return None if text is None else Compaction.from_json(text)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint's plan of removals is damaged: {error}; take an earlier one") from error


def _check_built_alike(model: nn.Module, dense: Mapping[str, Tensor], plan: Compaction | None) -> None:
    """Refuse shapes that differ from the model's for another reason than that channels have left."""
    own, first = applied_plan(model), masks.first_names(model)
    after = {} if plan is None else plan.shapes_after
    for name, tensor in masks.dense_names(model).items():
        if name in dense and not is_lazy(tensor) and dense[name].shape != tensor.shape:
            here = own.shapes.get(first[name], tensor.shape) if own else tensor.shape
            there = plan.shapes.get(first[name], dense[name].shape) if plan else dense[name].shape
            if tuple(here) != tuple(there):
                raise CheckpointError(
                    f"{name} was built with shape {tuple(there)} in the checkpoint's model and with {tuple(here)} in"
                    f" this {type(model).__name__}: build it with the same arguments"
                )
        if name in dense and (told := after.get(first[name], dense[name].shape)) != tuple(dense[name].shape):
            raise CheckpointError(
                f"{name} has shape {tuple(dense[name].shape)} in the state and {told} by the checkpoint's plan of"
                " removals: it was put there afterwards; load the state as it was saved"
            )


def take_base(model: nn.Module, base: Compaction | None) -> None:
    """Let the model take the shape that it had when a run was set up, before its weights load.

    Args:
        model: dense, masked or compact.
        base: the removals that had shaped it then; None: the shape that it was built with.

    Changes:
        hooks, masks, shapes and size attributes of the model's layers.
    """
    current = applied_plan(model)
    if current == base:
        return
    masks.detach(model)
    shapes = current.shapes if base is None and current is not None else base.shapes_after if base is not None else {}
    known = {path: follows for plan in (current, base) if plan is not None for path, follows in plan.attributes.items()}
    reshape_like(model, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, known)
    set_plan(model, base)
