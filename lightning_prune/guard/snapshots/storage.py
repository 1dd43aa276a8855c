"""Where the values of a snapshot lie: in CPU memory, or in a private file that is checked when it is read."""

import copy
import os
import tempfile
import weakref
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from lightning_prune.distributed.shards import local
from lightning_prune.documents import beside, sweep
from lightning_prune.errors import SnapshotError

State = dict[str, Any]
"""Nested dicts and lists of plain values and tensors."""


def size_of(state: State) -> int:
    """Return the bytes of the tensors in it."""
    tensors = {_identity(leaf): leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _identity(tensor: Tensor) -> object:
    """Return a key that two tensors share when they are the same view of the same memory."""
    if tensor.layout is not torch.strided or tensor.numel() == 0:
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def available_memory() -> float:
    """Return how many bytes of memory a process can still take; infinite where the platform does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        known = os.sysconf_names if os.name == "posix" else {}
        if "SC_AVPHYS_PAGES" in known and "SC_PAGE_SIZE" in known:
            return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        return float("inf")


def held(leaf: Any) -> Any:  # noqa: ANN401
    """Return a value as it goes into a state: a tensor by reference to its own memory, anything else as a copy."""
    return local(leaf.detach()) if isinstance(leaf, Tensor) else copy.deepcopy(leaf)


def fresh(leaf: Any, device: torch.device | str = "cpu") -> Any:  # noqa: ANN401
    """Return a copy that shares nothing."""
    return leaf.to(device, copy=True) if isinstance(leaf, Tensor) else copy.deepcopy(leaf)


def in_memory(state: State) -> State:
    """Return the state with one CPU copy of each tensor."""
    copies: dict[object, Tensor] = {}
    return tree_map(partial(_copied_once, copies), state)


def _copied_once(copies: dict[object, Tensor], leaf: Any) -> Any:  # noqa: ANN401
    if not isinstance(leaf, Tensor):
        return leaf
    key = _identity(leaf)
    if key not in copies:
        copies[key] = fresh(leaf)
    return copies[key]


class StateFile:
    """A private file with the tensors of a state in it; it goes when this object does.

    What is no plain tensor is kept in memory, so that the file is read back without unpickling objects: whoever can
    write to the folder can change a tensor at most, and the checksum tells that.

    Args:
        state: its tensors may lie on any device.
        folder: None: the system's folder for temporary files.

    Raises:
        OSError: the file cannot be made.
        RuntimeError: it cannot be written to the end; it is removed then.
    """

    def __init__(self, state: State, folder: str | Path | None) -> None:
        place = Path(folder or tempfile.gettempdir())
        sweep(place)
        path = beside(place / "lightning_prune.snapshot")
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))  # the weights are nobody else's business
        self.path = str(path)
        self.remove = weakref.finalize(self, path.unlink, missing_ok=True)
        try:
            leaves, self._structure = tree_flatten(state)
            self._others = {i: fresh(leaf) for i, leaf in enumerate(leaves) if type(leaf) not in (Tensor, nn.Parameter)}
            torch.save([_alone(leaf) for i, leaf in enumerate(leaves) if i not in self._others], self.path)
            self._checksum = _checksum(self.path)
        except BaseException:
            self.remove()
            raise

    def read(self) -> State:
        """Return the state, mapped into memory.

        Raises:
            SnapshotError: the file is gone, or does not hold what was written.
        """
        try:
            found = _checksum(self.path)
        except OSError as error:
            raise SnapshotError(f"the snapshot cannot be read back: {error}; go on without it") from error
        if found != self._checksum:
            raise SnapshotError(f"the snapshot {self.path} was changed after it was written; go on without it")
        tensors = iter(torch.load(self.path, map_location="cpu", mmap=True, weights_only=True))
        places = range(self._structure.num_leaves)
        leaves = [fresh(self._others[i]) if i in self._others else next(tensors) for i in places]
        return tree_unflatten(leaves, self._structure)


def _alone(leaf: Tensor) -> Tensor:
    """Return a view of larger memory as a copy: torch.save would write all of that memory."""
    is_strided = leaf.layout is torch.strided
    return leaf.clone() if is_strided and leaf.untyped_storage().nbytes() > leaf.nbytes else leaf


def _checksum(path: str) -> int:
    found = 0
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(1 << 22):
            found = zlib.crc32(chunk, found)
    return found
