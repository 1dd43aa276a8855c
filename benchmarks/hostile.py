"""Files of at most 30 MB that someone made to do harm: what they take, and whether each is refused by its name.

Prints a row for each file with what was said of it, and the largest memory of this process and of the one that runs
.pte files beyond what they had before (Linux); then how many of 28,858 mutated checkpoints, plans, manifests, probes,
their results and latency tables, drawn with a seed, were read or refused by name. Any other error ends it.

    python -m benchmarks.hostile
    python -m benchmarks.hostile --mutants 2000
"""

import argparse
import json
import math
import pickle
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.mutated import COUNTS, PLAN, fuzz
from lightning_prune.checkpoints.state import KEY
from lightning_prune.checkpoints.summary import summarize_checkpoint
from lightning_prune.compaction import Compaction
from lightning_prune.deploy.artifact.manifest import load_manifest, to_text
from lightning_prune.errors import PruningError


class _Made:
    def __init__(self, call: Callable[..., Any], *args: Any) -> None:
        self.made = call, args

    def __reduce__(self) -> Any:  # noqa: ANN401
        return self.made


def _bomb(path: Path) -> None:
    torch.save({"state_dict": {"x": torch.zeros(1)}}, path)
    with zipfile.ZipFile(path) as plain:
        records = {name: plain.read(name) for name in plain.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name, record in records.items():
            bomb.writestr(name, record)
        with bomb.open("more", "w") as file:
            for _ in range(1600):
                file.write(bytes(2**20))


def hostile_files(folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what a file is, and a call that reads it."""
    path = folder / "a.ckpt"

    def summarized() -> object:
        return summarize_checkpoint(path)

    _bomb(path)
    yield "zip that unpacks to 1.7 GB", summarized
    state = {"x": torch.ones(2)}
    for name, held in {
        "strides of 4 TB": {"state_dict": state, KEY: {"masks": {"x": torch.ones(1).expand(2**40)}}},
        "bytearray of 8 GB": {"state_dict": state, "more": _Made(bytearray, 2**33)},
        "tensor of 8 GB": {"state_dict": {"x": _Made(torch.Tensor, 2**31)}},
    }.items():
        torch.save(held, path)
        yield f"checkpoint: {name}", summarized
    path.write_bytes(pickle.dumps([], 2)[:2] + b"(" + b"]" * 2**24 + b"l.")
    yield "checkpoint: 16 million lists", summarized
    for size in (math.inf, 2**50):
        text = json.dumps(PLAN | {"shapes": {"a.weight": [size, 2], "b.weight": [4, 3]}})
        yield f"plan: a size of {size:.3g}", lambda text=text: Compaction.from_json(text).shapes_after
    parts = "[" + "[]," * 10_000_000 + "0]"
    yield "plan: 10 million lists", lambda: Compaction.from_json(parts)
    yield "plan: 100,000 levels", lambda: Compaction.from_json("[" * 100_000)
    (folder / "m.json").write_text("[" + "[]," * 2_500_000 + "0]")
    yield "manifest: 2.5 million lists", lambda: load_manifest(folder / "m.json")
    yield from _programs(folder)


def _programs(folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    from lightning_prune.deploy import benchmark, export, inspect
    from lightning_prune.deploy.executorch import pte_file

    export(nn.Linear(1024, 4096), folder / "good.pte", example_inputs=torch.zeros(1, 1024))
    path = folder / "a.pte"
    benchmark(folder / "good.pte", rounds=1)

    def changed(change: Callable[[Any], None], manifest: Callable[[Any], None] | None = None) -> None:
        file = pte_file.read(str(folder / "good.pte"))
        change(file.program)
        path.write_bytes(file.with_program(file.program))
        path.with_suffix(".json").unlink(missing_ok=True)
        if manifest is not None:
            told = load_manifest(folder / "good.pte")
            manifest(told)
            path.write_bytes((folder / "good.pte").read_bytes())
            path.with_suffix(".json").write_text(to_text(told))

    def plan(program: Any) -> Any:  # noqa: ANN401
        return program.execution_plan[0]

    changed(lambda program: program.segments.extend([max(program.segments, key=lambda s: s.size)] * 120))
    yield "program: 120 segments of 17 MB in one place", lambda: inspect(path)
    changed(lambda program: plan(program).non_const_buffer_sizes.__setitem__(1, 2**35))
    yield "program: a plan of 34 GB", lambda: benchmark(path, rounds=1)
    changed(lambda program: setattr(plan(program), "inputs", plan(program).inputs * 300_000))
    yield "program: 300,000 inputs", lambda: inspect(path)
    changed(
        lambda program: None,
        lambda told: told["methods"]["forward"]["inputs"][0].update(shape=[2**33, 1024]),
    )
    yield "manifest: inputs of 35 TB", lambda: benchmark(path, rounds=1)


def _memory(process: int | str, field: str) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) // 1024


def measured(reads: Callable[[], object]) -> tuple[str, int, int]:
    """Return what was said of a file, and by how many MB this process and its child grew at most."""
    from lightning_prune.deploy.runtime.child import CHILD

    def processes() -> list[int | str]:
        return ["self", *([CHILD._process.pid] if CHILD._process is not None and CHILD._process.poll() is None else [])]

    before = {}
    for process in processes():
        Path(f"/proc/{process}/clear_refs").write_text("5")  # the largest so far is that of now
        before[process] = _memory(process, "VmRSS")
    try:
        reads()
        said = "read"
    except (PruningError, ValueError) as error:
        said = str(error).splitlines()[0].rpartition("/")[2]
    grown = {process: _memory(process, "VmHWM") - before.get(process, 0) for process in processes()}
    return said, grown.pop("self"), max(grown.values(), default=0)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=sum(COUNTS.values()), help="mutated files in all")
    parser.add_argument(
        "--no-programs", action="store_true", help="leave .pte files out, for which ExecuTorch is needed"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if sys.platform == "linux":
            sys.stdout.write(
                "| file | MB more here | MB more in the other process | what is said |\n| --- | --- | --- | --- |\n"
            )
            for name, reads in hostile_files(Path(folder)):
                if arguments.no_programs and name.startswith("program"):
                    break
                said, here, there = measured(reads)
                sys.stdout.write(f"| {name} | {here} | {there} | {said:.90} |\n")
                sys.stdout.flush()
        share = arguments.mutants / sum(COUNTS.values())
        for kind, count in COUNTS.items():
            read, refused = fuzz(kind, round(share * count), Path(folder))
            sys.stdout.write(f"{kind}: {read:,} read, {refused:,} refused by name, 0 bare errors\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
