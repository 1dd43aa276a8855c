"""Does a .pte made on x86-64 compute the same on Arm? Several kinds of program, run in the aarch64 runtime.

A residual network is trained on the UCI digits for an epoch, exported in float32, int8 and dynamic int8, each once
whole and once with half of its channels, and given to scripts/verify_on_arm.sh (Debian or Ubuntu, x86-64; root rights
on the first call).

    python -m benchmarks.arm                # some five minutes on one core
"""

import json
import os
import runpy
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from lightning_prune import Channel, OneShot, PruningCallback, Recipe
from lightning_prune.deploy import export
from lightning_prune.deploy.backends import XNNPACK
from lightning_prune.deploy.quantization import Int8, Int8Dynamic

ROOT = Path(__file__).parents[1]


def networks(digits: dict[str, Any], data: list[Any]) -> dict[str, torch.nn.Module]:
    """Return a network that was trained for an epoch, whole and with half of its channels."""
    found = {}
    for name, callbacks in (
        ("whole", []),
        ("half", [PruningCallback(Recipe(schedule=OneShot(0.5, begin_step=10), granularity=Channel()))]),
    ):
        found[name] = digits["ResidualCNN"](width=16)
        digits["train"](found[name], data, 1, *callbacks)
    return found


def main() -> None:
    """Export, run on Arm, print one row per program."""
    warnings.filterwarnings("ignore", message=".*(does not have many workers|number of training batches).*")
    torch.set_num_threads(1)
    digits = runpy.run_path(str(ROOT / "examples" / "digits.py"))
    data = digits["loaders"](*digits["digits"]())
    quantizations = {"float32": None, "int8": Int8(calibration=data[1]), "dynamic int8": Int8Dynamic()}
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for name, model in networks(digits, data).items():
            for kind, quantization in quantizations.items():
                path = Path(folder, f"{name}, {kind}.pte")
                files.append(str(export(model, path, backend=XNNPACK(quantization)).path))
        script = [ROOT / "scripts" / "verify_on_arm.sh", "--tolerance", "0.1", *files]
        environment = {**os.environ, "PYTHON": sys.executable}
        result = subprocess.run(script, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    print("| program | largest output | largest difference | identical |\n| --- | --- | --- | --- |")
    for row in map(json.loads, result.stdout.splitlines()):
        values = f"{row['max_abs_output']:.2f} | {row['max_abs_error']:.2g} | {'yes' if row['identical'] else 'no'}"
        print(f"| {row['file'].removesuffix('.pte')} | {values} |")
    sys.exit(result.returncode)


if __name__ == "__main__":
    main()
