"""What more samples bring to a trained model that goes to 70 % of its multiply-accumulates without training.

On the characters, whose network loses most. The test images are halved at random: choose on one half, read the other.

    python -m benchmarks.trained_samples
"""

import time

import torch
from torch import Tensor, nn

from benchmarks.tasks import dense, loss, quiet, seen, task
from lightning_prune import Channel, Fisher, Global, LeastSquares, OneShot, Recipe, Reconstruction, Uniform, prune

COUNTS = (256, 400, 800, 1600)


@torch.no_grad()
def halves(net: nn.Module, images: Tensor, classes: Tensor) -> str:
    """Return the accuracy in percent on each half."""
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(1))
    right = torch.cat([net.eval()(some).argmax(1) for some in images.split(500)]) == classes
    return "  ".join(f"{100 * float(right[half].float().mean()):.2f}" for half in order.chunk(2))


def main() -> None:
    """Print a line for each number of samples and, with 1,600, for other criteria and allocations."""
    quiet()
    characters = task("characters")
    batches = [batch for seed in range(5) for batch in seen(characters, 8, seed)]
    print(f"dense  {halves(dense('characters', 0), *characters.test)}")
    cases = [(count, Reconstruction(samples=count), Uniform()) for count in COUNTS]
    cases += [(1600, Reconstruction(samples=1600), Global()), (1600, Reconstruction(samples=1600), Global(cost="macs"))]
    cases += [(1600, Fisher(), Uniform()), (1600, Fisher(), Global(cost="macs"))]
    for count, criterion, allocation in cases:
        net, begin = dense("characters", 0), time.perf_counter()
        repair = LeastSquares(samples=count, megabytes=256)
        recipe = Recipe(
            granularity=Channel(), count="macs", schedule=OneShot(0.3), criterion=criterion, allocation=allocation,
            repair=repair,
        )  # fmt: skip
        data = batches[: -(-count // characters.batch) + 1]
        prune(net, recipe, data, loss=loss, samples=count, progress=False)
        took = time.perf_counter() - begin
        print(f"{count:5} {criterion!r:.16} {allocation}  {halves(net, *characters.test)}  {took:.0f} s", flush=True)


if __name__ == "__main__":
    main()
