"""From eager methods to a program in files: torch.export, the backend, ExecuTorch's serialisation."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from lightning_prune.deploy.artifact.files import writing
from lightning_prune.deploy.backends import Backend, Portable
from lightning_prune.deploy.executorch.origins import failing_node, first_line, origin, place
from lightning_prune.deploy.executorch.outside import BackendError, kept_from, operator_name
from lightning_prune.deploy.executorch.quiet import imported, quiet_import, quiet_lowering
from lightning_prune.deploy.executorch.torchao import fold_batch_norms
from lightning_prune.deploy.program.dynamic import Sizes, restore_ranges, trace_refusal
from lightning_prune.deploy.program.eager import EagerModel
from lightning_prune.deploy.program.signature import describe
from lightning_prune.deploy.quantization import Quantized
from lightning_prune.deploy.quantization.graphs import retraced
from lightning_prune.deploy.rewriting import apart, rewritten, with_own_values
from lightning_prune.documents import scratch
from lightning_prune.errors import ExportError, PruningError
from lightning_prune.graph.recordable import recordable
from lightning_prune.model.state import kept_state

_TAG = "weights"
_LINES = 3
"""How many lines of the user's code are told of one operator."""


class Serialised(Protocol):
    """ExecuTorch's ExecutorchProgramManager, as far as it is used here."""

    def write_to_file(self, file: BinaryIO, /) -> None:
        """Write the bytes of a .pte."""
        ...

    def write_tensor_data_to_file(self, outdir: str, /) -> None:
        """Write a .ptd for each tag into a folder."""
        ...


class Lowered(Protocol):
    """ExecuTorch's EdgeProgramManager, as far as it is used here."""

    def exported_program(self, method_name: str = "forward") -> ExportedProgram:
        """Return the graph of a method with its delegate calls."""
        ...

    def to_executorch(self, config: Any = None) -> Serialised:  # noqa: ANN401
        """Plan the memory and serialise."""
        ...


@dataclass(frozen=True)
class Graph:
    """A method as the partitioners see it.

    Args:
        program: traced, rewritten and quantized.
        quantized: what quantization found; None without one.
    """

    program: ExportedProgram
    quantized: Quantized | None = None


def graph_of(
    eager: EagerModel,
    inputs: Sequence[Tensor],
    backend: Backend,
    names: Sequence[str] = (),
    shapes: tuple[Sizes, ...] | None = None,
    quantize: Callable[[ExportedProgram, Sequence[Tensor]], Quantized | None] | None = None,
) -> Graph:
    """Trace a method and do to it what the backend asks for before its partitioners.

    Args:
        eager: the method.
        inputs: examples.
        backend: where it will run.
        names: of the inputs.
        shapes: what may vary, by input; None: nothing.
        quantize: what quantizes the traced program; None: as the backend's ``quantization`` does.

    Raises:
        ExportError: the method cannot be traced, rewritten or quantized.
    """
    backend.check(inputs, shapes)
    try:
        with quiet_lowering(), recordable(), kept_state(eager):
            program = torch.export.export(eager, tuple(inputs), dynamic_shapes=None if shapes is None else (shapes,))
    except Exception as error:
        if (refusal := trace_refusal(str(error), names, shapes)) is not None:
            raise ExportError(f"{eager}: {refusal}") from error
        raise ExportError(
            f"{eager} cannot be traced by torch.export on {describe(inputs)}{origin(error)}: {first_line(error)}"
        ) from error
    if eager.state:
        with_own_values(program)
        with quiet_lowering():
            signature = program.run_decompositions({}).graph_signature
        if lost := [name for name in eager.state if name not in signature.buffers_to_mutate.values()]:
            name = lost[0].removeprefix("model.")
            raise ExportError(
                f"{name}: {eager} changes this buffer in a way that torch.export does not see, such as"
                f" self.{name}.data = …: the program would never change it. Write self.{name}.copy_(…) instead"
            )
    with _wrapped(f"{eager} cannot be rewritten for {backend}", program):
        program = rewritten(program, backend.rewrites())
    if quantize is None and backend.quantization is not None:
        quantize = backend.quantization.quantize
    with kept_state(eager):
        quantized = None if quantize is None else quantize(program, inputs)
    if quantized is not None:
        program = quantized.program
        # the samples of the calibration have gone through the graph, and through its own copies of the state
        held = {**program.constants, **program.state_dict}
        for name in held.keys() & set(eager.state):
            held[name].copy_(eager.get_buffer(name))
    with _wrapped(f"{eager} cannot be rewritten for {backend}", program):
        return Graph(rewritten(program, backend.late_rewrites()), quantized)


def with_external_weights(program: ExportedProgram, inputs: Sequence[Tensor]) -> ExportedProgram:
    """Return a program whose weights are marked to be written apart from it, in the delegate too.

    Batch norms are folded into convolutions first: ExecuTorch 1.4.1 would fold them later and lose the mark. The marks
    that reach into a delegate are set by a pass that is in no public place, since the option ``external_constants``
    alone leaves what a delegate holds where it is:
    https://github.com/pytorch/executorch/blob/v1.4.1/exir/passes/external_constants_pass.py#L99

    Raises:
        ExportError: it cannot be traced again.
    """
    with quiet_import():
        from executorch.exir.passes.external_constants_pass import delegate_external_constants_pass_unlifted
    with _wrapped("the weights cannot be marked as external", program), quiet_lowering():
        graph = program.module(check_guards=False)
        fold_batch_norms(graph)
        delegate_external_constants_pass_unlifted(graph, lambda _: _TAG)
        return retraced(graph, program, inputs)


def partitioners_of(backend: Backend) -> Sequence[Any]:
    """Return new partitioners of a backend, for one lowering.

    Raises:
        ImportError: a package of the backend is missing.
    """
    with quiet_import():
        return backend.partitioners()


def lower(
    programs: Mapping[str, ExportedProgram],
    backend: Backend,
    constants: Mapping[str, Any] | None = None,
    partitioners: Sequence[Any] | None = None,
    outside: Collection[str] = (),
) -> Lowered:
    """Give a backend what it takes of the methods of a program, all of them together, so that they share weights.

    Args:
        programs: by the name of the method.
        backend: where they will run.
        constants: constant methods; None: none.
        partitioners: what :func:`partitioners_of` returned; None: asked for here.
        outside: names of operators that are kept from them, as in ``aten::slice_copy.Tensor``.

    Raises:
        BackendError: a method cannot be lowered.
        ExportError: the disk is full.
        ImportError: a package of the backend is missing.
    """
    exir = imported("executorch.exir")
    imported("executorch.kernels.quantized")  # what no delegate takes of a quantized graph
    partitioners = partitioners_of(backend) if partitioners is None else partitioners
    try:
        with quiet_lowering():
            lowered = exir.to_edge_transform_and_lower(
                {name: apart(program) for name, program in programs.items()},
                partitioner=kept_from(partitioners, outside),
                constant_methods=dict(constants) if constants else None,
            )
    except OSError as error:
        raise ExportError(
            f"the lowering cannot write its files ({error.strerror or error}): nothing was changed"
        ) from error
    except Exception as error:
        where = next((found for p in programs.values() if (found := origin(error, p))), "")
        node = failing_node(error)
        way = "" if isinstance(backend, Portable) else ", or export with Portable()"
        raise BackendError(
            f"the model cannot be lowered to {backend}{where}: {first_line(error)}"
            f" (write it with other operators{way})",
            "" if node is None else operator_name(node.target),
        ) from error
    for name, program in programs.items():
        restore_ranges(lowered.exported_program(name), program)
    return lowered


def save(
    lowered: Lowered, path: Path, data_path: Path | None = None, first: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Write the program to a file, and its weights to another one where that is asked for.

    Args:
        lowered: what :func:`lower` returned.
        path: of the program.
        data_path: of the weights; None: they are in the program.
        first: by method, the buffers whose first values are not zero: ExecuTorch stores none by itself.

    Raises:
        ExportError: it cannot be serialised, a file cannot be written, or there is no weight to write apart.
    """
    config = imported("executorch.exir").ExecutorchBackendConfig
    with _wrapped("ExecuTorch cannot serialise the program", None), quiet_lowering():
        options: dict[str, Any] = {} if data_path is None else {"external_constants": lambda _: _TAG}
        if stored := {name for names in (first or {}).values() for name in names}:
            options["passes"] = [_first_values(lowered, first or {}, stored)]
        program = lowered.to_executorch(config(**options))
    with writing(path), path.open("wb") as file:
        program.write_to_file(file)
    if data_path is None:
        return
    # ExecuTorch names a .ptd itself, by its tag: it is written into a folder of its own and then moved.
    with writing(data_path), scratch(data_path.parent) as folder:
        program.write_tensor_data_to_file(str(folder))
        written = list(folder.iterdir())
        if len(written) != 1:
            raise ExportError(
                "external_weights: the backend keeps every weight inside its own part of the .pte, so none can stand"
                " in a .ptd: leave external_weights out, or export with XNNPACK() or Portable()"
            )
        written[0].replace(data_path)


def _first_values(lowered: Lowered, methods: Collection[str], stored: Collection[str]) -> Any:  # noqa: ANN401
    """Return a pass that lets the first values of buffers be written, by their exact names.

    ExecuTorch's own goes by parts of names (1.4.1, exir/passes/init_mutable_pass.py).
    """
    signatures = [lowered.exported_program(method).graph_signature for method in methods]
    inputs = {node for each in signatures for node, name in each.inputs_to_buffers.items() if name in stored}

    class FirstValues(imported("executorch.exir.pass_base").ExportPass):
        def placeholder(self, name: str, arg: Any, meta: Any) -> Any:  # noqa: ANN401
            if name in inputs:
                meta["et_init_buffer"] = True
            return super().placeholder(name, arg, meta)

    return FirstValues()


def outside_notes(lowered: Lowered, backend: Backend, methods: Sequence[str] = ("forward",)) -> tuple[str, ...]:
    """Return a sentence for each method with the operators left outside the backend and their lines, if there are any.

    To be asked before :func:`save`, which turns the graph into that of the file.
    """
    if isinstance(backend, Portable):
        return ()
    # the only mark by which an operator differs from a delegate's call (1.4.1, exir/dialects/edge/_ops.py#L291)
    operator = imported("executorch.exir.dialects.edge._ops").EdgeOpOverload
    notes = []
    for method in methods:
        calls = [call for call in lowered.exported_program(method).graph.nodes if isinstance(call.target, operator)]
        by_name: dict[str, list[Node]] = {}
        for call in calls:
            by_name.setdefault(call.target.name(), []).append(call)
        listed = []
        for name, same in sorted(by_name.items(), key=lambda item: -len(item[1])):
            lines = list(dict.fromkeys(line for call in same if (line := place(call))))
            where = f" ({', '.join(lines[:_LINES])}{', …' if len(lines) > _LINES else ''})" if lines else ""
            listed.append(name + (f" ×{len(same)}" if len(same) > 1 else "") + where)
        if calls:
            of, chosen = ("", "") if method == "forward" else (f" of {method}", f", method={method!r}")
            timed = (
                f" benchmark(path{chosen}, profile=True) shows their share of the time." if backend.runs_here else ""
            )
            notes.append(
                f"Operator calls{of} that stay outside {backend.name} and run on portable kernels, {len(calls)} in all:"
                f" {', '.join(listed)}.{timed}"
            )
    return tuple(notes)


@contextmanager
def _wrapped(what: str, program: ExportedProgram | None) -> Iterator[None]:
    try:
        yield
    except (PruningError, ImportError):
        raise
    except Exception as error:
        raise ExportError(f"{what}{origin(error, program)}: {first_line(error)}") from error
