"""From a module to a verified .pte: copy, trace, lower, write, run, rename."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchmetrics import Metric

from lightning_prune.deploy.artifact.artifact import Artifact, DataFile, file_facts, zipped_size
from lightning_prune.deploy.artifact.files import Staged, staged, writing
from lightning_prune.deploy.artifact.manifest import to_text
from lightning_prune.deploy.backends import XNNPACK, Backend
from lightning_prune.deploy.building import Program, bounds_of, built, checked_loader, verified
from lightning_prune.deploy.checking.verification import check_metric
from lightning_prune.deploy.executorch.installation import require_executorch
from lightning_prune.deploy.lowering import check_backend, outside_notes, save
from lightning_prune.deploy.program.arguments import check_model, checked_labels, program_path
from lightning_prune.deploy.program.constants import Constant, checked_constants
from lightning_prune.deploy.program.dynamic import claimed, resized
from lightning_prune.deploy.program.eager import folded_copy, isolated
from lightning_prune.deploy.program.methods import EntryPoint, Method, check_methods, entry_points
from lightning_prune.deploy.program.preprocessing import Normalize
from lightning_prune.deploy.program.signature import check_labels
from lightning_prune.deploy.runtime.child import CHILD
from lightning_prune.errors import VerificationError
from lightning_prune.model import masks
from lightning_prune.model.summary import Summary, summarize
from lightning_prune.values import check_bool

_DEFAULT_BACKEND = XNNPACK()


def export(
    model: nn.Module,
    path: str | Path,
    *,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
    backend: Backend = _DEFAULT_BACKEND,
    dynamic_shapes: Any = None,  # noqa: ANN401
    methods: Mapping[str, Method] | None = None,
    preprocess: Normalize | None = None,
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
        example_inputs: a tensor or a tuple of tensors, one per positional argument of ``forward``. Their shapes,
            batch size included, are those that the program takes, unless ``dynamic_shapes`` lets them vary. None: the
            model's ``example_input_array``.
        backend: where the program will run.
        dynamic_shapes: as in torch.export, by the name of the input: ``{"image": {0: Dim("batch", min=1, max=8)}}``.
            Every size needs a maximum, for which the program plans its memory.
        methods: further methods of the program, by name.
        preprocess: folded in before the first input of ``forward``, which is then a uint8 image.
        constants: constant methods, by name: strings, bools, ints, floats or lists of them, for the app to read.
        external_weights: write the weights to ``model.ptd`` beside the .pte, which then holds the graph alone.
        verify_on: batches ``(inputs, targets)``, or bare tensors when there is no metric; of any batch size.
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
        >>> artifact = export(model, "digits.pte", example_inputs=torch.zeros(1, 1, 8, 8))  # doctest: +SKIP
        >>> artifact.max_abs_error  # doctest: +SKIP
        1.1920928955078125e-07
    """
    require_executorch()
    check_model(model)
    path = program_path(path)
    labels = checked_labels(labels)
    _check_arguments(backend, preprocess, external_weights)
    check_methods(methods)
    check_metric(metric, verify_on)
    bounds = bounds_of(backend, tolerance)
    forward = {"forward": Method("forward", example_inputs, dynamic_shapes, preprocess)}
    with staged(path, external_weights) as files, isolated():
        entries = entry_points(model, folded_copy(model), forward | dict(methods or {}))
        check_labels(labels, entries[0].spec.outputs)
        values = checked_constants(constants, labels, [entry.name for entry in entries])
        batches = None if verify_on is None else _batches(verify_on, entries[0], metric)
        CHILD.start()
        program = Program(built(entries, backend, external_weights), values)
        lowered = program.lowered(backend)
        left_outside = outside_notes(lowered, backend, tuple(program.methods))
        save(lowered, files.program, files.data)
        with ThreadPoolExecutor(2) as beside:
            facts = beside.submit(file_facts, files.program)
            zipped = beside.submit(zipped_size, files.program, *([files.data] if files.data else []))
            with _named(path):
                verification, notes = verified(program, backend, files, bounds, batches, metric)
            summary = _summary(entries[0])
        artifact = Artifact(
            path=path,
            manifest_path=files.manifest_path,
            backend=backend,
            model=type(model).__name__,
            **facts.result(),
            zipped_bytes=zipped.result(),
            **_sizes(summary),
            **_described(program, entries),
            verification=verification,
            data=_data(files),
            labels=labels,
            preprocessing=preprocess,
            notes=(*_masked(model), *backend.notes(summary.sparsity), *left_outside, *notes, *_kept(backend, files)),
        )
        with writing(files.manifest_path):
            files.manifest.write_text(to_text(artifact.manifest()), encoding="utf-8")
        files.publish()
    return artifact


def _sizes(summary: Summary) -> dict[str, int]:
    nonzero = summary.parameters - summary.zeros
    return {"parameters": summary.parameters, "nonzero_parameters": nonzero, "macs": summary.macs or 0}


def _described(program: Program, entries: Sequence[EntryPoint]) -> dict[str, Any]:
    """Return what the artifact says of the methods: inputs and outputs, where they come from, what is an integer."""
    return {
        "methods": {name: one.spec for name, one in program.methods.items()},
        "sources": {e.name: Method(e.eager.method, None, preprocess=e.preprocess) for e in entries[1:]},
        "quantized": {name: one.graph.quantized for name, one in program.methods.items() if one.graph.quantized},
    }


def _batches(verify_on: Iterable[Any], forward: EntryPoint, metric: Metric | None) -> Iterator[Any]:
    spec = claimed(forward.spec, forward.shapes)
    return checked_loader(verify_on, spec, forward.preprocess, metric is not None)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say of what is found in the block that the file was not written."""
    try:
        yield
    except VerificationError as error:
        raise VerificationError(f"{path.name} was not written: {error}") from error


def _summary(entry: EntryPoint) -> Summary:
    examples = [resized(x, spec.shape) for x, spec in zip(entry.inputs, entry.spec.inputs, strict=True)]
    return summarize(entry.eager.model, entry.eager.of_model(examples))


def _data(files: Staged) -> tuple[DataFile, ...]:
    if files.data is None or files.data_path is None:
        return ()
    return (DataFile(files.data_path, **file_facts(files.data)),)


def _masked(model: nn.Module) -> tuple[str, ...]:
    """Return a note where whole channels are masked: they take room and time until they are removed."""
    structured = set(masks.structured_names(model))
    if all(bool(mask.all()) for name, mask in masks.read(model).items() if name in structured):
        return ()
    return (
        "Whole channels of this model are masked and still in the file, at full size and time. Remove them first:"
        " export(finalize(model, example_inputs), …), with finalize from lightning_prune.",
    )


def _kept(backend: Backend, files: Staged) -> tuple[str, ...]:
    if files.data is None or (inside := files.program.stat().st_size) <= (outside := files.data.stat().st_size):
        return ()
    return (
        f"external_weights: {backend.name} keeps weights inside its part of the .pte, which has {inside:,} bytes; the"
        f" .ptd has {outside:,}.",
    )


def _check_arguments(backend: Backend, preprocess: Normalize | None, external_weights: bool) -> None:
    check_backend(backend)
    check_bool("external_weights", external_weights)
    if preprocess is not None and not isinstance(preprocess, Normalize):
        raise TypeError(f"preprocess: got a {type(preprocess).__name__}, must be Normalize(mean=[…], std=[…])")
