"""Small networks and loaders for the study stage, and what must not change."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from support import Net
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric


class Chatty(Net):
    """Logs, keeps a metric and a list, draws random numbers: whatever a training_step does beside its loss."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(width)
        self.seen = MeanMetric()
        self.outputs: list[Tensor] = []
        self.drop = nn.Dropout(0.5)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        loss = cross_entropy(self.drop(self(batch[0] + 0.01 * torch.randn_like(batch[0]))), batch[1])
        self.log("loss", loss)
        self.log_dict({"step": float(batch_idx)})
        self.seen.update(loss.detach())
        self.outputs.append(loss.detach())
        return {"loss": loss}


def batches(count: int = 3) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        [torch.randn(4, 1, 6, 6, generator=generator), torch.randint(4, (4,), generator=generator)]
        for _ in range(count)
    ]


def accuracy(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return (model(batch[0]).argmax(1) == batch[1]).float().mean()


def plain_loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1])


def trace(model: nn.Module) -> dict[str, Any]:
    """All that a look at a model must leave as it was."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    found: dict[str, Any] = {name: tensor.detach().numpy().tobytes() for name, tensor in tensors.items()}
    found |= {f"{name} (grad)": None if p.grad is None else p.grad.tolist() for name, p in model.named_parameters()}
    found["modes"] = [module.training for module in model.modules()]
    found["objects"] = [id(tensor) for tensor in tensors.values()]
    found["hooks"] = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    found["attributes"] = [sorted(vars(module)) for module in model.modules()]
    found["random state"] = torch.get_rng_state().tolist()
    return found


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    before = trace(model)
    try:
        yield
    finally:
        after = trace(model)
        changed = [name for name in before.keys() | after.keys() if after.get(name) != before.get(name)]
        assert changed == [], changed
