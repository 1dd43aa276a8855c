"""Which rows of a sharded tensor this rank holds; torch's DTensor is spoken of here alone."""

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_prune.distributed.ranks import add_up, world_size
from lightning_prune.errors import PruningError


def _sharded_type() -> type[Any] | None:
    """Return DTensor once somebody has imported it; before, no tensor can be one."""
    module = sys.modules.get("torch.distributed.tensor")
    return None if module is None else module.DTensor


def is_sharded(tensor: object) -> bool:
    """Say whether a tensor is a DTensor, of which this rank may hold only a part."""
    kind = _sharded_type()
    return kind is not None and isinstance(tensor, kind)


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this rank holds, sharing its memory; a plain tensor is its own."""
    return cast(Any, tensor.detach()).to_local() if is_sharded(tensor) else tensor


def part(whole: Tensor, of: Tensor) -> Tensor:
    """Return the rows of a whole tensor that lie where this rank's part of ``of`` lies: a view.

    Args:
        whole: a plain tensor with the rows of ``of``.
        of: a plain tensor, then all rows are returned, or one sharded along axis 0.
    """
    return whole[slice(*_rows(of))] if is_sharded(of) else whole


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor as a plain one; a sharded one is gathered, which every rank must ask for."""
    return cast(Any, tensor).full_tensor() if is_sharded(tensor) else tensor


def lies_like(tensor: Tensor, of: Tensor) -> Tensor:
    """Return a sharded tensor laid over the ranks as ``of`` is; a plain one as it is."""
    if not (is_sharded(tensor) and is_sharded(of)):
        return tensor
    return cast(Any, tensor).redistribute(placements=cast(Any, of).placements)


def mixing(tensor: Tensor) -> AbstractContextManager[Any]:
    """Let code that was written for plain tensors meet this one, which may be sharded, with others that are not."""
    if not is_sharded(tensor):
        return nullcontext()
    from torch.distributed.tensor.experimental import implicit_replication

    return implicit_replication()


def sharded_like(whole: Tensor, of: Tensor) -> Tensor:
    """Return a copy of a whole tensor that lies over the ranks as ``of`` does, on its device."""
    own = part(whole, of).to(of.device, copy=True)
    return assembled(own, of) if is_sharded(of) else own


def assembled(own: Tensor, of: Tensor) -> Tensor:
    """Return the sharded tensor of which this rank holds ``own``, laid over the ranks as ``of`` is.

    Raises:
        TypeError: that one is in one piece.
    """
    if not is_sharded(of):
        raise TypeError(f"expected a sharded tensor to follow, got one of shape {tuple(of.shape)} in one piece")
    like, form = cast(Any, of), {"shape": of.size(), "stride": of.stride()}
    # a Parameter is no DTensor by its type, its data is
    return type(like.data).from_local(own, like.device_mesh, like.placements, run_check=False, **form)


def _rows(tensor: Any) -> tuple[int, int]:  # noqa: ANN401
    """Return the first row of a sharded tensor that this rank holds and the one behind its last."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    size, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return (offset[0], offset[0] + size[0]) if 0 not in size else (0, 0)


def reshard(model: nn.Module) -> None:
    """Let FSDP2 put whole parameters that it still holds after an evaluation back to shards."""
    if _sharded_type() is not None:
        from torch.distributed.fsdp import FSDPModule

        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


@dataclass(frozen=True, eq=False)
class Spread:
    """Over which ranks an event runs, and which rows of each target this rank holds.

    Args:
        ranks: how many take part.
        group: the ranks over which targets are sharded; None: each rank holds all rows of each.
        rows: dense name -> first row that this rank looks at and the one behind its last. Where some targets are
            sharded, those that are not are looked at by the first rank alone, so that everything counts once.
    """

    ranks: int = 1
    group: Any = None
    rows: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def is_sharded(self) -> bool:
        """Whether this rank looks at a part of the targets only."""
        return self.group is not None

    def own(self, name: str, tensor: Tensor) -> Tensor:
        """Return the rows of a tensor, whole or sharded, that this rank looks at."""
        if name not in self.rows:
            return tensor
        return local(tensor) if is_sharded(tensor) else tensor[slice(*self.rows[name])]

    def own_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of this rank's rows of a tensor of this shape."""
        start, stop = self.rows.get(name, (0, 0))
        return (stop - start, *shape[1:]) if name in self.rows else shape

    def sum(self, values: Tensor) -> Tensor:
        """Replace numbers of which each rank has its share by their sum."""
        return add_up(values, self.group) if self.is_sharded else values

    def mean(self, scores: Tensor) -> Tensor:
        """Return the mean over all ranks of scores that each of them computed for itself."""
        return add_up(scores / self.ranks) if self.ranks > 1 else scores

    def in_place(self, name: str, own: Tensor, rows: int) -> Tensor:
        """Return numbers of this rank's rows at their place among those of all rows, which are zero."""
        placed = own.new_zeros(rows)
        placed[slice(*self.rows[name])] = own
        return placed

    def before(self, count: int) -> int:
        """Return the sum of the counts of the ranks that hold earlier rows."""
        if not self.is_sharded:
            return 0
        counts = torch.zeros(dist.get_world_size(self.group), dtype=torch.int64)
        counts[dist.get_rank(self.group)] = count
        return int(self.sum(counts)[: dist.get_rank(self.group)].sum())

    def gather(self, name: str, own: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return the whole mask of this shape from the rows that each rank has of it."""
        if not self.is_sharded:
            return own
        rows = torch.zeros(shape, dtype=torch.uint8, device=own.device)
        rows[slice(*self.rows[name])] = own
        return self.sum(rows).view(torch.bool)


ALONE = Spread()
"""One rank, or ranks that do not ask each other."""


def spread_of(tensors: Mapping[str, Tensor]) -> Spread:
    """Return how these targets lie over the ranks.

    Raises:
        PruningError: one is sharded along another axis than the first, more than once, or over other ranks.
    """
    sharded = {name: tensor for name, tensor in tensors.items() if is_sharded(tensor)}
    if not sharded:
        return Spread(world_size())
    groups = {name: _group(name, tensor) for name, tensor in sharded.items()}
    first, group = next(iter(groups.items()))
    odd = [name for name, other in groups.items() if other is not group]
    if odd:
        raise PruningError(f"{odd[0]} is sharded over other ranks than {first}; shard all targets over one mesh")
    is_first = dist.get_rank(group) == 0
    rows = {n: _rows(t) if n in sharded else (0, t.shape[0] if is_first else 0) for n, t in tensors.items()}
    return Spread(world_size(), group, rows)


def _group(name: str, tensor: Any) -> Any:  # noqa: ANN401
    """Return the ranks over which a tensor is sharded by rows."""
    from torch.distributed.tensor import Replicate, Shard

    over = [axis for axis, placement in enumerate(tensor.placements) if not isinstance(placement, Replicate)]
    if len(over) != 1 or type(tensor.placements[over[0]]) is not Shard or tensor.placements[over[0]].dim != 0:
        raise PruningError(
            f"{name} lies over the ranks as {tensor.placements}; pruning works on weights that fully_shard has sharded"
            " along their first axis, without tensor parallelism: ModelParallelStrategy(tensor_parallel_size=1)"
        )
    return tensor.device_mesh.get_group(over[0])
