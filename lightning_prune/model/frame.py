"""The shapes in which a pruner thinks: those that the model had when pruning was set up, whatever has left since."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """Translates between the tensors of a model now and when pruning was set up; removed channels lie between.

    Args:
        shapes: dense name -> shape at the beginning, of each tensor that has lost entries since.
        keep: dense name -> axis -> sorted indices that are left of it, of the same tensors.

    Example:
        >>> frame = Frame({"fc.weight": (3, 2)}, {"fc.weight": {0: (0, 2)}})
        >>> frame.widen("fc.weight", torch.ones(2, 2), 0.0)
        tensor([[1., 1.],
                [0., 0.],
                [1., 1.]])
    """

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    keep: Mapping[str, Mapping[int, tuple[int, ...]]] = field(default_factory=dict)

    def shape_now(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the present shape of a tensor that had this shape at the beginning."""
        kept = self.keep.get(name, {})
        return tuple(len(kept[axis]) if axis in kept else size for axis, size in enumerate(shape))

    def widen(self, name: str, tensor: Tensor, fill: float) -> Tensor:
        """Return a present tensor in the shape of the beginning, with ``fill`` where entries have left."""
        for axis, kept in self.keep.get(name, {}).items():
            shape = (*tensor.shape[:axis], self.shapes[name][axis], *tensor.shape[axis + 1 :])
            indices = torch.tensor(kept, device=tensor.device)
            tensor = tensor.new_full(shape, fill).index_copy_(axis, indices, tensor)
        return tensor

    def narrow(self, name: str, tensor: Tensor) -> Tensor:
        """Return what is left today of a tensor in the shape of the beginning."""
        for axis, kept in self.keep.get(name, {}).items():
            tensor = tensor.index_select(axis, torch.tensor(kept, device=tensor.device))
        return tensor
