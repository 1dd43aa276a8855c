"""Copies of pruned parts that forward does not reach, such as the target network of BYOL, and what they lose.

A graph shows nothing of them. That a copy follows its original, by a moving average or by taking over its weights, is
told by its values: what the masks have taken out of the original is zero in it too. A teacher keeps its values, and so
it keeps its shape.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn

from lightning_prune.compaction._removal import Removal
from lightning_prune.compaction.plan import Compaction, applied_plan
from lightning_prune.graph import ChannelGroup, ChannelGroups
from lightning_prune.model import masks

_T = TypeVar("_T")


def copies_in(model: nn.Module, pruned: Collection[str], reached: Collection[str]) -> dict[str, str]:
    """Return path of copy -> path of original, of the outermost that forward does not reach: same class and shapes.

    Of several originals alike it is the one whose values are nearest.

    Args:
        model: dense, masked or compact.
        pruned: dense names of what is pruned of it.
        reached: dense names of the parameters and buffers in its graph.
    """
    named, first = masks.dense_names(model), masks.first_names(model)
    unreached = {name for name in named if first.get(name, name) not in reached}
    if not any(named[name].numel() > 1 for name in unreached):  # but for the counters of batch norms
        return {}
    alike: dict[tuple[object, ...], list[str]] = {}
    inside: dict[str, list[str]] = {}
    for path, module in model.named_modules():
        inside[path] = [name for name in named if _is_under(path, name)]
        shapes = ((name.removeprefix(path), tuple(named[name].shape)) for name in inside[path])
        alike.setdefault((type(module), *shapes), []).append(path)
    copies: dict[str, str] = {}
    for paths in alike.values():
        originals = [path for path in paths if not set(pruned).isdisjoint(inside[path])]
        for path in paths if originals else ():
            is_part = any(_is_under(outer, path) for outer in copies)
            if not is_part and unreached.issuperset(inside[path]):
                own = list(model.get_submodule(path).parameters())
                distances = {}
                for original in originals:
                    pairs = zip(own, model.get_submodule(original).parameters(), strict=True)
                    distances[original] = sum(float((a - b).detach().double().square().sum()) for a, b in pairs)
                copies[path] = min(originals, key=distances.__getitem__)
    return copies


def _is_under(path: str, name: str) -> bool:
    """Say whether a name lies inside the module of a path; nothing does in the whole model's, which is no copy."""
    return bool(path) and name.startswith(f"{path}.")


def with_copies(
    plan: Compaction, groups: Mapping[str, ChannelGroup] | ChannelGroups, copies: Mapping[str, str]
) -> tuple[Compaction, dict[str, str]]:
    """Let copies that follow their originals lose what those lose.

    A channel that crosses the border of what has copies goes only where a copy is seen to read it. Elsewhere it is
    unknown what the copy computes from or for: the user's code may compare its output with another one.

    Args:
        plan: for the originals.
        groups: those that the plan names.
        copies: path of each copy that follows -> path of its original.

    Returns:
        The plan for both, and the channel groups that cannot go, each with the reason.
    """
    removals, stay = dict[str, Removal](), dict[str, str]()
    for name, removal in plan.removals.items():
        own = {copy: at for copy, at in copies.items() if any(_is_under(at, entry) for entry in removal.entries)}
        sides = {
            (any(_is_under(at, member.parameter) for at in own.values()), member.role)
            for member in (groups[name].members if own else ())
        }
        if (False, "output") in sides or ((False, "input") in sides and (True, "input") not in sides):
            stay[name] = (
                f"{', '.join(own)} follows {', '.join(own.values())}, and of what stands at the other end of these"
                " channels there is no copy"
            )
        else:
            entries = {**removal.entries, **_of_copies(removal.entries, own)}
            unmasked = {**removal.unmasked, **_of_copies(removal.unmasked, own)}
            scales = {**removal.scales, **_of_copies(removal.scales, own)}
            removals[name] = replace(removal, entries=entries, unmasked=unmasked, scales=scales)
    attributes = {**plan.attributes}
    for copy, original in copies.items():
        for path, (name, axis) in plan.attributes.items():
            if _is_under(original, path):
                attributes[copy + path.removeprefix(original)] = (copy + name.removeprefix(original), axis)
    shapes = {**plan.shapes, **_of_copies(plan.shapes, copies)}
    return Compaction(shapes, {**plan.removals, **removals}, attributes).only(removals), stay


def _of_copies(named: Mapping[str, _T], copies: Mapping[str, str]) -> dict[str, _T]:
    """Return what names of originals say, by the names of their copies."""
    return {
        copy + name.removeprefix(original): value
        for name, value in named.items()
        for copy, original in copies.items()
        if _is_under(original, name)
    }


def following_copies(model: nn.Module, plan: Compaction, groups: ChannelGroups) -> dict[str, str]:
    """Return the copies in which all that they would lose by a plan is zero, and those that have lost something before.

    Args:
        model: of which they are parts.
        plan: for the originals.
        groups: its channel groups.
    """
    copies, parameters = copies_in(model, plan.removed, plan.shapes), masks.dense_parameters(model)
    goes, applied = with_copies(plan, groups, copies)[0].masked, applied_plan(model)
    done = {} if applied is None else applied.removed
    zero = dict[str, str]()
    for copy, original in copies.items():
        lost = [
            parameters[name].detach().index_select(axis, torch.tensor(gone, device=parameters[name].device))
            for name in goes.keys() & parameters.keys()
            if _is_under(copy, name)
            for axis, gone in goes[name].items()
        ]
        has_lost = any(_is_under(copy, name) for name in done)
        if (lost or has_lost) and not any(bool(entries.any()) for entries in lost):
            zero[copy] = original
    return zero
