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

from lightning_prune.distributed.memory import limited
from lightning_prune.errors import CheckpointError, PruningError

_ROOM = 2**28
"""Bytes that reading a small file may take."""
_SLACK = 2**24


def read_checkpoint(path: str | Path, *, is_trusted: bool = False) -> dict[str, Any]:
    """Read a checkpoint to the CPU; pickled objects in it are refused unless it is trusted.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: it cannot be read, or holds pickled objects.
    """
    check_no_folder(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    # what is plain in a pickle can be many times as large as the file; its tensors are as large as they are there
    room = None if is_trusted else max(_ROOM, 4 * Path(path).stat().st_size)
    with reading(path):
        try:
            with limited(room):
                found = torch.load(path, map_location="cpu", weights_only=not is_trusted)
        except MemoryError as error:
            raise CheckpointError(f"{path} takes more than {room or 0:,} bytes to read: it was not") from error
        if not is_trusted:
            check_claims(path, found)
    if not isinstance(found, dict):
        raise CheckpointError(no_checkpoint(path, found))
    return found


def check_claims(path: object, content: object) -> None:
    """Refuse a checkpoint with a tensor that claims much more than it holds, or that is not from the file.

    A stride of 0 lets four bytes be terabytes, which whatever is done with them would take.

    Raises:
        CheckpointError: there is one.
    """
    left, seen, storages = [("", content)], set[int](), dict[int, int]()
    while left:
        name, value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            left.extend((f"{name}.{key}" if name else str(key), each) for key, each in value.items())
        elif isinstance(value, list | tuple | set):
            left.extend((name, each) for each in value)
        elif isinstance(value, Tensor) and value.layout is torch.strided and not (value.is_meta or value.is_nested):
            size, storage = value.numel() * value.element_size(), value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            if size > max(storage.nbytes(), _ROOM):
                raise CheckpointError(
                    f"{path}: {name} claims {size:,} bytes and holds {storage.nbytes():,}: store it with contiguous()"
                )
    held = sum(storages.values())
    if (
        isinstance(path, str | Path)
        and Path(path).is_file()
        and held > 2 * (size := Path(path).stat().st_size) + _SLACK
    ):
        raise CheckpointError(f"{path} has {size:,} bytes, and its tensors {held:,}: it is damaged")


def check_size(path: object) -> None:
    """Refuse a zip that unpacks to much more than it is: torch stores its tensors as they are.

    Raises:
        CheckpointError: it does.
    """
    if isinstance(path, str | Path) and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > 2 * (size := Path(path).stat().st_size) + _SLACK:
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
        CheckpointError: it holds pickled objects that are not to be read, unpacks to much more than it is, or is cut
            off, empty or something else: in place of whatever torch raises then.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            check_size(path)
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


@contextmanager
def taking_up(part: str) -> Iterator[None]:
    """Let an error that comes up while a part of a checkpoint is taken up name it.

    Raises:
        CheckpointError: values are missing in it, or are others than were ever written: in place of whatever that
            raises.
    """
    try:
        yield
    except PruningError:
        raise
    except Exception as error:  # what was damaged or made up may be of any type and raise anything
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]:.200}"
        raise CheckpointError(
            f"what the checkpoint says of {part} cannot be taken up ({reason}): it is damaged, or of another version;"
            " take another one"
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
