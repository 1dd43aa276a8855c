"""Tasks on which recipes and peers are compared: data, networks, and one way to train and to measure for everybody.

digits: 600 of scikit-learn's handwritten digits to train on, 1,197 to test; a residual network with batch norm.
characters: 94 printable characters in twelve fonts, tested in four others; a residual network with batch norm.
letters: the 26 capital letters among them; a plain network without any norm.
"""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import lightning as L
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad, relu
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset, TensorDataset

from examples.characters_data import LABELS, TEST_FONTS, characters, distorted, glyphs

Augment = Callable[[Tensor, torch.Generator], Tensor]


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both ways."""
        return relu(self.norm2(self.conv2(relu(self.norm1(self.conv1(x))))) + self.shortcut(x))


class Residual(nn.Module):
    """A stem, residual blocks, and a head on their mean.

    Args:
        width: of the stem.
        stride: of the stem.
        blocks: width and stride of each block.
        classes: of the head.
    """

    def __init__(self, width: int, stride: int, blocks: Sequence[tuple[int, int]], classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential()
        for outputs, strides in blocks:
            self.blocks.append(Block(width, outputs, strides))
            width = outputs
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def digits_net(a: int = 16, b: int = 32) -> nn.Module:
    """Return a network for 8x8 digits."""
    return Residual(a, 1, ((a, 1), (b, 2), (b, 1)), 10)


def characters_net(a: int = 16, b: int = 32, c: int = 64) -> nn.Module:
    """Return a network for 32x32 characters."""
    return Residual(a, 2, ((b, 2), (c, 2)), 94)


def letters_net(a: int = 16, b: int = 32, c: int = 64) -> nn.Module:
    """Return a network for 32x32 letters without any norm."""
    return nn.Sequential(
        nn.Conv2d(1, a, 5, 2, 2), nn.ReLU(), nn.Conv2d(a, b, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(b, b, 3, 1, 1), nn.ReLU(), nn.Conv2d(b, c, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16 * c, 3 * b), nn.ReLU(), nn.Linear(3 * b, 26),
    )  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What a network learns, and how.

    Args:
        name: of the task.
        train: images and classes.
        test: images and classes that are never trained on.
        augment: what each batch of training goes through.
        make: widths -> a network.
        widths: of the dense network.
        small: widths of smaller dense networks.
        batch: samples of a step.
        rate: highest learning rate.
        adam: whether AdamW learns, instead of SGD with momentum.
        first: epochs of the dense network.
        more: epochs from there on, in which everybody prunes.
        smoothing: of the labels.
    """

    name: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    augment: Augment
    make: Callable[..., nn.Module]
    widths: tuple[int, ...]
    small: tuple[tuple[int, ...], ...]
    batch: int
    rate: float
    adam: bool
    first: int = 30
    more: int = 16
    smoothing: float = 0.0

    @property
    def example(self) -> Tensor:
        """One input, zeros."""
        return torch.zeros(1, *self.train[0].shape[1:])

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return len(self.train[0]) // self.batch


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return each image moved by up to an eighth of its side in both directions."""
    count, _, height, width = images.shape
    most = height // 8
    padded = pad(images, (most,) * 4)
    top, left = torch.randint(0, 2 * most + 1, (2, count, 1), generator=generator)
    rows, columns = (top + torch.arange(height))[:, :, None], (left + torch.arange(width))[:, None, :]
    return padded[torch.arange(count)[:, None, None], :, rows, columns].permute(0, 3, 1, 2)


@cache
def task(name: str) -> Task:
    """Return the task of this name."""
    if name == "digits":
        x, y = load_digits(return_X_y=True)
        images, classes = torch.tensor(x, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(y)
        train, test = train_test_split(range(len(y)), train_size=600, stratify=y, random_state=0)
        data = (images[train], classes[train]), (images[test], classes[test])
        pairs = tuple((a, b) for a in range(2, 17) for b in range(max(2, 2 * a - 2), 2 * a + 3))
        return Task(name, *data, shifted, digits_net, (16, 32), pairs, 50, 0.1, adam=False, smoothing=0.1)
    small = tuple((a, b, c) for a in range(2, 17) for b in (2 * a - 1, 2 * a, 2 * a + 1)
                  for c in (2 * b - 1, 2 * b, 2 * b + 1))  # fmt: skip
    if name == "letters":
        letters = _letters(glyphs(4)), _letters(characters(60, fonts=TEST_FONTS, seed=7))
        return Task(name, *letters, distorted, letters_net, (16, 32, 64), small, 52, 2e-3, adam=True, first=20, more=8)
    train, test = glyphs(1).tensors, characters(30, fonts=TEST_FONTS, seed=7).tensors
    data = (train[0], train[1]), (test[0], test[1])
    return Task(name, *data, distorted, characters_net, (16, 32, 64), small, 94, 4e-3, adam=True, more=12)


def _letters(data: TensorDataset) -> tuple[Tensor, Tensor]:
    images, classes = data.tensors
    first = LABELS.index("A")
    inside = (classes >= first) & (classes < first + 26)
    return images[inside], classes[inside] - first


TASKS = ("digits", "letters", "characters")


class _Batches(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, task: Task) -> None:
        self._task = task

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return self._task.train[0][index], self._task.train[1][index]


class _Order:
    """The same batches in the same order for everybody with the same seed."""

    def __init__(self, task: Task, seed: int) -> None:
        self._task, self._seed, self._epoch = task, seed, 0

    def __len__(self) -> int:
        return self._task.steps

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self._seed * 7919 + self._epoch)
        self._epoch += 1
        order = torch.randperm(len(self._task.train[0]), generator=generator)
        return iter(order.split(self._task.batch)[: self._task.steps])


class Learner(L.LightningModule):
    """A network that learns a task.

    Args:
        net: which learns.
        task: which it learns.
        steps: of the fit.
        seed: of the augmentation.
        rate: highest learning rate.
    """

    def __init__(self, net: nn.Module, task: Task, steps: int, seed: int, rate: float) -> None:
        super().__init__()
        self.net, self.example_input_array = net, task.example
        self._task, self._steps, self._rate = task, steps, rate
        self._generator = torch.Generator().manual_seed(seed * 31 + 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Return the cross entropy of augmented images."""
        images = self._task.augment(batch[0], self._generator)
        return cross_entropy(self(images), batch[1], label_smoothing=self._task.smoothing)

    def configure_optimizers(self) -> Any:  # noqa: ANN401
        """Return the optimizer with one cycle of the learning rate."""
        rate = self._rate
        if self._task.adam:
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(self.parameters(), rate, weight_decay=1e-3)
        else:
            optimizer = torch.optim.SGD(self.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
        cycle = OneCycleLR(optimizer, rate, total_steps=self._steps + 1, cycle_momentum=False)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


def fit(
    net: nn.Module, task: Task, epochs: int, seed: int, callbacks: Sequence[L.Callback] = (), slower: float = 1.0
) -> nn.Module:
    """Train a network for so many epochs, at a learning rate divided by ``slower``; return what the callbacks left."""
    torch.manual_seed(seed)
    learner = Learner(net.train(), task, epochs * task.steps, seed, task.rate / slower)
    loader = DataLoader(_Batches(task), batch_size=None, sampler=_Order(task, seed))
    trainer = L.Trainer(
        max_epochs=epochs, callbacks=list(callbacks), accelerator="cpu", num_sanity_val_steps=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(learner, loader)
    return learner.net


@cache
def _dense(name: str, seed: int) -> nn.Module:
    torch.manual_seed(1000 + seed)
    chosen = task(name)
    return fit(chosen.make(*chosen.widths), chosen, chosen.first, seed)


def dense(name: str, seed: int) -> nn.Module:
    """Return a copy of the dense network that everybody starts from."""
    return copy.deepcopy(_dense(name, seed))


@torch.no_grad()
def accuracy(net: nn.Module, task: Task) -> float:
    """Return the share of right answers on the test images in percent."""
    net.eval()
    answers = torch.cat([net(images).argmax(1) for images in task.test[0].split(500)])
    return 100 * float((answers == task.test[1]).float().mean())


def seen(task: Task, count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return some batches of the training data, augmented: what may be looked at without training."""
    generator = torch.Generator().manual_seed(seed * 17 + 3)
    order = torch.randperm(len(task.train[0]), generator=generator).split(task.batch)[:count]
    return [(task.augment(task.train[0][index], generator), task.train[1][index]) for index in order]


def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the cross entropy."""
    return cross_entropy(net(batch[0]), batch[1])


def quiet() -> None:
    """Compute on one thread, and leave warnings and logs out of the tables."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning_prune"):
        logging.getLogger(name).setLevel(logging.ERROR)


def layers(net: nn.Module) -> list[nn.Module]:
    """Return the layers that count: Linear and convolutions."""
    return [module for module in net.modules() if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)]


@torch.no_grad()
def macs(net: nn.Module, example: Tensor) -> int:
    """Return the multiply-accumulates of one call, counted from the shapes of weights and outputs: for all alike."""
    counted = []

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        weight = layer.get_parameter("weight")
        per_output = weight.shape[1] if isinstance(layer, nn.Linear) else weight[0].numel()
        counted.append(output.numel() * per_output)

    handles = [layer.register_forward_hook(count) for layer in layers(net)]
    was_training = net.training
    net.eval()(example)
    net.train(was_training)
    for handle in handles:
        handle.remove()
    return sum(counted)


def small(task: Task, budget: float) -> tuple[int, ...]:
    """Return the widths of the largest small dense network within a share of the dense multiply-accumulates."""
    total = macs(task.make(*task.widths), task.example)
    shares = {widths: macs(task.make(*widths), task.example) / total for widths in task.small}
    return max((widths for widths in shares if shares[widths] <= 1.02 * budget), key=lambda w: shares[w])
