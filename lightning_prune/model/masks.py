"""Masks on a model: attach, read, write and fold them; nothing else touches torch.nn.utils.prune.

A masked parameter ``weight`` stays the leaf that it was, at its place and under its name, zero where it is pruned: what
reads the model's parameters, buffers or state dict sees a plain model. While its module computes, ``weight * mask``
stands before it. The mask (bool, True = keep) lives in the pruning method, among the module's forward pre-hooks.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.hooks import RemovableHandle

from lightning_prune.distributed import ranks
from lightning_prune.distributed.shards import is_sharded
from lightning_prune.errors import PruningError
from lightning_prune.model._mask_method import MaskMethod, Notice, zero_where


def mask_of(module: nn.Module, name: str) -> Tensor:
    """Return the live mask of the masked parameter ``name`` of this module."""
    return _mask(module, _hooks(module)[name])


def _mask(module: nn.Module, hook: prune.BasePruningMethod) -> Tensor:
    return (
        hook.mask(module)
        if isinstance(hook, MaskMethod)
        else cast(Tensor, getattr(module, f"{hook._tensor_name}_mask"))
    )


def set_mask(module: nn.Module, name: str, mask: Tensor) -> None:
    """Put another mask, perhaps of another shape, in the place of this one."""
    hook = _hooks(module)[name]
    if isinstance(hook, MaskMethod):
        hook.set_mask(mask)
    else:
        module._buffers[f"{name}_mask"] = mask


def parameter_of(module: nn.Module, name: str) -> nn.Parameter:
    """Return the Parameter that is masked as ``name`` in this module; torch's own methods keep it as ``name_orig``."""
    own = module._parameters.get(name)
    return cast(nn.Parameter, module._parameters[f"{name}_orig"] if own is None else own)


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
    """Return every parameter and buffer by its dense name, the one that it has in the plain model.

    It differs from the present name where torch's own methods prune alone: ``weight_orig`` stands as ``weight`` and
    their mask buffers are left out. A tensor that stands under several names appears under each.
    """
    tensors: dict[str, Tensor] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        others = [name for name, hook in _hooks(module).items() if not isinstance(hook, MaskMethod)]
        shown = {f"{name}_orig": name for name in others} | {f"{name}_mask": "" for name in others}
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and (name := shown.get(name, name)):
                tensors[f"{path}.{name}" if path else name] = tensor
    return tensors


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter or buffer; the CPU for one without."""
    return next((tensor.device for tensor in dense_names(model).values()), torch.device("cpu"))


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


def attach(model: nn.Module, names: Iterable[str], is_structured: bool = False) -> None:
    """Put an all-True mask on each named parameter; one that is masked already keeps its mask.

    Args:
        model: any module.
        names: dense names of parameters. A tied parameter is masked wherever it stands.
        is_structured: whether the masks will cover whole channels.

    Raises:
        PruningError: a parameter is pruned by somebody else's torch.nn.utils.prune hook, or is sharded already; nothing
            is masked then.

    Changes:
        the hooks of the modules; parameters and buffers stay as they are.
    """
    parameters = dense_parameters(model)
    places = list(_places_of(model, [parameters[name] for name in names]))
    for dense_name, module, name, hook in places:
        if hook is not None and not isinstance(hook, MaskMethod):
            raise PruningError(
                f"{dense_name} is already pruned by {type(hook).__name__} of torch.nn.utils.prune: make that permanent"
                " first, with torch.nn.utils.prune.remove(module, name) or lightning_prune.finalize(model)"
            )
        if hook is None and is_sharded(parameter_of(module, name)):
            raise PruningError(
                f"{dense_name} is sharded over several ranks already, and masks have to be there first: build the"
                " layers in __init__ and shard them in configure_model, or call fully_shard after the masks are"
                " attached"
            )
    known = (hook.notice for *_, hook in masked_places(model) if isinstance(hook, MaskMethod))
    notice = next(known, None) or Notice()
    for _, module, name, hook in places:
        if isinstance(hook, MaskMethod):
            hook.is_structured |= is_structured
        else:
            parameter = parameter_of(module, name)
            device = "cpu" if parameter.is_meta else parameter.device
            mask = torch.ones(parameter.shape, dtype=torch.bool, device=device)
            MaskMethod(name, mask, is_structured, notice).put_on(module)
    _serve_attention(model)


def _serve_attention(model: nn.Module) -> None:
    """Let each nn.MultiheadAttention run the mask hooks of its ``out_proj``, whose weights it reads without a call."""
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            for table, hook in (
                (module._forward_pre_hooks, _mask_out_proj),
                (module._forward_hooks, _uncover_out_proj),
            ):
                own = [key for key, held in table.items() if held is hook]
                if _hooks(module.out_proj) and not own:
                    handle = RemovableHandle(table)
                    table[handle.id] = hook
                elif own and not _hooks(module.out_proj):
                    del table[own[0]]


def _mask_out_proj(attention: nn.MultiheadAttention, inputs: object) -> None:
    for hook in _hooks(attention.out_proj).values():
        hook(attention.out_proj, inputs)


def _uncover_out_proj(attention: nn.MultiheadAttention, *_: object) -> None:
    for hook in _hooks(attention.out_proj).values():
        if isinstance(hook, MaskMethod):
            hook.uncover(attention.out_proj)


def _places_of(
    model: nn.Module, parameters: Iterable[nn.Parameter]
) -> Iterator[tuple[str, nn.Module, str, prune.BasePruningMethod | None]]:
    """Yield (dense name, module, name in it, hook or None) wherever one of these parameters stands."""
    wanted = {id(parameter) for parameter in parameters}
    for path, module in model.named_modules():
        hooks = _hooks(module)
        shown = {f"{name}_orig": name for name, hook in hooks.items() if not isinstance(hook, MaskMethod)}
        for held_as, held in module._parameters.items():
            if id(held) in wanted:
                name = shown.get(held_as, held_as)
                yield (f"{path}.{name}" if path else name), module, name, hooks.get(name)


def detach(model: nn.Module, names: Iterable[str] | None = None) -> None:
    """Fold each mask into its weight: the hooks go, the Parameter object stays.

    Args:
        model: any module; torch's own pruning hooks are folded too.
        names: dense names of masked parameters; None: all.

    Raises:
        PruningError: a parameter is sharded over several ranks; nothing has changed then.

    Changes:
        the weights (exactly zero where the mask was False) and the modules (plain again, same parameter order).
    """
    wanted = None if names is None else set(names)
    places = [place for place in masked_places(model) if wanted is None or place[0] in wanted]
    for dense_name, module, name, _ in places:
        if is_sharded(parameter_of(module, name)):
            raise PruningError(
                f"{dense_name} is sharded over several ranks, so its mask stays: load the checkpoint into a model in"
                " one process and call finalize(model) there"
            )
    for _, module, name, _ in places:
        order = [held.removesuffix("_orig") if held == f"{name}_orig" else held for held in module._parameters]
        prune.remove(module, name)
        # torch puts a weight that its own methods have pruned behind the others (2.13), and optimizer states in a
        # checkpoint are numbered in that order
        for held in order:
            module._parameters[held] = module._parameters.pop(held)
    _serve_attention(model)


def fold(model: nn.Module) -> nn.Module:
    """Fold every mask into its weight and return the same model, plain again. See :func:`detach`."""
    detach(model)
    return model


def read(model: nn.Module) -> dict[str, Tensor]:
    """Return the live mask of every masked parameter by dense name: bool, parameter's shape, True = keep."""
    return {name: _mask(module, hook).bool() for name, module, _, hook in masked_places(model)}


def ours(model: nn.Module) -> dict[str, Tensor]:
    """Return the same of this package's masks alone, which stand in no state dict."""
    return {name: hook.mask(module) for name, module, _, hook in masked_places(model) if isinstance(hook, MaskMethod)}


@torch.no_grad()
def write(model: nn.Module, masks: Iterable[tuple[str, Tensor]]) -> None:
    """Overwrite masks in place and zero what they prune; a position that was pruned stays pruned.

    Args:
        model: a model whose named parameters are masked.
        masks: (dense name, bool mask of the parameter's shape) pairs, taken one at a time so that a generator
            never holds more than one new mask.

    Changes:
        the masks and the live weights (zero where pruned).
    """
    places: dict[int, list[tuple[nn.Module, prune.BasePruningMethod]]] = {}
    by_name: dict[str, int] = {}
    for dense_name, module, name, hook in masked_places(model):
        key = by_name[dense_name] = id(parameter_of(module, name))
        places.setdefault(key, []).append((module, hook))
    for dense_name, mask in masks:
        for module, hook in places[by_name[dense_name]]:
            live = _mask(module, hook)
            live.logical_and_(mask.to(live.device))
            _settle(module, hook)


@torch.no_grad()
def put(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Let these be this package's masks, by dense name, and all True where none is named; weights stay as they are."""
    for name, mask in ours(model).items():
        mask.copy_(masks[name]) if name in masks else mask.fill_(True)


def zero_pruned(model: nn.Module) -> None:
    """Set the live weights to zero wherever their mask is False, in place (what an optimizer moved goes back)."""
    for _, module, _, hook in masked_places(model):
        _settle(module, hook)


@torch.no_grad()
def zero_gradients(model: nn.Module) -> None:
    """Set gradients to zero wherever their mask is False, in place.

    A module's own use of its weight gives zeros there; that of a weight which others read outside of it does not.
    """
    for _, module, _, hook in masked_places(model):
        if isinstance(hook, MaskMethod):
            hook.zero_gradient(module)


def _settle(module: nn.Module, hook: prune.BasePruningMethod) -> None:
    name = hook._tensor_name
    zero_where(_mask(module, hook), parameter_of(module, name))
    if not isinstance(hook, MaskMethod):
        with torch.enable_grad():
            setattr(module, name, hook.apply_mask(module))


def check_same(model: nn.Module) -> None:
    """Raise PruningError, on all ranks, where a mask differs between them; one rank has nothing to compare."""
    if ranks.world_size() > 1:
        ranks.check_same({name: ranks.digest(mask) for name, mask in read(model).items()}, "mask")


def masks_by_parameter(model: nn.Module) -> Mapping[nn.Parameter, Tensor]:
    """Return the live mask of every masked parameter, keyed by the Parameter object that the optimizer holds."""
    return {parameter_of(module, name): _mask(module, hook) for _, module, name, hook in masked_places(model)}
