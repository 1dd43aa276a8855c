"""From a module to a verified .pte: check, run the methods once, lower, write and run the file, say what it is."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram
from torchmetrics import Metric

from lightning_prune.deploy.artifact.artifact import Artifact, DataFile, file_facts, zipped_size
from lightning_prune.deploy.artifact.files import Staged, final, staged, writing
from lightning_prune.deploy.artifact.manifest import to_text
from lightning_prune.deploy.backends import XNNPACK, Backend, Portable
from lightning_prune.deploy.backends.base import check_backend
from lightning_prune.deploy.checking.comparison import TOLERANCE, Bounds
from lightning_prune.deploy.checking.verification import Candidate, Verification, check_metric, judged
from lightning_prune.deploy.executorch.lowering import (
    Graph,
    graph_of,
    lower,
    outside_notes,
    partitioners_of,
    save,
    with_external_weights,
)
from lightning_prune.deploy.executorch.origins import origin
from lightning_prune.deploy.executorch.outside import BackendError, left_out_where_needed, taken_by_backend
from lightning_prune.deploy.executorch.quiet import require_executorch
from lightning_prune.deploy.interrupts import interruptible
from lightning_prune.deploy.program.arguments import check_model, checked_labels, program_path
from lightning_prune.deploy.program.constants import Constant, checked_constants
from lightning_prune.deploy.program.dynamic import claimed, ends, found_ranges, resized
from lightning_prune.deploy.program.eager import folded_copy, isolated, state_of
from lightning_prune.deploy.program.feeds import Feeds
from lightning_prune.deploy.program.generation import Generation, check_generation, texts
from lightning_prune.deploy.program.loaders import OwnData, OwnSamples, own_or_asked
from lightning_prune.deploy.program.methods import EntryPoint, Method, check_methods, entry_points
from lightning_prune.deploy.program.picture import Picture, check_picture
from lightning_prune.deploy.program.preprocessing import Normalize
from lightning_prune.deploy.program.signature import MethodSpec, check_labels
from lightning_prune.deploy.quantization.quantizers import Quantizers
from lightning_prune.deploy.runtime.child import CHILD, EndedError
from lightning_prune.deploy.runtime.model import AS_MUCH_AS_THERE_IS, RuntimeModel
from lightning_prune.errors import ExportError, VerificationError
from lightning_prune.model import masks
from lightning_prune.model.example import Inputs
from lightning_prune.model.summary import summarize
from lightning_prune.values import check_bool

_DEFAULT_BACKEND = XNNPACK()
_PATIENCE = 3600.0
"""Seconds that one run of a file may take before it counts as hanging; portable kernels are slow."""


def export(
    model: nn.Module,
    path: str | Path,
    *,
    example_inputs: Inputs | None = None,
    backend: Backend = _DEFAULT_BACKEND,
    dynamic_shapes: Any = None,  # noqa: ANN401
    feeds: Feeds | None = None,
    methods: Mapping[str, Method] | None = None,
    generation: Generation | None = None,
    preprocess: Normalize | None = None,
    picture: Picture | None = None,
    constants: Mapping[str, Constant | Sequence[Constant]] | None = None,
    external_weights: bool = False,
    verify_on: Iterable[Any] | None = None,
    metric: Metric | None = None,
    labels: Sequence[str] | None = None,
    tolerance: float | None = None,
) -> Artifact:
    """Write a .pte and its manifest, after the file was run and gave what the model gives.

    A copy of the model is put into eval mode with its masks folded; the model itself stays as it is, with its mode,
    device and random state. The program is written to a temporary file beside ``path`` and run by the ExecuTorch
    runtime, in a process of its own that a fault takes down without yours: on the example inputs, on random inputs of
    the same shapes, on the smallest and largest sizes where sizes may vary, and on ``verify_on``. Only then do
    ``model.pte`` and ``model.json`` take their names; after any error older files are still in place.

    Args:
        model: any module on any device, masked, pruned or dense, in any mode; also a LightningModule with a trainer.
        path: of the .pte, in a folder that exists. The manifest is written beside it, with the suffix .json.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments of ``forward``; tensors may
            stand in dicts, named tuples and dataclasses. Each tensor is an input of the program, named by its way:
            ``audio``, ``batch.x``. Their shapes, batch size included, are those that the program takes, unless
            ``dynamic_shapes`` lets them vary; plain values beside them become part of it. None: the model's
            ``example_input_array``, or one sample of what a fit or :func:`~lightning_prune.prune` learnt.
        backend: where the program will run.
        dynamic_shapes: as in torch.export, by the name of the input: ``{"image": {0: Dim("batch", min=1, max=8)}}``.
            Every size needs a maximum, for which the program plans its memory.
        feeds: which outputs of ``forward`` are inputs of its next call, for state that is an argument and a result:
            ``{"h": "h_out"}``, by name or by position; a tuple ``(h, c)`` by its own. It begins with the number that it
            holds throughout the example, or with zeros.
        methods: further methods of the program, by name.
        generation: of a decoder that writes text: length of its cache and where a text ends. It says what ``forward``
            takes, so that examples and sizes are left out, and the program is compared on random texts.
        preprocess: folded in before the first input of ``forward``, which is then a uint8 image.
        picture: how an app makes a camera's picture into that input; kept in the manifest.
        constants: constant methods, by name: strings, bools, ints, floats or lists of them, for the app to read.
        external_weights: write the weights to ``model.ptd`` beside the .pte, which then holds the graph alone.
        verify_on: batches ``(inputs, targets)``, or bare inputs when there is no metric; of any batch size. Inputs are
            a tensor, a tuple of them in order, or a dict by their names; a dict may hold the targets too. Without them
            the artifact says that it was compared on random inputs only. :class:`Sequences` of calls for a model with
            memory, each from its first state.
        metric: computed on ``verify_on`` for both sides from the first output and the targets; a copy of it is used.
            A LightningModule's own is passed as ``metric=model.val_acc``.
        labels: names of the classes, kept in the manifest and in the constant method ``labels`` for the app.
        tolerance: largest absolute difference of any output from the eager model that is accepted. None: 1e-4, or
            any where there is quantization, which is judged by its ``min_output_sqnr``.

    Returns:
        the artifact: paths, sizes, hash and what was measured.

    Raises:
        ValueError: an argument is out of its range or does not fit the model.
        TypeError: an argument is of another type.
        ExportError: the folder cannot be written, or the model cannot be run, traced or lowered.
        VerificationError: the file does not compute what the model computes.
        ImportError: ExecuTorch, or a package that the backend needs, is not installed.

    Example:
        >>> image = torch.zeros(1, 1, 8, 8)  # doctest: +SKIP
        >>> artifact = export(model, "digits.pte", example_inputs=image)  # doctest: +SKIP
        >>> artifact.max_abs_error  # doctest: +SKIP
        1.1920928955078125e-07
    """
    require_executorch()
    check_model(model)
    path = program_path(path)
    labels = checked_labels(labels)
    check_backend(backend)
    check_bool("external_weights", external_weights)
    check_methods(methods)
    check_generation(generation)
    check_metric(metric, verify_on)
    bounds = Bounds(TOLERANCE if tolerance is None else tolerance)
    if backend.quantization is not None:
        bounds = Bounds(tolerance, backend.quantization.min_output_sqnr)
    with interruptible(), staged(path, external_weights) as files, isolated():
        main = Method("forward", example_inputs, dynamic_shapes, preprocess, feeds=feeds)
        requested = {"forward": main if generation is None else generation.method(main), **(methods or {})}
        forward, *further = entry_points(model, folded_copy(model), requested)
        forward, told = (forward, {}) if generation is None else generation.taken(forward)
        check_labels(labels, forward.spec.outputs)
        check_picture(picture, forward.spec.inputs[0])
        values = checked_constants(constants, labels, [*requested, *told]) | told
        spec = claimed(forward.spec, forward.shapes)
        own, batches = own_or_asked(verify_on, spec, preprocess, metric is not None)

        CHILD.start()  # the process imports the runtime while the lowering goes on here
        traced = _traced([forward, *further], backend, external_weights)
        partitioners = partitioners_of(backend)
        making = _Making(traced, values, backend, partitioners, files, bounds, own, batches, metric, told)
        can_repeat = isinstance(verify_on, OwnData) or not isinstance(verify_on, Iterator)
        made = left_out_where_needed(making.attempt, lambda: making.taken, can_repeat)
        first = [resized(x, one.shape) for x, one in zip(forward.inputs, forward.spec.inputs, strict=True)]
        summary = summarize(forward.eager.model, forward.eager.call(first))

        of_backend = *backend.notes(summary.sparsity), *backend.notes_of_lowering(partitioners, summary.sparsity)
        artifact = Artifact(
            path=path,
            manifest_path=files.manifest_path,
            backend=backend,
            model=type(model).__name__,
            **made.facts,
            zipped_bytes=made.zipped_bytes,
            parameters=summary.parameters,
            nonzero_parameters=summary.parameters - summary.zeros,
            macs=summary.macs or 0,
            methods={name: method.spec for name, method in traced.items()},
            verification=made.verification,
            sources={e.name: Method(e.eager.method, None, preprocess=e.preprocess) for e in further},
            data=tuple(DataFile(target, **file_facts(file)) for file, target in files.weights),
            state=tuple(state_of({name: each.entry.eager for name, each in traced.items()})),
            labels=labels,
            generation=told,
            preprocessing=preprocess,
            picture=picture,
            quantized={name: method.graph.quantized for name, method in traced.items() if method.graph.quantized},
            notes=_notes(model, of_backend, forward, made, backend, files),
        )
        with writing(files.manifest_path):
            files.manifest.write_text(to_text(artifact.manifest()), encoding="utf-8")
        files.publish()
    return artifact


@dataclass(frozen=True)
class _Traced:
    """A method between its graph and its file.

    Args:
        entry: the eager side.
        graph: what the partitioners are given.
        spec: inputs and outputs with their ranges.
    """

    entry: EntryPoint
    graph: Graph
    spec: MethodSpec


def _traced(entries: Sequence[EntryPoint], backend: Backend, external_weights: bool) -> dict[str, _Traced]:
    """Trace, rewrite and quantize methods."""
    quantizers = Quantizers(backend.quantization, entries)
    traced = {}
    for entry in entries:
        graph = graph_of(entry.eager, entry.inputs, backend, entry.names, entry.shapes, quantizers.of(entry.name))
        if external_weights:
            graph = Graph(with_external_weights(graph.program, entry.inputs), graph.quantized)
        traced[entry.name] = _Traced(entry, graph, found_ranges(graph.program, entry.spec))
    quantizers.check()
    return traced


def _programs(traced: Mapping[str, _Traced]) -> dict[str, ExportedProgram]:
    return {name: method.graph.program for name, method in traced.items()}


@dataclass(frozen=True)
class _Made:
    """What came of an attempt.

    Args:
        facts: size and hash of the file.
        zipped_bytes: of file and weights.
        verification: of the file.
        notes: for the artifact.
    """

    facts: Mapping[str, Any]
    zipped_bytes: int
    verification: Verification
    notes: tuple[str, ...]


@dataclass
class _Making:
    """Lowers, writes and runs a program; ``taken`` are names of the operators that the backend took the last time."""

    traced: Mapping[str, _Traced]
    constants: Mapping[str, Any]
    backend: Backend
    partitioners: Sequence[Any]
    files: Staged
    bounds: Bounds
    own: OwnSamples
    batches: Iterable[Any] | None
    metric: Metric | None
    generation: Mapping[str, Any]
    taken: set[str] = field(default_factory=set)

    def attempt(self, outside: Mapping[str, str]) -> _Made:
        """Make the file, these operators kept from the backend: name -> why."""
        self.taken = set()
        programs, files = _programs(self.traced), self.files
        lowered = lower(programs, self.backend, self.constants, self.partitioners, outside)
        if self.backend.runs_here:
            self.taken = {name for each in programs for name in taken_by_backend(lowered.exported_program(each))}
        notes = outside_notes(lowered, self.backend, tuple(programs))
        save(lowered, files.program, files.data, self._first())
        with ThreadPoolExecutor(2) as beside:  # hash and deflate while the file runs in the other process
            facts = beside.submit(file_facts, files.program)
            zipped = beside.submit(zipped_size, files.program, *([files.data] if files.data else []))
            verification, of_run = self._verified()
        if outside:
            why = "; ".join(f"{name}: {shorten(reason, 160)}" for name, reason in outside.items())
            notes += (
                f"Left to portable kernels, since {self.backend.name} fails on it or computes it wrongly: {why}.",
            )
        return _Made(facts.result(), zipped.result(), verification, (*notes, *of_run))

    def _first(self) -> dict[str, list[str]]:
        """Return the buffers of each method that begin with something else than zeros."""
        eager = {name: method.entry.eager for name, method in self.traced.items()}
        return {name: [b for b in each.state if bool(each.get_buffer(b).any())] for name, each in eager.items()}

    def _verified(self) -> tuple[Verification, tuple[str, ...]]:
        """Run the file, in another process, beside the eager model; of a backend that cannot run here its graph."""
        files, backend = self.files, self.backend
        path, data, executed = files.program, files.data, backend
        reference = files.program.with_suffix(".reference")
        try:
            if not backend.runs_here:
                path, data, executed = reference, None, Portable()
                save(lower(_programs(self.traced), executed, self.constants), path, first=self._first())
            with CHILD.releasing():
                forward, *further = (_candidate(method, path, data, executed) for method in self.traced.values())
                rows = texts(self.generation).calls if self.generation else ()
                candidates = [replace(forward, own=self.own, rows=rows), *further]
                verification, notes = judged(candidates, self.bounds, executed.name, self.batches, self.metric)
        except VerificationError as error:
            raise type(error)(f"{files.path.name} was not written: {error}") from error
        finally:
            reference.unlink(missing_ok=True)
        if executed.name != backend.name:
            is_half = getattr(backend, "precision", "") == "float16" or getattr(backend, "half", False)
            notes += (
                f"{backend.name} cannot run on this machine: the same graph was run on portable kernels, and what"
                f" {backend.name} makes of it was not executed"
                + ("; its rounding to float16 is not in the error either." if is_half else "."),
            )
        return verification, notes


def _candidate(method: _Traced, path: Path, data: Path | None, executed: Backend) -> Candidate:
    """Return a method of a written file beside the model; its errors say where in the model they come from."""

    @contextmanager
    def explained() -> Iterator[None]:
        try:
            yield
        except EndedError as error:
            raise BackendError(
                f"the ExecuTorch runtime cannot run what {executed} makes of {method.entry.eager} ({error.how}); your"
                " process goes on. Take another backend, or leave out what this one cannot run"
            ) from error
        except ExportError as error:
            told = str(error).replace(str(path), str(final(path)))
            if where := origin(error, method.graph.program):
                told = f"the ExecuTorch runtime has no kernel for an operator of the model{where}: {told}"
            raise BackendError(told) from error

    with explained():
        program = RuntimeModel(
            path,
            method.entry.name,
            signature=method.spec,
            data_path=data,
            timeout=_PATIENCE,
            memory=AS_MUCH_AS_THERE_IS,
        )

    def run(*inputs: Tensor) -> Sequence[Tensor]:
        with explained():
            return program(*inputs)

    entry, quantized = method.entry, method.graph.quantized
    samples, of_graph = ((), ()) if quantized is None else (quantized.samples, quantized.outputs)
    sizes = ends(method.spec)
    return Candidate(
        entry.name, run, entry.eager, method.spec, entry.inputs, sizes, samples, of_graph, reset=program.reset
    )


def _notes(
    model: nn.Module, of_backend: Sequence[str], forward: EntryPoint, made: _Made, backend: Backend, files: Staged
) -> tuple[str, ...]:
    """Return what whoever ships the file should know about it."""
    notes: list[str] = []
    structured = set(masks.structured_names(model))
    if not all(bool(mask.all()) for name, mask in masks.read(model).items() if name in structured):
        notes.append(
            "Whole channels of this model are masked and still in the file, at full size and time. Remove them first:"
            " export(finalize(model, example_inputs), …), with finalize from lightning_prune."
        )
    notes += of_backend
    if forward.eager.arguments is not None and forward.eager.arguments.fixed:
        listed = ", ".join(f"{name}={value!r}" for name, value in forward.eager.arguments.fixed.items())
        notes.append(f"Part of the program, as the example inputs have it: {listed}.")
    notes += made.notes
    if files.data is not None and (inside := files.program.stat().st_size) > (outside := files.data.stat().st_size):
        notes.append(
            f"external_weights: {backend.name} keeps weights inside its part of the .pte, which has {inside:,} bytes;"
            f" the .ptd has {outside:,}."
        )
    return tuple(notes)
