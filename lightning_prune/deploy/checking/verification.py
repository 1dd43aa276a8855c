"""The verdict on a file: every method of it run beside the eager model, on the same inputs, output by output."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torchmetrics import Metric

from lightning_prune.deploy.checking.cases import Case, cases, described
from lightning_prune.deploy.checking.comparison import FOR_EXPORT, Bounds, Differences, OutputError, Remedies
from lightning_prune.deploy.checking.in_step import Steps, compare_in_step, sequences
from lightning_prune.deploy.program.arguments import check_loader
from lightning_prune.deploy.program.eager import EagerModel
from lightning_prune.deploy.program.loaders import NO_SAMPLES, Function, OwnSamples, run_in_chunks, split_batch
from lightning_prune.deploy.program.sequences import Sequences
from lightning_prune.deploy.program.signature import MethodSpec, describe
from lightning_prune.errors import VerificationError

_SLACK = 3.0
"""By how many dB a file may be noisier than its graph: kernels round otherwise than the graph's reference does."""
_AS_GOOD_AS_FLOAT = 60.0
"""Ratio in dB from which on rounding in float32 may be all that is left."""


def check_metric(metric: Metric | None, verify_on: Iterable[Any] | None) -> None:
    """Check a metric and what it is computed on.

    Raises:
        TypeError: it is no metric, or gives no batches.
        ValueError: there is nothing to compute the metric on.
    """
    check_loader(verify_on)
    if metric is not None and not isinstance(metric, Metric):
        raise TypeError(
            f"metric: got a {type(metric).__name__}, must be a torchmetrics.Metric, as in metric=model.val_acc; a"
            " function (model, batch), as prune takes, has no model to call where a file runs"
        )
    if metric is not None and isinstance(verify_on, Sequences):
        raise ValueError(
            "metric: sequences hold no targets; pass batches (inputs, targets) as verify_on=, or no metric"
        )
    if metric is not None and verify_on is None:
        raise ValueError("metric: there is nothing to compute it on; pass a loader as verify_on= too")


@dataclass(frozen=True)
class Verification:
    """What was found when the file ran beside the eager model.

    Args:
        executed: name of the backend that ran: the file's own, or portable where it cannot run on this machine and the
            same graph was run without a delegate.
        bounds: what was accepted.
        methods: method -> output -> how far it is from the eager model's.
        samples: number of samples of the loader that were run.
        changed_predictions: on how many of them the top-1 class differs; None without a loader, or where the first
            output is not of shape (N, classes).
        metrics: ``{"eager": …, "executorch": …}``; empty without a metric.
        inputs: on what ``forward`` was compared besides a loader, in words.
        sequences: in how many sequences these samples were calls.
    """

    executed: str
    bounds: Bounds
    methods: Mapping[str, Mapping[str, OutputError]]
    samples: int = 0
    changed_predictions: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    inputs: str = ""
    sequences: int = 0

    @property
    def max_abs_error(self) -> float:
        """The largest absolute difference over all outputs of all methods."""
        return max((error.max_abs_error for error in self._all()), default=0.0)

    @property
    def sqnr_db(self) -> float:
        """The lowest signal-to-quantization-noise ratio over all outputs of all methods."""
        return min((error.sqnr_db for error in self._all()), default=math.inf)

    def _all(self) -> list[OutputError]:
        return [error for outputs in self.methods.values() for error in outputs.values()]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values; what is not finite becomes None."""
        return {
            "executed": self.executed,
            "tolerance": self.bounds.tolerance,
            "min_sqnr_db": self.bounds.min_sqnr,
            "max_abs_error": self.max_abs_error,
            "sqnr_db": self.sqnr_db if math.isfinite(self.sqnr_db) else None,
            "inputs": self.inputs,
            "samples": self.samples,
            "sequences": self.sequences,
            "changed_predictions": self.changed_predictions,
            "metrics": {side: value if math.isfinite(value) else None for side, value in self.metrics.items()},
        }


@dataclass(frozen=True)
class Candidate:
    """A method of a file, and what it should compute.

    Args:
        name: of the method.
        program: the file in its runtime.
        eager: the model.
        spec: inputs and outputs of the program.
        inputs: examples.
        sizes: shapes of all inputs at the ends of what the program takes, by what they are.
        samples: of a quantized method: inputs like those that it was calibrated on, in the place of ``inputs``.
        of_graph: what the quantized graph makes of the samples, where it is at hand.
        own: samples of the model's own data.
        rows: sequences of calls to compare on; none: some are made from the example.
        reset: lets the program begin from its first state.
    """

    name: str
    program: Function
    eager: EagerModel
    spec: MethodSpec
    inputs: Sequence[Tensor]
    sizes: Mapping[str, Sequence[Sequence[int]]]
    samples: Sequence[Sequence[Tensor]] = ()
    of_graph: Sequence[Sequence[Tensor]] = ()
    own: OwnSamples = NO_SAMPLES
    rows: Sequence[Steps] = ()
    reset: Callable[[], None] = lambda: None

    def afresh(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Run the program from its first state, if it has a memory."""
        if self.eager.state:
            self.reset()
        return self.program(*inputs)


@dataclass(frozen=True)
class LoaderResult:
    """What a loader showed; the fields are those of :class:`Verification`."""

    samples: int = 0
    changed_predictions: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


def judged(
    methods: Iterable[Candidate],
    bounds: Bounds,
    executed: str,
    batches: Iterable[Any] | None = None,
    metric: Metric | None = None,
    remedies: Remedies = FOR_EXPORT,
) -> tuple[Verification, tuple[str, ...]]:
    """Decide whether a file computes what the model computes: the one judge of a new file and of one that is there.

    Args:
        methods: of the file.
        bounds: what is accepted.
        executed: name of the backend that runs.
        batches: of a loader, for ``forward``; of any size; or sequences of calls.
        metric: for the loader.
        remedies: what to do where they differ.

    Returns:
        what was measured, and what the user should know about how.

    Raises:
        VerificationError: they differ; the message names the method, the output and the inputs.
        ValueError: a batch does not fit, or the metric gives no single number.
    """
    errors, notes, shown, inputs = {}, [], LoaderResult(), ""
    for method in methods:
        is_forward = method.name == "forward"
        compared, unfit = cases(method.eager, method.inputs, method.sizes, method.samples, method.of_graph, method.own)
        if is_forward:
            inputs = "random texts" if method.rows else described(compared, method.own)
        data = (batches, metric) if is_forward and not isinstance(batches, Sequences) else (None, None)
        try:
            in_step = list[dict[str, OutputError]]()
            names = [output.name for output in method.spec.outputs]
            both = (method.program, method.reset, method.eager)
            if method.eager.has_memory:
                made = method.rows or sequences(method.eager, method.inputs, method.samples, method.sizes)
                in_step.append(compare_in_step(*both, made, names, bounds, remedies))
            if is_forward and isinstance(batches, Sequences):
                in_step.append(compare_in_step(*both, batches.calls, names, bounds, remedies, " of verify_on"))
            errors[method.name], result = compare_with(
                method.afresh, method.eager.run, compared, method.spec, bounds, *data, method.sizes, remedies
            )
        except VerificationError as error:
            raise type(error)(str(error) if is_forward else f"method {method.name!r}: {error}") from error
        for found in in_step:
            errors[method.name] = {name: error.worse(found[name]) for name, error in errors[method.name].items()}
        shown = result if is_forward else shown
        notes += unfit
    rows = batches.calls if isinstance(batches, Sequences) else []
    samples = shown.samples + sum(map(len, rows))
    verification = Verification(
        executed, bounds, errors, samples, shown.changed_predictions, shown.metrics, inputs, len(rows)
    )
    return verification, tuple(dict.fromkeys(notes))


def compare_with(
    program: Function,
    eager: Function,
    compared: Mapping[str, Case],
    spec: MethodSpec,
    bounds: Bounds,
    batches: Iterable[Any] | None = None,
    metric: Metric | None = None,
    alone: Collection[str] = (),
    remedies: Remedies = FOR_EXPORT,
) -> tuple[dict[str, OutputError], LoaderResult]:
    """Run a method of the file and of the eager model on the same inputs and compare every output.

    Args:
        program: the file in its runtime.
        eager: the eager model, for the loader.
        compared: inputs, and what the model makes of them, by what they are in words.
        spec: inputs and outputs of the program.
        bounds: what is accepted.
        batches: of a loader; cut to the sizes that the program takes.
        metric: for the loader; a copy of it is used for each side.
        alone: cases of other sizes, whose ratio is judged by itself, as a fault there would drown in the others; so is
            that of the loader.
        remedies: what to do where they differ.

    Returns:
        how far each output is from the eager model's, and what the loader showed.

    Raises:
        VerificationError: a difference is out of bounds or NaN, a shape differs, or the file is noisier than the
            quantized graph that it was made of.
        ValueError: a batch does not fit, or the metric gives no single number.
    """
    names = [output.name for output in spec.outputs]
    differences, of_loader = (Differences(names, bounds, remedies) for _ in range(2))
    of_file, of_graph = (Differences(names, Bounds()) for _ in range(2))
    for where, case in compared.items():
        outputs = program(*case.inputs)
        differences.add(outputs, case.expected, where)
        if where in alone:
            single = Differences(names, bounds, remedies)
            single.add(outputs, case.expected, where)
            single.check(f" on {where}", is_size=True)
        if case.of_graph is not None:
            of_file.add(outputs, case.expected, "a calibration sample")
            of_graph.add(case.of_graph, case.expected, "a calibration sample")
    shown = LoaderResult() if batches is None else _run_loader(batches, program, eager, spec, metric, of_loader)
    differences.check()
    of_loader.check(" on verify_on")
    for name, error in of_file.errors.items():
        reached = of_graph.errors[name].sqnr_db
        if error.sqnr_db < min(reached, _AS_GOOD_AS_FLOAT) - _SLACK:
            raise VerificationError(
                f"output {name!r}: the file is at {error.sqnr_db:.1f} dB of the eager model, the"
                f" quantized graph that it was made of at {reached:.1f} dB: the backend computes something else."
                " Quantize another way, or take another backend"
            )
    return {name: error.worse(of_loader.errors[name]) for name, error in differences.errors.items()}, shown


def _run_loader(
    batches: Iterable[Any],
    program: Function,
    eager: Function,
    spec: MethodSpec,
    metric: Metric | None,
    differences: Differences,
) -> LoaderResult:
    sides = {"eager": eager, "executorch": program}
    metrics: dict[str, Metric] = {}
    if metric is not None:
        metrics = {side: metric.clone().to("cpu") for side in sides}
    for copied in metrics.values():
        # A copy of a metric that ran under DDP would wait for the other ranks, which verify nothing.
        copied.distributed_available_fn = lambda: False
        copied.reset()
    samples, changed = 0, 0
    for index, batch in enumerate(batches):
        inputs, targets = split_batch(batch, spec.inputs, metric is not None)
        outputs = {side: run_in_chunks(run, inputs, *spec.inputs[0].range_of(0)) for side, run in sides.items()}
        differences.add(outputs["executorch"], outputs["eager"], f"batch {index} of verify_on")
        more = changed_predictions(outputs["executorch"][0], outputs["eager"][0])
        changed = None if changed is None or more is None else changed + more
        targets = targets.cpu() if isinstance(targets, Tensor) else targets
        for side, copied in metrics.items():
            try:
                copied.update(outputs[side][0], targets)
            except (ValueError, TypeError, RuntimeError) as error:
                raise ValueError(
                    f"metric: {type(metric).__name__} takes no outputs {describe([outputs[side][0]])} with targets"
                    f" {describe([targets])} of verify_on: {error}"
                ) from error
        samples += len(inputs[0])
    values = {side: copied.compute() for side, copied in metrics.items()}
    for value in values.values():
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError(
                f"metric: {type(metric).__name__} gives {describe([value])}; pass one that computes a single number,"
                " such as torchmetrics.classification.MulticlassAccuracy"
            )
    return LoaderResult(samples, changed, {side: float(value) for side, value in values.items()})


def changed_predictions(output: Tensor, expected: Tensor) -> int | None:
    """Return in how many rows of (N, classes) the largest entry is another one; None for any other shape."""
    if expected.ndim != 2 or expected.shape[1] < 2:
        return None
    return int((output.argmax(1) != expected.argmax(1)).sum())
