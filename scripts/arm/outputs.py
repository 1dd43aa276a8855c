"""Run .pte files on inputs made from a seed, and keep or compare what comes back.

outputs.py write FOLDER FILE.pte…    runs here and writes FOLDER/INDEX.npz, the inputs and outputs of each file
outputs.py compare FOLDER FILE.pte…  runs there on these inputs and prints one line of JSON per file

It needs torch, numpy and ExecuTorch's extension module alone, which is loaded from its file: importing
executorch.runtime takes 46 s under emulation.
"""

import importlib.util
import json
import platform
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

SEED = 0
# ScalarType of ExecuTorch -> a tensor of that dtype whose values every model takes: token numbers stay 0 or 1.
INPUTS = {
    0: lambda shape, seed: torch.randint(0, 256, shape, dtype=torch.uint8, generator=seed),
    1: lambda shape, seed: torch.randint(-128, 128, shape, dtype=torch.int8, generator=seed),
    3: lambda shape, seed: torch.randint(0, 2, shape, dtype=torch.int32, generator=seed),
    4: lambda shape, seed: torch.randint(0, 2, shape, dtype=torch.int64, generator=seed),
    5: lambda shape, seed: torch.randn(shape, generator=seed).half(),
    6: lambda shape, seed: torch.randn(shape, generator=seed),
    7: lambda shape, seed: torch.randn(shape, dtype=torch.float64, generator=seed),
    11: lambda shape, seed: torch.randint(0, 2, shape, generator=seed) == 1,
}


def runtime() -> ModuleType:
    """Return ExecuTorch's extension module, loaded from its file beside torch's folder."""
    packages = Path(torch.__file__).parents[1]
    (file,) = (packages / "executorch" / "extension" / "pybindings").glob("_portable_lib*.so")
    spec = importlib.util.spec_from_file_location("_portable_lib", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be loaded: install executorch again")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def inputs(program: Any) -> list[torch.Tensor]:  # noqa: ANN401 - the extension module has no types
    """Return one tensor per input of ``forward``, the same ones in every process."""
    meta = program.method_meta("forward")
    takes = [meta.input_tensor_meta(i) for i in range(meta.num_inputs())]
    seed = torch.Generator().manual_seed(SEED)
    unknown = [take.dtype() for take in takes if take.dtype() not in INPUTS]
    if unknown:
        raise ValueError(f"inputs of ScalarType {unknown} cannot be made here: use a file with other inputs")
    return [INPUTS[take.dtype()](tuple(take.sizes()), seed) for take in takes]


def write(folder: Path, files: list[Path]) -> None:
    """Run each file here and keep inputs and outputs as INDEX.npz."""
    library = runtime()
    for index, file in enumerate(files):
        program = library._load_for_executorch(str(file))
        given = inputs(program)
        arrays = {f"input{i}": tensor.numpy() for i, tensor in enumerate(given)}
        arrays |= {f"output{i}": tensor.numpy() for i, tensor in enumerate(program.forward(given))}
        np.savez(folder / f"{index}.npz", **arrays)  # pyright: ignore[reportArgumentType]


def compare(folder: Path, files: list[Path]) -> None:
    """Run each file on the kept inputs and print how far its outputs are from the kept ones."""
    library = runtime()
    for index, file in enumerate(files):
        kept = np.load(folder / f"{index}.npz")
        given = [torch.from_numpy(kept[name]) for name in kept.files if name.startswith("input")]
        there = [kept[name] for name in kept.files if name.startswith("output")]
        here = [tensor.numpy() for tensor in library._load_for_executorch(str(file)).forward(given)]
        print(json.dumps({"file": file.name, "machine": platform.machine()} | difference(here, there)), flush=True)


def difference(here: list[np.ndarray], there: list[np.ndarray]) -> dict[str, Any]:
    """Return whether all outputs are finite and bit-identical, their largest difference, and the largest output."""
    if [a.shape for a in here] != [b.shape for b in there]:
        raise ValueError(f"shapes of the outputs: {[a.shape for a in here]} here, {[b.shape for b in there]} there")
    pairs = [(a.astype(np.float64), b.astype(np.float64)) for a, b in zip(here, there, strict=True)]
    return {
        "identical": all(a.tobytes() == b.tobytes() for a, b in zip(here, there, strict=True)),
        "finite": all(bool(np.isfinite(a).all()) for a in here),
        "max_abs_error": max((float(np.abs(a - b).max(initial=0)) for a, b in pairs), default=0.0),
        "max_abs_output": max((float(np.abs(b).max(initial=0)) for _, b in pairs), default=0.0),
    }


if __name__ == "__main__":
    {"write": write, "compare": compare}[sys.argv[1]](Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
