"""Networks that a fit leaves on its way: one for each need of an ``Each``, compact, as checkpoints hold them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lightning_prune.checkpoints import earlier
from lightning_prune.checkpoints import state as checkpoints
from lightning_prune.compaction.finalization import finalize_or_fold
from lightning_prune.distributed import ranks
from lightning_prune.documents import typed
from lightning_prune.model.plain_copy import plain_copy
from lightning_prune.recipe import Recipe
from lightning_prune.run.run import PruningRun
from lightning_prune.selection.needs import Each, as_needs
from lightning_prune.trainer.packages import LightningModule


class Networks:
    """What the model was when it met each need and had been trained until the next event.

    Args:
        recipes: of the run; the one that makes several networks is among them, if any is.
    """

    def __init__(self, recipes: Sequence[Recipe] = ()) -> None:
        needs = next((recipe.need for recipe in recipes if isinstance(recipe.need, Each)), None)
        self.needs = as_needs(needs)
        self._held: dict[int, Mapping[str, Any]] = {}

    def keep(self, run: PruningRun, model: LightningModule) -> None:
        """Keep the model as it is now, compact, where it has come to a need; what was kept of that before goes.

        Changes:
            nothing of the model or the run.
        """
        pruners = [pruner for pruner in run.pruners if isinstance(pruner.recipe.need, Each)]
        met = [own.need for pruner in pruners for own in pruner.needs if own.share == pruner.asked]
        if not met:
            return
        # hooks that watch the training look at passes with gradients alone
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            copied = plain_copy(model)
            earlier.forget(copied)
            ranks.copy_from_first(copied.buffers())  # what is exact is then the same on all ranks
            finalize_or_fold(copied)
        state = {name: tensor.detach().cpu().clone() for name, tensor in copied.state_dict().items()}
        held = {"state_dict": state, checkpoints.KEY: checkpoints.describe(copied)}
        self._held |= {number: held for number, need in enumerate(self.needs) if need in met}

    def made(self, model: LightningModule) -> tuple[LightningModule | None, ...]:
        """Return the network of each need, in eval mode, shaped and filled anew; None where it was not met."""
        made = dict[int, LightningModule]()
        for number, held in self._held.items():
            made[number] = plain_copy(model)
            earlier.forget(made[number])
            checkpoints.restore(made[number], held)
            finalize_or_fold(made[number])
        return tuple(made[number].eval() if number in made else None for number in range(len(self.needs)))

    def state_dict(self) -> dict[str, Any]:
        """Return what is kept of which needs: plain values and tensors."""
        return {"needs": [repr(need) for need in self.needs], "held": dict(self._held)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` returned, or {}; of other needs nothing is known.

        Raises:
            CheckpointError: it is damaged.
        """
        is_same = state.get("needs") == [repr(need) for need in self.needs]
        self._held = (
            {typed(int, number): typed(dict, held) for number, held in state["held"].items()} if is_same else {}
        )
        for held in self._held.values():
            checkpoints.check_entry(held[checkpoints.KEY])
