"""Plans of probes, and how they are run."""

import hashlib
import json
from typing import Any

import numpy as np

from lightning_prune.deploy.probe import Probe, ProbeInput, ProbeProgram
from lightning_prune.selection.cells import Kernel
from vectors.manifests import PROGRAM

_SETTLING, _MEASURED = 8, 4


def probe() -> Probe:
    """Return the plan of a probe of three files, with the sha256 of PROGRAM for each.

    A turn spans files and is not told in one piece, a method occurs twice in it, and turns are not in the order of
    their numbers.
    """
    image = ProbeInput((1, 4, 3, 3), "float32", False)
    inner, tokens = ProbeInput(image.shape, "float32", True), ProbeInput((2,), "int64", False)
    programs = (
        ProbeProgram("0.0", 7, "0.pte", "m0", (ProbeInput((1, 8), "float32", False),), "border", ((0, 8),)),
        ProbeProgram("1.0", 2, "1.pte", "m0", (inner,), "conv #1", ((8, 4),)),
        ProbeProgram("1.1", 2, "1.pte", "m1", (inner, tokens), "conv #1", ((2, 4),)),
        ProbeProgram("2.0", 0, "2.pte", "m0", (image,), "whole", ()),
        ProbeProgram("1.2", 2, "1.pte", "m0", (inner,), "conv #1", ((8, 4),)),
        ProbeProgram("1.3", 2, "2.pte", "m1", (inner,), "conv #1", ((4, 4),)),
        ProbeProgram("3.0", 3, "0.pte", "m1", (image,), "whole", ()),
    )
    return Probe(
        runtime="executorch 0.0.0", backend="xnnpack", threads=1, passes=2, rounds=3,
        files=dict.fromkeys(("0.pte", "1.pte", "2.pte"), hashlib.sha256(PROGRAM).hexdigest()), programs=programs,
        kernels={"conv #1": (Kernel("window", 81.0, 9.0, 9.0),)}, name='Größe "2"',
        shapes={"conv.weight": (8, 4, 3, 3)},
        cells=(("conv #1", (("conv.weight", 0, 1),)),), anchors=((((8, 4),),), (((2, 4),),)),
    )  # fmt: skip


_TURNS = (("0.0",), ("1.0", "1.1", "1.2", "1.3"), ("2.0",), ("3.0",))
"""Programs of the turns of that plan, in the order in which they are run."""


def probe_plans() -> list[dict[str, Any]]:
    """Return plans of probes, with what a phone must read of them; without it where they are to be refused.

    What ``tells`` holds stands in the error of each language.
    """
    plan, text = probe(), probe().to_json()
    held = {"digest": plan.digest or hashlib.sha256(text.encode()).hexdigest(), "name": plan.name, "threads": 1,
            "passes": 2, "rounds": 3, "files": plan.files, "turns": _TURNS,
            "programs": [{"name": p.name, "file": p.file, "method": p.method, "shapes": [[*x.shape] for x in p.inputs],
                          "dtypes": [x.dtype for x in p.inputs]} for p in plan.programs]}  # fmt: skip
    document = json.loads(text)
    good = json.dumps(document)
    one, three = [json.dumps({**document, "anchors": document["anchors"][:1] * count}) for count in (1, 3)]
    no_whole, same = good.replace('"whole"', '"border"'), good.replace('"name": "1.1"', '"name": "1.0"')
    refused = {
        "empty": ("", ""), "a list": ("[]", ""), "cut": (good[:-2], ""),
        "another document": (good.replace("probe_plan", "latency_table"), "plan"),
        "newer": (good.replace('"version": 1', '"version": 2'), "version 2"),
        "no rounds": (good.replace('"rounds": 3', '"rounds": 0'), "rounds"),
        "no pass": (good.replace('"passes": 2', '"passes": 0'), "passes"),
        "a million and more": (good.replace('"passes": 2', '"passes": 333334'), "passes of 3 rounds"),
        "no name": (good.replace('"name": "0.0",', ""), "name"), "two of one name": (same, "have one name"),
        "a file above": (good.replace('"1.pte"', '"../1.pte"'), "../1.pte"),
        "a file of no name": (good.replace('"1.pte":', '"3.pte":'), ""),
        "negative size": (good.replace("[1, 8]", "[1, -8]"), "-8"),
        "no whole": (no_whole, "whole"), "a whole less": (no_whole.replace('"border"', '"whole"', 1), "whole"),
        "a single whole": (one.replace('"whole"', '"border"', 1), "whole"),
        "widths of one whole": (one, "whole programs"), "widths of three wholes": (three, "2 whole programs"),
        "no widths": (good.replace('"anchors"', '"widths"'), "anchors"),
        **{f"turn {n}": (good.replace('"turn": 2', f'"turn": {n}', 1), "turn")
           for n in ("-1", "1000001", str(2**63 - 1), "1e300", "1.5", "2.0", "2e0", '"2"', "true", "null", "[2]")},
        # Kotlin's reader of JSON refuses the number before anything is known of it
        "a turn of 65 bits": (good.replace('"turn": 2', f'"turn": {2**64}', 1), ""),
        "a version of 1.0": (good.replace('"version": 1', '"version": 1.0'), "version"),
        "threads of 1.0": (good.replace('"threads": 1', '"threads": 1.0'), "threads"),
        "rounds of 3.0": (good.replace('"rounds": 3', '"rounds": 3.0'), "rounds"),
        "a size of 8.0": (good.replace("[1, 8]", "[1, 8.0]"), "shape"),
        "no turn": (good.replace('"turn": 2,', "", 1), "turn"),
    }  # fmt: skip
    if good in [damaged for damaged, _ in refused.values()]:
        raise ValueError("a plan that is to be refused is the one that is not")
    whole = {"name": "whole", "text": text, "holds": held}
    return [whole, *({"name": name, "text": own, "tells": tells} for name, (own, tells) in refused.items())]


def probe_runs() -> list[dict[str, Any]]:
    """Return what programs take, which fail, the ticks of a clock; in which order they run, and what is written.

    The clock goes on by what a run takes, and by nothing else.
    """
    plan = probe()
    digest = hashlib.sha256(plan.to_json().encode()).hexdigest()
    cases = []
    for tick, costs, missing, failing in (
        (1, {"0.0": 1000, "1.0": 2500, "1.1": 30, "1.2": 2600, "1.3": 3, "2.0": 90_000, "3.0": 7}, (), ()),
        (50, {"0.0": 999, "1.0": 1000, "1.1": 1001, "1.2": 333, "1.3": 334, "2.0": 1, "3.0": 5}, (), ("1.1",)),
        (40, {"0.0": 100, "1.0": 1, "1.1": 99, "1.2": 5, "1.3": 6, "2.0": 9, "3.0": 1}, ("1.3", "3.0"), ("1.0", "2.0")),
    ):  # fmt: skip
        calls, failed, times = list[str](), list[str](), dict[str, list[int]]()
        for own in _TURNS * plan.passes:
            loaded, live = list[str](), list[str]()
            for name in (name for name in own if name not in failed):
                calls.append(f"load {name}")
                if name not in missing:
                    loaded.append(name)
                    calls.append(name)
                (failed if name in missing or name in failing else live).append(name)
            calls += live
            for again in (*range(_SETTLING + _MEASURED),) * plan.rounds:
                for name in live:
                    calls += [name] * int(np.ceil(20 * tick / costs[name]))
                    if again >= _SETTLING:
                        times.setdefault(name, []).append(costs[name])
            calls += [f"close {name}" for name in loaded]
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
        cases.append({"tick": tick, "costs": costs, "missing": list(missing), "failing": list(failing),
                      "calls": [c for c, _ in short], "counts": [n for _, n in short],
                      "results": json.dumps(written)})  # fmt: skip
    return cases
