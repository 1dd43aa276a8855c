"""A file that is already there, against a model: run in a process of its own, compared output by output."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchmetrics import Metric

from lightning_prune.deploy.building import checked_loader
from lightning_prune.deploy.child import CHILD, TIMEOUT
from lightning_prune.deploy.child_program import ChildProgram
from lightning_prune.deploy.comparison import Bounds
from lightning_prune.deploy.dynamic import ends
from lightning_prune.deploy.eager import folded_copy, isolated, trials
from lightning_prune.deploy.methods import EntryPoint, Method, entry_points
from lightning_prune.deploy.preprocessing import Normalize
from lightning_prune.deploy.signature import MethodSpec
from lightning_prune.deploy.verification import Verification, check_metric, compare_with
from lightning_prune.errors import VerificationError
from lightning_prune.report import example_of

_TOLERANCE = 1e-4


def verify(
    path: str | Path,
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
    *,
    verify_on: Iterable[Any] | None = None,
    metric: Metric | None = None,
    tolerance: float | None = None,
    min_sqnr: float | None = None,
    timeout: float = TIMEOUT,
) -> Verification:
    """Run a .pte beside a model and compare every output, on contiguous and on channels_last inputs alike.

    Args:
        path: of the .pte. A manifest beside it must describe it; that is checked before anything is run.
        model: what it should compute; left as it is.
        example_inputs: a tensor or a tuple of tensors; None: the model's ``example_input_array``, or random ones of the
            shapes that the file takes. Random inputs of these shapes are compared on too.
        verify_on: batches ``(inputs, targets)``, or bare tensors when there is no metric; of any batch size.
        metric: computed on ``verify_on`` for both sides; a copy of it is used.
        tolerance: largest absolute difference of any output that is accepted.
        min_sqnr: lowest signal-to-quantization-noise ratio of any output that is accepted, in dB. With neither of the
            two, what was accepted when the file was exported, as its manifest says; without one a tolerance of 1e-4.
        timeout: seconds after which a file that does not answer is given up.

    Returns:
        the differences, and the metric of both sides.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file takes other inputs than these, or a batch does not fit.
        ExportError: the file is not the one that its manifest describes, cannot be run here, takes the other process
            down, or does not answer.
        VerificationError: it does not compute what the model computes.
        ImportError: ExecuTorch is not installed.

    Example:
        >>> verify("digits.pte", model).max_abs_error  # doctest: +SKIP
        1.1920928955078125e-07
    """
    check_metric(metric, verify_on)
    bounds = Bounds(tolerance, min_sqnr)
    program = ChildProgram(path, timeout=timeout)
    if tolerance is None and min_sqnr is None:
        bounds = _bounds_at_export(program)
    try:
        with isolated():
            return _compared(program, model, example_inputs, verify_on, metric, bounds)
    except VerificationError as error:
        raise VerificationError(f"{path}: {str(error).replace('; no file was written', '')}") from error
    finally:
        CHILD.forget()


def _bounds_at_export(program: ChildProgram) -> Bounds:
    if program.manifest is None:
        return Bounds(_TOLERANCE)
    accepted = program.manifest["verification"]
    return Bounds(accepted.get("tolerance"), accepted.get("min_sqnr_db"))


def _compared(
    program: ChildProgram,
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor] | None,
    verify_on: Iterable[Any] | None,
    metric: Metric | None,
    bounds: Bounds,
) -> Verification:
    if example_inputs is None and example_of(model) is None:
        example_inputs = program.random_inputs()
    method = Method("forward", example_inputs, preprocess=_preprocessing(program))
    entry = entry_points(model, folded_copy(model), {"forward": method})[0]
    program.prepared(*entry.inputs)
    spec = MethodSpec(program.inputs, program.outputs)
    batches = None if verify_on is None else checked_loader(verify_on, entry, metric is not None)
    if batches is None and _is_quantized(program):
        _check_telling(program, entry)
    compared_on = _inputs(program, entry, spec)
    errors, shown = compare_with(program, entry.eager.run, compared_on, spec, bounds, batches, metric)
    return Verification(
        _backend(program), bounds, {"forward": errors}, shown.samples, shown.changed_predictions, shown.metrics
    )


def _inputs(program: ChildProgram, entry: EntryPoint, spec: MethodSpec) -> dict[str, tuple[Tensor, ...]]:
    """Return what to compare on: random inputs too, but for a file that was calibrated on others."""
    found = trials(entry.eager, entry.inputs, ends(spec))[0]
    if _is_quantized(program):
        found.pop("random inputs", None)
    return found


def _is_quantized(program: ChildProgram) -> bool:
    return program.manifest is not None and program.manifest["quantization"] is not None


def _check_telling(program: ChildProgram, entry: EntryPoint) -> None:
    """Refuse to judge a quantized file by an input of one value alone, on which many models agree."""
    if all(x.numel() == 0 or bool((x == x.flatten()[0]).all()) for x in entry.inputs):
        raise ValueError(
            f"{program.path} is quantized, and the example inputs hold a single value, on which another model may"
            " agree: pass verify_on= with batches like those that it was calibrated on, or real example_inputs="
        )


def _preprocessing(program: ChildProgram) -> Normalize | None:
    described = None if program.manifest is None else program.manifest.get("preprocessing")
    return None if described is None else Normalize(mean=described["mean"], std=described["std"])


def _backend(program: ChildProgram) -> str:
    return "unknown" if program.manifest is None else str(program.manifest["backend"].get("name"))
