"""What does a latency table cost, and where does it go?

Networks like MobileNetV2 with random weights, of 25 channel groups and, two and a half times as deep, of 50. Seconds of
processor time of the whole call, the process that runs the programs included: *tracing* is the channel graph and the
copies at several widths, traced and cut into cells; *cells* and *wholes* is lowering them, and a first run of each;
*timing* is all of them in turns. ExecuTorch is imported before, which takes some seconds more.

    python -m benchmarks.latency_cost
    python -m benchmarks.latency_cost --depths 1 --points 4
"""

import argparse
import importlib
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.latency_cells import spent
from benchmarks.removal_speed import mobilenet
from lightning_prune.deploy import latency_table
from lightning_prune.deploy.executorch.quiet import imported

STAGES = ("tracing", "cells", "wholes", "timing")


@contextmanager
def counted(cost: dict[str, float]) -> Iterator[None]:
    """Add up the processor time of the stages of latency tables that are measured in the block."""
    module = importlib.import_module("lightning_prune.deploy.latency_table")
    designed, lowered, timed = module.designed, module.Bench.lowered, module.Bench.timed
    wholes: list[object] = []

    def adding(stage: str, function: Callable[..., Any], *args: Any, **named: Any) -> Any:  # noqa: ANN401
        begin = spent()
        result = function(*args, **named)
        cost[stage] += spent() - begin
        return result

    def design(*args: Any, **named: Any) -> Any:  # noqa: ANN401
        result = adding("tracing", designed, *args, **named)
        wholes.extend(result.wholes)
        return result

    def lower(bench: Any, programs: Any) -> Any:  # noqa: ANN401
        is_whole = any(programs[0] is whole for whole in wholes)
        return adding("wholes" if is_whole else "cells", lowered, bench, programs)

    with ExitStack() as stack:
        stack.enter_context(patch.object(module, "designed", design))
        stack.enter_context(patch.object(module.Bench, "lowered", lower))
        stack.enter_context(patch.object(module.Bench, "timed", lambda *args: adding("timing", timed, *args)))
        yield


def main() -> None:
    """Measure the table of each depth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", nargs="+", type=float, default=[1, 2.5], help="times the blocks of MobileNetV2")
    parser.add_argument("--size", type=int, default=96, help="of the image")
    parser.add_argument("--points", type=int, default=6, help="widths of each cell")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for module in ("exir", "backends.xnnpack.partition.xnnpack_partitioner", "kernels.quantized"):
        imported(f"executorch.{module}")
    print(f"{'groups':>6}{'points':>8}{'seconds':>9}" + "".join(f"{stage:>9}" for stage in STAGES))
    for depth in args.depths:
        torch.manual_seed(0)
        network, cost = mobilenet(depth).eval(), defaultdict[str, float](float)
        begin = spent()
        with counted(cost):
            table = latency_table(network, torch.zeros(1, 3, args.size, args.size), points=args.points, progress=False)
        seconds, points = spent() - begin, sum(len(cell.points) for cell in table.cells.values())
        row = "".join(f"{cost[stage]:9.1f}" for stage in STAGES)
        print(f"{len(table.channels):6}{points:8}{seconds:9.1f}{row}", flush=True)


if __name__ == "__main__":
    main()
