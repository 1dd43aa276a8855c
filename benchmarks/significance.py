"""Whether criteria can be believed: rank correlation of their scores with the true change of the loss.

A residual network on the UCI digits is trained; then sampled channels, and single weights, are removed one at a time
and the loss is measured on the training images without augmentation. Batches of several sizes give the gradients of
the same images.

    python -m benchmarks.significance            # about five minutes on one core
"""

import argparse
import statistics
import warnings

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from examples.digits import ResidualCNN, digits, loaders
from lightning_prune import Channel, Element, significance


def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    """Return the loss that the network was trained with, on the images as they are."""
    return F.cross_entropy(model(batch[0]), batch[1], label_smoothing=0.1)


def trained(seed: int, width: int, epochs: int, train: DataLoader) -> ResidualCNN:
    """Return a network trained from this seed."""
    L.seed_everything(seed, verbose=False)
    model = ResidualCNN(width=width)
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, train)
    return model


def main() -> None:
    """Print the correlations by seed, granularity and batch size, and their means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--units", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*(does not have many workers|number of training batches).*")
    train = loaders(*digits())[0]
    images, targets = (tensor[: args.images] for tensor in train.dataset.tensors)  # type: ignore[attr-defined]
    found: dict[tuple[str, int, str], list[float]] = {}
    for seed in range(args.seeds):
        model = trained(seed, args.width, args.epochs, train)
        for granularity in (Channel(), Element()):
            for size in (8, 64):
                data = DataLoader(TensorDataset(images, targets), size)
                table = significance(model, data, granularity=granularity, loss=loss, validate=args.units, seed=seed)
                assert table.deletion is not None
                for criterion, value in table.deletion.correlations.items():
                    found.setdefault((type(granularity).__name__, size, criterion), []).append(value)
                print(f"seed {seed}, {type(granularity).__name__}, batches of {size}\n{table.deletion}", flush=True)
    print(f"\nmean (lowest) rank correlation over {args.seeds} seeds")
    for (granularity, size, criterion), values in found.items():
        mean, least = statistics.fmean(values), min(values)
        print(f"{granularity:8} batches of {size:3}  {criterion:18} {mean:.3f} ({least:.3f})")


if __name__ == "__main__":
    main()
