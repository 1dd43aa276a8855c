"""An event that removes half of the channels of a ResNet-50, and one on 20 million weights beside busy processes.

Channels: masks written by our event, beside torch-pruning's whole step, in turns. Both rank by the magnitude of the
weights; the step of torch-pruning cuts the layers at once, ours are cut after the fit, or between two steps. It is left
out where it is not installed. With repair, as a fit has it by itself, 64 images of 64x64 go through the network twice
and each layer is fitted; a training step on 16 of them stands beside it. Weights: the same event on a quiet machine,
and with a process on each core that never waits, at one thread and at torch's own number.

    python -m benchmarks.channel_event
    python -m benchmarks.channel_event --rounds 9
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing.synchronize import Event
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks.global_event import network
from benchmarks.graph_cost import resnet_50
from lightning_prune import Channel, Element, Global, Magnitude, OneShot, Recipe
from lightning_prune.compensation import Call
from lightning_prune.model.example import Example
from lightning_prune.run.binding import bind
from lightning_prune.run.pruner import prune_step
from lightning_prune.tables import aligned

Times = tuple[float, float]  # processor, wall


def clocked(action: Callable[[], object]) -> Times:
    """Return the seconds that an action takes."""
    processor, wall = time.process_time(), time.perf_counter()
    action()
    return time.process_time() - processor, time.perf_counter() - wall


def ours(
    recipe: Recipe, model: nn.Module, sparsity: float, example: Tensor | None = None, images: Tensor | None = None
) -> Times:
    """Return the seconds of one event on a model that is bound already, with these images to repair it on."""
    pruner = bind(recipe, model, None if example is None else (example,))
    pruner.attach(model)
    inputs = None if images is None else Call("", Example((images,)))
    return clocked(lambda: prune_step(pruner, model, sparsity, inputs=inputs))


def training_step(images: Tensor) -> Times:
    """Return the seconds of a training step of the dense network."""
    model = resnet_50()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)

    def step() -> None:
        model(images).square().mean().backward()
        optimizer.step()

    return clocked(step)


def torch_pruning(example: Tensor) -> Times:
    """Return the seconds of torch-pruning's step, its graph built before."""
    import torch_pruning as tp  # pyright: ignore[reportMissingImports]

    model = resnet_50().eval()
    pruner = tp.pruner.BasePruner(
        model, example, importance=tp.importance.GroupMagnitudeImportance(), pruning_ratio=0.5,
        ignored_layers=[list(model.modules())[-1]],
    )  # fmt: skip
    return clocked(pruner.step)


def busy(stop: Event) -> None:
    """Never wait."""
    while not stop.is_set():
        sum(range(10_000))


def beside(processes: int, action: Callable[[], Times], rounds: int) -> float:
    """Return the median wall seconds of an action beside so many busy processes."""
    stop = multiprocessing.Event()
    others = [multiprocessing.Process(target=busy, args=(stop,), daemon=True) for _ in range(processes)]
    for other in others:
        other.start()
    try:
        return median(action()[1] for _ in range(rounds))
    finally:
        stop.set()
        for other in others:
            other.join()


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--millions", type=int, default=20)
    arguments = parser.parse_args()
    cores, own = multiprocessing.cpu_count(), torch.get_num_threads()
    example, half = torch.zeros(1, 3, 64, 64), OneShot(0.5)
    by_magnitude = Recipe(granularity=Channel(), schedule=half, criterion=Magnitude())
    sides: dict[str, Callable[[], Times]] = {
        "ours, Magnitude()": lambda: ours(by_magnitude, resnet_50().eval(), 0.5, example)
    }
    images = torch.randn(64, 3, 64, 64)
    sides["the same with repair"] = lambda: ours(by_magnitude, resnet_50().eval(), 0.5, example, images)
    sides["a training step on 16 images"] = lambda: training_step(images[:16])
    if find_spec("torch_pruning"):
        sides["torch-pruning, magnitude"] = lambda: torch_pruning(example)
    for threads in dict.fromkeys((1, own)):
        torch.set_num_threads(threads)
        times: dict[str, list[Times]] = {name: [] for name in sides}
        for _ in range(arguments.rounds):
            for name, side in sides.items():
                times[name].append(side())
        rows = [
            (name, f"{median(t[0] for t in found):.3f} s", f"{median(t[1] for t in found):.3f} s")
            for name, found in times.items()
        ]
        print(f"half of the channels of a ResNet-50, {threads} thread(s), median of {arguments.rounds}")
        print(aligned([("", "processor", "wall"), *rows]), "\n")

    elements = Recipe(granularity=Element(), schedule=OneShot(0.9), criterion=Magnitude(), allocation=Global())
    for threads in dict.fromkeys((1, own)):
        torch.set_num_threads(threads)
        event = lambda: ours(elements, network(arguments.millions), 0.9)  # noqa: E731
        event()
        quiet = beside(0, event, arguments.rounds)
        loaded = beside(cores, event, arguments.rounds)
        print(
            f"{arguments.millions} million weights, {threads} thread(s): {quiet:.2f} s, beside {cores} busy processes"
            f" {loaded:.2f} s, ratio {loaded / quiet:.2f}"
        )


if __name__ == "__main__":
    main()
