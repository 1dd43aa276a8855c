"""Run a probe that export_probe wrote, in the ExecuTorch runtime beside this interpreter.

probe.py PACKAGE FOLDER RESULTS    PACKAGE: the folder of lightning_prune, whose worker runs the programs

It needs torch, numpy and ExecuTorch alone: the packages on the way to the worker are hollow, as in the worker itself.
"""

import hashlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

SECONDS = 600.0


def main(package: str, folder: Path, results: Path) -> None:
    """Run the plan and write what each run took."""
    for name, place in (("lightning_prune", package), ("lightning_prune.deploy", f"{package}/deploy")):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [place]
    from lightning_prune.deploy.runtime.worker.programs import Programs

    text = (folder / "plan.json").read_bytes()
    plan: dict[str, Any] = json.loads(text)
    worker, failed, tick = Programs(), dict[str, str](), 2**62
    times: dict[str, list[int]] = {program["name"]: [] for program in plan["programs"]}
    turns: dict[int, list[dict[str, Any]]] = {}
    for program in plan["programs"]:
        turns.setdefault(program["turn"], []).append(program)
    for turn in plan["passes"] * list(turns.values()):
        own = [each for each in turn if each["name"] not in failed]
        asked = [
            {
                "path": str(folder / each["file"]),
                "method": each["method"],
                "inputs": [[x["shape"], x["dtype"], x["channels_last"]] for x in each["inputs"]],
                "turn": each["turn"],
            }
            for each in own
        ]
        told: Any = worker.rounds(asked, threads=plan["threads"], rounds=plan["rounds"], seconds=SECONDS)
        tick = min(tick, told["tick"])
        failed |= {own[int(number)]["name"]: why for number, why in told["failed"].items()}
        for each, taken in zip(own, told["nanoseconds"], strict=True):
            times[each["name"]] += [max(1, round(time)) for time in taken]
    written = {
        "format": "lightning_prune.probe_results",
        "version": 1,
        "plan": hashlib.sha256(text).hexdigest(),
        "device": "emulated Neoverse N1",
        "runtime": plan["runtime"],
        "threads": plan["threads"],
        "clock": "thread" if plan["threads"] == 1 else "wall",
        "tick": tick,
        "nanoseconds": {name: own for name, own in times.items() if name not in failed},
        "failed": failed,
    }
    results.write_text(json.dumps(written), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
