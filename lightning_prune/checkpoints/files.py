"""Checkpoint files, read with errors that name them."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_prune.errors import CheckpointError


def read_checkpoint(path: str | Path, *, is_trusted: bool = False) -> dict[str, Any]:
    """Read a checkpoint to the CPU; pickled objects in it are refused unless it is trusted.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: it cannot be read, or holds pickled objects.
    """
    check_no_folder(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    with reading(path):
        check_size(path)
        found = torch.load(path, map_location="cpu", weights_only=not is_trusted)
    if not isinstance(found, dict):
        raise CheckpointError(no_checkpoint(path, found))
    return found


def check_size(path: str | Path) -> None:
    """Refuse a zip that unpacks to much more than it is: torch stores its tensors as they are.

    Raises:
        CheckpointError: it does.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > 2 * (size := Path(path).stat().st_size) + 2**24:
            raise CheckpointError(f"{path} has {size:,} bytes and unpacks to {unpacked:,}: it was not read")


def check_no_code(path: object, content: object) -> None:
    """Refuse a checkpoint of Lightning's whose plain values name code that a load would import or call.

    ``load_from_checkpoint`` follows them however carefully the file was read:
    https://github.com/Lightning-AI/pytorch-lightning/blob/2.6.6/src/lightning/pytorch/core/saving.py#L185

    Raises:
        CheckpointError: it names some.
    """
    if not isinstance(content, Mapping):
        return
    # "hparams" and "module_arguments" are the names of hyper_parameters in files of Lightning 0.7
    kind = content.get("hparams_type")
    named = {"hparams_type": None if isinstance(kind, str) else kind}
    for key in ("hyper_parameters", "hparams", "module_arguments"):
        parameters = content.get(key)
        if isinstance(parameters, Mapping) and "_instantiator" in parameters:
            named["_instantiator"] = parameters["_instantiator"]
    for key, value in named.items():
        if value is not None:
            raise CheckpointError(
                f"{path} names code that would be imported and called ({key}: {value!r:.80}): it was not. Where you"
                " trust the file, read it with --trust (is_trusted=True, weights_only=False)"
            )


def check_no_folder(path: str | Path) -> None:
    """Raise CheckpointError where the path is that of a folder."""
    if (Path(path) / ".metadata").is_file():
        raise CheckpointError(f"{path} is the folder of a sharded checkpoint: consolidate it into one file first")
    if Path(path).is_dir():
        raise CheckpointError(f"{path} is a folder: name the checkpoint file in it")


@contextmanager
def reading(path: object) -> Iterator[None]:
    """Let an error that comes up while a checkpoint is read name it.

    Raises:
        CheckpointError: it holds pickled objects that are not to be read, or is cut off, empty or something else: in
            place of whatever torch raises then.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            yield
    except (FileNotFoundError, PermissionError, CheckpointError):
        raise
    except Exception as error:
        pickled = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if pickled is not None:
            raise CheckpointError(
                f"{path} holds a pickled {pickled[1]}, and reading that runs code that the file brings: it was not"
                " read. Where you trust the file, read it with --trust (is_trusted=True, weights_only=False)"
            ) from error
        reason = f"{type(error).__name__}: {(str(error) or type(error).__name__).splitlines()[0]}"
        if isinstance(error, pickle.UnpicklingError):  # torch's text is about trust, whatever the bytes are
            reason = "it is no checkpoint, or it is damaged (UnpicklingError)"
        raise CheckpointError(
            f"the checkpoint {path} cannot be read: {reason}\nNothing was loaded; if the file is damaged, take an"
            " earlier one"
        ) from error


def no_checkpoint(path: object, content: object) -> str | None:
    """Return why what a file holds is no checkpoint of Lightning's; None: it is one."""
    if not isinstance(content, Mapping):
        return f"{path} holds a {type(content).__name__}, not a checkpoint: name another file"
    is_state = bool(content) and all(isinstance(value, Tensor) for value in content.values())
    if is_state or ("state_dict" in content and "pytorch-lightning_version" not in content):
        state = "torch.load(path)" if is_state else 'torch.load(path)["state_dict"]'
        return (
            f"{path} holds no checkpoint of Lightning's but a state: build the model, and inside"
            f" lightning_prune.adopting() call model.load_state_dict({state})"
        )
    if "state_dict" not in content:
        return f"{path} holds no checkpoint of Lightning's, which has a state_dict: name another file"
    return None
