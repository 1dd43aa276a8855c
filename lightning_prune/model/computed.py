"""Weights that are computed from other parameters: parametrizations, and torch's weight and spectral norm as hooks."""

import re

import torch
from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

_PARAMETRIZED = re.compile(r"(^|\.)parametrizations\.(\w+)\.original\d*$")


def sources(module: nn.Module, name: str = "weight") -> tuple[str, ...]:
    """Return the parameters that a tensor of this module is computed from, by their names below it.

    Args:
        module: any module.
        name: of the tensor.

    Returns:
        ``("parametrizations.weight.original0", "parametrizations.weight.original1")``, ``("weight_g", "weight_v")``,
        ``("weight_orig",)``; () for a parameter, and for what is computed in a way that is not known.

    Example:
        >>> sources(torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
        ('parametrizations.weight.original0', 'parametrizations.weight.original1')
    """
    lists = module._modules.get("parametrizations")
    if isinstance(lists, nn.ModuleDict) and name in lists:
        return tuple(f"parametrizations.{name}.{own}" for own, _ in lists[name].named_parameters(recurse=False))
    suffixes = {WeightNorm: ("_g", "_v"), SpectralNorm: ("_orig",)}
    kinds = [type(hook) for hook in _hooks(module) if hook.name == name]
    return tuple(f"{name}{suffix}" for kind in kinds for suffix in suffixes[kind])


def _hooks(module: nn.Module) -> list[WeightNorm | SpectralNorm]:
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm | SpectralNorm)]


def shown_as(name: str) -> str:
    """Return the name of the tensor that a parametrization makes of this parameter, else the name itself.

    Example:
        >>> shown_as("encoder.0.parametrizations.weight.original1")
        'encoder.0.weight'
    """
    return _PARAMETRIZED.sub(r"\1\2", name)


@torch.no_grad()
def recompute(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return what torch's older norms, which are hooks, would put before the next forward pass, by attribute name."""
    return {
        hook.name: (
            hook.compute_weight(module)
            if isinstance(hook, WeightNorm)
            else hook.compute_weight(module, do_power_iteration=False)
        )
        for hook in _hooks(module)
    }
