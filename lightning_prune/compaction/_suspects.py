"""Which channel groups a failed trial names: those that reach the module whose code holds a size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from lightning_prune.compaction._entries import Entries
from lightning_prune.compaction._equivalence import Mismatch

Touched = frozenset[tuple[str, int]]
"""What a group has in a module: names of tensors below it, with the axis."""


@dataclass(frozen=True)
class Suspects:
    """Channel groups that a failed trial speaks against.

    Args:
        named: those that reach the place where it failed.
        alike: those that reach other modules of the same class in the same way, and so are expected to fail there.
    """

    named: list[str]
    alike: list[str]


def suspects(model: nn.Module, mismatch: Mismatch, groups: Mapping[str, Entries]) -> Suspects:
    """Return the channel groups behind a mismatch; none where no module that it names has a part in any.

    Where a module raises or differs that reads a group itself, it is this group. Where the code of a module with
    others inside raises, it is what the last of these to finish has made: the code does something to it.

    Args:
        model: with the sizes before.
        mismatch: of a trial in which all of these groups were cut.
        groups: what each loses.
    """
    place = model.get_submodule(mismatch.path)
    is_container = any(True for _ in place.children())
    named: list[str] = []
    if not is_container or not mismatch.has_raised:
        named = [name for name, entries in groups.items() if any(axis for _, axis in _inside(entries, mismatch.path))]
    for path in () if named else reversed(mismatch.finished):
        # of a layer its own tensors; what lies deeper has finished before, and is nearer to the cause or was well
        own = {
            name: [part for part in _inside(entries, path) if "." not in part[0]] for name, entries in groups.items()
        }
        if named := [name for name, parts in own.items() if any(axis == 0 for _, axis in parts)]:
            break
    # the code at fault is that of the module which raised, or of the one that calls it
    owner = mismatch.path
    while owner and (
        isinstance(at := model.get_submodule(owner), nn.Sequential | nn.ModuleList) or not any(at.children())
    ):
        owner = owner.rpartition(".")[0]
    kinds = {_inside(groups[name], owner) for name in named} if owner else set()
    others = [path for path, module in model.named_modules() if type(module) is type(model.get_submodule(owner))]
    alike = [
        name
        for name, entries in groups.items()
        if name not in named and any(_inside(entries, path) in kinds for path in others if path != owner)
    ]
    return Suspects(named, alike if owner else [])


def _inside(entries: Entries, path: str) -> Touched:
    prefix = f"{path}." if path else ""
    return frozenset(
        (name.removeprefix(prefix), axis) for name in entries if name.startswith(prefix) for axis in entries[name]
    )
