"""Small LightningModules, loaders that repeat themselves and a quiet Trainer, for the tests of the Lightning side."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from packages import VERSION, Callback, L, ModelCheckpoint, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import PruningMixin
from lightning_prune.model import masks

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Any]


def momentum_sgd(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.01)


class Net(L.LightningModule):
    """A residual network with batch norm for 6x6 images of 4 classes: two groups of channels can go."""

    def __init__(self, width: int = 8, make_optimizer: MakeOptimizer = momentum_sgd) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(2, 1, 6, 6)
        self.save_hyperparameters(ignore=["make_optimizer"])
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, 4)
        self.register_buffer("attn_mask", torch.ones(4))
        self.make_optimizer = make_optimizer

    def forward(self, images: Tensor) -> Tensor:
        hidden = relu(self.norm1(self.conv1(images)))
        hidden = hidden + self.conv3(relu(self.norm2(self.conv2(hidden))))
        return self.head(relu(hidden).mean((2, 3))) * self.attn_mask

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test_loss", cross_entropy(self(batch[0]), batch[1]))

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.parameters())


class MixedNet(PruningMixin, Net):
    """The same with the mixin."""


class LinearNet(L.LightningModule):
    """Two Linear layers and no example input."""

    def __init__(self, make_optimizer: MakeOptimizer = momentum_sgd, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(12, 16, bias=bias)
        self.second = nn.Linear(16, 4, bias=bias)
        self.make_optimizer = make_optimizer

    def forward(self, features: Tensor) -> Tensor:
        return self.second(relu(self.first(features.flatten(1)[:, :12])))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.parameters())


class Resumable:
    """Batches from a loader, which a checkpoint in the middle of an epoch can take up where it was."""

    def __init__(self, batches: int = 5) -> None:
        self._batches = list(loader(batches))
        self._done = 0
        self._is_over = False

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[Tensor]]:
        if self._is_over:
            self._is_over = False
            return
        for index in range(self._done % len(self), len(self)):
            self._done = index + 1
            yield self._batches[index]

    def state_dict(self) -> dict[str, int]:
        return {"done": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._done = state["done"]
        # Lightning 2.4 goes through the rest of an epoch whose last batch is done, and expects nothing
        self._is_over = VERSION < (2, 5) and self._done == len(self)


def loader(batches: int = 5, batch_size: int = 4) -> DataLoader[Any]:
    """The same batches in the same order whenever it is asked."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batches * batch_size, 1, 6, 6, generator=generator)
    labels = torch.randint(4, (batches * batch_size,), generator=generator)
    return DataLoader(TensorDataset(images, labels), batch_size)


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> L.Trainer:
    """A Trainer that runs on the CPU, prints nothing and writes no checkpoint unless a callback does."""
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "default_root_dir": folder,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "logger": False,
        "max_epochs": 2,
    }
    return Trainer(callbacks=list(callbacks), **(quiet | options))


class AfterStep(Callback):
    """Calls a function after each training batch; stands after the pruning callback in the list."""

    def __init__(self, look: Callable[[Any, Any], object]) -> None:
        self.look = look

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: object, batch: object, batch_idx: int
    ) -> None:
        self.look(trainer, pl_module)


def outputs(model: nn.Module) -> Tensor:
    """Eval-mode outputs on a fixed input; the model's mode stays."""
    images = torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(2))
    was_training = model.training
    with torch.no_grad():
        result = model.eval()(images.to(next(model.parameters()).dtype))
    model.train(was_training)
    return result


def zeros(model: nn.Module, *names: str) -> int:
    """How many positions of the named masks are pruned; of all masks without names."""
    return sum(int((~mask).sum()) for name, mask in masks.read(model).items() if not names or name in names)
