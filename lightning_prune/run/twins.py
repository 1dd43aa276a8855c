"""Frozen copies of pruned parts that forward does not reach, such as the target network of BYOL."""

from collections.abc import Iterable

from torch import nn

from lightning_prune.model import masks
from lightning_prune.selection import ChannelUnits


def twins(model: nn.Module, units: Iterable[ChannelUnits]) -> dict[str, str]:
    """Return the outermost frozen, unreached copies: path -> path of the part that it is a copy of.

    A copy is of the same class, with the same names and shapes, needs no gradient and is in no channel group.

    Args:
        model: dense or masked, before its first removal.
        units: what is pruned of it.
    """
    several = list(units)
    pruned = {name for one in several for name in one.shapes}
    reached = {member.parameter for one in several for group in one.found for member in group.members}
    paths: dict[tuple[object, ...], list[str]] = {}
    copies: dict[str, str] = {}
    for path, module in model.named_modules():
        named = {name: tuple(tensor.shape) for name, tensor in masks.dense_parameters(module).items()}
        if path and named:
            paths.setdefault((type(module), *named.items()), []).append(path)
    for alike in paths.values():
        originals = [path for path in alike if any(name.startswith(f"{path}.") for name in pruned)]
        for path in alike if originals else ():
            is_inside = any(path.startswith(f"{outer}.") for outer in copies)
            is_frozen = not any(parameter.requires_grad for parameter in model.get_submodule(path).parameters())
            if is_frozen and not is_inside and not any(name.startswith(f"{path}.") for name in reached):
                copies[path] = originals[0]
    return copies
