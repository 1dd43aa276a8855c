"""Runs whose checkpoints of format 1 lie in tests/checkpoints/version_1, and how they were written.

In format 1 a masked weight stood in the state dict as ``weight_orig`` beside ``weight_mask``. The files were written
by ``python tests/old_checkpoints.py`` at commit b2cbc23, whose package wrote that format; a later one does not.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from guard_cases import Brittle
from packages import Callback, EMAWeightAveraging, ModelCheckpoint
from support import LinearNet, MixedNet, Net, Resumable, loader, trainer

from lightning_prune import Channel, Guard, Linear, OneShot, PruningCallback, Recipe, RewindWeights, Taylor

FOLDER = Path(__file__).parent / "checkpoints" / "version_1"
RISE = Linear(final_sparsity=0.6, begin_step=2, end_step=8, frequency=3)
SPARSE = Recipe(schedule=RISE)
THIN = Recipe(schedule=RISE, granularity=Channel(), criterion=Taylor())


class Case(NamedTuple):
    """A run, the step of the checkpoint in the middle of it, and what stands beside the pruning callback."""

    model: Callable[[], Any]
    recipe: Recipe
    step: int = 6
    options: Callable[[], dict[str, Any]] = dict
    beside: Callable[[], list[Callback]] = list


CASES = {
    "element": Case(lambda: LinearNet(), SPARSE),
    "element_mixin": Case(lambda: MixedNet(width=4), SPARSE),
    "rewind": Case(lambda: LinearNet(), Recipe(schedule=RISE, optimizer_policy=RewindWeights(2))),
    "channel": Case(lambda: Net(width=4), THIN),
    "channel_mixin": Case(lambda: MixedNet(width=4), THIN),
    "every_event": Case(lambda: Net(width=4), THIN, options=lambda: {"compact_every_event": True}),
    "average": Case(lambda: Net(width=4), THIN, beside=lambda: [EMAWeightAveraging(decay=0.8)]),
    "guard": Case(
        lambda: Brittle(width=4),
        Recipe(schedule=OneShot(0.5, 4), granularity=Channel()),
        options=lambda: {"guard": Guard(monitor="val_acc", mode="max", max_drop=0.01, patience=1)},
    ),
}


def fitted(name: str, folder: Path, *others: Callback, **how: Any) -> tuple[Any, PruningCallback]:
    """Run a case to its end; what it ends with does not depend on where it was stopped."""
    case = CASES[name]
    torch.manual_seed(0)
    model, callback = case.model(), PruningCallback(case.recipe, **case.options())
    run = trainer(folder, *case.beside(), callback, *others)
    run.fit(model, Resumable(), loader(1) if name == "guard" else None, **how)
    return model, callback


def write(name: str) -> None:
    """Write the checkpoint in the middle of a case, and what the run ends with."""
    case, folder = CASES[name], FOLDER / f"{name}.tmp"
    saving = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    model, callback = fitted(name, folder, saving)
    (folder / f"step={case.step}.ckpt").rename(FOLDER / f"{name}.ckpt")
    torch.save({"state": dict(model.state_dict()), "sparsity": callback.sparsity}, FOLDER / f"{name}.end.ckpt")


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for each in CASES:
        write(each)
