"""Checkpoints, plans, manifests, probes, their results and latency tables of which a value or bytes are others.

They are drawn with a seed, and read by what reads such files; benchmarks/hostile.py counts what comes of them.
"""

import copy
import json
import math
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

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
