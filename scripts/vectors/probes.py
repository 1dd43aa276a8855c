"""Plans of probes, and how they are run."""

import hashlib
import json
from typing import Any

import numpy as np

from lightning_prune.deploy.probe import Probe, ProbeInput, ProbeProgram
from lightning_prune.selection.cells import Kernel
from vectors.manifests import PROGRAM


def probe() -> Probe:
    """Return the plan of a probe of two files, with the sha256 of PROGRAM for both."""
    image = ProbeInput((1, 4, 3, 3), "float32", False)
    inner, tokens = ProbeInput(image.shape, "float32", True), ProbeInput((2,), "int64", False)
    programs = (
        ProbeProgram("0.m0", "0.pte", "m0", (ProbeInput((1, 8), "float32", False),), "border", ((0, 8),)),
        ProbeProgram("0.m1", "0.pte", "m1", (inner,), "conv #1", ((8, 4),)),
        ProbeProgram("0.m2", "0.pte", "m2", (inner, tokens), "conv #1", ((2, 4),)),
        ProbeProgram("1.m0", "1.pte", "m0", (image,), "dense", ()),
        ProbeProgram("1.m1", "1.pte", "m1", (image,), "narrow", ()),
    )
    return Probe(
        runtime="executorch 0.0.0", backend="xnnpack", threads=1, passes=2, rounds=5,
        files=dict.fromkeys(("0.pte", "1.pte"), hashlib.sha256(PROGRAM).hexdigest()), programs=programs,
        kernels={"conv #1": (Kernel("window", 81.0, 9.0, 9.0),)}, name='Größe "2"',
        shapes={"conv.weight": (8, 4, 3, 3)},
        cells=(("conv #1", (("conv.weight", 0, 1),)),), anchors=((((8, 4),),), (((2, 4),),)),
    )  # fmt: skip


def probe_plans() -> list[dict[str, Any]]:
    """Return plans of probes, with what a phone must read of them; without it where they are to be refused."""
    plan, text = probe(), probe().to_json()
    held = {"digest": plan.digest or hashlib.sha256(text.encode()).hexdigest(), "name": plan.name, "threads": 1,
            "passes": 2, "rounds": 5, "files": plan.files,
            "programs": [{"name": p.name, "file": p.file, "method": p.method, "shapes": [[*x.shape] for x in p.inputs],
                          "dtypes": [x.dtype for x in p.inputs]} for p in plan.programs]}  # fmt: skip
    refused = {
        "empty": "", "a list": "[]", "another document": text.replace("probe_plan", "latency_table"),
        "newer": text.replace('"version": 1', '"version": 2'), "no rounds": text.replace('"rounds": 5', '"rounds": 0'),
        "no pass": text.replace('"passes": 2', '"passes": 0'), "no name": text.replace('"name": "0.m0",', ""),
        "a file above": text.replace('"1.pte"', '"../1.pte"'),
        "a file of no name": text.replace('"1.pte":', '"2.pte":'),
        "negative size": text.replace("     8\n", "     -8\n", 1), "cut": text[:-2],
    }  # fmt: skip
    if text in refused.values():
        raise ValueError("a plan that is to be refused is the one that is not")
    return [{"name": "whole", "text": text, "holds": held}, *({"name": n, "text": t} for n, t in refused.items())]


def probe_runs() -> list[dict[str, Any]]:
    """Return what programs take, which fail, the ticks of a clock; in which order they run, and what is written.

    The clock goes on by what a run takes, and by nothing else.
    """
    plan = probe()
    digest = hashlib.sha256(plan.to_json().encode()).hexdigest()
    cases = []
    for tick, costs, failing in (
        (1, {"0.m0": 1000, "0.m1": 2500, "0.m2": 30, "1.m0": 90_000, "1.m1": 7}, ()),
        (50, {"0.m0": 999, "0.m1": 1000, "0.m2": 1001, "1.m0": 333, "1.m1": 1}, ("0.m1",)),
        (40, {"0.m0": 100, "0.m1": 1, "0.m2": 1, "1.m0": 5, "1.m1": 6}, ("1.m0", "1.m1")),
    ):
        calls, failed = list[str](), list[str]()
        for _ in range(plan.passes):
            for file in plan.files:
                calls.append(f"load {file}")
                live = []
                for name in (p.name for p in plan.programs if p.file == file and p.name not in failed):
                    calls.append(name)
                    if name in failing:
                        failed.append(name)
                    else:
                        calls.append(name)
                        live.append(name)
                for number in range(plan.rounds):
                    for place in range(len(live)):
                        name = live[(number + place) % len(live)]
                        calls += [name] * (1 + int(np.ceil(20 * tick / costs[name])))
                calls.append(f"close {file}")
        times = {name: [cost] * plan.passes * plan.rounds for name, cost in costs.items() if name not in failing}
        written = {"format": "lightning_prune.probe_results", "version": 1, "plan": digest, "device": 'a "phone"\t🙂',
                   "runtime": "", "threads": 1, "clock": "thread", "tick": tick, "nanoseconds": times,
                   "failed": {name: f"{name} fails" for name in failed}}  # fmt: skip
        # the calls as a number of each in a row, which is shorter
        short = list[list[Any]]()
        for call in calls:
            if short and short[-1][0] == call:
                short[-1][1] += 1
            else:
                short.append([call, 1])
        cases.append({"tick": tick, "costs": costs, "failing": list(failing), "calls": [c for c, _ in short],
                      "counts": [n for _, n in short], "results": json.dumps(written)})  # fmt: skip
    return cases
