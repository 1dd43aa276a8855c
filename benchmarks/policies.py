"""Whether a change of the learning rate after an event helps: Mask, Rewarm and LRRewind under one budget.

A residual network on the UCI digits loses 90 % of its multiply-accumulates as channels, in three ways: bit by bit
while it trains and the learning rate falls over the whole run; the same, but until late in the run; and at once when it
has been trained to the end, with the learning rate at a hundredth of its start. All sides have the same seeds and
epochs; the accuracy is that on the validation and test images together.

    python -m benchmarks.policies            # about twelve minutes on one core
    python -m benchmarks.policies --ways trained
"""

import argparse
import math
import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader

from examples.digits import ResidualCNN, digits, loaders
from lightning_prune import Channel, Global, LRRewind, Mask, OneShot, Polynomial, Recipe, Rewarm, Taylor, compare
from lightning_prune.schedules import Schedule

POLICIES = {"Mask()": Mask(), "Rewarm(19)": Rewarm(19), "LRRewind()": LRRewind()}
WAYS: dict[str, tuple[float, Schedule]] = {
    "training": (1.0, Polynomial(0.9, begin_step=0.1, end_step=0.5, frequency=15)),
    "late": (1.0, Polynomial(0.9, begin_step=0.1, end_step=0.8, frequency=15)),
    "trained": (0.5, OneShot(0.9, begin_step=0.5)),
}
"""Way -> share of the steps over which the learning rate falls, and the schedule of the sparsity."""


class Annealed(ResidualCNN):
    """The network of the example; its learning rate falls as a cosine and stays at a hundredth."""

    def __init__(self, width: int, share: float) -> None:
        super().__init__(width=width)
        self.share = share

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW with the cosine."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.rate, weight_decay=1e-3)
        last = self.share * int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, step / last))) / 2
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def accuracy(model: nn.Module, batch: list[Tensor]) -> Tensor:
    """Return the share of right answers."""
    return (model(batch[0]).argmax(1) == batch[1]).float().mean()


def main() -> None:
    """Print a table of the policies for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*(does not have many workers|number of training batches).*")
    train, val, test = loaders(*digits())
    held_out = DataLoader(ConcatDataset([val.dataset, test.dataset]), 64)
    for way in args.ways:
        share, schedule = WAYS[way]
        recipe = partial(Recipe, granularity=Channel(), criterion=Taylor(), allocation=Global(cost="macs"))
        recipes = {
            name: recipe(schedule=schedule, count="macs", optimizer_policy=one) for name, one in POLICIES.items()
        }
        result = compare(
            partial(Annealed, args.width, share), (train, held_out), recipes, budget_epochs=args.epochs,
            seeds=args.seeds, metric=accuracy, trainer={"accelerator": "cpu"},
        )  # fmt: skip
        print(f"{way}, {schedule}\n{result}\n", flush=True)


if __name__ == "__main__":
    main()
