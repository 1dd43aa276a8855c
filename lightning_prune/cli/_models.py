"""A model with the weights of a checkpoint, built from the user's class or function."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.checkpoints import state as checkpoints
from lightning_prune.checkpoints.adopting import adopting
from lightning_prune.checkpoints.files import check_no_code, read_checkpoint
from lightning_prune.cli.references import load, made
from lightning_prune.errors import CheckpointError
from lightning_prune.trainer.internals import load_module
from lightning_prune.trainer.packages import kinds


def loaded_model(reference: str, checkpoint: Path | None, *, is_trusted: bool = False) -> nn.Module:
    """Return a model in eval mode on the CPU, in the shape and with the masks that its checkpoint has.

    Args:
        reference: of a LightningModule's class, of a function that returns a module, or of a module.
        checkpoint: whose weights it gets; None: it keeps its own.
        is_trusted: read a checkpoint with pickled objects too.

    Raises:
        ValueError: the reference names none of these.
        CheckpointError: the checkpoint cannot be read or does not fit the model.
    """
    found = load(reference)
    # read first: it refuses a damaged file in words of its own
    content = {} if checkpoint is None else read_checkpoint(checkpoint, is_trusted=is_trusted)
    is_class = isinstance(found, type) and issubclass(found, kinds("LightningModule"))
    if not is_trusted:
        check_no_code(checkpoint, content)
    if checkpoint is not None and is_class and "pytorch-lightning_version" in content:
        try:
            with adopting():
                return load_module(found, checkpoint, is_trusted=is_trusted).eval()
        except (RuntimeError, TypeError, KeyError) as error:
            raise CheckpointError(f"{checkpoint} does not fit {found.__name__}: {error}") from error
    model = made(reference, nn.Module)
    if checkpoint is not None:
        try:
            checkpoints.restore(model, content)
        except RuntimeError as error:
            raise CheckpointError(
                f"{checkpoint} does not fit {type(model).__name__}: {error}; is it the class that was trained?"
            ) from error
    return model.cpu().eval()


def example(text: str | None) -> Tensor | Sequence[Any] | None:
    """Return zeros of a shape such as ``1,3,96,96``, or what a reference names; None for None.

    Raises:
        ValueError: it is neither.
    """
    if text is None:
        return None
    if ":" in text:
        found = load(text)
        return found if isinstance(found, Sequence) else made(text, Tensor)
    try:
        return torch.zeros([int(size) for size in text.split(",")])
    except (ValueError, RuntimeError):
        raise ValueError(
            f"--example: got {text!r}, must be a shape such as 1,3,96,96, or file.py:attribute of a tensor"
        ) from None
