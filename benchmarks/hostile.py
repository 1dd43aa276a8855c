"""Files of at most 30 MB that someone made to do harm: what they take, and whether each is refused by its name.

Prints a row for each file with what was said of it, and the largest memory of this process and of the one that runs
.pte files beyond what they had before (Linux); then how many of 28,858 mutated checkpoints, plans, manifests, probes,
their results and latency tables, drawn with a seed, were read or refused by name. Any other error ends it.

    python -m benchmarks.hostile
    python -m benchmarks.hostile --mutants 2000
"""

import argparse
import copy
import json
import math
import pickle
import random
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_prune.checkpoints.state import KEY, VERSION
from lightning_prune.checkpoints.summary import summarize_checkpoint
from lightning_prune.compaction import Compaction
from lightning_prune.deploy import LatencyTable, Probe
from lightning_prune.deploy.artifact.manifest import load_manifest, methods_of, to_text
from lightning_prune.deploy.probe import ProbeInput, ProbeProgram, ProbeResults
from lightning_prune.deploy.program.generation import example, texts
from lightning_prune.deploy.runtime.session import Session
from lightning_prune.errors import PruningError
from lightning_prune.model.state import State
from lightning_prune.selection.cells import Kernel

PLAN = {
    "format": "lightning_prune.compaction",
    "version": 2,
    "shapes": {"a.weight": [3, 2], "b.weight": [4, 3]},
    "removals": {
        "a": {
            "size": 3,
            "removed": 1,
            "entries": {"a.weight": {"0": [1]}, "b.weight": {"1": [1]}},
            "inexact": False,
            "unmasked": {"b.weight": [1]},
            "scales": {"a.weight": [-0.5, 1.0]},
        }
    },
    "attributes": {"a.groups": ["a.weight", 0]},
}
MANIFEST = {
    "format": 1,
    "program": "m.pte",
    "sha256": "0" * 64,
    "size_bytes": 3,
    "zipped_bytes": 3,
    "data": [{"file": "m.ptd", "sha256": "0" * 64, "size_bytes": 1}],
    "methods": {
        "forward": {
            "inputs": [{"name": "x", "shape": [1, 3], "dtype": "float32", "dynamic": {"0": [1, 8]}}],
            "outputs": [{"name": "y", "shape": [1, 2], "dtype": "float32", "max_abs_error": 0.0}],
        },
        "step": {
            "inputs": [{"name": "h", "shape": [1, 3], "dtype": "float32"}],
            "outputs": [{"name": "next", "shape": [1, 3], "dtype": "float32"}],
            "feeds": [{"input": "h", "output": "next", "first": 0.5}],
        },
    },
    "state": [{"name": "keys", "shape": [1, 3], "dtype": "float32", "first": "zeros", "methods": ["forward"]}],
    "labels": ["a", "b"],
    "backend": {"name": "xnnpack", "options": {}},
    "quantization": {"methods": ["forward"]},
    "preprocessing": {"mean": [0.5], "std": [0.5]},
    "picture": {"fit": "crop", "resize": 256, "mean": [0.5], "std": [0.5]},
    "model": {},
    "verification": {"tolerance": 1e-4, "min_sqnr_db": None},
    "notes": [],
    "versions": {},
}
TEXT = {
    "get_max_seq_len": 8,
    "get_max_context_len": 8,
    "get_vocab_size": 5,
    "get_eos_ids": [2],
    "get_bos_id": 1,
    "use_kv_cache": True,
}
DECODER = MANIFEST | {
    "methods": {
        "forward": {
            "inputs": [
                {"name": "tokens", "shape": [1, 8], "dtype": "int64", "dynamic": {"1": [1, 8]}},
                {"name": "position", "shape": [8], "dtype": "int64", "dynamic": {"0": [1, 8]}},
            ],
            "outputs": [{"name": "logits", "shape": [1, 1, 5], "dtype": "float32"}],
        }
    },
    "generation": TEXT,
}
del DECODER["preprocessing"]
PLAIN = [None, 3, -1, 2**70, 1e400, math.nan, "x", "\x1b[2J", "[" * 9999, [], {}, {"3": {}}, True, [[[]]], 0.5]
ODD = [*PLAIN, b"", {3: {}}, torch.ones(2), torch.eye(2).to_sparse(), torch.ones(1).expand(2**40)]
ODD += [torch.ones(2, device="meta"), torch.eye(2).to(torch.float8_e4m3fn), torch.nested.nested_tensor([torch.ones(2)])]
COUNTS = {"values": 6000, "bytes": 6000, "pickles": 4000, "plans": 3429, "manifests": 3429} | {
    "probes": 2000,
    "results": 2000,
    "tables": 2000,
}
"""Kind of mutation -> how many; 28,858 in all."""


def probe() -> Probe:
    """Return a plan of a probe with two cells."""
    parts = [(size, "border", ((0, size),)) for size in (64, 512, 4096)]
    parts += [(100 * into, "conv #1", ((out, into),)) for out, into in ((16, 8), (32, 8), (16, 32), (64, 64))]
    parts += [(300, "whole", ()), (300, "whole", ())]
    programs = [
        ProbeProgram(
            f"0.m{number}", number, "0.pte", f"m{number}", (ProbeInput((1, size), "float32", False),), cell, widths
        )
        for number, (size, cell, widths) in enumerate(parts)
    ]
    return Probe(
        runtime="executorch 1.4.1",
        backend="xnnpack",
        threads=1,
        passes=2,
        rounds=5,
        files={"0.pte": "0" * 64},
        programs=tuple(programs),
        kernels={"conv #1": (Kernel("point", 100.0, 100.0, 100.0),)},
        name="Two",
        shapes={"first.weight": (64, 64), "second.weight": (64, 64)},
        cells=(("conv #1", (("first.weight", 0, 1),)), ("conv #1", (("second.weight", 0, 1),))),
        anchors=((((64, 64),), ((64, 64),)), (((8, 64),), ((64, 8),))),
    )


def measured_by(plan: Probe) -> ProbeResults:
    """Return results of a plan: times that grow with the widths."""
    times = {
        each.name: (4000 + each.taken + {"dense": 10**6}.get(each.cell, 50 * each.taken),) * 10
        for each in plan.programs
    }
    return ProbeResults(plan.digest, "a phone", plan.runtime, 1, "thread", 40, times)


def probed(kind: str, drawn: random.Random) -> Callable[[], object]:
    """Return a call that makes a latency table of a plan and results, one of them mutated, or prints such a table."""
    plan = Probe.from_json(probe().to_json())
    results = measured_by(plan)

    def printed(table: LatencyTable) -> None:
        text = f"{table}{table!r}{table.merged(table)}{table.compared(table)}"
        assert "\x1b" not in text, text

    if kind == "probes":
        text = json.dumps(mutated(json.loads(plan.to_json()), drawn, PLAIN))

        def made() -> None:
            other = Probe.from_json(text)
            printed(other.table(measured_by(other)))
            assert "\x1b" not in str(other)

        return made
    if kind == "results":
        text = json.dumps(mutated(json.loads(results.to_json()), drawn, PLAIN))
        return lambda: printed(plan.table(ProbeResults.from_json(text)))
    text = json.dumps(mutated(json.loads(plan.table(results).to_json()), drawn, PLAIN))
    return lambda: printed(LatencyTable.from_json(text))


def checkpoint() -> dict[Any, Any]:
    """Return a checkpoint with a bit of everything."""
    run = {"is_done": False, "step": 3, "recipes": [{"criterion": "Magnitude"}]}
    mask = torch.ones(3, 2, dtype=torch.bool)
    entry = {"version": VERSION, "masks": {"a.weight": mask}, "compaction": json.dumps(PLAN), "run": run}
    state = {"a.weight": torch.ones(3, 2), "b_orig": torch.ones(3), "b_mask": torch.ones(3), 3: torch.ones(1)}
    return {"state_dict": state, "epoch": 3, "hyper_parameters": {"width": 3}, KEY: entry}


def mutated(content: Any, drawn: random.Random, odd: list[Any]) -> Any:  # noqa: ANN401
    """Return a copy with one value replaced, or left out."""
    content = copy.deepcopy(content)
    place = content
    while True:
        key = drawn.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], dict | list) or not place[key] or drawn.random() < 0.2:
            break
        place = place[key]
    if drawn.random() < 0.1:
        del place[key]
    else:
        place[key] = drawn.choice(odd)
    return content


def damaged(data: bytes, drawn: random.Random) -> bytes:
    """Return bytes of which some are others, and of which some may be cut off."""
    changed = bytearray(data)
    for _ in range(drawn.randint(1, 20)):
        changed[drawn.randrange(len(data))] = drawn.randrange(256)
    return bytes(changed[: drawn.choice([len(data), drawn.randrange(len(data))])])


def used(manifest: dict[str, Any]) -> None:
    """Make of a manifest what a session and a comparison make of it."""
    for spec in methods_of(manifest).values():
        Session(lambda *inputs: inputs, spec)
    if "generation" in manifest:
        example(manifest["generation"])
        texts(manifest["generation"])
    for each in manifest.get("state", []):
        str(State(each["name"], tuple(each["shape"]), each["dtype"], each["first"]))


def readers(kind: str, drawn: random.Random, folder: Path) -> Iterator[Callable[[], object]]:
    """Yield calls that read a mutated file, without end."""
    path = folder / "last.ckpt"
    torch.save(checkpoint(), path)
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    while True:
        if kind == "plans":
            text = json.dumps(mutated(PLAN, drawn, PLAIN))
            yield lambda text=text: Compaction.from_json(text).shapes_after
        elif kind in ("probes", "results", "tables"):
            yield probed(kind, drawn)
        elif kind == "manifests":
            good = drawn.choice([MANIFEST, DECODER])
            try:
                text = to_text(mutated(good, drawn, PLAIN))
            except (KeyError, ValueError, UnicodeError):  # one that cannot be written, as with a NaN
                text = json.dumps(mutated(good, drawn, PLAIN))
            raw = text.encode("utf-8", "replace")
            (folder / "m.json").write_bytes(raw if drawn.random() < 0.8 else damaged(raw, drawn))
            yield lambda: used(load_manifest(folder / "m.json"))
        else:
            if kind == "values":
                torch.save(mutated(checkpoint(), drawn, ODD), path)
            elif kind == "bytes":
                path.write_bytes(damaged(data, drawn))
            else:
                with zipfile.ZipFile(path, "w") as archive:
                    for name, record in records.items():
                        archive.writestr(name, damaged(record, drawn) if name.endswith("data.pkl") else record)
            yield lambda: str(summarize_checkpoint(path))


NAMED = ("last.ckpt", "m.json", "m.pte", "plan", "channel group", "results", "table", "a phone")
"""Words of an error that says which file or document it is."""


def fuzz(kind: str, count: int, folder: Path, seed: int = 18) -> tuple[int, int]:
    """Return how many of so many mutated files were read, and how many refused by name.

    Raises:
        AssertionError: an error that does not name the file or the document.
    """
    read = refused = 0
    for number, reads in zip(range(count), readers(kind, random.Random(f"{seed} {kind}"), folder), strict=False):
        try:
            reads()
            read += 1
        except (PruningError, ValueError, FileNotFoundError) as error:
            if not any(name in str(error) for name in NAMED):
                raise AssertionError(f"{kind} {number}: {type(error).__name__}: {error}") from error
            refused += 1
        except Exception as error:
            raise AssertionError(f"{kind} {number}: a bare {type(error).__name__}: {error}") from error
    return read, refused


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
