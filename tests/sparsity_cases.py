"""Fits whose score the test sets, and a SparsityCheckpoint that keeps the best of them."""

from pathlib import Path
from typing import Any

from packages import Callback, L
from support import LinearNet, MixedNet, Resumable, loader, trainer
from torch import Tensor

from lightning_prune import Linear, PruningCallback, Recipe
from lightning_prune.trainer.sparsity_checkpoint import SparsityCheckpoint

# events at 5, 10, 15 and 20, the ends of the first four epochs of five batches
STEPS = Linear(final_sparsity=0.6, begin_step=0, end_step=20, frequency=5)
RECIPE = Recipe(schedule=STEPS)
QUALITY = [0.9, 0.8, 0.85, 0.5, 0.7, 0.6]


class Scored(LinearNet):
    """Logs a score that the test sets, one value per validation."""

    def __init__(self, scores: list[float], key: str = "val/score") -> None:
        super().__init__()
        self.scores, self.key = scores, key

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log(self.key, self.scores[min(self.current_epoch, len(self.scores) - 1)])


class Thinned(MixedNet):
    """The same with channels to remove."""

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/score", QUALITY[self.current_epoch])


def fit(
    folder: Path, model: L.LightningModule, *callbacks: Callback, recipe: Any = RECIPE, **options: Any
) -> L.Trainer:
    run = trainer(folder, PruningCallback(recipe), *callbacks, **({"max_epochs": 6} | options))
    run.fit(model, Resumable(), loader(1))
    return run


def names(folder: Path) -> list[str]:
    """The files that the checkpoint has kept; finalized models, the last and the best one, lie beside them."""
    return sorted(path.name for path in folder.iterdir() if not path.stem.endswith("pruned"))


def keeping(folder: Path, **options: Any) -> SparsityCheckpoint:
    given: dict[str, Any] = {"monitor": "val/score", "mode": "max"}
    return SparsityCheckpoint(str(folder), **(given | options))


class Brisk(Thinned):
    """The same without the mixin's example: its first forward pass gives one."""

    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = None
