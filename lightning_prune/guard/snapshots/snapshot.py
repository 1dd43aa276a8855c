"""A snapshot of a training run: take, restore, store."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from lightning_prune.errors import SnapshotError
from lightning_prune.guard.snapshots.parts import Parts, Stateful, restore_module
from lightning_prune.guard.snapshots.storage import State, StateFile, available_memory, fresh, held, in_memory, size_of

VERSION = 1

Where = Literal["auto", "memory", "disk"]
Others = Mapping[str, nn.Module | Stateful]


class Snapshot:
    """The state of a training run at one moment, in CPU memory or in a file; see :meth:`take`.

    It holds names, shapes and numbers, no module and no optimizer; of a sharded tensor (FSDP2) the local shard. A
    copy of it, deep or pickled, lies in memory.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        >>> weight, snapshot = net.weight.detach().clone(), Snapshot.take(net, [optimizer])
        >>> net(torch.ones(1, 2)).sum().backward(); optimizer.step()
        >>> snapshot.restore(net, [optimizer])
        False
        >>> torch.equal(net.weight, weight), len(optimizer.state)
        (True, 0)
    """

    def __init__(self, state: State) -> None:
        self._state: State | StateFile | None = state

    @classmethod
    def take(
        cls,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        schedulers: Sequence[Stateful] = (),
        others: Others | None = None,
        *,
        where: Where = "auto",
        folder: str | Path | None = None,
    ) -> "Snapshot":
        """Copy everything that training changes, each byte once.

        That is: parameters and buffers of the model, persistent or not, its masks and the channels that it has lost;
        state and hyperparameters of the optimizers; the schedulers; the random generators of Python, NumPy and torch,
        that of each CUDA device too. Gradients are left out.

        Args:
            model: dense, masked or compact.
            optimizers: all optimizers of the run.
            schedulers: all schedulers of the run.
            others: name -> whatever else goes back: modules, such as averaged weights, and objects with
                ``state_dict`` and ``load_state_dict``.
            where: "auto" chooses the disk for more than a quarter of the memory that is available.
            folder: where a file may lie; None: the system's folder for temporary files.

        Raises:
            SnapshotError: there is no memory, or no room or right to write the file; nothing has changed then.
        """
        with torch.inference_mode(False), torch.no_grad():
            state = tree_map(held, {"version": VERSION, **_parts(model, optimizers, schedulers, others).state()})
            return cls._stored(state, where, folder)

    @classmethod
    def _stored(cls, state: State, where: Where, folder: str | Path | None) -> "Snapshot":
        size, snapshot = size_of(state), cls({})
        try:
            if where == "disk" or (where == "auto" and size > available_memory() / 4):
                snapshot._state = StateFile(state, folder)
            else:
                snapshot._state = in_memory(state)
        except (OSError, MemoryError, RuntimeError) as error:
            raise SnapshotError(
                f"a snapshot of {size:,} bytes cannot be stored: {error}. Free disk space or memory, or choose the"
                ' other one with snapshot="memory" or "disk"; nothing has changed'
            ) from error
        return snapshot

    @property
    def is_on_disk(self) -> bool:
        """Whether the snapshot lies in a file."""
        return isinstance(self._state, StateFile)

    def restore(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        schedulers: Sequence[Stateful] = (),
        others: Others | None = None,
    ) -> bool:
        """Put everything back, as often as asked; the arguments are those of :meth:`take`.

        A param group that the optimizer was given since stays, its parameters without state.

        Returns:
            Whether a shape changed because channels had left since: a DistributedDataParallel wrapper has to be built
            anew then.

        Raises:
            SnapshotError: the file was damaged, or the snapshot is of other parts, tensors or shards; nothing has
                changed then.

        Changes:
            everything held; the Parameter objects stay, their gradients become None.
        """
        parts = _parts(model, optimizers, schedulers, others)
        with torch.inference_mode(False), torch.no_grad():
            return parts.restore(self.state_dict())

    def restore_model(self, model: nn.Module) -> State:
        """Put back the model alone, its masks and channels with it; return the states of the other objects.

        Raises:
            SnapshotError: the file was damaged, or the snapshot is of another model; nothing has changed then.

        Changes:
            the model; the Parameter objects stay, their gradients become None.
        """
        state = self.state_dict()
        with torch.inference_mode(False), torch.no_grad():
            restore_module(model, state["modules"][""])
        return tree_map(fresh, state["others"])

    def drop(self) -> None:
        """Free the memory or remove the file; the snapshot cannot be restored afterwards."""
        if isinstance(self._state, StateFile):
            self._state.remove()
        self._state = None

    def state_dict(self) -> State:
        """Return what is held, by reference: plain values and CPU tensors, for a checkpoint.

        Raises:
            SnapshotError: the file was damaged, or the snapshot was dropped.
        """
        if self._state is None:
            raise SnapshotError("the snapshot was dropped; take a new one")
        return self._state.read() if isinstance(self._state, StateFile) else self._state

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Any], *, where: Where = "auto", folder: str | Path | None = None
    ) -> "Snapshot":
        """Return the snapshot whose :meth:`state_dict` this is; it shares no memory with it.

        Raises:
            SnapshotError: it is of a newer version, or cannot be stored.
        """
        if state["version"] > VERSION:
            raise SnapshotError(
                f"the snapshot is of version {state['version']}, this package reads up to {VERSION}; upgrade it"
            )
        return cls._stored(tree_map(held, dict(state)), where, folder)

    def __reduce__(self) -> tuple[type["Snapshot"], tuple[State]]:
        return Snapshot, (self.state_dict(),)


def _parts(
    model: nn.Module, optimizers: Sequence[Optimizer], schedulers: Sequence[Stateful], others: Others | None
) -> Parts:
    given = {} if others is None else others
    modules = {name: part for name, part in given.items() if isinstance(part, nn.Module)}
    rest = {name: part for name, part in given.items() if not isinstance(part, nn.Module)}
    return Parts({"": model, **modules}, optimizers, schedulers, rest)
