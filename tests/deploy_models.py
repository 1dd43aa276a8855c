"""Small networks, and one export of one of them, shared by the tests of lightning_prune.deploy."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_prune.deploy import Artifact, export

EXAMPLE = torch.zeros(4, 1, 8, 8)
LABELS = ("zero", "one", "two")


class Small(nn.Module):
    """Convolution, batch norm with statistics of its own, pooling, Linear: (N, 1, 8, 8) -> (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 3)
        with torch.no_grad():
            self.norm.running_mean.uniform_(-1, 1)  # pyright: ignore[reportOptionalMemberAccess]
            self.norm.running_var.uniform_(0.5, 2)  # pyright: ignore[reportOptionalMemberAccess]
            self.head.weight.mul_(4)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.drop(self.pool(self.norm(self.conv(image)).relu()).flatten(1)))


class Wide(nn.Module):
    """Two wide convolutions, and a narrow one beside them: (N, 3, 40, 40) -> (N, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.narrow = nn.Conv2d(64, 8, 1)
        self.back = nn.Conv2d(8, 64, 1)
        self.last = nn.Conv2d(64, 48, 3, padding=1)
        self.head = nn.Linear(48, 2)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).relu()
        x = x + self.back(self.narrow(x).relu())
        return self.head(self.last(x).relu().amax((2, 3)))


class TwoInputs(nn.Module):
    """Token numbers and features in; a dict of several tensors out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.linear = nn.Linear(4, 4)

    def forward(self, tokens: Tensor, *features: Tensor) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
        hidden = self.embedding(tokens) + self.linear(features[0])
        return {"logits": hidden.relu(), "aux": (hidden, hidden.argmax(1))}


def small(seed: int = 0) -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Small()


def images(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def loader(count: int = 10, batch_size: int = 6) -> DataLoader[tuple[Tensor, ...]]:
    """Batches of 6 and 4 for a program that takes 4 at a time."""
    return DataLoader(TensorDataset(images(count), torch.arange(count) % 3), batch_size=batch_size)


def exported(folder: Path) -> Artifact:
    return export(
        small(),
        folder / "small.pte",
        example_inputs=EXAMPLE,
        verify_on=loader(),
        metric=MulticlassAccuracy(3, average="micro"),
        labels=LABELS,
    )
