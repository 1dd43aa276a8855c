"""Copies of pruned parts while training goes on: which of them follow their originals, and what they lose with them."""

import logging
import warnings
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_prune.compaction import Compaction
from lightning_prune.compaction.copies import copies_in, with_copies
from lightning_prune.distributed import ranks, shards
from lightning_prune.run.bound import BoundModel
from lightning_prune.run.removal import next_removal
from lightning_prune.selection import ChannelUnits
from lightning_prune.tables import reasons

log = logging.getLogger(__name__)


class Copies:
    """Tells which copies follow: their values have changed since the start, and none of them ever had a gradient.

    One whose values have not changed is a teacher; one that had a gradient is a network of its own.

    Args:
        model: at the start of the training.
        units: of the recipes that remove channels, from one trace of the model; there may be none.
        base: the removals that had shaped the model when the recipes were bound to it.
        step: of the run, at which this looks at the copies.

    Attributes:
        originals: path of each copy that may follow -> path of its original.
    """

    def __init__(self, model: nn.Module, units: Sequence[ChannelUnits], base: Compaction | None, step: int) -> None:
        self._units, self._base = units, base
        self._groups = {group.name: group for one in units for group in one.groups}
        pruned = {name for one in units for name in one.shapes}
        is_sharded = any(shards.is_sharded(parameter) for parameter in model.parameters())
        self.originals = copies_in(model, pruned, units[0].found.shapes) if units and not is_sharded else {}
        self._told: set[str] = set()
        self._start = {copy: (step, _fingerprint(model, copy)) for copy in self.originals}
        self._trained: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen of the copies since the start: plain values."""
        return {
            "copies": dict(self.originals),
            "start": {copy: {"step": step, "digests": digests} for copy, (step, digests) in self._start.items()},
            "trained": sorted(self._trained),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned, or {}; a copy that it does not know has its start now."""
        seen, known = state.get("start", {}), state.get("copies", {})
        self._start |= {
            copy: (seen[copy]["step"], seen[copy]["digests"]) for copy in self.originals.keys() & seen.keys()
        }
        left = [copy for copy in self.originals if copy in known or copy not in seen]
        self.originals = {copy: known.get(copy, self.originals[copy]) for copy in left}
        self._trained |= set(state.get("trained", ()))

    def watch(self, model: nn.Module) -> list[RemovableHandle]:
        """Note which copies get gradients: an optimizer may have cleared them before anybody looks.

        Changes:
            parameters of the copies: they get hooks; return the handles.
        """
        return [
            parameter.register_post_accumulate_grad_hook(partial(self._note_trained, copy))
            for copy in self.originals
            for parameter in model.get_submodule(copy).parameters()
            if parameter.requires_grad
        ]

    def _note_trained(self, copy: str, _: Tensor) -> None:
        self._trained.add(copy)

    def observe(self, model: nn.Module) -> None:
        """Note which copies have gradients now, which no hook tells of those that were assigned or unfrozen later."""
        for copy in self.originals:
            if any(parameter.grad is not None for parameter in model.get_submodule(copy).parameters()):
                self._trained.add(copy)

    def _following(self, model: nn.Module) -> dict[str, str]:
        self.observe(model)
        return {
            copy: original
            for copy, original in self.originals.items()
            if copy not in self._trained and _fingerprint(model, copy) != self._start[copy][1]
        }

    def _of_originals(self, model: nn.Module, stay: Collection[str]) -> Compaction | None:
        bound = BoundModel(model, self._base)
        return next_removal(self._units, bound.masks(), bound.removed, stay) if self._units else None

    def mask(self, model: nn.Module, stay: Collection[str]) -> None:
        """Let what is masked out of the originals be zero in the copies that follow.

        Args:
            model: masked.
            stay: the channel groups that do not leave.

        Changes:
            the copies, in place.
        """
        following = self._following(model)
        plan = self._of_originals(model, stay) if following else None
        if plan is not None:
            with_copies(plan, self._groups, following)[0].mask(model)

    def next_removal(self, model: nn.Module, stay: Collection[str], step: int) -> Compaction | None:
        """Plan to remove what is masked out entirely, from the copies that follow too; None when nothing goes.

        Args:
            model: masked.
            stay: the channel groups that do not leave.
            step: of the run.
        """
        plan = self._of_originals(model, stay)
        if plan is None or not self.originals:
            return plan
        following = self._following(model)
        others = {copy: self.originals[copy] for copy in self.originals.keys() - following.keys() - self._trained}
        touched = {
            copy: [
                name
                for name, removal in plan.removals.items()
                if any(entry.startswith(f"{original}.") for entry in removal.entries)
            ]
            for copy, original in sorted(others.items())
        }
        is_early = {copy: step < self._start[copy][0] + _TOLD_AFTER for copy in touched}
        waiting = {name for copy, names in touched.items() if is_early[copy] for name in names}
        if waiting:
            log.info("step %d: %s stay masked until it is known whether a copy follows", step, ", ".join(waiting))
            plan = plan.only(plan.removals.keys() - waiting)
        for copy, names in touched.items():
            if waiting.isdisjoint(names) and names:
                del self.originals[copy]
                warnings.warn(
                    f"{copy} looks like a copy of {others[copy]} that forward does not reach, and has not changed since"
                    " the start of the fit, so it is taken for a teacher and keeps its shape. If your code updates it"
                    f" from {others[copy]} later, begin pruning after that, or leave out compact_every_event",
                    stacklevel=2,
                )
        both, held = with_copies(plan, self._groups, following)
        if untold := held.keys() - self._told:
            self._told |= untold
            told = reasons({name: held[name] for name in sorted(untold)})
            warnings.warn(f"these channel groups stay masked:\n{told}", stacklevel=2)
        return both if both.removals else None


_TOLD_AFTER = 2
"""The steps after which a moving average has moved: it may be taken before the step that moves its original."""


def _fingerprint(model: nn.Module, path: str) -> list[int]:
    # bytes, not sums: a run may be resumed on another device or with more threads, where sums come out otherwise
    return [ranks.digest(parameter) for parameter in model.get_submodule(path).parameters()]
