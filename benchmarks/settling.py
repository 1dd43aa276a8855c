"""How many runs does a program take until its time settles, and how much does it change when it is loaded anew?

Two networks like ResNet-18, dense and at .55 of all widths, are run one after the other, each many times in a row, on
one thread by its processor time; a row for each tells the median of the runs over the rounds. Then each is loaded
several times and timed when it has settled. Last, a network of 0.08 ms is timed in turns with itself at .55 of all
widths, in sessions of several lengths: by how much does the share of its time change from session to session?

    python -m benchmarks.settling
"""

import math
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from benchmarks.removal_speed import NETWORKS
from benchmarks.tasks import Residual
from lightning_prune import Channel, Compaction, channel_groups, compact
from lightning_prune.deploy import XNNPACK, clock, export
from lightning_prune.deploy.clock import least_of
from lightning_prune.deploy.designs import Program
from lightning_prune.deploy.executorch import native
from lightning_prune.deploy.latency_table import Bench
from lightning_prune.deploy.program.eager import folded_copy
from lightning_prune.run.binding import units_of
from lightning_prune.selection.targets import Targets

RUNS, ROUNDS, LOADS = 16, 12, 12
SESSIONS, SECONDS = 16, (0.0, 0.5, 1.5, 4.0)


def main() -> None:
    """Print both tables."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    dense, image = folded_copy(NETWORKS["resnet"]().eval()), torch.zeros(1, 3, 96, 96)
    narrow, sizes = folded_copy(dense), units_of(Channel(), Targets(), dense, image).sizes
    keep = {name: range(math.ceil(0.55 * size)) for name, size in sizes.items()}
    compact(narrow, Compaction.from_keep(channel_groups(dense, image), keep))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for name, network in {"dense": dense, "narrow": narrow}.items():
            export(network, Path(folder) / f"{name}.pte", backend=XNNPACK(), example_inputs=image)
        native.set_threads(1)

        def loaded(name: str) -> native.RuntimeMethod:
            return native.load(f"{folder}/{name}.pte", "forward", None, clone=False)

        def times(method: native.RuntimeMethod) -> list[float]:
            marks = [time.thread_time_ns()]
            for _ in range(RUNS):
                method.run([image])
                marks.append(time.thread_time_ns())
            return list(np.diff(marks) / 1e6)

        methods = {name: loaded(name) for name in ("dense", "narrow")}
        told: dict[str, list[list[float]]] = {name: [] for name in methods}
        for _ in range(ROUNDS):
            for name, method in methods.items():
                told[name].append(times(method))
        for name, rounds in told.items():
            print(f"{name:7} run by run, ms: {' '.join(f'{ms:.2f}' for ms in np.median(rounds, axis=0))}", flush=True)
        for name in methods:
            settled = [
                float(np.quantile([times(own)[-4:] for _ in range(5)], 0.1)) for own in map(loaded, LOADS * [name])
            ]
            print(f"{name:7} loaded {LOADS} times, ms: {min(settled):.2f} to {max(settled):.2f}", flush=True)
    sessions()


def sessions() -> None:
    """Print how much a share of a short time changes from session to session."""
    dense = folded_copy(Residual(32, 1, ((32, 1), (64, 2), (64, 1)), 10).eval())
    image = torch.zeros(1, 1, 8, 8)
    narrow, sizes = folded_copy(dense), units_of(Channel(), Targets(), dense, image).sizes
    keep = {name: range(math.ceil(0.55 * size)) for name, size in sizes.items()}
    compact(narrow, Compaction.from_keep(channel_groups(dense, image), keep))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(XNNPACK(), 1, 0, Path(folder))
        shapes = [(tuple(image.shape), image.dtype)]
        turns = [bench.lowered([Program(network, shapes, False)]) for network in (dense, narrow)]
        for seconds in SECONDS:
            with mock.patch.object(clock, "_LEAST_SECONDS", seconds):
                times = [[least_of(own) for (own,) in bench.timed(turns, 60)] for _ in range(SESSIONS)]
            shares = np.array(times)[:, 1] / np.array(times)[:, 0]
            far = shares.max() / shares.min() - 1
            print(f"{seconds:4} s, {SESSIONS} sessions: {np.median(shares):.3f} of dense, {far:.1%} apart", flush=True)


if __name__ == "__main__":
    main()
