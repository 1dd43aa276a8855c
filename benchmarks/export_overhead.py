"""What export adds to ExecuTorch's own lowering: copy, rewrites, the file run and compared, hashes, zipped size.

    python -m benchmarks.export_overhead [--rounds 5]

Each round exports every network both ways one after the other, in turns, on one torch thread: by
lightning_prune.deploy.export, its verification included, and by the four calls that ExecuTorch's documentation shows.
Printed are the medians over the rounds, in seconds of the clock and of the processors, and the ratio of each round.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.removal_speed import mobilenet, resnet
from lightning_prune.deploy import export
from lightning_prune.deploy.executorch.quiet import quiet_import, quiet_lowering
from lightning_prune.deploy.program.eager import EagerModel

LIMIT = 1.10


def bare(model: nn.Module, path: Path, x: Tensor) -> None:
    """Write a .pte by ExecuTorch's own calls, without a copy, a check or a manifest."""
    with quiet_import():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    with torch.no_grad(), quiet_lowering():
        traced = torch.export.export(EagerModel(model), (x,))
        program = to_edge_transform_and_lower(traced, partitioner=[XnnpackPartitioner()]).to_executorch()
    with path.open("wb") as file:
        program.write_to_file(file)


def checked(model: nn.Module, path: Path, x: Tensor) -> None:
    """Write a .pte by the export, with everything that it does."""
    export(model, path, example_inputs=x)


def seconds(write: Callable[[nn.Module, Path, Tensor], None], model: nn.Module, x: Tensor) -> tuple[float, float]:
    """Return the seconds of the clock and of the processors that writing a .pte takes."""
    with tempfile.TemporaryDirectory() as folder:
        start, work = time.perf_counter(), time.process_time()
        write(model, Path(folder, "m.pte"), x)
        return time.perf_counter() - start, time.process_time() - work


def main() -> None:
    """Print both ways for each network."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    networks = {
        "ResNet-18-like": (resnet().eval(), torch.randn(1, 3, 224, 224)),
        "MobileNetV2-like": (mobilenet().eval(), torch.randn(1, 3, 224, 224)),
    }
    print(f"{'network':<18} ExecuTorch s  export s   clock  processors   (medians of {rounds} rounds)")
    for name, (model, x) in networks.items():
        seconds(bare, model, x)
        pairs = []
        for index in range(rounds):
            ways = (bare, checked) if index % 2 == 0 else (checked, bare)
            taken = {way: seconds(way, model, x) for way in ways}
            pairs.append((taken[bare], taken[checked]))
        clock, work = (statistics.median(ours[i] / theirs[i] for theirs, ours in pairs) for i in (0, 1))
        both = [statistics.median(pair[side][0] for pair in pairs) for side in (0, 1)]
        print(f"{name:<18}{both[0]:13.2f}{both[1]:10.2f}{clock:7.2f}×{work:11.2f}×   limit {LIMIT:.2f}×", flush=True)


if __name__ == "__main__":
    main()
