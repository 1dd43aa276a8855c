"""From a module to a verified .pte: copy, lower, write, run, rename."""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchmetrics import Metric

from lightning_prune.deploy.artifact import Artifact, file_facts, to_text
from lightning_prune.deploy.backends import XNNPACK, Backend
from lightning_prune.deploy.eager import EagerModel, eager_outputs, example_tensors, folded_copy, isolated, trials
from lightning_prune.deploy.files import program_path, staged, writing
from lightning_prune.deploy.lowering import lower, outside_notes, save
from lightning_prune.deploy.runtime import RuntimeModel, require_executorch
from lightning_prune.deploy.signature import TensorSpec, check_labels, input_names, specs
from lightning_prune.deploy.verification import check_batched, first_of, split_batch, verify
from lightning_prune.report import summarize

_DEFAULT_BACKEND = XNNPACK()


def export(
    model: nn.Module,
    path: str | Path,
    *,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
    backend: Backend = _DEFAULT_BACKEND,
    verify_on: Iterable[Any] | None = None,
    metric: Metric | None = None,
    labels: Sequence[str] | None = None,
    tolerance: float = 1e-4,
) -> Artifact:
    """Write a .pte and its manifest, after the file was run and gave what the model gives.

    A copy of the model is put into eval mode with its masks folded; the model itself stays as it is, with its mode,
    device and random state. The program is written to a temporary file beside ``path``, loaded from there by the
    ExecuTorch runtime, and run on the example inputs, on random inputs of the same shapes, and on ``verify_on``. Only
    then do ``model.pte`` and ``model.json`` take their names; after any error an older pair is still in place.

    Args:
        model: any module on any device, masked, pruned or dense, in any mode; also a LightningModule with a trainer.
        path: of the .pte, in a folder that exists. The manifest is written beside it, with the suffix .json.
        example_inputs: a tensor or a tuple of tensors, one per positional argument of ``forward``. Their shapes,
            batch size included, are those that the program takes. None: the model's ``example_input_array``.
        backend: where the program will run.
        verify_on: batches ``(inputs, targets)``, or bare tensors when there is no metric; of any batch size.
        metric: computed on ``verify_on`` for both sides from the first output and the targets; a copy of it is used.
            A LightningModule's own is passed as ``metric=model.val_acc``.
        labels: names of the classes, kept in the manifest for the app.
        tolerance: largest absolute difference of any output from the eager model that is accepted.

    Returns:
        the artifact: paths, sizes, hash and what was measured.

    Raises:
        ValueError: an argument is out of its range or does not fit the model.
        TypeError: an argument is of another type.
        ExportError: the folder cannot be written, or the model cannot be run, traced or lowered.
        VerificationError: the file does not compute what the model computes.
        ImportError: ExecuTorch is not installed.

    Example:
        >>> artifact = export(model, "digits.pte", example_inputs=torch.zeros(1, 1, 8, 8))  # doctest: +SKIP
        >>> artifact.max_abs_error  # doctest: +SKIP
        1.1920928955078125e-07
    """
    require_executorch()
    path = program_path(path)
    _check_arguments(backend, verify_on, metric, labels, tolerance)
    with staged(path) as files, isolated():
        inputs = example_tensors(model, example_inputs)
        eager = EagerModel(folded_copy(model))
        expected = eager_outputs(eager, inputs)
        names = check_labels(labels, expected)
        takes = specs(input_names(model, len(inputs)), inputs)
        gives = specs(list(expected), list(expected.values()))
        batches = None if verify_on is None else _checked(verify_on, takes, gives, metric is not None)
        lowered = lower(eager, inputs, backend)
        save(lowered, files.program)
        compared_on, unfit = trials(eager, inputs)
        run = RuntimeModel(files.program)
        verification = verify(run, eager.run, compared_on, takes, gives, tolerance, batches, metric)
        summary = summarize(eager.model, inputs)
        notes = (*backend.notes(summary.sparsity), *outside_notes(lowered, backend), *unfit)
        artifact = Artifact(
            path=path,
            manifest_path=files.manifest_path,
            backend=backend,
            model=type(model).__name__,
            **file_facts(files.program),
            parameters=summary.parameters,
            nonzero_parameters=summary.parameters - summary.zeros,
            macs=summary.macs or 0,
            inputs=takes,
            outputs=gives,
            verification=verification,
            labels=names,
            notes=notes,
        )
        with writing(files.manifest_path):
            files.manifest.write_text(to_text(artifact.manifest()), encoding="utf-8")
        files.publish()
    return artifact


def _check_arguments(
    backend: Backend,
    verify_on: Iterable[Any] | None,
    metric: Metric | None,
    labels: Sequence[str] | None,
    tolerance: float,
) -> None:
    if isinstance(backend, type) or not isinstance(backend, Backend):
        raise TypeError(f"backend: got {backend!r}, must be a value such as XNNPACK()")
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise ValueError(f"tolerance: got {tolerance}, must be a finite number above 0, as in tolerance=1e-4")
    if isinstance(labels, str):
        raise TypeError(f"labels: got the string {labels!r}, must be a list with one name per class")
    if metric is not None and not isinstance(metric, Metric):
        raise TypeError(
            f"metric: got a {type(metric).__name__}, must be a torchmetrics.Metric, as in metric=model.val_acc"
        )
    if metric is not None and verify_on is None:
        raise ValueError("metric: there is nothing to compute it on; pass a loader as verify_on= too")


def _checked(
    verify_on: Iterable[Any], takes: Sequence[TensorSpec], gives: Sequence[TensorSpec], needs_targets: bool
) -> Iterator[Any]:
    check_batched(takes, gives)
    first, batches = first_of(verify_on)
    split_batch(first, takes, needs_targets)
    return batches
