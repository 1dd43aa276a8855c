"""Zeros inside the weights of a plain LightningModule: single weights, 2 of 4, and blocks, without the mixin.

Neither mixin nor example input is needed, since no layer changes its shape. Two recipes may share one run as long as
their targets differ: here single weights in the first layer and 2 of 4 in the others.

    python examples/elements_plain_module.py
"""

import lightning as L
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import Block, Element, NOfM, Polynomial, PruningCallback, Recipe, Targets, Uniform, summarize


class Classifier(L.LightningModule):
    """An MLP for 64 pixels and 10 classes."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss."""
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the accuracy."""
        self.log("val_acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)


def schedule(final_sparsity: float) -> Polynomial:
    """Return the cubic schedule from a tenth of the run to four fifths of it."""
    return Polynomial(final_sparsity=final_sparsity, begin_step=0.1, end_step=0.8, frequency=10)


RECIPES = {
    "element": Recipe(granularity=Element(), schedule=schedule(0.9)),
    "2 of 4": Recipe(granularity=NOfM(2, 4), schedule=schedule(0.5)),
    "block": Recipe(granularity=Block((2, 4)), schedule=schedule(0.7), allocation=Uniform()),
    "mixed": [
        Recipe(granularity=Element(), schedule=schedule(0.9), targets=Targets(include=("net.0",))),
        Recipe(granularity=NOfM(2, 4), schedule=schedule(0.5), targets=Targets(exclude=("net.0",))),
    ],
}


def main(epochs: int = 4) -> dict[str, float]:
    """Train once for each recipe; return the share of zeros by name."""
    images, targets = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images).float() / 16, torch.tensor(targets))
    train, val = torch.utils.data.random_split(data, [1437, 360], torch.Generator().manual_seed(0))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    zeros = {}
    for name, recipe in RECIPES.items():
        L.seed_everything(0, verbose=False)
        model = Classifier()
        callbacks: list[L.Callback] = [PruningCallback(recipe)]
        trainer = L.Trainer(
            max_epochs=epochs, accelerator="cpu", callbacks=callbacks, enable_model_summary=False, **quiet
        )
        trainer.fit(model, DataLoader(train, 64, shuffle=True), DataLoader(val, 360))
        zeros[name] = summarize(model).sparsity
        print(f"{name:>8}: {zeros[name]:6.1%} of the parameters are zero, {trainer.callback_metrics['val_acc']:.1%}")
    return zeros


if __name__ == "__main__":
    main()
