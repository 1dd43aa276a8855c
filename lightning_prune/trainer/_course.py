"""The pruning of one model over all of its fits."""

from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from lightning_prune.compaction import Compaction
from lightning_prune.distillation import Distillation
from lightning_prune.guard import Guard
from lightning_prune.recipe import Recipe
from lightning_prune.run.lines import Size
from lightning_prune.run.record import Record
from lightning_prune.run.run import PruningRun
from lightning_prune.trainer._networks import Networks
from lightning_prune.trainer.guard import Guarding
from lightning_prune.trainer.packages import LightningModule, Trainer
from lightning_prune.trainer.teaching import Distilling


class Settings(Protocol):
    """What a fit is told: the arguments of a :class:`PruningCallback`, which is one."""

    recipes: tuple[Recipe, ...]
    guard: Guard | None
    distillation: Distillation | None
    finalize: bool
    compact_every_event: bool
    resume_with_other_recipe: bool
    verbose: bool


@dataclass
class Course:
    """The pruning of one model over all of its fits: the next one goes on with what this one leaves here.

    Args:
        model: that is pruned.
        record: what came of it so far.
        run: sets masks; None until it is bound to the model.
        guarding: judges the events of the run; None: nothing does.
        distilling: teaches the model; None: nobody does.
        dense: how large it was before the first event; None until a fit has begun to train it.
        stages: what had been removed from it before each removal; None: nothing had. States of these stages still load.
        networks: what it was when it met each need, where each has a network.
    """

    model: LightningModule
    record: Record = field(default_factory=Record)
    run: PruningRun | None = None
    guarding: Guarding | None = None
    distilling: Distilling | None = None
    dense: Size | None = None
    stages: list[Compaction | None] = field(default_factory=list)
    networks: Networks = field(default_factory=Networks)

    @property
    def active(self) -> PruningRun | None:
        """The run that still prunes."""
        return None if self.record.is_done else self.run

    def state_dict(self, trainer: Trainer, settings: Settings) -> dict[str, Any]:
        """Return what a resume needs beside the weights: plain values and tensors."""
        entry: dict[str, Any] = {"distillation": None if self.distilling is None else self.distilling.state_dict()}
        if self.run is not None:
            recipes = [recipe.describe() for recipe in settings.recipes]
            entry["run"] = {"is_done": self.record.is_done, "recipes": recipes}
            entry["run"] |= {} if self.record.is_done else self.run.state_dict()
            entry["run"]["events"] = [asdict(event) for event in self.record.events]
            entry["run"]["dense"] = None if self.dense is None else asdict(self.dense)
            entry["run"]["networks"] = self.networks.state_dict()
            entry["run"]["guard"] = None if self.guarding is None else self.guarding.state_dict(trainer)
        return entry
