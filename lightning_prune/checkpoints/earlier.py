"""States from before a removal of channels, or from before the end: they still load into what the model has become.

Projects that keep the best state of a fit load it when the fit is over. Then masks are folded and channels gone, and
what was pruned would come back, or not fit at all.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.compaction import Compaction, applied_plan
from lightning_prune.model import masks
from lightning_prune.optimizer.surgery import take
from lightning_prune.run.removal import removed_since

Cuts = list[tuple[tuple[int, ...], Mapping[int, tuple[int, ...]]]]
"""Earlier shapes of a tensor, each with the indices that are left of it, by axis."""


class Earlier:
    """A load_state_dict pre-hook of one module: cuts what has an earlier shape, and prunes what is pruned.

    Args:
        cuts: name in the module -> its earlier shapes.
        masks: name in the module -> bool, True = keep, present shape.
        notice: shared by all modules of a model.
    """

    def __init__(self, cuts: Mapping[str, Cuts], masks: Mapping[str, Tensor], notice: masks.Notice) -> None:
        self.cuts, self.masks, self._notice = cuts, masks, notice

    def __call__(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
        """Let the state be one of the module as it is now; its tensors are not written into."""
        for name in {**self.cuts, **self.masks}:
            loaded = state_dict.get(prefix + name)
            if not isinstance(loaded, Tensor):
                continue
            shapes = {shape: left for shape, left in self.cuts.get(name, ())}
            left = shapes.get(tuple(loaded.shape), {})
            tensor = take(loaded, {axis: torch.tensor(kept) for axis, kept in left.items()}) if left else loaded
            mask = self.masks.get(name)
            if mask is not None and mask.shape == tensor.shape:
                tensor = tensor * mask.to(tensor.device, tensor.dtype)
            if name in module._parameters and loaded.count_nonzero() > tensor.count_nonzero():
                self._notice.give(f"{type(module).__name__}.{name}")
            state_dict[prefix + name] = tensor


def serve(model: nn.Module, stages: Iterable[Compaction | None], pruned: Mapping[str, Tensor] | None = None) -> None:
    """Let states of these earlier stages load into the model as it is from now on; replaces what was served before.

    Args:
        model: as it has become.
        stages: what had been removed from it at each stage; None: nothing had.
        pruned: dense name -> mask, of the last stage's shape, that was folded since; None: masks are still attached.

    Changes:
        load_state_dict pre-hooks of its modules.
    """
    forget(model)
    named, notice = masks.dense_names(model), masks.Notice()
    cuts: dict[int, Cuts] = {}
    plans = [removed_since(model, stage) for stage in stages if _is_part(stage, applied_plan(model))]
    for plan in (plan for plan in plans if plan is not None):
        for name, kept in plan.keep.items():
            cuts.setdefault(id(named[name]), []).append((plan.shapes[name], kept))
    held: dict[int, Tensor] = {}
    for name, mask in (pruned or {}).items():
        left = dict(cuts.get(id(named[name]), [])).get(tuple(mask.shape), {})
        mask = take(mask, {axis: torch.tensor(kept) for axis, kept in left.items()})
        if not bool(mask.all()):
            held[id(named[name])] = mask
    for module in model.modules():
        own = {**module._parameters, **module._buffers}
        here = {name: cuts[id(tensor)] for name, tensor in own.items() if id(tensor) in cuts}
        zeros = {name: held[id(tensor)] for name, tensor in own.items() if id(tensor) in held}
        if here or zeros:
            module.register_load_state_dict_pre_hook(Earlier(here, zeros, notice))


def forget(model: nn.Module) -> None:
    """Let states load as into any other model again."""
    for module in model.modules():
        for key, held in list(module._load_state_dict_pre_hooks.items()):
            if isinstance(getattr(held, "hook", held), Earlier):
                del module._load_state_dict_pre_hooks[key]


def strangers(model: nn.Module, state_dict: Mapping[str, Any]) -> list[str]:
    """Return the dense names whose tensors in a state have neither the present nor an earlier shape that is served."""
    found = []
    for name, tensor in masks.dense_names(model).items():
        module, attr = masks.locate(model, name)
        hooks = [getattr(held, "hook", held) for held in module._load_state_dict_pre_hooks.values()]
        shapes = [shape for hook in hooks if isinstance(hook, Earlier) for shape, _ in hook.cuts.get(attr, ())]
        if name in state_dict and tuple(state_dict[name].shape) not in (tuple(tensor.shape), *shapes):
            found.append(name)
    return found


def _is_part(stage: Compaction | None, applied: Compaction | None) -> bool:
    """Say whether a stage lies on the way to what is applied now; a rollback may have left it aside."""
    if stage is None or applied is None:
        return stage is None
    return all(
        set(gone) <= set(applied.removed.get(name, {}).get(axis, ()))
        for name, axes in stage.removed.items()
        for axis, gone in axes.items()
    )
