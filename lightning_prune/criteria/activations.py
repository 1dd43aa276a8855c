"""Criteria that watch the inputs of layers."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lightning_prune.criteria.watching import ActivationCriterion


@dataclass(frozen=True)
class Wanda(ActivationCriterion):
    """Magnitude times the size of what it is multiplied with: |w_ij| * ||x_j||_2.

    x_j is everything that meets weight w_ij in a forward pass: for a Linear the j-th feature of all rows, for a
    convolution the column of its unfolded input (stride, padding and groups included). The squares are summed over a
    forward pass and averaged over the passes since the last event; the root is taken then.

    Source:
        Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models", equation 1. They rank
        inside each row of a Linear; here the allocation says what is ranked together, and it may also be channels.

    Example:
        >>> seen = Wanda().observe(nn.Linear(2, 1), torch.tensor([[3.0, 0.5]]))
        >>> Wanda().score(torch.tensor([-1.0, 2.0]), seen)
        tensor([[3., 1.]])
    """

    def observe(self, layer: nn.Module, inputs: Tensor) -> Tensor:
        """Return the sum of the squares that each weight meets, shape of ``layer.weight``."""
        weight, squares = layer.weight, inputs.square()
        if not isinstance(weight, Tensor):
            raise TypeError(f"{type(layer).__name__} has no weight to observe")
        if isinstance(layer, _ConvTransposeNd):
            sums = squares.transpose(1 - weight.dim(), -1).reshape(-1, len(weight)).sum(0)
            return sums.view(-1, *(1,) * (weight.dim() - 1)).expand(weight.shape)
        if isinstance(layer, _ConvNd):
            # the gradient by a weight of one output channel per convolution group is the sum of what the weight meets
            with torch.enable_grad():
                shape = (layer.groups, *weight.shape[1:])
                probe = torch.zeros(shape, dtype=squares.dtype, device=squares.device, requires_grad=True)
                met = layer._conv_forward(squares, probe, None)  # pyright: ignore[reportCallIssue]
            columns = torch.autograd.grad(met, probe, torch.ones_like(met))[0]
            return columns.repeat_interleave(len(weight) // layer.groups, dim=0)
        return squares.reshape(-1, squares.shape[-1]).sum(0).expand(weight.shape)

    def score(self, weight: Tensor, mean: Tensor) -> Tensor:
        """Return |w| times the root of the mean."""
        return weight.abs() * mean.sqrt()
