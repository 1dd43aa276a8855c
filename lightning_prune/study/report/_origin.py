"""How a fit was made: recipe, guard, data, date, versions and command, as text."""

import platform
import re
import shlex
import sys
from collections.abc import Sized
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from lightning_prune._version import __version__
from lightning_prune.recipe import Recipe
from lightning_prune.schedules import OneShot
from lightning_prune.trainer.callback import pruning_callback_of
from lightning_prune.trainer.packages import Trainer, kinds

_SECRET = re.compile(r"(?i)([\w.-]*(?:token|secret|password|api.?key)[\w.-]*)(=.*)?", re.DOTALL)
"""An option whose value no page shows, with the value behind it or without."""
_LONGEST = 400
"""Letters of a command; one with a whole program in it says no more to who reads it."""


def origin(trainer: Trainer) -> dict[str, str]:
    """Return how the fit of a Trainer is made, by what it is; called while the fit runs or after it."""
    callback = pruning_callback_of(trainer)
    recipes = () if callback is None else callback.recipes
    made = {}
    for number, recipe in enumerate(recipes, 1):
        usual, chosen = Recipe(schedule=OneShot(0.5)).describe(), recipe.describe()
        # what stands at its default says nothing
        said = [f"{name}={text}" for name, text in chosen.items() if name == "schedule" or usual[name] != text]
        made["recipe" if len(recipes) == 1 else f"recipe {number}"] = "\n".join(said)
    if callback is not None and callback.guard is not None:
        made["guard"] = repr(callback.guard)
    for name, loaders in (("training data", trainer.train_dataloader), ("validation data", trainer.val_dataloaders)):
        made |= {name: "\n".join(map(_held, tree_leaves(loaders)))} if loaders is not None else {}
    package = next(one.__module__.partition(".")[0] for one in kinds("Trainer") if isinstance(trainer, one))
    made["date"] = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    made["versions"] = (
        f"lightning_prune {__version__}, torch {torch.__version__}, {package} {sys.modules[package].__version__},"
        f" Python {platform.python_version()} on {platform.machine()}"
    )
    words = [Path(program).name for program in sys.orig_argv[:1]]
    for earlier, word in pairwise(sys.orig_argv):
        option, told = _SECRET.fullmatch(word), _SECRET.fullmatch(earlier)
        words.append(f"{option[1]}=…" if option and option[2] else "…" if told and not told[2] else shlex.quote(word))
    made["command"] = "a notebook" if "ipykernel" in sys.modules else " ".join(words)[:_LONGEST]
    return made


def _held(loader: Any) -> str:  # noqa: ANN401
    data, unit = getattr(loader, "dataset", loader), "samples" if hasattr(loader, "dataset") else "batches"
    try:
        count = f", {len(data):,} {unit}" if isinstance(data, Sized) else ""
    except TypeError:  # some iterable datasets have a __len__ that raises
        count = ""
    size = getattr(loader, "batch_size", None)
    return f"{type(data).__name__}{count}" + (f" in batches of {size:,}" if isinstance(size, int) else "")
