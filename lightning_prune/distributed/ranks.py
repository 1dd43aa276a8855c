"""What ranks must agree on: plain torch.distributed.

Without a process group, or with one rank, every function returns what it was given. Each collective of an event is
preceded by an exchange of one number, *going on* or *failed*; a rank that fails has that exchange as its last act.
So whatever goes wrong on one rank raises on all, and none is left waiting (:func:`together`).
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_prune.errors import PruningError

_T = TypeVar("_T")

_PIECE = 1 << 24
"""Bytes that are digested together."""

_inside: ContextVar[bool] = ContextVar("inside", default=False)


class _Told(PruningError):
    """Raised on all ranks at once, so there is nobody left to tell."""


def world_size() -> int:
    """Return the number of ranks that train together; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own_rank() -> int:
    """Return the number of this rank; 0 without torch.distributed."""
    return dist.get_rank() if world_size() > 1 else 0


@contextmanager
def together(what: str) -> Iterator[None]:
    """Do something on all ranks or on none: an exception on one of them raises on all.

    Args:
        what: for the message on the other ranks, such as "the pruning event of step 30".

    Raises:
        PruningError: another rank failed in here; it names the rank and its error. The failing rank raises its own.
    """
    if world_size() == 1 or _inside.get():
        yield
        return
    token = _inside.set(True)
    try:
        yield
        _announce()
    except _Told as told:
        raise PruningError(f"{what} failed: {told}") from None
    except Exception as error:
        with suppress(RuntimeError):  # what the others say, or that they are gone, tells less than our own error
            _announce(f"{type(error).__name__}: {error}")
        raise
    finally:
        _inside.reset(token)


def _announce(failure: str = "") -> None:
    """Tell the other ranks that this one goes on, or that it failed; raise when any of them did."""
    failed = torch.tensor([int(bool(failure))], device=_device())
    dist.all_reduce(failed)
    if int(failed):
        texts = [f"rank {rank}: {text}" for rank, text in enumerate(gathered(failure)) if text]
        raise _Told("; ".join(texts))


def agree() -> None:
    """Wait until every rank has come so far; raise when one has failed instead. See :func:`together`."""
    if world_size() > 1:
        _announce()


def gathered(value: _T) -> list[_T]:
    """Return what each rank has, in their order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def _device() -> torch.device:
    """Return where tensors must lie for the default process group."""
    on_host = dist.get_backend() in ("gloo", "mpi", "ucc")
    accelerator = None if on_host else torch.accelerator.current_accelerator()
    return torch.device("cpu") if accelerator is None else accelerator


def add_up(values: Tensor, group: Any = None) -> Tensor:  # noqa: ANN401
    """Replace the values by their sum over the ranks of a group (None: all), in place, and return them."""
    if world_size() == 1:
        return values
    _announce()
    moved = values.to(_device())
    dist.all_reduce(moved, group=group)
    return values if moved is values else values.copy_(moved)


def from_first(make: Callable[[], _T]) -> _T:
    """Return on every rank what the function returns on rank 0, where alone it is called."""
    if world_size() == 1:
        return make()
    found: list[Any] = [make() if dist.get_rank() == 0 else None]
    _announce()
    dist.broadcast_object_list(found, src=0, device=_device())
    return found[0]


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Make tensors what they are on rank 0, in place."""
    if world_size() > 1:
        for tensor in tensors:
            _announce()
            moved = tensor.to(_device())
            dist.broadcast(moved, src=0)
            tensor.copy_(moved)


def digest(tensor: Tensor) -> int:
    """Return a number that tells tensors of other bytes or another shape apart (CRC-32)."""
    found = zlib.crc32(repr((tuple(tensor.shape), tensor.dtype)).encode())
    for piece in tensor.detach().contiguous().flatten().view(torch.uint8).split(_PIECE):
        found = zlib.crc32(piece.cpu().numpy().tobytes(), found)
    return found


def check_same(values: Mapping[str, object], what: str) -> None:
    """Refuse values that are not the same on all ranks.

    Args:
        values: name -> what this rank has; small, compared by ``==``. Tensors go in by their :func:`digest`.
        what: the values, for the message, such as "mask".

    Raises:
        PruningError: on all ranks; it names the first value that differs, and the ranks.
    """
    if world_size() == 1:
        return
    _announce()
    found = gathered(dict(values))
    for name in dict.fromkeys(name for of_rank in found for name in of_rank):
        odd = [rank for rank, of_rank in enumerate(found) if of_rank.get(name) != found[0].get(name)]
        if odd:
            raise _Told(
                f"the {what} of {name} differs between rank 0 and rank {', '.join(map(str, odd))}: weights, gradients"
                " or masks were changed on one rank alone. Let every rank do the same, and resume from the last"
                " checkpoint"
            )


def _sum_of_bits(tensor: Tensor) -> int:
    """Return a number that tells values apart which differ by chance; several times quicker than :func:`digest`."""
    values = tensor.detach().contiguous().flatten()
    bits = (values.clone() if values.storage_offset() else values).view(torch.uint8)
    whole = len(bits) // 8 * 8
    return int(bits[:whole].view(torch.int64).sum()) + int(bits[whole:].sum())


def average(tensors: Mapping[str, Tensor]) -> None:
    """Make tensors that differ between ranks their mean over the ranks, in place; those alike keep their bits."""
    if world_size() == 1:
        return
    _announce()
    found = gathered({name: _sum_of_bits(tensor) for name, tensor in tensors.items()})
    for name in (name for name in tensors if any(one[name] != found[0][name] for one in found)):
        add_up(tensors[name].div_(world_size()))
