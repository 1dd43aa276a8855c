"""ExecuTorch's runtime from inside: files loaded, methods called, threads counted; for the process of its own alone.

As ExecuTorch 1.4.1 has it. The public ``executorch.runtime`` loads no weights that stand outside of the .pte and says
nothing of threads, so its bindings are used themselves, all of whose names begin with an underscore:
https://github.com/pytorch/executorch/blob/v1.4.1/extension/pybindings/pybindings.pyi#L211
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType

from torch import Tensor

from lightning_prune.deploy.executorch.pte_file import SCALAR_TYPES, without_export_side

Run = Callable[[Sequence[Tensor]], Sequence[object]]


@dataclass(frozen=True)
class RuntimeMethod:
    """A method, ready to be run.

    Args:
        run: calls it with contiguous tensors.
        inputs: shape, the largest where sizes may vary, and element type of each.
        outputs: the same of what it gives; empty where it takes nothing.
        methods: names of those of the file that take something; the others hold constants.
    """

    run: Run
    inputs: list[tuple[list[int], str]]
    outputs: list[tuple[list[int], str]]
    methods: list[str]


def bindings() -> ModuleType:
    """Return the runtime's Python bindings, with the kernels of integers that no delegate takes."""
    without_export_side()
    from executorch.extension.pybindings import portable_lib

    importlib.import_module("executorch.kernels.quantized")  # registers them
    return portable_lib


def load(path: str, method: str, data: str | None, clone: bool = True) -> RuntimeMethod:
    """Load a method of a file.

    Args:
        path: of the .pte.
        method: name of the method in it.
        data: path of its external weights, if any.
        clone: whether outputs are tensors of their own; if not, the next call overwrites them.

    Raises:
        RuntimeError: the runtime refuses it.
    """
    native = bindings()
    # Minimal, which is quicker, crashed on 11 of 80 damaged files, and InternalConsistency on one
    check = native.Verification.InternalConsistency
    if data is not None:
        file = native._load_for_executorch(path, data, program_verification=check)
        names = file.method_names()
        run = partial(lambda inputs, _program: _program.run_method(method, inputs, clone), _program=file)
    else:
        file = native._load_program(path, program_verification=check)
        names = [file.get_method_name(index) for index in range(file.num_methods())]
        loaded = file.load_method(method)
        # the method points into its program, which would go at the end of this function
        run = partial(lambda inputs, _program: loaded(inputs, clone), _program=file)
    meta = file.method_meta(method)
    takes = [meta.input_tensor_meta(index) for index in range(meta.num_inputs())]
    # what takes nothing holds a constant, which may be no tensor
    gives = [meta.output_tensor_meta(index) for index in range(meta.num_outputs() if takes else 0)]
    inputs, outputs = (
        [(list(x.sizes()), SCALAR_TYPES.get(x.dtype(), f"scalar type {x.dtype()}")) for x in side]
        for side in (takes, gives)
    )
    return RuntimeMethod(run, inputs, outputs, [name for name in names if file.method_meta(name).num_inputs()])


def backends() -> list[str]:
    """Return the names of the backends that this runtime has."""
    return bindings()._get_registered_backend_names()


def threads() -> int:
    """Return on how many threads the runtime runs."""
    return bindings()._threadpool_get_thread_count()


def set_threads(count: int) -> None:
    """Replace the pool of threads; every loaded method keeps a pointer into the old one and must be let go before."""
    bindings()._unsafe_reset_threadpool(count)
