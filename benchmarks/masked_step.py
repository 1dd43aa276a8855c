"""A training step with our masks beside the same step with torch.nn.utils.prune's own masks, interleaved in one run.

Prints the ratio of the median step times (ours / torch's) for a convolutional network and an MLP, the extra time
over a dense model, and whether the finalized model has exactly the modules of a plain one.

    python benchmarks/masked_step.py
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from lightning_prune import OneShot, PruningRun, Recipe, finalize
from lightning_prune.model.masks import read

SPARSITY = 0.8


def convolutional() -> tuple[nn.Module, Tensor]:
    """Return a batch-norm CNN and a batch of 32 images (3, 32, 32)."""

    def layer(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    layers = [*layer(3, 32, 1), *layer(32, 64, 2), *layer(64, 64, 1), *layer(64, 128, 2), *layer(128, 128, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)), torch.rand(32, 3, 32, 32)


def perceptron() -> tuple[nn.Module, Tensor]:
    """Return an MLP whose weights outweigh its activations, and a batch of 64 vectors."""
    layers = [nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)]
    return nn.Sequential(*layers), torch.rand(64, 512)


def ours(model: nn.Module) -> tuple[nn.Module, Callable[[torch.optim.Optimizer], PruningRun]]:
    """Attach our masks and prune to 80 %; the run takes part in every step as in training."""
    run = PruningRun([Recipe(schedule=OneShot(SPARSITY))], model, None, None)

    def start(optimizer: torch.optim.Optimizer) -> PruningRun:
        run.start([optimizer], [], model)
        run.prune_if_due(model)
        return run

    return model, start


def torchs(model: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    """Attach torch.nn.utils.prune's own masks with the same zeros."""
    for name, mask in masks.items():
        prune.custom_from_mask(model.get_submodule(name.removesuffix(".weight")), "weight", mask)
    return model


def stepper(
    model: nn.Module, inputs: Tensor, targets: Tensor, optimizer: torch.optim.Optimizer, run: PruningRun | None
) -> Callable[[], None]:
    """Return a function that does one training step."""

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        if run is not None:
            run.observe(model, optimizer)
        optimizer.step()
        if run is not None:
            run.prune_if_due(model)

    return step


def measure(name: str, dense: nn.Module, inputs: Tensor, rounds: int) -> None:
    """Print the ratios for one network and optimizer."""
    targets = torch.randint(0, 10, (len(inputs),))
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        mine, start = ours(copy.deepcopy(dense))
        optimizer = kind(mine.parameters(), lr=1e-3)
        run = start(optimizer)
        theirs = torchs(copy.deepcopy(dense), {n: m.float() for n, m in read(mine).items()})
        plain = copy.deepcopy(dense)
        steps = {
            "ours": stepper(mine, inputs, targets, optimizer, run),
            "torch": stepper(theirs, inputs, targets, kind(theirs.parameters(), lr=1e-3), None),
            "dense": stepper(plain, inputs, targets, kind(plain.parameters(), lr=1e-3), None),
        }
        times: dict[str, list[float]] = {side: [] for side in steps}
        for turn in range(rounds + 5):
            for side in sorted(steps, key=lambda s, turn=turn: (list(steps).index(s) + turn) % len(steps)):
                begin = time.perf_counter()
                steps[side]()
                times[side].append(time.perf_counter() - begin)
        medians = {side: statistics.median(found[5:]) for side, found in times.items()}
        run.stop()
        same = [type(m) for m in finalize(mine).modules()] == [type(m) for m in plain.modules()]
        hooks = sum(len(m._forward_pre_hooks) for m in mine.modules())
        is_plain = same and not hooks and list(mine.state_dict()) == list(plain.state_dict())
        print(
            f"{name:>14} {kind.__name__:>6}: ours / torch.nn.utils.prune = {medians['ours'] / medians['torch']:.3f}"
            f"   ours / dense = {medians['ours'] / medians['dense']:.3f}"
            f"   plain modules after finalize: {is_plain}"
        )


def main() -> None:
    """Measure both networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"{args.rounds} interleaved rounds, {args.threads} thread, sparsity {SPARSITY}, median step times")
    measure("CNN, batch 32", *convolutional(), rounds=args.rounds)
    measure("MLP, batch 64", *perceptron(), rounds=args.rounds)


if __name__ == "__main__":
    main()
