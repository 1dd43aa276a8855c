"""What removing channels at each event saves of the training itself, against masks carried to the end.

A residual network on the UCI digits loses half of its channels early in the fit. Both sides start from the same
weights, see the same batches and prune by the same recipe; their fits take turns.

    python -m benchmarks.shrink_training            # about ten minutes on one core
"""

import argparse
import statistics
import time

import lightning as L
import torch
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, TensorDataset

from examples.digits import ResidualCNN, digits
from lightning_prune import Channel, Linear, PruningCallback, Recipe, Taylor, summarize

RECIPE = Recipe(
    granularity=Channel(),
    criterion=Taylor(),
    schedule=Linear(final_sparsity=0.5, begin_step=0.02, end_step=0.2, frequency=15),
)


def fit(seed: int, width: int, epochs: int, data: list[DataLoader], compact_every_event: bool) -> tuple[float, float]:
    """Train and prune; return the seconds of the whole fit and the test accuracy."""
    L.seed_everything(seed, verbose=False)
    model = ResidualCNN(width=width)
    callback = PruningCallback(RECIPE, compact_every_event=compact_every_event)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=[callback], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    started = time.perf_counter()
    trainer.fit(model, data[0])
    seconds = time.perf_counter() - started
    images, targets = data[1].dataset.tensors  # type: ignore[attr-defined]
    with torch.no_grad():
        accuracy = (model.eval()(images).argmax(1) == targets).float().mean().item()
    print(f"  seed {seed} compact_every_event={compact_every_event!s:5} {seconds:7.1f} s  {accuracy:.2%}  "
          f"{summarize(model).macs:,} MACs", flush=True)  # fmt: skip
    return seconds, accuracy


def main() -> None:
    """Let the sides take turns and print the ratio of their times and the difference of their accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--width", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    images, targets = digits()
    split = train_test_split(images, targets, test_size=0.25, random_state=0, stratify=targets)
    training, test = TensorDataset(split[0], split[2]), TensorDataset(split[1], split[3])
    data = [DataLoader(training, 64, shuffle=True, drop_last=True), DataLoader(test, 512)]
    pairs = []
    for seed in range(args.seeds):
        order = (False, True) if seed % 2 else (True, False)
        found = {shrinks: fit(seed, args.width, args.epochs, data, shrinks) for shrinks in order}
        pairs.append((found[False], found[True]))
    ratios = [removed[0] / masked[0] for masked, removed in pairs]
    masked, removed = (statistics.mean(pair[side][1] for pair in pairs) for side in (0, 1))
    print(
        f"time of the fit, removed / masked: median {statistics.median(ratios):.3f},"
        f" {min(ratios):.3f} to {max(ratios):.3f}"
    )
    print(f"test accuracy, mean of {args.seeds} seeds: masked {masked:.2%}, removed {removed:.2%}")


if __name__ == "__main__":
    main()
