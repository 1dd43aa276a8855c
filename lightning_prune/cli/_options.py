"""From options that several commands share to values, and the checkpoint that they write."""

import argparse
import inspect
import os
from collections.abc import Iterable
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from torch import nn
from torchmetrics import Metric

from lightning_prune.checkpoints import state as checkpoints
from lightning_prune.cli.references import load, made
from lightning_prune.documents import check_place, text_of, whole
from lightning_prune.trainer.internals import loadable


def measured_by(reference: str | None) -> Any:  # noqa: ANN401 - what data.metrics calls MetricLike
    """Return the metric that a reference names: a function of model and batch as it is, otherwise one of torchmetrics.

    Raises:
        ValueError: it names neither.
    """
    if reference is None:
        return None
    metric = load(reference)
    is_of_a_batch = inspect.isfunction(metric) and len(inspect.signature(metric).parameters) == 2
    return metric if is_of_a_batch else made(reference, Metric)


def comparison(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what ``export`` and ``verify`` compare on and by, of what was asked for."""
    kinds = {"verify_on": Iterable, "metric": Metric}
    named = {name: getattr(arguments, name) for name in kinds}
    chosen = {name: made(reference, kinds[name]) for name, reference in named.items() if reference is not None}
    return chosen if arguments.tolerance is None else chosen | {"tolerance": arguments.tolerance}


def labels(text: str | None) -> list[str] | None:
    """Return the names of the classes: separated by commas, or the lines of a file."""
    if text is not None and os.path.isfile(text):  # Path.is_file raises where it is too long for a name
        return [line.strip() for line in text_of(Path(text)).splitlines() if line.strip()]
    return None if text is None else [label.strip() for label in text.split(",")]


def check_together(arguments: argparse.Namespace) -> None:
    """Refuse what would do nothing beside the other options of ``prune`` and ``fit-to``.

    Raises:
        ValueError: a loss that the criterion does not look at, or a direction where nothing is measured against it.
    """
    criterion = arguments.criterion
    if arguments.loss is not None and criterion not in (None, "taylor", "fisher"):
        raise ValueError(
            f"--loss {arguments.loss} is for --criterion taylor or fisher, and {criterion} looks at no loss: choose one"
            " of them, or leave --loss out"
        )
    if arguments.lower_is_better and (arguments.metric is None or arguments.max_drop is None):
        lacking = "--metric net.py:error" if arguments.metric is None else "--max-drop 0.01"
        raise ValueError(f"--lower-is-better says what a drop of a metric is: add {lacking}, or leave it out")


def check_output(path: Path) -> None:
    """Refuse an output that could not be written, before anything is computed for it.

    Raises:
        ValueError: its folder does not exist.
        OSError: a FIFO, a device, a socket or a link to nothing stands there.
    """
    folder = Path(os.path.abspath(path)).parent  # Path.resolve raises a RuntimeError of its own for a link to itself
    if not folder.is_dir():
        raise ValueError(f"--output: there is no folder {folder}; create it: mkdir -p {quote(str(path.parent))}")
    check_place(path)


def save(model: nn.Module, path: Path) -> None:
    """Write a pruned model as a checkpoint, which appears whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    try:
        with whole(path) as written:
            held = {"state_dict": model.state_dict(), checkpoints.KEY: checkpoints.describe(model)}
            torch.save(held | loadable(model), written)
    except (OSError, RuntimeError) as error:  # torch's own writer raises RuntimeError on a full disk
        raise OSError(f"{path} cannot be written: {error}") from error
