"""Whether pruning explains the shapes of a state that says nothing of it."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy

from lightning_prune.compaction import applied_plan, reshape_like
from lightning_prune.model import masks
from lightning_prune.model.example import Example, example_of, tensors_in
from lightning_prune.model.plain_copy import plain_copy

Sizes = Mapping[str, tuple[int, ...]]


def unexplained(model: nn.Module, state_dict: Mapping[str, Any]) -> str | None:
    """Return why the shapes of a state are not those of the pruned model; None: pruning explains them, or none differs.

    Pruning makes tensors narrower, several layers at a time and each channel group in all of them, and what a model
    gives keeps its shape. Where the model has an example a copy of it is run; where it has none, layers and
    ``nn.Sequential`` chains are compared by their lengths.
    """
    plan, first = applied_plan(model), masks.first_names(model)
    held = masks.dense_names(model)
    before = {
        name: tuple(plan.shapes.get(first[name], tensor.shape) if plan else tensor.shape)
        for name, tensor in held.items()
        if not is_lazy(tensor)
    }
    stated = {name: tuple(t.shape) for name, t in state_dict.items() if name in before and isinstance(t, Tensor)}
    after = {**before, **stated}
    narrowed = [name for name, shape in stated.items() if shape != before[name] and before[name]]
    for name in narrowed:
        if len(after[name]) != len(before[name]) or any(
            not 0 < now <= was for now, was in zip(after[name], before[name], strict=True)
        ):
            return _said(name, before, after, "and pruning makes nothing wider")
    if not narrowed:
        return None
    layers = {name.rpartition(".")[0] for name in narrowed}
    others = {name.rpartition(".")[0] for name in before} - layers
    if len(layers) == 1 and others:
        return _said(narrowed[0], before, after, "and no other layer is narrower, as it is where channels have left")
    reason = next(_broken_layers(model, before, after), None) or next(_broken_chains(model, before, after), None)
    example = example_of(model)
    return reason if reason is not None or example is None else _broken_pass(model, state_dict, example)


def _said(name: str, before: Sizes, after: Sizes, why: str) -> str:
    return f"{name} has shape {after[name]} in the state and {before[name]} in the model, {why}"


def _broken_layers(model: nn.Module, before: Sizes, after: Sizes) -> Iterator[str]:
    """Yield what is wrong with torch's own layers: a bias of another length than its weight, groups that do not fit."""
    for path, layer in model.named_modules():
        if not _is_torchs(layer) or isinstance(layer, _ConvTransposeNd):  # out is its second axis
            continue
        own = [f"{path}.{name}" if path else name for name in (*layer._parameters, *layer._buffers)]
        own = [name for name in own if before.get(name)]
        for name in own[1:]:
            if before[name][0] == before[own[0]][0] and after[name][0] != after[own[0]][0]:
                yield _said(name, before, after, f"while {own[0]} has {after[own[0]]} there")
        if isinstance(layer, _ConvNd) and own and after[own[0]][0] % layer.groups:
            yield _said(own[0], before, after, f"and no shape tells other groups than its {layer.groups}")


def _broken_chains(model: nn.Module, before: Sizes, after: Sizes) -> Iterator[str]:
    """Yield layers in an ``nn.Sequential`` that read another share of channels than the layer before them gives."""
    for path, chain in model.named_modules():
        giver, is_last_axis, was, now = "", False, 0, 0  # of the channels that are given on
        for name, layer in _links(chain, path):
            weight = f"{name}.weight"
            match layer:
                case nn.Linear() | nn.Conv1d() | nn.Conv2d() | nn.Conv3d() if weight in before:
                    of_groups = 1 if isinstance(layer, nn.Linear) else layer.groups
                    reads, left = before[weight][1] * of_groups, after[weight][1] * of_groups
                    # in proportion: a flattening, a GLU and a pixel shuffle change the number
                    is_fed = giver and is_last_axis is isinstance(layer, nn.Linear)
                    if is_fed and (reads % was == 0 or was % reads == 0) and left * was != reads * now:
                        yield _said(weight, before, after, f"while {giver} has {after[giver]} there")
                    giver, is_last_axis = weight, isinstance(layer, nn.Linear)
                    was, now = before[weight][0], after[weight][0]
                case _NormBase() if weight in before:
                    if giver and before[weight][0] == was and after[weight][0] != now:
                        yield _said(weight, before, after, f"while {giver} has {after[giver]} there")
                case nn.Flatten():
                    is_last_axis = True
                case _ if (
                    isinstance(layer, nn.Unflatten) or any(True for _ in layer.parameters()) or not _is_torchs(layer)
                ):
                    giver = ""
                case _:
                    pass


def _is_torchs(layer: nn.Module) -> bool:
    return type(layer).__module__.startswith("torch.nn.modules.")


def _links(chain: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield paths and layers of an ``nn.Sequential`` in the order in which they run, those of chains inside too."""
    if isinstance(chain, nn.Sequential) and type(chain).forward is nn.Sequential.forward:
        for name, layer in chain.named_children():
            inside = f"{path}.{name}" if path else name
            links = list(_links(layer, inside))
            yield from links or [(inside, layer)]


def _broken_pass(model: nn.Module, state_dict: Mapping[str, Any], example: Example) -> str | None:
    """Return what a forward pass in the state's shape says; None: all is well, or the model's own fails too."""
    try:
        copies = plain_copy(model).eval(), plain_copy(model).eval()
        own = _shapes_given(copies[0], example)
    except Exception:  # a model that cannot be copied or that its example does not fit is none to compare with
        return None
    reshape_like(copies[1], state_dict)
    kind = type(model).__name__
    try:
        given = _shapes_given(copies[1], example)
    except Exception as error:
        return f"{kind} fails in the shape of the state, so it is none that channels have left: {error}"
    return None if given == own else f"{kind} would give {given} in the shape of the state, in place of {own}"


def _shapes_given(model: nn.Module, example: Example) -> list[tuple[int, ...]]:
    with torch.no_grad(), torch.random.fork_rng():
        return [tuple(tensor.shape) for tensor in tensors_in(example.on_device_of(model)(model))]
