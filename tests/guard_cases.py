"""A network whose metric tells nothing but how much of it is left, so that a guard's verdicts are known beforehand."""

from typing import Any

from support import Net
from torch import Tensor

from lightning_prune.model import masks


def gone(model: Any) -> float:
    """The share of the convolutions' elements that masks or removals have taken."""
    dense = Net()
    names = ("conv1.weight", "conv2.weight", "conv3.weight")
    left = masks.read(model)
    held = sum(int(left[n].sum()) if n in left else masks.dense_parameters(model)[n].numel() for n in names)
    return 1 - held / sum(dict(dense.named_parameters())[n].numel() for n in names)


class Brittle(Net):
    """Its accuracy depends on nothing but how much of it is left: past the limit it falls."""

    limit = 0.55

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_acc", 0.9 - max(0.0, gone(self) - self.limit))


def zeros(model: Any) -> float:
    """Which share of the weights of convolutions is zero."""
    weights = [p for n, p in model.named_parameters() if n.startswith("conv") and p.dim() > 1]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
