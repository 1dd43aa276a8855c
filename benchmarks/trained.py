"""A trained model pruned without training: the cut alone, and with repair. `python -m benchmarks.trained [SEEDS]`."""

import copy
import sys

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from lightning_prune import (
    Channel,
    Fisher,
    Global,
    LeastSquares,
    Magnitude,
    OneShot,
    Recipe,
    Reconstruction,
    Uniform,
    prune,
)


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both ways."""
        return relu(self.norm2(self.conv2(relu(self.norm1(self.conv1(x))))) + self.shortcut(x))


def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of right answers in percent."""
    with torch.no_grad():
        return 100 * float((net.eval()(x).argmax(1) == y).float().mean())


def trained(seed: int, x: Tensor, y: Tensor) -> nn.Module:
    """Return a residual network trained on these images for 30 epochs."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), Block(16, 16, 1), Block(16, 32, 2),
        Block(32, 32, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=30 * 12)
    for _ in range(30):
        for index in torch.randperm(len(x)).split(50):
            optimizer.zero_grad()
            cross_entropy(net.train()(x[index]), y[index], label_smoothing=0.1).backward()
            optimizer.step()
            scheduler.step()
    return net


def main(seeds: int) -> None:
    """Print a row per seed, criterion, allocation and share of the multiply-accumulates left."""
    torch.set_num_threads(1)
    images, targets = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(targets)
    train, test = train_test_split(range(len(y)), train_size=600, stratify=targets, random_state=0)
    data = list(zip(x[train].split(50), y[train].split(50), strict=True))
    print("seed  left  criterion       allocation  dense  cut alone  repaired")
    for seed in range(seeds):
        dense = trained(seed, x[train], y[train])
        for left in (0.7, 0.5, 0.3):
            for criterion in (Magnitude(), Fisher(), Reconstruction()):
                for allocation in (Uniform(), Global()):
                    recipe = Recipe(
                        granularity=Channel(), schedule=OneShot(1 - left), criterion=criterion, allocation=allocation,
                        count="macs",
                    )  # fmt: skip
                    reached = []
                    for repair in (None, LeastSquares()):
                        net = copy.deepcopy(dense)
                        prune(
                            net, recipe, data, loss=lambda m, b: cross_entropy(m(b[0]), b[1]), repair=repair,
                            progress=False,
                        )  # fmt: skip
                        reached.append(accuracy(net, x[test], y[test]))
                    names = f"{type(criterion).__name__:<14}  {type(allocation).__name__:<10}"
                    print(
                        f"{seed:4}  {left:4}  {names}  {accuracy(dense, x[test], y[test]):5.1f}  {reached[0]:9.1f}"
                        f"  {reached[1]:8.1f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
