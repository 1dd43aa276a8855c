"""A file that is already there, against a model: run in a process of its own, compared output by output."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchmetrics import Metric

from lightning_prune.deploy.checking.comparison import TOLERANCE, Bounds, for_a_file
from lightning_prune.deploy.checking.verification import Candidate, Verification, check_metric, judged
from lightning_prune.deploy.program.arguments import check_model
from lightning_prune.deploy.program.dynamic import LARGEST, ends, resized
from lightning_prune.deploy.program.eager import example_arguments, folded_copy, is_silent, isolated
from lightning_prune.deploy.program.feeds import Feeding
from lightning_prune.deploy.program.generation import texts
from lightning_prune.deploy.program.loaders import checked_batches, first_of, split_batch
from lightning_prune.deploy.program.methods import EntryPoint, Method, check_methods, entry_points, has_method
from lightning_prune.deploy.program.preprocessing import Normalize
from lightning_prune.deploy.program.sequences import Sequences
from lightning_prune.deploy.program.structure import shaped
from lightning_prune.deploy.runtime.child import CHILD, TIMEOUT
from lightning_prune.deploy.runtime.model import RuntimeModel
from lightning_prune.errors import VerificationError
from lightning_prune.model.example import Example, Inputs, example_of


def verify(
    path: str | Path,
    model: nn.Module,
    example_inputs: Inputs | None = None,
    *,
    methods: Mapping[str, Method] | None = None,
    verify_on: Iterable[Any] | None = None,
    metric: Metric | None = None,
    tolerance: float | None = None,
    min_sqnr: float | None = None,
    timeout: float = TIMEOUT,
    memory: int | None = None,
) -> Verification:
    """Run every method of a .pte beside a model and compare every output.

    Each is run on its example inputs, contiguous and channels_last, on random ones unless it is quantized, and where
    sizes may vary at the smallest and the largest. Each size is judged by itself, as at the export.

    Args:
        path: of the .pte. A manifest beside it must describe it; that is checked before anything is run.
        model: what it should compute; left as it is.
        example_inputs: as to :func:`export`, of any sizes that the file takes; None: the model's
            ``example_input_array``, or else inputs of ``verify_on``, or else random ones of the shapes that the file
            takes. A quantized file is judged on inputs of ``verify_on`` unless there are example inputs of more than
            one value here.
        methods: further methods of the file, as they were given to :func:`export`. One that is left out is looked for
            where the manifest says that it was in the model, or else by its name, and gets the example inputs where
            it takes these, or else random ones.
        verify_on: batches ``(inputs, targets)`` for ``forward``, or bare inputs when there is no metric; of any batch
            size, as to :func:`export`; or :class:`Sequences` of calls.
        metric: computed on ``verify_on`` for both sides; a copy of it is used.
        tolerance: largest absolute difference of any output that is accepted.
        min_sqnr: lowest signal-to-quantization-noise ratio of any output that is accepted, in dB. With neither of the
            two, what was accepted when the file was exported, as its manifest says; without one a tolerance of 1e-4.
        timeout: seconds after which a file that does not answer is given up.
        memory: bytes that it may take beyond the runtime; see :class:`RuntimeModel`.

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
    try:
        with isolated(), CHILD.releasing():
            program = RuntimeModel(path, threads=1, timeout=timeout, memory=memory)
            executed = "unknown" if program.manifest is None else str(program.manifest["backend"].get("name"))
            if tolerance is None and min_sqnr is None:
                accepted = {"tolerance": TOLERANCE} if program.manifest is None else program.manifest["verification"]
                bounds = Bounds(accepted.get("tolerance"), accepted.get("min_sqnr_db"))
            batches = None
            if verify_on is not None:
                preprocess = _preprocessing(program.manifest)
                batches = checked_batches(verify_on, program.signature, preprocess, metric is not None)
            examples, batches = _examples(program, model, example_inputs, batches)
            entries = _entries(program, model, examples, methods or {})
            if batches is None and _is_quantized(program) and is_silent(entries[0].inputs):
                raise ValueError(
                    f"{program.path} is quantized, and the example inputs hold a single value, on which another model"
                    " may agree: pass verify_on= with batches like those that it was calibrated on, or real"
                    " example_inputs="
                )
            candidates = [_candidate(program, entries[0])]
            candidates += [_candidate(program.other(entry.name), entry) for entry in entries[1:]]
            parameters = sum(x.numel() for x in model.parameters())
            remedies = for_a_file(program.manifest, parameters)
            return judged(candidates, bounds, executed, batches, metric, remedies)[0]
    except VerificationError as error:
        raise VerificationError(f"{path}: {error}") from error


def _examples(
    program: RuntimeModel,
    model: nn.Module,
    example_inputs: Inputs | None,
    batches: Iterable[Any] | None,
) -> tuple[Example, Iterable[Any] | None]:
    """Return the example inputs of ``forward``, as it takes them, and all batches.

    A quantized file is right on inputs like those of its calibration alone, so that ``verify_on`` comes before the
    model's own example and before zeros, by which only the shape was meant.
    """
    has_some = example_inputs is not None or example_of(model) is not None
    own = example_arguments(model, example_inputs) if has_some else None
    examples = program.random_inputs() if own is None else own.tensors
    example = example_of(model) if example_inputs is None else None
    is_alike = [x.ndim for x in examples] == [len(x.shape) for x in program.inputs]
    if example is not None and example.is_learnt and is_alike:
        # nobody chose how many samples it has, and the file may take another number
        pairs = zip(examples, program.inputs, strict=True)
        examples = [x if spec.takes(x) else resized(x, spec.shape) for x, spec in pairs]

    def taken(tensors: Sequence[Tensor]) -> Example:
        return shaped(model, [x.name for x in program.inputs], tensors) if own is None else own.filled(tensors)

    is_meant = example_inputs is not None and not is_silent(examples)
    if batches is None or (has_some and (is_meant or not _is_quantized(program))):
        return taken(examples), batches
    if isinstance(batches, Sequences):
        return taken(batches.calls[0][0]), batches
    first, batches = first_of(batches)
    count = program.inputs[0].shape[0]
    inputs, _ = split_batch(first, program.inputs, needs_targets=False)
    return taken([resized(x, [count, *x.shape[1:]]) for x in inputs]), batches


def _entries(
    program: RuntimeModel, model: nn.Module, examples: Example, methods: Mapping[str, Method]
) -> tuple[EntryPoint, ...]:
    """Return the methods of the file on the model's side, ``forward`` first."""
    if unknown := [name for name in methods if name not in program.methods]:
        raise ValueError(
            f"methods: {program.path} has no method {unknown[0]!r}; its methods are {', '.join(program.methods)}"
        )
    copied = folded_copy(model)
    method = Method("forward", examples, preprocess=_preprocessing(program.manifest))
    forward = entry_points(model, copied, {"forward": method})[0]
    program.prepared(*forward.inputs)
    names = [name for name in program.methods if name != "forward"]
    further = {name: _further(program.other(name), model, methods.get(name), forward) for name in names}
    return forward, *entry_points(model, copied, further)


def _further(program: RuntimeModel, model: nn.Module, given: Method | None, forward: EntryPoint) -> Method:
    """Return a further method of the file as it is in the model, with example inputs."""
    if given is not None and (not isinstance(given, Method) or given.example_inputs is not None):
        return given  # anything but a Method is refused by its name in entry_points
    takes_those_of_forward = len(forward.inputs) == len(program.inputs) and all(
        spec.takes(x) for spec, x in zip(program.inputs, forward.inputs, strict=True)
    )
    inputs = forward.eager.filled(forward.inputs) if takes_those_of_forward else program.random_inputs()
    if given is not None:
        return replace(given, example_inputs=inputs)
    described = {} if program.manifest is None else program.manifest["methods"][program.method]
    function = described.get("function", program.method)
    if not has_method(model, function):
        raise ValueError(
            f"{program.path} has a method {program.method!r}, and {type(model).__name__} has no {function!r} to compare"
            f" it with: pass methods={{{program.method!r}: Method(…)}} as to export, or the model that was exported"
        )
    return Method(function, inputs, preprocess=_preprocessing(described))


def _candidate(program: RuntimeModel, entry: EntryPoint) -> Candidate:
    """Return a method of the file beside the model."""
    program.prepared(*entry.inputs)
    spec = program.signature
    entry.eager.feeding = Feeding.of(spec)
    # Without a manifest only the largest sizes are known: the file itself does not say from which size on it works.
    sizes = {where: shape for where, shape in ends(spec).items() if program.manifest is not None or where == LARGEST}
    samples = [entry.inputs] if _is_quantized(program) else []
    rows = texts(program.generation).calls if program.generation else ()
    return Candidate(
        entry.name, program, entry.eager, spec, entry.inputs, sizes, samples, rows=rows, reset=program.reset
    )


def _is_quantized(program: RuntimeModel) -> bool:
    """Whether the manifest says that a method is quantized."""
    quantization = None if program.manifest is None else program.manifest["quantization"]
    return quantization is not None and program.method in quantization.get("methods", program.methods)


def _preprocessing(described: Mapping[str, Any] | None) -> Normalize | None:
    """Return what is folded in before a method, of a manifest or of a further method in it."""
    values = None if described is None else described.get("preprocessing")
    return None if values is None else Normalize(mean=values["mean"], std=values["std"])
