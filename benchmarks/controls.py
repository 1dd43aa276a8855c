"""Training that makes weights sparse by itself, tried beside pruning in the tables of `benchmarks.peers`."""

import math

import lightning as L
import torch
from torch import Tensor

from benchmarks.tasks import Task, layers
from lightning_prune import channel_groups
from lightning_prune.model.masks import dense_parameters


class GroupPenalty(L.Callback):
    """Growing penalties that drive whole channels to zero before they are cut.

    Adds λ(t) w / ‖w_c‖ to the gradient of every weight of a channel c, with λ from 0 to ``most`` at the last event, for
    the lower half of the channels of each group.

    Args:
        last: step of the last event.
        most: λ at that step.

    Source: Wen et al. 2016 (SSL), the group lasso; growing strengths as in Wang et al. 2021 (GReg).
    """

    def __init__(self, last: int, most: float = 1e-3) -> None:
        self.last, self.most = last, most

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find the groups."""
        self.groups = [group for group in channel_groups(pl_module, pl_module.example_input_array) if group.prunable]  # type: ignore[arg-type]

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Add the penalty's gradient."""
        if trainer.global_step > self.last:
            return
        strength, parameters = self.most * trainer.global_step / self.last, dense_parameters(pl_module)
        for group in self.groups:
            members = [member for member in group.members if member.parameter in parameters]
            squares = torch.zeros(group.size)
            for member in members:
                at = torch.from_numpy(member.indices)
                weight = parameters[member.parameter]
                squares += (
                    weight.square().movedim(member.axis, 0).reshape(weight.shape[member.axis], -1).sum(1)[at].sum(1)
                )
            norms = squares.sqrt()
            factor = strength / norms.clamp_min(1e-6) * (norms <= norms.median())
            for member in members:
                weight = parameters[member.parameter]
                if weight.grad is None:
                    continue
                along = torch.zeros(weight.shape[member.axis])
                along[torch.from_numpy(member.indices)] = factor[:, None]
                weight.grad += weight * along.view(*(-1 if axis == member.axis else 1 for axis in range(weight.dim())))


class RigL(L.Callback):
    """At once to the final sparsity by magnitude; then the smallest weights go and those of the largest gradient grow.

    Args:
        task: of the fit.
        final: share of the weights that is zero.
        share: of the weights that are exchanged at first; falls with a cosine.

    Source: Evci et al. 2020 (RigL), algorithm 1.
    """

    def __init__(self, task: Task, final: float, share: float = 0.3) -> None:
        self.final, self.share, self.end = final, share, 0.75 * task.more * task.steps

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Choose the first masks."""
        self.weights = [layer.get_parameter("weight") for layer in layers(pl_module)]
        values = torch.cat([weight.detach().abs().flatten() for weight in self.weights])
        cut = values.kthvalue(round(self.final * len(values))).values
        self.masks = [(weight.detach().abs() > cut).float() for weight in self.weights]
        self._apply(trainer)

    @torch.no_grad()
    def _apply(self, trainer: L.Trainer) -> None:
        for weight, mask in zip(self.weights, self.masks, strict=True):
            weight *= mask
            for value in trainer.optimizers[0].state.get(weight, {}).values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    value *= mask

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Keep the dense gradients, and give the optimizer those of live weights."""
        self.gradients = [torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in self.weights]
        for weight, mask in zip(self.weights, self.masks, strict=True):
            if weight.grad is not None:
                weight.grad *= mask

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Exchange weights every twelve steps of the first three quarters."""
        self._apply(trainer)
        step = trainer.global_step
        if step % 12 or step >= self.end:
            return
        share = self.share / 2 * (1 + math.cos(math.pi * step / self.end))
        for weight, mask, gradient in zip(self.weights, self.masks, self.gradients, strict=True):
            count = int(share * mask.sum())
            live = mask.bool()
            goes = torch.where(live, weight.detach().abs(), torch.inf).flatten().topk(count, largest=False).indices
            grows = torch.where(live, -1.0, gradient.abs()).flatten().topk(count).indices
            mask.view(-1)[goes] = 0
            mask.view(-1)[grows] = 1
        self._apply(trainer)
