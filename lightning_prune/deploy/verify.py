"""A file that is already there, against a model: run in a process of its own, compared output by output."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchmetrics import Metric

from lightning_prune.deploy.building import checked_loader, of_method, released
from lightning_prune.deploy.checking.comparison import FOR_A_FILE, Bounds
from lightning_prune.deploy.checking.verification import LoaderResult, Verification, check_metric, compare_with
from lightning_prune.deploy.program.arguments import check_model
from lightning_prune.deploy.program.dynamic import LARGEST, ends
from lightning_prune.deploy.program.eager import RANDOM, Trial, folded_copy, isolated, trials
from lightning_prune.deploy.program.methods import EntryPoint, Method, check_methods, entry_points, has_method
from lightning_prune.deploy.program.preprocessing import Normalize
from lightning_prune.deploy.program.signature import MethodSpec
from lightning_prune.deploy.runtime.child import TIMEOUT
from lightning_prune.deploy.runtime.child_program import ChildProgram
from lightning_prune.errors import VerificationError
from lightning_prune.model.summary import example_of

_TOLERANCE = 1e-4


def verify(
    path: str | Path,
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
    *,
    methods: Mapping[str, Method] | None = None,
    verify_on: Iterable[Any] | None = None,
    metric: Metric | None = None,
    tolerance: float | None = None,
    min_sqnr: float | None = None,
    timeout: float = TIMEOUT,
) -> Verification:
    """Run every method of a .pte beside a model and compare every output.

    Each is run on its example inputs, contiguous and channels_last, on random ones, and where sizes may vary at the
    smallest and the largest.

    Args:
        path: of the .pte. A manifest beside it must describe it; that is checked before anything is run.
        model: what it should compute; left as it is.
        example_inputs: a tensor or a tuple of tensors, of any sizes that the file takes; None: the model's
            ``example_input_array``, or random ones of the shapes that the file takes.
        methods: further methods of the file, as they were given to :func:`export`. One that is left out is looked for
            where the manifest says that it was in the model, or else by its name, and gets the example inputs where
            it takes these, or else random ones.
        verify_on: batches ``(inputs, targets)`` for ``forward``, or bare tensors when there is no metric; of any batch
            size.
        metric: computed on ``verify_on`` for both sides; a copy of it is used.
        tolerance: largest absolute difference of any output that is accepted.
        min_sqnr: lowest signal-to-quantization-noise ratio of any output that is accepted, in dB. With neither of the
            two, what was accepted when the file was exported, as its manifest says; without one a tolerance of 1e-4.
        timeout: seconds after which a file that does not answer is given up.

    Returns:
        the differences by method and output, and the metric of both sides.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file takes other inputs than these, a batch does not fit, or the model has not all methods of
            the file.
        TypeError: an argument is of another type.
        ExportError: the file is not the one that its manifest describes, cannot be run here, takes the other process
            down, or does not answer.
        VerificationError: it does not compute what the model computes.
        ImportError: ExecuTorch is not installed.

    Example:
        >>> verify("digits.pte", model).max_abs_error  # doctest: +SKIP
        1.1920928955078125e-07
    """
    check_model(model)
    check_methods(methods)
    check_metric(metric, verify_on)
    bounds = Bounds(tolerance, min_sqnr)
    program = ChildProgram(path, timeout=timeout)
    if tolerance is None and min_sqnr is None:
        bounds = _bounds_at_export(program)
    try:
        with isolated(), released():
            entries = _entries(program, model, example_inputs, methods or {})
            return _compared(program, entries, verify_on, metric, bounds)
    except VerificationError as error:
        raise VerificationError(f"{path}: {error}") from error


def _bounds_at_export(program: ChildProgram) -> Bounds:
    if program.manifest is None:
        return Bounds(_TOLERANCE)
    accepted = program.manifest["verification"]
    return Bounds(accepted.get("tolerance"), accepted.get("min_sqnr_db"))


def _entries(
    program: ChildProgram,
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor] | None,
    methods: Mapping[str, Method],
) -> tuple[EntryPoint, ...]:
    """Return the methods of the file on the model's side, ``forward`` first."""
    if unknown := [name for name in methods if name not in program.methods]:
        raise ValueError(
            f"methods: {program.path} has no method {unknown[0]!r}; its methods are {', '.join(program.methods)}"
        )
    if example_inputs is None and example_of(model) is None:
        example_inputs = program.random_inputs()
    copied = folded_copy(model)
    method = Method("forward", example_inputs, preprocess=_preprocessing(program.manifest))
    forward = entry_points(model, copied, {"forward": method})[0]
    program.prepared(*forward.inputs)
    names = [name for name in program.methods if name != "forward"]
    further = {name: _further(program.other(name), model, methods.get(name), forward) for name in names}
    return forward, *entry_points(model, copied, further)


def _further(program: ChildProgram, model: nn.Module, given: Method | None, forward: EntryPoint) -> Method:
    if given is not None and not isinstance(given, Method):
        return given  # entry_points refuses it by name
    if given is not None:
        missing = given.example_inputs is None
        return replace(given, example_inputs=_default_inputs(program, forward)) if missing else given
    described = {} if program.manifest is None else program.manifest["methods"][program.method]
    function = described.get("function", program.method)
    if not has_method(model, function):
        raise ValueError(
            f"{program.path} has a method {program.method!r}, and {type(model).__name__} has no {function!r} to compare"
            f" it with: pass methods={{{program.method!r}: Method(…)}} as to export, or the model that was exported"
        )
    preprocess = _preprocessing(described) if given is None else given.preprocess
    inputs = (
        _default_inputs(program, forward) if given is None or given.example_inputs is None else given.example_inputs
    )
    return Method(function, inputs, preprocess=preprocess)


def _default_inputs(program: ChildProgram, forward: EntryPoint) -> Sequence[Tensor]:
    """Return the example inputs of ``forward`` where another method takes them, else random ones."""
    same = len(forward.inputs) == len(program.inputs)
    if same and all(spec.takes(x) for spec, x in zip(program.inputs, forward.inputs, strict=True)):
        return forward.inputs
    return program.random_inputs()


def _compared(
    program: ChildProgram,
    entries: Sequence[EntryPoint],
    verify_on: Iterable[Any] | None,
    metric: Metric | None,
    bounds: Bounds,
) -> Verification:
    batches = None
    if verify_on is not None:
        spec = MethodSpec(program.inputs, program.outputs)
        batches = checked_loader(verify_on, spec, entries[0].preprocess, metric is not None)
    elif _is_quantized(program):
        _check_telling(program, entries[0])
    errors, shown = {}, LoaderResult()
    for entry in entries:
        one = program if entry.name == "forward" else program.other(entry.name)
        one.prepared(*entry.inputs)
        spec = MethodSpec(one.inputs, one.outputs)
        given = (batches, metric) if entry.name == "forward" else (None, None)
        with of_method(entry.name):
            errors[entry.name], found = compare_with(
                one, entry.eager.run, _trials(one, entry), spec, bounds, *given, advice=FOR_A_FILE
            )
        shown = found if entry.name == "forward" else shown
    executed = "unknown" if program.manifest is None else str(program.manifest["backend"].get("name"))
    return Verification(executed, bounds, errors, shown.samples, shown.changed_predictions, shown.metrics)


def _trials(program: ChildProgram, entry: EntryPoint) -> dict[str, Trial]:
    """Return what to compare on: random inputs too, but for a file that was calibrated on others."""
    found = trials(entry.eager, entry.inputs, _sizes(program))[0]
    if _is_quantized(program):
        found.pop(RANDOM, None)
    return found


def _sizes(program: ChildProgram) -> dict[str, list[list[int]]]:
    """Return the sizes at the ends of what the file takes; of one without a manifest only the largest are known."""
    found = ends(MethodSpec(program.inputs, program.outputs))
    if program.manifest is not None:
        return found
    return {where: shapes for where, shapes in found.items() if where == LARGEST}


def _is_quantized(program: ChildProgram) -> bool:
    return program.manifest is not None and program.manifest["quantization"] is not None


def _check_telling(program: ChildProgram, entry: EntryPoint) -> None:
    """Refuse to judge a quantized file by an input of one value alone, on which many models agree."""
    if all(x.numel() == 0 or bool((x == x.flatten()[0]).all()) for x in entry.inputs):
        raise ValueError(
            f"{program.path} is quantized, and the example inputs hold a single value, on which another model may"
            " agree: pass verify_on= with batches like those that it was calibrated on, or real example_inputs="
        )


def _preprocessing(described: Mapping[str, Any] | None) -> Normalize | None:
    """Return what is folded in before a method, of a manifest or of a further method in it."""
    values = None if described is None else described.get("preprocessing")
    return None if values is None else Normalize(mean=values["mean"], std=values["std"])
