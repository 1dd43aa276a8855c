"""The plan of a removal: which channels go, as a plain value that JSON holds."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_prune.compaction import resize
from lightning_prune.compaction._entries import (
    Entries,
    checked,
    complement,
    entries_without,
    fit,
    ints,
    masked_out,
    merge,
    named,
    positions,
    translate,
    whole_number,
)
from lightning_prune.compaction._removal import Removal
from lightning_prune.documents import Form
from lightning_prune.errors import CompactionError
from lightning_prune.graph import ChannelGroups
from lightning_prune.model.masks import dense_names, dense_parameters, read, zero_pruned
from lightning_prune.model.summary import PLAN

FORM = Form("lightning_prune.compaction", 2, "plan")


@dataclass(frozen=True)
class Compaction:
    """Which channels of a model are removed; names and numbers only, so that it outlives the model.

    Make it with :meth:`from_keep` or :meth:`from_masks`; apply it with :func:`lightning_prune.compact`.

    Args:
        shapes: dense name -> shape before, of every parameter and buffer in the model's graph.
        removals: channel group -> what it loses. Groups that lose nothing do not appear.
        attributes: path of a module's attribute that no shape of its own tells (``conv.groups``) -> (dense name,
            axis) to whose length it is proportional; a float, the eps of an RMS norm, goes with one over the length.

    Raises:
        ValueError: an entry outside its tensor, or an axis that would keep nothing.
    """

    shapes: Mapping[str, tuple[int, ...]]
    removals: Mapping[str, Removal]
    attributes: Mapping[str, tuple[str, int]]

    def __post_init__(self) -> None:
        for group, removal in self.removals.items():
            if wrong := fit(removal.entries, self.shapes):
                raise ValueError(f"channel group {group!r} removes entries from {wrong}")
        for name, axes in self.removed.items():  # what is kept is as long as a shape says, which may be anything yet
            for axis, gone in axes.items():
                if len(gone) == self.shapes[name][axis]:
                    raise ValueError(f"the plan keeps nothing of {name} along axis {axis}; keep at least one index")

    @cached_property
    def removed(self) -> Entries:
        """Dense name -> axis -> removed indices, of all channel groups together."""
        return merge(removal.entries for removal in self.removals.values())

    @property
    def masked(self) -> Entries:
        """The removed entries that are zero before they go: all but those of :attr:`Removal.unmasked`."""
        return merge(removal.masked for removal in self.removals.values())

    @cached_property
    def keep(self) -> Entries:
        """Dense name -> axis -> kept indices, of every axis that shrinks; empty for a plan that removes nothing."""
        return complement(self.removed, self.shapes)

    @property
    def factors(self) -> dict[str, tuple[tuple[float, float], ...]]:
        """Dense name -> each (factor, offset) by which a parameter is multiplied: (p + offset) * factor - offset."""
        found: dict[str, tuple[tuple[float, float], ...]] = {}
        for removal in self.removals.values():
            left = (removal.size - removal.removed) / removal.size
            for name, scale in removal.scales.items():
                found[name] = (*found.get(name, ()), (left**scale.power, scale.offset))
        return found

    @property
    def shapes_after(self) -> dict[str, tuple[int, ...]]:
        """Dense name -> shape in the compact model."""
        return {
            name: tuple(size - len(self.removed.get(name, {}).get(axis, ())) for axis, size in enumerate(shape))
            for name, shape in self.shapes.items()
        }

    @classmethod
    def from_keep(cls, groups: ChannelGroups, keep: Mapping[str, Collection[int] | Tensor]) -> "Compaction":
        """Plan to keep the given channels of the named groups, and all channels of the others.

        Args:
            groups: of the model.
            keep: channel group's name -> indices of the channels to keep, in any order.

        Raises:
            ValueError: no such group, one that is not prunable, an index outside it, or none at all.
        """
        if not isinstance(keep, Mapping):
            raise TypeError(f"keep must map channel groups to the indices of channels to keep, got {keep!r:.80}")
        removals = {}
        for name, indices in keep.items():
            group = named(groups, name)
            kept = checked(group, indices)
            if len(kept) < group.size:
                entries = entries_without(group, kept)
                unmasked: dict[str, tuple[int, ...]] = {}
                for member in group.members:
                    if member.role == "unmasked":
                        unmasked[member.parameter] = (*unmasked.get(member.parameter, ()), member.axis)
                gone = group.size - len(kept)
                removals[name] = Removal(group.size, gone, entries, bool(group.inexact), unmasked, group.scales)
        gone = merge(removal.entries for removal in removals.values())
        whole = {
            weight: weight.rpartition(".")[0] for weight in sorted(groups.conv_groups) if 0 in gone.get(weight, {})
        }
        attributes = {(f"{path}.groups" if path else "groups"): (weight, 0) for weight, path in whole.items()}
        attributes |= {
            path: (name, axis) for path, (name, axis) in groups.attributes.items() if axis in gone.get(name, {})
        }
        return cls({name: ints(shape) for name, shape in groups.shapes.items()}, removals, attributes)

    @classmethod
    def from_masks(cls, model: nn.Module, groups: ChannelGroups) -> "Compaction":
        """Plan to remove each channel of which every parameter slice is masked out; buffers carry no mask.

        Of a group that is masked out entirely the first channel stays, at zero.

        Args:
            model: the masked model.
            groups: its channel groups.
        """
        masks, parameters = read(model), dense_parameters(model)
        keep = {}
        for group in groups:
            if group.prunable:
                dead = masked_out(group, masks, parameters)
                dead[0] &= not dead.all()
                keep[group.name] = np.flatnonzero(~dead).tolist()
        return cls.from_keep(groups, keep)

    def only(self, names: Collection[str]) -> "Compaction":
        """Return the part of the plan that concerns these channel groups."""
        if self.removals.keys() <= set(names):
            return self
        return self._of(self.shapes, {name: removal for name, removal in self.removals.items() if name in names})

    def _of(self, shapes: Mapping[str, tuple[int, ...]], removals: Mapping[str, Removal]) -> "Compaction":
        """Return a plan with these removals and those of the attributes that follow them."""
        gone = merge(removal.entries for removal in removals.values())
        follow = {path: (name, axis) for path, (name, axis) in self.attributes.items() if axis in gone.get(name, {})}
        return Compaction(shapes, removals, follow)

    def mask(self, model: nn.Module) -> None:
        """Set what the plan would remove to zero, to look before cutting.

        Raises:
            CompactionError: the plan is for another model.

        Changes:
            the parameters, in place. Buffers stay: where a channel goes, what reads it is zeroed too.
        """
        self.check_fits(model)
        parameters = dense_parameters(model)
        with torch.no_grad():
            masked = self.masked
            for name in masked.keys() & parameters.keys():
                for axis, gone in masked[name].items():
                    parameters[name].index_fill_(axis, torch.tensor(gone, device=parameters[name].device), 0)
        zero_pruned(model)

    def rebuild(self, model: nn.Module) -> nn.Module:
        """Bring a fresh model into the pruned shape, in place, ready for ``load_state_dict``; returns it.

        Raises:
            CompactionError: the plan is for another model; the model is as it was.

        Changes:
            the model.
        """
        self.check_fits(model)
        with resize.all_or_nothing() as undo:
            resize.cut(model, self.keep, self.attributes, undo, self.factors)
            remember(model, self, undo)
        return model

    def check_fits(self, model: nn.Module) -> None:
        """Compare the plan's shapes with the model's.

        Raises:
            CompactionError: names the first difference.
        """
        named, kind = dense_names(model), type(model).__name__
        if self.removed and all(
            name in named and tuple(named[name].shape) == s for name, s in self.shapes_after.items()
        ):
            raise CompactionError(f"{kind} has the shape that this plan leads to: it was applied already")
        remake = (
            "make the plan from channel_groups(model, example_inputs) of this very model, or build the model with the"
            " arguments that it had then"
        )
        for name, shape in self.shapes.items():
            if name not in named:
                raise CompactionError(f"the plan is for another model: {kind} has no {name}; {remake}")
            if tuple(named[name].shape) != shape:
                raise CompactionError(
                    f"the plan is for another model: {name} has shape {tuple(named[name].shape)} in {kind} and {shape}"
                    f" in the plan; {remake}"
                )

    def then(self, other: "Compaction") -> "Compaction":
        """Compose: the one plan that does what this one and then ``other``, made for its result, do.

        Raises:
            CompactionError: ``other`` does not begin where this plan ends.
        """
        after = self.shapes_after
        for name, shape in other.shapes.items():
            if after.get(name, shape) != shape:
                raise CompactionError(
                    f"the plans do not follow each other: {name} is of shape {after[name]} after the first one and of"
                    f" shape {shape} before the second; make the second from the compact model"
                )
        removals = dict(self.removals)
        for name, removal in other.removals.items():
            moved = replace(removal, entries=translate(removal.entries, self.keep))
            earlier = removals.get(name)
            is_rest = earlier is not None and earlier.size - earlier.removed == removal.size
            if earlier is not None and is_rest and earlier.scales == removal.scales:
                both = merge([earlier.entries, moved.entries])
                is_inexact = earlier.is_inexact or removal.is_inexact
                unmasked = {**earlier.unmasked, **removal.unmasked}
                gone = earlier.removed + removal.removed
                removals[name] = Removal(earlier.size, gone, both, is_inexact, unmasked, removal.scales)
            else:
                # A group of the same name that is not the earlier one's rest: the model's code names modules anew.
                unused, number = name, 2
                while unused in removals:
                    unused, number = f"{name}#{number}", number + 1
                removals[unused] = moved
        return Compaction({**other.shapes, **self.shapes}, removals, {**self.attributes, **other.attributes})

    def beside(self, other: "Compaction") -> "Compaction":
        """Return the plan that does both, made for the same model with other channel groups."""
        return Compaction(self.shapes, {**self.removals, **other.removals}, {**self.attributes, **other.attributes})

    def beyond(self, earlier: "Compaction") -> "Compaction":
        """Return what this plan removes besides ``earlier``, a part of it; ``earlier.then(result)`` does the same."""
        after, removals = earlier.shapes_after, {}
        for name, removal in self.removals.items():
            entries = positions(removal.entries, earlier.keep)
            if entries:
                done = earlier.removals[name].removed if name in earlier.removals else 0
                removals[name] = replace(
                    removal, size=removal.size - done, removed=removal.removed - done, entries=entries
                )
        shapes = {name: after.get(name, shape) for name, shape in self.shapes.items()}
        return self._of(shapes, removals)

    def under(self, path: str) -> "Compaction":
        """Return the same plan for a model that holds this one as its submodule ``path``."""
        shapes = {f"{path}.{name}": shape for name, shape in self.shapes.items()}
        removals = {f"{path}.{name}": removal.under(path) for name, removal in self.removals.items()}
        attributes = {f"{path}.{at}": (f"{path}.{name}", axis) for at, (name, axis) in self.attributes.items()}
        return Compaction(shapes, removals, attributes)

    def to_json(self) -> str:
        """Return the plan as JSON text."""
        removals = {name: removal.as_document() for name, removal in self.removals.items()}
        return FORM.write({"shapes": self.shapes, "removals": removals, "attributes": self.attributes})

    @classmethod
    def from_json(cls, text: str) -> "Compaction":
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: the text is no such JSON, or of a newer version.
        """
        document = FORM.read(text)
        with FORM.parsing():
            shapes = {name: tuple(map(whole_number, shape)) for name, shape in document["shapes"].items()}
            removals = {name: Removal.from_document(held) for name, held in document["removals"].items()}
            attributes = {
                path: (str(name), whole_number(axis)) for path, (name, axis) in document["attributes"].items()
            }
            return cls(shapes, removals, attributes)


def applied_plan(model: nn.Module) -> Compaction | None:
    """Return the plan that brought this model into its shape; None for a model that lost nothing.

    A submodule that was compacted by itself has a plan of its own, later than the model's: it counts too.
    """
    found = None
    for path, module in model.named_modules():
        plan = module.__dict__.get(PLAN)
        if plan is not None:
            own = plan.under(path) if path else plan
            found = own if found is None else found.then(own)
    return found


def remember(model: nn.Module, plan: Compaction, undo: resize.Undo) -> None:
    """Keep the plan, composed with those applied before, on the model.

    Changes:
        the plain attribute ``_compaction`` of the model and its submodules; the undo log.
    """
    earlier = applied_plan(model)
    set_plan(model, plan if earlier is None else earlier.then(plan), undo)


def set_plan(model: nn.Module, plan: Compaction | None, undo: resize.Undo | None = None) -> None:
    """Say which plan brought this model into its shape; None: it has the shape that it was built with.

    Changes:
        the plain attribute ``_compaction`` of the model and its submodules; a hook lets its state dicts say it too; the
        undo log, where there is one.
    """
    held = {module: module.__dict__[PLAN] for module in model.modules() if PLAN in module.__dict__}
    if undo is not None:
        undo.append(partial(_put_back, model, held))
    for module in model.modules():
        module.__dict__.pop(PLAN, None)
    if plan is not None:
        model.__dict__[PLAN] = plan
        if _tell not in model._state_dict_hooks.values():
            model.register_state_dict_post_hook(_tell)


def plan_told_by(state_dict: Mapping[str, Any]) -> str | None:
    """Return the plan, as JSON, of the compact model that a state dict is of; None where it does not say.

    It stands beside the versions of the modules, which are no items: torch saves them with the dict, and whoever makes
    a dict of their own of the items leaves them behind.
    """
    return getattr(state_dict, "_metadata", {}).get("", {}).get(PLAN)


def _tell(model: nn.Module, state_dict: Mapping[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    if not prefix and (plan := applied_plan(model)) is not None:
        metadata[PLAN] = plan.to_json()


def _put_back(model: nn.Module, held: Mapping[nn.Module, Compaction]) -> None:
    set_plan(model, None)
    for module, plan in held.items():
        module.__dict__[PLAN] = plan
