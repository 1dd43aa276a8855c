"""Other pruners as callbacks of the same fit, for `benchmarks.peers`: the same events, down to the same shares."""

import logging

import lightning as L
import torch
import torch.nn.utils.prune as torch_prune
from lightning.pytorch.callbacks import ModelPruning
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.tasks import Task, layers, macs, seen


def events(task: Task, final: float) -> dict[int, float]:
    """Return step -> sparsity of the events that everybody has: cubic, in the first half of the steps."""
    begin, end, frequency = timing(task)
    steps = [*range(begin + frequency, end, frequency), end]
    return {step: final * (1 - (1 - (step - begin) / (end - begin)) ** 3) for step in steps}


def timing(task: Task) -> tuple[int, int, int]:
    """Return begin, end and frequency of the events."""
    total = task.more * task.steps
    begin, end = round(0.01 * total), round(0.5 * total)
    return begin, end, max(1, (end - begin) // 10)


class TorchPruning(L.Callback):
    """torch-pruning in the same loop: at the same steps down to the same multiply-accumulates, group by group.

    Args:
        task: of the fit.
        final: share of the multiply-accumulates that goes.
        score: "Magnitude", "Taylor" or "GroupNorm", which also drives groups to zero between the steps.
        is_global: one ranking over all layers.
        seed: of the batches that Taylor sees.
    """

    def __init__(self, task: Task, final: float, score: str, is_global: bool, seed: int) -> None:
        self.task, self.score, self.is_global, self.seed = task, score, is_global, seed
        self.events = events(task, final)

    def start(self, net: nn.Module) -> None:
        """Build the pruner for a network."""
        import torch_pruning as tp  # pyright: ignore[reportMissingImports]

        self.total = macs(net, self.task.example)
        by_gradient = self.score == "Taylor"
        score = tp.importance.GroupTaylorImportance() if by_gradient else tp.importance.GroupMagnitudeImportance()
        kind = tp.pruner.GroupNormPruner if self.score == "GroupNorm" else tp.pruner.BasePruner
        # its regularizer divides by zero where a group has come down to one channel
        options = {"max_pruning_ratio": 0.9} if self.score == "GroupNorm" else {}
        head = layers(net)[-1]
        self.pruner = kind(net, self.task.example, importance=score, global_pruning=self.is_global, pruning_ratio=1.0,
                           iterative_steps=120, ignored_layers=[head], **options)  # fmt: skip

    def cut(self, net: nn.Module, share: float, step: int) -> None:
        """Remove groups until no more than 1 - share of the multiply-accumulates is left."""
        limit = self.total * (1 - share) + 1e-6
        net.eval()
        while macs(net, self.task.example) > limit and self.pruner.current_step < self.pruner.iterative_steps - 1:
            if self.score == "Taylor":
                net.zero_grad()
                for images, classes in seen(self.task, 4, step + 1000 * self.seed):
                    cross_entropy(net(images), classes).backward()
            for group in self.pruner.step(interactive=True):
                group.prune()
                if macs(net, self.task.example) <= limit:
                    break
        net.zero_grad()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Build the pruner."""
        self.start(pl_module.net)  # type: ignore[arg-type]

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Drive groups to zero, where that is asked for."""
        if self.score == "GroupNorm" and trainer.global_step <= max(self.events):
            self.pruner.regularize(pl_module.net)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Cut, and give the optimizer the new parameters: torch-pruning replaces them, so state goes."""
        step = trainer.global_step
        if step not in self.events:
            return
        self.cut(pl_module.net, self.events[step], step)  # type: ignore[arg-type]
        pl_module.train()
        if self.score == "GroupNorm":
            self.pruner.update_regularizer()
        optimizer = trainer.optimizers[0]
        optimizer.param_groups[0]["params"] = list(pl_module.parameters())
        optimizer.state.clear()


class TorchPrune(L.Callback):
    """torch.nn.utils.prune, global magnitude, at the same steps."""

    def __init__(self, task: Task, final: float) -> None:
        self.events, self.pruned = events(task, final), 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Prune what the step asks for."""
        if trainer.global_step not in self.events:
            return
        weights = [(layer, "weight") for layer in layers(pl_module)]
        wanted = round(self.events[trainer.global_step] * sum(layer.weight.numel() for layer, _ in weights))  # type: ignore[operator]
        amount, self.pruned = wanted - self.pruned, wanted
        torch_prune.global_unstructured(weights, torch_prune.L1Unstructured, amount=amount)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fold the masks."""
        for layer in layers(pl_module):
            torch_prune.remove(layer, "weight")


class _Weights(ModelPruning):
    """Lightning's own callback, on the weights that everybody prunes."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Choose the weights."""
        self._parameters_to_prune = [(layer, "weight") for layer in layers(pl_module)]
        super().setup(trainer, pl_module, stage)


def model_pruning(task: Task, final: float, _: int) -> list[L.Callback]:
    """Return Lightning's ModelPruning: the same share of what is left after each epoch of the first half."""
    last = task.more // 2
    share = 1 - (1 - final) ** (1 / last)
    return [_Weights("l1_unstructured", amount=lambda epoch: share if epoch < last else 0.0,
                     use_lottery_ticket_hypothesis=False)]  # fmt: skip


class Nncf(L.Callback):
    """NNCF's global magnitude, which divides by each layer's norm, at the same steps."""

    def __init__(self, task: Task, final: float) -> None:
        self.task, self.events = task, events(task, final)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Wrap the network."""
        import nncf  # pyright: ignore[reportMissingImports]

        logging.getLogger("nncf").setLevel(logging.ERROR)
        mode = nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL
        pl_module.net = nncf.prune(pl_module.net.eval(), mode, examples_inputs=self.task.example, ratio=0.0)  # type: ignore[operator, union-attr]
        pl_module.net.train()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Raise the ratio."""
        import nncf  # pyright: ignore[reportMissingImports]
        from nncf.torch.function_hook.pruning.magnitude.algo import update_pruning_ratio  # pyright: ignore[reportMissingImports]

        if trainer.global_step in self.events:
            ratio = self.events[trainer.global_step]
            update_pruning_ratio(pl_module.net, nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL, ratio)  # type: ignore[arg-type]
