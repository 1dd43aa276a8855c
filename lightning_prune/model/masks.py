"""Masks on a model: attach, read, write and fold them; the only file that touches torch.nn.utils.prune.

A masked parameter ``weight`` of a module is stored as the parameter ``weight_orig`` and the bool buffer
``weight_mask`` (True = keep), and recomputed as the plain attribute ``weight`` before each forward pass. Everything
outside this file speaks of it by its *dense name*, the one that it has in the unpruned model.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import prune

from lightning_prune.distributed import ranks
from lightning_prune.distributed.shards import is_sharded, local, part
from lightning_prune.errors import PruningError


class MaskMethod(prune.BasePruningMethod):
    """A forward pre-hook that sets ``weight = weight_orig * mask`` from a bool mask.

    Unlike torch's own methods it can be overwritten without piling up, and lets the module be deep-copied at any
    moment. The mask is widened to the weight's dtype once per change, not at each forward pass.

    Args:
        is_structured: whether the mask covers whole channels that can be removed afterwards.
    """

    PRUNING_TYPE = "unstructured"

    def __init__(self, is_structured: bool) -> None:
        self.is_structured = is_structured
        self._widened: Tensor | None = None
        self._made_from: Tensor | None = None
        self._made_at: tuple[object, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the widened mask out of copies: it is made again when needed."""
        return self.__dict__ | {"_widened": None, "_made_from": None, "_made_at": ()}

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the mask to begin with: all True, shape of ``t``."""
        return torch.ones_like(default_mask, dtype=torch.bool)

    def apply_mask(self, module: nn.Module) -> Tensor:
        """Return the masked weight, shape of ``weight_orig``."""
        mask, original = mask_of(module, self._tensor_name), original_of(module, self._tensor_name)
        if torch.compiler.is_compiling() or mask.is_inference():
            return original * mask
        weight = original * self._factor(mask, original.dtype)
        if weight.requires_grad:
            # a non-leaf tensor refuses copy.deepcopy; its copy is recomputed before the next forward pass anyway
            weight.__deepcopy__ = partial(_detached, mask, original)
        return weight

    def _factor(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the mask as numbers; made anew whenever the mask was written, moved or replaced."""
        state = (mask._version, dtype, mask.device, mask.shape)
        if self._widened is None or self._made_from is not mask or self._made_at != state:
            self._widened, self._made_from, self._made_at = mask.to(dtype), mask, state
        return self._widened


def _detached(mask: Tensor, original: Tensor, memo: dict[int, Any]) -> Tensor:
    return torch.where(mask, original.detach(), 0)


def mask_of(module: nn.Module, name: str) -> Tensor:
    """Return the mask buffer of the masked parameter ``name`` of this module."""
    return cast(Tensor, getattr(module, f"{name}_mask"))


def original_of(module: nn.Module, name: str) -> nn.Parameter:
    """Return the live parameter behind the masked parameter ``name`` of this module."""
    return cast(nn.Parameter, getattr(module, f"{name}_orig"))


def _hooks(module: nn.Module) -> dict[str, prune.BasePruningMethod]:
    hooks = module._forward_pre_hooks.values()
    return {hook._tensor_name: hook for hook in hooks if isinstance(hook, prune.BasePruningMethod)}


def masked_places(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, prune.BasePruningMethod]]:
    """Yield (dense name, module, parameter name in it, hook) of every masked parameter, in module order."""
    for path, module in model.named_modules():
        for name, hook in _hooks(module).items():
            yield (f"{path}.{name}" if path else name), module, name, hook


def is_masked(model: nn.Module) -> bool:
    """Say whether any parameter of the model carries a mask."""
    return any(True for _ in masked_places(model))


def structured_names(model: nn.Module) -> tuple[str, ...]:
    """Return the dense names of the parameters whose masks cover whole channels."""
    return tuple(n for n, _, _, hook in masked_places(model) if isinstance(hook, MaskMethod) and hook.is_structured)


def dense_names(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer by its dense name: ``weight_orig`` as ``weight``, mask buffers left out.

    A tensor that stands under several names appears under each.
    """
    tensors: dict[str, Tensor] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        masked = _hooks(module)
        hidden = {f"{name}_mask" for name in masked}
        shown = {f"{name}_orig": name for name in masked}
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and name not in hidden:
                name = shown.get(name, name)
                tensors[f"{path}.{name}" if path else name] = tensor
    return tensors


def dense_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return every parameter by its dense name; one that stands under several names appears under each."""
    return {name: t for name, t in dense_names(model).items() if isinstance(t, nn.Parameter)}


def locate(model: nn.Module, dense_name: str) -> tuple[nn.Module, str]:
    """Return the module that owns this parameter or buffer and its name there.

    Raises:
        AttributeError: no such module.
    """
    path, _, name = dense_name.rpartition(".")
    return model.get_submodule(path), name


def first_names(model: nn.Module) -> dict[str, str]:
    """Return for every dense name the first one under which the same tensor stands: itself unless it is tied."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in dense_names(model).items()}


def _renamed(module: nn.Module, old: str, new: str, change: Callable[[], object]) -> None:
    """Run ``change``, which renames a parameter, and put it back at its place in the module's order of parameters.

    Optimizer states in a checkpoint are numbered in that order.
    """
    order = [new if name == old else name for name in module._parameters]
    change()
    held = dict(module._parameters)
    module._parameters.clear()
    module._parameters.update({name: held[name] for name in order})


def attach(model: nn.Module, names: Iterable[str], is_structured: bool = False) -> None:
    """Put an all-True mask on each named parameter; one that is masked already keeps its mask.

    Args:
        model: any module.
        names: dense names of parameters. A tied parameter is masked wherever it stands.
        is_structured: whether the masks will cover whole channels.

    Raises:
        PruningError: a parameter is pruned by somebody else's torch.nn.utils.prune hook, is sharded already, or its
            module has an attribute in the way; nothing is masked then.

    Changes:
        the modules: ``weight`` becomes ``weight_orig`` (the same Parameter), ``weight_mask`` and a forward pre-hook.
    """
    parameters = dense_parameters(model)
    places = list(_places_of(model, [parameters[name] for name in names]))
    for dense_name, module, name, hook in places:
        if not isinstance(hook, MaskMethod):
            _check_free(dense_name, module, name, hook)
            _check_not_sharded(dense_name, parameters[dense_name])
    for _, module, name, hook in places:
        if isinstance(hook, MaskMethod):
            hook.is_structured |= is_structured
        else:
            _renamed(module, name, f"{name}_orig", partial(MaskMethod.apply, module, name, is_structured))
    _serve_attention(model)
    _spare_broadcasts(model)


def _spare_broadcasts(model: nn.Module) -> None:
    """Let a DistributedDataParallel around this model leave our masks, the same on all ranks, out of each forward."""
    ours = {f"{name}_mask" for name, *_ in masked_places(model)}
    there = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    others = there & set(vars(model).pop("_ddp_params_and_buffers_to_ignore", ()))
    if ours | others:
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, sorted(ours | others))


def _serve_attention(model: nn.Module) -> None:
    """Let each nn.MultiheadAttention run the mask hooks of its ``out_proj``, whose weights it reads without a call."""
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            own = [key for key, hook in module._forward_pre_hooks.items() if hook is _mask_out_proj]
            if _hooks(module.out_proj) and not own:
                module.register_forward_pre_hook(_mask_out_proj)
            elif own and not _hooks(module.out_proj):
                del module._forward_pre_hooks[own[0]]


def _mask_out_proj(attention: nn.MultiheadAttention, inputs: object) -> None:
    for hook in _hooks(attention.out_proj).values():
        hook(attention.out_proj, inputs)


def _places_of(
    model: nn.Module, parameters: Iterable[nn.Parameter]
) -> Iterator[tuple[str, nn.Module, str, prune.BasePruningMethod | None]]:
    """Yield (dense name, module, name in it, hook or None) wherever one of these parameters stands."""
    wanted = {id(parameter) for parameter in parameters}
    for path, module in model.named_modules():
        hooks = _hooks(module)
        shown = {f"{name}_orig": name for name in hooks}
        for held_as, held in module._parameters.items():
            if id(held) in wanted:
                name = shown.get(held_as, held_as)
                yield (f"{path}.{name}" if path else name), module, name, hooks.get(name)


def _check_free(dense_name: str, module: nn.Module, name: str, hook: prune.BasePruningMethod | None) -> None:
    if hook is not None:
        raise PruningError(
            f"{dense_name} is already pruned by {type(hook).__name__} of torch.nn.utils.prune: make that permanent"
            " first, with torch.nn.utils.prune.remove(module, name) or lightning_prune.finalize(model)"
        )
    for taken in (f"{name}_orig", f"{name}_mask"):
        if hasattr(module, taken):
            raise PruningError(
                f"{dense_name} cannot be masked: its module already has an attribute {taken!r}, which"
                " torch.nn.utils.prune needs; rename it or exclude this target"
            )


def detach(model: nn.Module, names: Iterable[str] | None = None) -> None:
    """Fold each mask into its weight: hooks and mask buffers go, the Parameter object stays.

    Args:
        model: any module; torch's own pruning hooks are folded too.
        names: dense names of masked parameters; None: all.

    Raises:
        PruningError: a parameter is sharded over several ranks; nothing has changed then.

    Changes:
        the weights (exactly zero where the mask was False) and the modules (plain again, same parameter order).
    """
    wanted = None if names is None else set(names)
    found = [place for place in masked_places(model) if wanted is None or place[0] in wanted]
    _check_whole(found)
    for _, module, name, hook in found:
        _zero_pruned(mask_of(module, name), original_of(module, name))
        _renamed(module, f"{name}_orig", name, partial(_unhook, module, name, hook))
    _serve_attention(model)
    _spare_broadcasts(model)


def _check_not_sharded(dense_name: str, parameter: nn.Parameter) -> None:
    if is_sharded(parameter):
        raise PruningError(
            f"{dense_name} is sharded over several ranks already, and masks have to be there first: build the layers in"
            " __init__ and shard them in configure_model, or call fully_shard after the masks are attached"
        )


def _check_whole(places: Iterable[tuple[str, nn.Module, str, object]]) -> None:
    for dense_name, module, name, _ in places:
        if is_sharded(original_of(module, name)):
            raise PruningError(
                f"{dense_name} is sharded over several ranks, which find it under its present name, so its mask stays:"
                " load the checkpoint into a model in one process and call finalize(model) there"
            )


def fold(model: nn.Module) -> nn.Module:
    """Fold every mask into its weight and return the same model, plain again. See :func:`detach`."""
    detach(model)
    return model


def _unhook(module: nn.Module, name: str, hook: prune.BasePruningMethod) -> None:
    for key, held in list(module._forward_pre_hooks.items()):
        if held is hook:
            del module._forward_pre_hooks[key]
    parameter = original_of(module, name)
    delattr(module, name)
    del module._parameters[f"{name}_orig"], module._buffers[f"{name}_mask"]
    module.register_parameter(name, parameter)


def read(model: nn.Module) -> dict[str, Tensor]:
    """Return the live mask of every masked parameter by dense name: bool, parameter's shape, True = keep."""
    return {name: mask_of(module, attr).bool() for name, module, attr, _ in masked_places(model)}


@torch.no_grad()
def write(model: nn.Module, masks: Iterable[tuple[str, Tensor]]) -> None:
    """Overwrite masks in place and zero what they prune; a position that was pruned stays pruned.

    Args:
        model: a model whose named parameters are masked.
        masks: (dense name, bool mask of the parameter's shape) pairs, taken one at a time so that a generator
            never holds more than one new mask.

    Changes:
        the mask buffers, the live weights (zero where pruned) and the modules' ``weight`` attributes.
    """
    places: dict[int, list[tuple[nn.Module, str, prune.BasePruningMethod]]] = {}
    by_name: dict[str, int] = {}
    for dense_name, module, name, hook in masked_places(model):
        key = by_name[dense_name] = id(original_of(module, name))
        places.setdefault(key, []).append((module, name, hook))
    for dense_name, mask in masks:
        for module, name, hook in places[by_name[dense_name]]:
            mask_of(module, name).logical_and_(mask.to(mask_of(module, name).device))
            _settle(module, name, hook)


def refresh(model: nn.Module) -> None:
    """Zero every live weight where its mask is False and bring the ``weight`` attributes up to date with it."""
    for _, module, name, hook in masked_places(model):
        _settle(module, name, hook)


def _settle(module: nn.Module, name: str, hook: prune.BasePruningMethod) -> None:
    """Zero the live weight where it is pruned; show it as ``weight``, in place where that has the right form."""
    original, shown = original_of(module, name), getattr(module, name)
    _zero_pruned(mask_of(module, name), original)
    if is_sharded(original):
        setattr(module, name, original.detach())
        return
    same = (shown.shape, shown.dtype, shown.device) == (original.shape, original.dtype, original.device)
    if same and not shown.is_inference():
        shown.data.copy_(original.data)
    else:
        with torch.enable_grad():
            setattr(module, name, hook.apply_mask(module))


def _zero_pruned(mask: Tensor, original: Tensor) -> None:
    zero, own = torch.zeros((), dtype=original.dtype, device=original.device), local(original.data)
    torch.where(part(mask, original).bool(), own, zero, out=own)


def check_same(model: nn.Module) -> None:
    """Raise PruningError, on all ranks, where a mask differs between them; one rank has nothing to compare."""
    if ranks.world_size() > 1:
        ranks.check_same({name: ranks.digest(mask) for name, mask in read(model).items()}, "mask")


def zero_pruned(model: nn.Module) -> None:
    """Set the live weights to zero wherever their mask is False, in place (what an optimizer moved goes back)."""
    for _, module, name, _ in masked_places(model):
        _zero_pruned(mask_of(module, name), original_of(module, name))


def masks_by_parameter(model: nn.Module) -> Mapping[nn.Parameter, Tensor]:
    """Return the live mask of every masked parameter, keyed by the Parameter object that the optimizer holds."""
    return {original_of(module, name): mask_of(module, name) for _, module, name, _ in masked_places(model)}
