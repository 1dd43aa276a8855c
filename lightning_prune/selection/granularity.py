"""The unit of removal: single weights, n of m, blocks, or whole channels."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lightning_prune.selection.targets import Target
from lightning_prune.values import Choice, check_bool, check_number, check_whole


@dataclass(frozen=True)
class Granularity(ABC):
    """A way to cut one target into units that are kept or removed as a whole.

    A granularity of your own implements the abstract methods and ``zeros``; they are pure. (Channel is different: its
    units span layers, so selection reads them off the channel groups.)
    """

    is_single: ClassVar[bool] = False
    """Whether each unit is one weight."""
    must_be_full: ClassVar[bool] = False
    """Whether a schedule must end at :attr:`full_sparsity`: with less, the pattern is none that hardware knows."""

    @abstractmethod
    def units(self, scores: Tensor, target: Target) -> Tensor:
        """Return the score of each unit, any shape, from the scores of the elements (shape of the target)."""

    @abstractmethod
    def elements(self, keep: Tensor, scores: Tensor, target: Target) -> Tensor:
        """Return the bool mask of the elements (shape of the target) from the bool mask ``keep`` of the units."""

    @abstractmethod
    def removed(self, mask: Tensor, target: Target) -> Tensor:
        """Return which units (bool, shape of the units) an element mask has removed already."""

    def check(self, target: Target) -> None:
        """Raise ValueError when this target cannot be cut into units."""
        if math.prod(target.shape) == 0:
            raise ValueError(f"{target.name} has shape {target.shape} and no elements to prune; exclude it")

    def within(self, target: Target) -> int:
        """Return how many elements of the target lie in units; the others are never removed."""
        return math.prod(target.shape)

    def zeros(self, removed: int, target: Target) -> int:
        """Return how many elements of the target are zero when so many of its units are removed."""
        return removed

    def is_whole_in(self, rows: tuple[int, int], target: Target) -> bool:
        """Say whether these rows of a target, from the first to before the second, cut no unit apart.

        Of a granularity that does not tell nobody knows.
        """
        return False

    @property
    def full_sparsity(self) -> float:
        """The sparsity of the elements when every unit is removed."""
        return 1.0


@dataclass(frozen=True)
class Element(Granularity):
    """Single weights: unstructured pruning."""

    is_single: ClassVar[bool] = True

    def is_whole_in(self, rows: tuple[int, int], target: Target) -> bool:
        """Return True: a row holds whole weights."""
        return True

    def units(self, scores: Tensor, target: Target) -> Tensor:
        """Return the scores themselves."""
        return scores

    def elements(self, keep: Tensor, scores: Tensor, target: Target) -> Tensor:
        """Return the mask itself."""
        return keep

    def removed(self, mask: Tensor, target: Target) -> Tensor:
        """Return the complement of the mask."""
        return ~mask


@dataclass(frozen=True)
class NOfM(Granularity):
    """Keeps the n best of each m consecutive weights along the input axis; a tail shorter than m stays dense.

    So does a whole layer with fewer than m inputs, such as the first convolution on RGB images. A unit is one block of
    m; removing it leaves n of its weights. Hence the sparsity rises with the share of blocks already at n:m and ends at
    1 - n/m of the full blocks.

    Args:
        n: weights kept in each block, 1 <= n < m.
        m: size of a block.

    Source:
        Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks" (2:4).
    """

    must_be_full: ClassVar[bool] = True

    n: int
    m: int

    def __post_init__(self) -> None:
        check_whole("NOfM.n", self.n)
        check_whole("NOfM.m", self.m)
        if not 1 <= self.n < self.m:
            raise ValueError(f"NOfM keeps n of m with 1 <= n < m, got n = {self.n}, m = {self.m}; e.g. NOfM(2, 4)")

    def check(self, target: Target) -> None:
        """Raise ValueError when the target has no input axis."""
        super().check(target)
        if len(target.shape) < 2:
            raise ValueError(
                f"{target.name} has shape {target.shape} and no input axis, which {self} needs; exclude it"
            )

    def within(self, target: Target) -> int:
        """Return the size of all full blocks."""
        inputs = target.shape[target.input_axis]
        return math.prod(target.shape) // inputs * (inputs // self.m * self.m)

    def _blocks(self, values: Tensor, target: Target) -> Tensor:
        """View as (*others, blocks, m), the tail cut off."""
        moved = values.movedim(target.input_axis, -1)
        blocks = moved.shape[-1] // self.m
        return moved[..., : blocks * self.m].unflatten(-1, (blocks, self.m))

    def units(self, scores: Tensor, target: Target) -> Tensor:
        """Return for each block the sum of its m - n lowest scores: what removing it costs."""
        return self._blocks(scores, target).sort(dim=-1).values[..., : self.m - self.n].sum(dim=-1)

    def elements(self, keep: Tensor, scores: Tensor, target: Target) -> Tensor:
        """Return a mask that is all True in kept blocks and has n True in removed ones."""
        blocks = self._blocks(scores, target)
        order = blocks.argsort(dim=-1, stable=True)
        best = torch.zeros_like(blocks, dtype=torch.bool).scatter_(-1, order[..., self.m - self.n :], True)
        moved = torch.ones(scores.movedim(target.input_axis, -1).shape, dtype=torch.bool, device=scores.device)
        moved[..., : blocks.shape[-2] * self.m] = (best | keep.unsqueeze(-1)).flatten(-2)
        return moved.movedim(-1, target.input_axis)

    def removed(self, mask: Tensor, target: Target) -> Tensor:
        """Return the blocks that hold at most n True."""
        return self._blocks(mask, target).sum(dim=-1) <= self.n

    def is_whole_in(self, rows: tuple[int, int], target: Target) -> bool:
        """Say whether blocks lie along another axis than the rows."""
        return target.input_axis != 0

    def zeros(self, removed: int, target: Target) -> int:
        """Return m - n for each removed block."""
        return removed * (self.m - self.n)

    @property
    def full_sparsity(self) -> float:
        """1 - n/m."""
        return 1 - self.n / self.m


@dataclass(frozen=True)
class Block(Granularity):
    """Rectangular blocks of weights: (4, 1) is four output channels at one input and kernel position.

    Args:
        shape: sizes along the axes of the weight (out, in, *kernel); missing trailing ones count as 1.
    """

    shape: Sequence[int]

    def __post_init__(self) -> None:
        sizes = tuple(self.shape) if isinstance(self.shape, Sequence) else ()
        if not sizes or not all(isinstance(s, int) and not isinstance(s, bool) and s > 0 for s in sizes):
            raise ValueError(f"Block.shape takes positive whole numbers, got {self.shape!r}; e.g. Block((4, 1))")
        if math.prod(sizes) == 1:
            raise ValueError(f"Block.shape = {sizes} is a single weight; use Element()")
        object.__setattr__(self, "shape", sizes)

    def check(self, target: Target) -> None:
        """Raise ValueError when the block does not divide the target's shape."""
        super().check(target)
        if len(self.shape) > len(target.shape) or any(
            size % block for size, block in zip(target.shape, self.shape, strict=False)
        ):
            raise ValueError(
                f"Block({tuple(self.shape)}) does not divide {target.name} of shape {target.shape}; choose a block"
                " that does or exclude this target"
            )

    def _split(self, values: Tensor) -> Tensor:
        """View as (*blocks, elements of a block)."""
        sizes = (*self.shape, *(1,) * (values.dim() - len(self.shape)))
        for axis, size in enumerate(sizes):
            values = values.unflatten(2 * axis, (-1, size))
        inner = [2 * axis + 1 for axis in range(len(sizes))]
        return values.permute(*range(0, 2 * len(sizes), 2), *inner).flatten(len(sizes))

    def units(self, scores: Tensor, target: Target) -> Tensor:
        """Return the sum of the scores in each block."""
        return self._split(scores).sum(dim=-1)

    def elements(self, keep: Tensor, scores: Tensor, target: Target) -> Tensor:
        """Return each unit's value at all its elements."""
        for axis, size in enumerate(self.shape):
            keep = keep.repeat_interleave(size, dim=axis)
        return keep

    def removed(self, mask: Tensor, target: Target) -> Tensor:
        """Return the blocks without any True."""
        return ~self._split(mask).any(dim=-1)

    def is_whole_in(self, rows: tuple[int, int], target: Target) -> bool:
        """Say whether the rows begin and end between blocks."""
        return all(row % self.shape[0] == 0 for row in rows)

    def zeros(self, removed: int, target: Target) -> int:
        """Return the size of a block for each removed one."""
        return removed * math.prod(self.shape)


@dataclass(frozen=True, repr=False)
class Channel(Choice):
    """Whole output channels of coupled layers: weight rows, bias, batch-norm entries, consumers' input slices.

    Args:
        min_channels: what each channel group keeps at least.
        round_to: kept widths are multiples of this where the group is wide enough (backends like 8 or 16).
        allow_inexact: let channels go, too, over which a layer, group or RMS norm runs, such as the width of a
            transformer. The compact network then computes something else than the masked one; by how much is reported.
        min_share: the share of its channels that each channel group keeps at least, in [0, 1). None: half of what the
            same share everywhere would leave when the schedule ends, which is half of the kept share of "channels",
            and nearly half of its root for "params" and "macs" where inputs and outputs of most layers shrink; less
            where the budget could not be met with it.
        attention: what goes of an attention where both can: whole "heads", or the "width" of query, key and value,
            which is the same in all heads. Where one cannot the other does; for both, prune twice.
    """

    is_single: ClassVar[bool] = False

    min_channels: int = 1
    round_to: int = 1
    allow_inexact: bool = False
    min_share: float | None = None
    attention: Literal["heads", "width"] = "heads"

    def __post_init__(self) -> None:
        if self.attention not in ("heads", "width"):
            raise ValueError(f"Channel.attention must be 'heads' or 'width', got {self.attention!r}")
        check_bool("Channel.allow_inexact", self.allow_inexact)
        check_whole("Channel.min_channels", self.min_channels, 1, "channels")
        check_whole("Channel.round_to", self.round_to, 1, "channels")
        if self.min_share is not None:
            check_number("Channel.min_share", self.min_share, 0, below=1, why=": it is the share kept at least")

    def __repr__(self) -> str:
        # checkpoints keep this text, and those from before there was a share have it without
        names = ["min_channels", "round_to", "allow_inexact"]
        names += [name for name, usual in (("min_share", None), ("attention", "heads")) if getattr(self, name) != usual]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    def widths(self, size: int) -> tuple[int, ...]:
        """Return the widths that a group of ``size`` channels may have, widest first.

        Example:
            >>> Channel(min_channels=4, round_to=8).widths(20)
            (20, 16, 8)
            >>> Channel(min_share=0.75).widths(8)
            (8, 7, 6)
        """
        least = max(self.min_channels, math.ceil((self.min_share or 0.0) * size - 1e-9))
        narrower = range(size - 1, min(size, least) - 1, -1)
        return (size, *(width for width in narrower if width % self.round_to == 0))


BUILT_IN: tuple[type[Granularity | Channel], ...] = (Element, NOfM, Block, Channel)
"""What a recipe names, and a checkpoint may hold."""
