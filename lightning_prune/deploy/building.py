"""The stages of an export as values: graphs, written files, and what was found when they ran."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor
from torchmetrics import Metric

from lightning_prune.deploy.artifact.files import Staged, final
from lightning_prune.deploy.backends import Backend, Portable
from lightning_prune.deploy.calibrating import Quantize, Quantizers
from lightning_prune.deploy.checking.comparison import Bounds, Comparison
from lightning_prune.deploy.checking.verification import LoaderResult, Verification, compare_with
from lightning_prune.deploy.executorch.origins import origin
from lightning_prune.deploy.lowering import Graph, Lowered, graph_of, lower, save, with_external_weights
from lightning_prune.deploy.program.dynamic import ends, found_ranges
from lightning_prune.deploy.program.eager import RANDOM, Trial, trials
from lightning_prune.deploy.program.loaders import Function, check_batched, first_of, split_batch
from lightning_prune.deploy.program.methods import EntryPoint
from lightning_prune.deploy.program.preprocessing import Normalize
from lightning_prune.deploy.program.signature import MethodSpec
from lightning_prune.deploy.runtime.child import CHILD, EndedError
from lightning_prune.deploy.runtime.child_program import ChildProgram
from lightning_prune.errors import ExportError, VerificationError

_TOLERANCE = 1e-4
_SLACK = 3.0
"""By how many dB a file may be noisier than its graph: kernels round otherwise than the graph's reference does."""
_AS_GOOD_AS_FLOAT = 60.0
"""Ratio in dB from which on rounding in float32 may be all that is left."""
_PATIENCE = 3600.0
"""Seconds that one run of a file may take before it counts as hanging; portable kernels are slow."""


@dataclass(frozen=True)
class Built:
    """A method between its graph and its file.

    Args:
        entry: the eager side.
        graph: what the partitioners are given.
        spec: inputs and outputs with their ranges.
    """

    entry: EntryPoint
    graph: Graph
    spec: MethodSpec


@dataclass(frozen=True)
class Program:
    """All methods of a program, with its constant methods."""

    methods: Mapping[str, Built]
    constants: Mapping[str, Any]

    def lowered(self, backend: Backend) -> Lowered:
        """Return it lowered to a backend."""
        return lower({name: one.graph.program for name, one in self.methods.items()}, backend, self.constants)


def built(entries: Sequence[EntryPoint], backend: Backend, external_weights: bool) -> dict[str, Built]:
    """Trace, rewrite and quantize methods.

    Raises:
        ValueError: a method lacks samples to calibrate on, or a pattern of ``skip`` matches nowhere.
        ExportError: one of them cannot be.
    """
    quantizers = Quantizers(backend.quantization, entries)
    found = {e.name: _built(e, backend, quantizers.of(e.name), external_weights) for e in entries}
    quantizers.check()
    return found


def _built(entry: EntryPoint, backend: Backend, quantize: Quantize | None, external_weights: bool) -> Built:
    graph = graph_of(entry.eager, entry.inputs, backend, entry.names, entry.shapes, quantize)
    if external_weights:
        graph = Graph(with_external_weights(graph.program, entry.inputs), graph.quantized)
    return Built(entry, graph, found_ranges(graph.program, entry.spec))


def checked_loader(
    loader: Iterable[Any], spec: MethodSpec, preprocess: Normalize | None, needs_targets: bool
) -> Iterator[Any]:
    """Return the batches of a loader after its first one was checked, as the program takes them.

    Args:
        loader: of batches.
        spec: what the program takes and gives, with its ranges.
        preprocess: that is folded in, if any.
        needs_targets: whether there is a metric.

    Raises:
        ValueError: there is none, or it does not fit.
    """
    images = loader if preprocess is None else preprocess.images(loader, "verify_on")
    check_batched(spec.inputs, spec.outputs)
    first, batches = first_of(images)
    split_batch(first, spec.inputs, needs_targets)
    return batches


def bounds_of(backend: Backend, tolerance: float | None) -> Bounds:
    """Return what is accepted: a tolerance in float, a ratio where there is quantization, and what was asked for."""
    if backend.quantization is None:
        return Bounds(_TOLERANCE if tolerance is None else tolerance)
    return Bounds(tolerance, backend.quantization.min_output_sqnr)


@contextmanager
def runnable(program: Program, backend: Backend, files: Staged) -> Iterator[tuple[Path, Path | None, Backend]]:
    """Give a file that runs here, its weights, and the backend that runs it.

    That is the one that was written, or the same graph without a delegate where the backend cannot run here.
    """
    if backend.runs_here:
        yield files.program, files.data, backend
        return
    with TemporaryDirectory(prefix=f"{files.program.name}.", dir=files.program.parent) as folder:
        reference = Path(folder, "reference.pte")
        save(program.lowered(Portable()), reference)
        yield reference, None, Portable()


def verified(
    program: Program,
    backend: Backend,
    files: Staged,
    bounds: Bounds,
    batches: Iterable[Any] | None,
    metric: Metric | None,
) -> tuple[Verification, tuple[str, ...]]:
    """Run the file, in a process of its own, beside the eager model.

    Returns:
        what was found, and what the user should know about how.

    Raises:
        VerificationError: the file does not compute what the model computes.
        ExportError: the file cannot be run.
    """
    errors, notes = {}, []
    shown = LoaderResult()
    with released(), runnable(program, backend, files) as (path, data_path, executed):
        for name, one in program.methods.items():
            run = _loaded(path, data_path, one, executed)
            sizes = ends(one.spec)
            compared_on, unfit = _trials(one, sizes)
            given = (batches, metric) if name == "forward" else (None, None)
            with of_method(name):
                errors[name], found = compare_with(
                    run, one.entry.eager.run, compared_on, one.spec, bounds, *given, alone=sizes
                )
                _check_as_good_as_graph(run, one)
            shown = found if name == "forward" else shown
            notes += unfit
    if executed.name != backend.name:
        notes.append(
            f"{backend.name} cannot run on this machine: the same graph was run on portable kernels, and what"
            f" {backend.name} makes of it was not executed."
        )
    found = Verification(executed.name, bounds, errors, shown.samples, shown.changed_predictions, shown.metrics)
    return found, tuple(dict.fromkeys(notes))


@contextmanager
def released() -> Iterator[None]:
    """Let the other process let go of the programs that it ran in the block."""
    try:
        yield
    finally:
        CHILD.forget()


@contextmanager
def of_method(name: str) -> Iterator[None]:
    """Name the method in what is found in the block, where it is another than ``forward``.

    Raises:
        VerificationError: as in the block.
    """
    try:
        yield
    except VerificationError as error:
        raise VerificationError(str(error) if name == "forward" else f"method {name!r}: {error}") from error


def _check_as_good_as_graph(run: Function, one: Built) -> None:
    """Refuse a file that is noisier than its quantized graph: the backend made something else of it."""
    quantized = one.graph.quantized
    if quantized is None:
        return
    names = [output.name for output in one.spec.outputs]
    of_file, of_graph = Comparison(names, Bounds()), Comparison(names, Bounds())
    for sample, outputs in zip(quantized.samples, quantized.outputs, strict=True):
        expected = one.entry.eager.run(*sample)
        of_file.add(run(*sample), expected, "a calibration sample")
        of_graph.add(outputs, expected, "a calibration sample")
    for name, error in of_file.errors.items():
        reached = of_graph.errors[name].sqnr_db
        if error.sqnr_db < min(reached, _AS_GOOD_AS_FLOAT) - _SLACK:
            raise VerificationError(
                f"output {name!r}: the file is at {error.sqnr_db:.1f} dB of the eager model, the"
                f" quantized graph that it was made of at {reached:.1f} dB: the backend computes something else."
                " Quantize another way, or take another backend"
            )


def _loaded(path: Path, data_path: Path | None, one: Built, executed: Backend) -> Function:
    """Return a method of a file, to be called with tensors; its errors say where in the model they come from."""
    program = ChildProgram.written(path, one.entry.name, one.spec, data_path, _PATIENCE)

    def run(*inputs: Tensor) -> Sequence[Tensor]:
        try:
            return program(*inputs)
        except EndedError as error:
            raise ExportError(
                f"the ExecuTorch runtime cannot run what {executed} makes of {one.entry.eager} ({error.how}); your"
                " process goes on. Take another backend, or leave out what this one cannot run"
            ) from error
        except ExportError as error:
            told = str(error).replace(str(path), str(final(path)))
            if where := origin(error, one.graph.program):
                told = f"the ExecuTorch runtime has no kernel for an operator of the model{where}: {told}"
            raise ExportError(told) from error

    return run


def _trials(one: Built, sizes: Mapping[str, Sequence[Sequence[int]]]) -> tuple[dict[str, Trial], tuple[str, ...]]:
    """Return what to compare on: of a quantized graph only inputs like those that it was calibrated on."""
    samples = () if one.graph.quantized is None else one.graph.quantized.samples
    if not samples:
        return trials(one.entry.eager, one.entry.inputs, sizes)
    found, _ = trials(one.entry.eager, samples[0], sizes)
    found.pop(RANDOM, None)
    return found | {f"sample {i}": Trial(s, one.entry.eager.run(*s)) for i, s in enumerate(samples)}, ()
