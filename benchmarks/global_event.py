"""One global event at 90 % over 100 million weights, beside torch.nn.utils.prune.global_unstructured, in one run.

Prints seconds and extra peak memory (bytes per weight, over what weights and masks take) of both.
Each side runs in a process of its own, because the peak of a process never falls.

    python benchmarks/global_event.py            # 100 million weights, about two minutes
    python benchmarks/global_event.py --millions 10
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import prune

from lightning_prune import Element, Global, Magnitude, OneShot, Recipe
from lightning_prune.run.binding import bind
from lightning_prune.run.pruner import prune_step

SPARSITY = 0.9


def network(millions: int) -> nn.Module:
    """Return a stack of square Linear layers with so many weights in all."""
    width = 2048
    layers = max(2, round(millions * 1e6 / width**2))
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))


def peak() -> int:
    """Return the largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident() -> int:
    """Return the resident size of this process now, in bytes (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure(side: str, millions: int, threads: int) -> dict[str, float]:
    """Run one event and return its seconds, extra bytes per weight and share of zeros."""
    torch.set_num_threads(threads)
    model = network(millions)
    weights = sum(p.numel() for p in model.parameters())
    if side == "ours":
        pruner = bind(
            Recipe(schedule=OneShot(SPARSITY), granularity=Element(), criterion=Magnitude(), allocation=Global()),
            model,
            None,
        )
        pruner.attach(model)
        run = lambda: prune_step(pruner, model, SPARSITY)  # noqa: E731
    else:
        layers = [(layer, "weight") for layer in model]
        run = lambda: prune.global_unstructured(layers, prune.L1Unstructured, amount=SPARSITY)  # noqa: E731
    before, start = resident(), time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    zeros = sum(int((layer.weight == 0).sum()) for layer in model)
    return {"seconds": seconds, "bytes": (peak() - before) / weights, "weights": weights, "zeros": zeros / weights}


def main() -> None:
    """Measure both sides in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=("ours", "torch"))
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args.side, args.millions, args.threads)))
        return
    results: dict[str, list[dict[str, float]]] = {"torch": [], "ours": []}
    for _ in range(args.rounds):
        for side, found in results.items():
            command = [
                sys.executable,
                __file__,
                "--side",
                side,
                "--millions",
                str(args.millions),
                "--threads",
                str(args.threads),
            ]
            found.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    weights = results["ours"][0]["weights"]
    print(f"{weights:,} weights, sparsity {SPARSITY}, {args.threads} threads, median of {args.rounds}")
    medians = {}
    for side, found in results.items():
        median = sorted(found, key=lambda r: r["seconds"])[len(found) // 2]
        medians[side] = median["seconds"]
        extra = max(result["bytes"] for result in found)
        print(
            f"{side:>6}: {median['seconds']:7.2f} s   {extra:6.2f} extra bytes per weight   zeros {median['zeros']:.6f}"
        )
    print(f"torch / ours: {medians['torch'] / medians['ours']:.1f} x")


if __name__ == "__main__":
    main()
