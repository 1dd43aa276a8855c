"""The pruning method that lets a module compute with ``weight * mask``, through torch.nn.utils.prune."""

import warnings
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.utils import prune

from lightning_prune.distributed.shards import is_sharded, local, part


class Notice:
    """Says once, for all masks of a model, that a state came with weights which are pruned by now."""

    def __init__(self) -> None:
        self._is_given = False

    def give(self, name: str) -> None:
        """Warn, unless it was said before; ``name`` is of a parameter that the state concerns."""
        if not self._is_given:
            self._is_given = True
            warnings.warn(
                f"a state was loaded with weights that are pruned by now, {name} among them: they stay zero, so a score"
                " that was measured with them is not this model's. To have them back, load it into a new model",
                stacklevel=2,
            )


class MaskMethod(prune.BasePruningMethod):
    """Lets a module compute with ``weight * mask`` while the Parameter stays where it is.

    A forward pre-hook puts the product into the instance's dict, where attribute access meets it before the Parameter,
    and a hook after the forward pass takes it away. Weights that are loaded become zero where the mask is False. The
    mask is widened to the weight's dtype once per change, not at each forward pass.

    Args:
        name: of the parameter in its module.
        mask: bool, True = keep, shape of the parameter.
        is_structured: whether the mask covers whole channels that can be removed afterwards.
        notice: shared by all masks of a model.
    """

    PRUNING_TYPE = "unstructured"

    def __init__(self, name: str, mask: Tensor, is_structured: bool, notice: Notice) -> None:
        self._tensor_name = name
        self._mask = mask
        self.is_structured = is_structured
        self.notice = notice
        self._widened: Tensor | None = None
        self._made_at: tuple[object, ...] = ()
        self._masked_grad: tuple[Tensor, StorageWeakRef, int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the widened mask out of copies: it is made again when needed."""
        return self.__dict__ | {"_widened": None, "_made_at": (), "_masked_grad": None}

    def put_on(self, module: nn.Module) -> None:
        """Register the hooks."""
        module.register_forward_pre_hook(self)
        # not always_call, which torch.compile leaves out of its graphs (2.13); what a forward pass that raises leaves
        # behind is overwritten by the next one
        module.register_forward_hook(self.uncover)
        module.register_load_state_dict_pre_hook(self.translate)
        module.register_load_state_dict_post_hook(self.hold)

    def remove(self, module: nn.Module) -> None:
        """Zero what is pruned and take the hooks away, as ``torch.nn.utils.prune.remove`` asks; its own goes there."""
        zero_where(self.mask(module), cast(nn.Parameter, module._parameters[self._tensor_name]))
        self.uncover(module)
        for table in (module._forward_hooks, module._load_state_dict_pre_hooks, module._load_state_dict_post_hooks):
            for key, held in list(table.items()):
                if getattr(getattr(held, "hook", held), "__self__", None) is self:
                    del table[key]

    def mask(self, module: nn.Module) -> Tensor:
        """Return the live mask, on the device of the parameter."""
        parameter = module._parameters[self._tensor_name]
        if parameter is not None and self._mask.device != parameter.device and not parameter.is_meta:
            with torch.inference_mode(False):
                self._mask = self._mask.to(parameter.device)
        return self._mask

    def set_mask(self, mask: Tensor) -> None:
        """Put another mask in the place of this one."""
        self._mask, self._widened = mask, None

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the mask, as torch asks of each method."""
        return self._mask & default_mask.bool()

    def __call__(self, module: nn.Module, inputs: object) -> None:
        """Show the product for this forward pass."""
        weight = self.apply_mask(module)
        vars(module)[self._tensor_name] = weight
        if isinstance(module, nn.RNNBase):
            self._show_flat(module, weight)

    def uncover(self, module: nn.Module, *_: object) -> None:
        """Take the product away after the forward pass."""
        if vars(module).pop(self._tensor_name, None) is not None and isinstance(module, nn.RNNBase):
            self._show_flat(module, cast(Tensor, module._parameters[self._tensor_name]))

    def _show_flat(self, module: nn.RNNBase, weight: Tensor) -> None:
        """Put a weight among those that a recurrent layer computes with."""
        if self._tensor_name in module._flat_weights_names:
            module._flat_weights[module._flat_weights_names.index(self._tensor_name)] = weight

    def apply_mask(self, module: nn.Module) -> Tensor:
        """Return the masked weight, shape of the parameter."""
        original = cast(nn.Parameter, module._parameters[self._tensor_name])
        if torch.compiler.is_compiling() or original.is_inference():
            return original * self._mask
        mask = self.mask(module)
        factor = self._factor(mask, original.dtype)
        weight = original * factor
        if weight.requires_grad:
            # left behind where forward raises, it must not keep copy.deepcopy from working: no leaf can be copied
            weight.__deepcopy__ = partial(_detached, mask, original)
            if weight.grad_fn is not None and not is_sharded(original):
                weight.grad_fn.register_hook(partial(self._note_grad, factor))
        return weight

    def _note_grad(self, factor: Tensor, grad_inputs: tuple[Tensor | None, ...], grad_outputs: object) -> None:
        """Know again what the backward pass of the product gives: it is zero where the mask is False."""
        grad = grad_inputs[0]
        # the weak reference keeps the storage's identity, not its memory, from being used again: neither a gradient of
        # another reader that comes to lie where this one lay nor one left behind by torch.autograd.grad passes for it
        self._masked_grad = None
        if grad is not None and not grad.is_sparse:
            self._masked_grad = factor, StorageWeakRef(grad.untyped_storage()), grad._version

    def _factor(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the mask as numbers; made anew whenever the mask was written, moved or replaced."""
        state = (mask._version, dtype, mask.device)
        if self._widened is None or self._made_at != state:
            with torch.inference_mode(False):  # a validation may come first after an event
                self._widened, self._made_at = mask.to(dtype), state
        return self._widened

    def translate(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
        """Read a state of format 1, in which ``weight_orig`` stood beside ``weight_mask``."""
        name = prefix + self._tensor_name
        if name not in state_dict and f"{name}_orig" in state_dict and f"{name}_mask" in state_dict:
            mask, saved = self.mask(module), state_dict.pop(f"{name}_mask").bool()
            state_dict[name] = state_dict.pop(f"{name}_orig")
            if mask.shape == saved.shape == state_dict[name].shape:
                state_dict[name] = torch.where(saved, state_dict[name], 0)
                mask.logical_and_(saved.to(mask.device))

    def hold(self, module: nn.Module, incompatible_keys: object) -> None:
        """Prune what was loaded."""
        parameter = module._parameters[self._tensor_name]
        if parameter is None or parameter.is_meta:
            return
        mask = self.mask(module)
        if bool((local(parameter.data) * ~part(mask, parameter)).count_nonzero()):
            zero_where(mask, parameter)
            self.notice.give(f"{type(module).__name__}.{self._tensor_name}")

    def zero_gradient(self, module: nn.Module) -> None:
        """Set the gradient to zero wherever the mask is False, in place.

        Where it came through the product alone it is so already. Gradients of other readers are added to it, which the
        version of the tensor or another storage shows. No version shows what is written through ``grad.data``.
        """
        parameter = cast(nn.Parameter, module._parameters[self._tensor_name])
        grad, masked, self._masked_grad = parameter.grad, self._masked_grad, None
        if grad is None or grad.is_sparse:
            return
        factor = self._factor(self.mask(module), grad.dtype)  # another one if the mask has changed since
        if masked is not None and masked[0] is factor and not is_sharded(parameter):
            is_known = masked[1:] == (StorageWeakRef(grad.untyped_storage()), grad._version)
        else:
            is_known = False
        if not is_known:
            local(grad.data).mul_(part(factor, parameter))


def _detached(mask: Tensor, original: Tensor, memo: dict[int, Any]) -> Tensor:
    return torch.where(mask, original.detach(), 0)


def zero_where(mask: Tensor, tensor: Tensor) -> None:
    """Set a parameter or gradient, whole or sharded, to zero wherever its whole mask is False, in place."""
    own = local(tensor.data)
    own.masked_fill_(~part(mask, tensor).to(own.device, torch.bool), 0)
