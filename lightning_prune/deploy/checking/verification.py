"""The file against the eager model: outputs compared, a loader run through both."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torchmetrics import Metric

from lightning_prune.deploy.checking.comparison import FOR_EXPORT, Advice, Bounds, Comparison, OutputError
from lightning_prune.deploy.program.arguments import check_loader
from lightning_prune.deploy.program.eager import Trial
from lightning_prune.deploy.program.loaders import Function, run_in_chunks, split_batch
from lightning_prune.deploy.program.signature import MethodSpec, describe


def check_metric(metric: Metric | None, verify_on: Iterable[Any] | None) -> None:
    """Check a metric and what it is computed on.

    Raises:
        TypeError: it is no metric, or gives no batches.
        ValueError: there is nothing to compute the metric on.
    """
    check_loader(verify_on)
    if metric is not None and not isinstance(metric, Metric):
        raise TypeError(
            f"metric: got a {type(metric).__name__}, must be a torchmetrics.Metric, as in metric=model.val_acc"
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
    """

    executed: str
    bounds: Bounds
    methods: Mapping[str, Mapping[str, OutputError]]
    samples: int = 0
    changed_predictions: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

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
            "samples": self.samples,
            "changed_predictions": self.changed_predictions,
            "metrics": {side: value if math.isfinite(value) else None for side, value in self.metrics.items()},
        }


@dataclass(frozen=True)
class LoaderResult:
    """What a loader showed; the fields are those of :class:`Verification`."""

    samples: int = 0
    changed_predictions: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


def compare_with(
    program: Function,
    eager: Function,
    trials: Mapping[str, Trial],
    spec: MethodSpec,
    bounds: Bounds,
    batches: Iterable[Any] | None = None,
    metric: Metric | None = None,
    alone: Collection[str] = (),
    advice: Advice = FOR_EXPORT,
) -> tuple[dict[str, OutputError], LoaderResult]:
    """Run a method of the file and of the eager model on the same inputs and compare every output.

    Args:
        program: the file in its runtime.
        eager: the eager model, for the loader.
        trials: inputs, and what the model makes of them, by what they are in words.
        spec: inputs and outputs of the program.
        bounds: what is accepted.
        batches: of a loader; cut to the sizes that the program takes.
        metric: for the loader; a copy of it is used for each side.
        alone: trials of other sizes, whose ratio is judged by itself, as a fault there would drown in the others; so is
            that of the loader.
        advice: what to do where they differ.

    Returns:
        how far each output is from the eager model's, and what the loader showed.

    Raises:
        VerificationError: a difference is out of bounds or NaN, or a shape differs.
        ValueError: a batch does not fit, or the metric gives no single number.
    """
    names = [output.name for output in spec.outputs]
    comparison, of_loader = (Comparison(names, bounds, advice) for _ in range(2))
    for where, trial in trials.items():
        outputs = program(*trial.inputs)
        comparison.add(outputs, trial.expected, where)
        if where in alone:
            single = Comparison(names, bounds, advice)
            single.add(outputs, trial.expected, where)
            single.check(f" on {where}", is_size=True)
    shown = LoaderResult() if batches is None else _run_loader(batches, program, eager, spec, metric, of_loader)
    comparison.check()
    of_loader.check(" on verify_on")
    return {name: error.worse(of_loader.errors[name]) for name, error in comparison.errors.items()}, shown


def _run_loader(
    batches: Iterable[Any],
    program: Function,
    eager: Function,
    spec: MethodSpec,
    metric: Metric | None,
    comparison: Comparison,
) -> LoaderResult:
    sides = {"eager": eager, "executorch": program}
    metrics = {} if metric is None else {side: _fresh(metric) for side in sides}
    samples, changed = 0, 0
    for index, batch in enumerate(batches):
        inputs, targets = split_batch(batch, spec.inputs, metric is not None)
        outputs = {side: run_in_chunks(run, inputs, *spec.inputs[0].range_of(0)) for side, run in sides.items()}
        comparison.add(outputs["executorch"], outputs["eager"], f"batch {index} of verify_on")
        changed = _plus(changed, changed_predictions(outputs["executorch"][0], outputs["eager"][0]))
        for side, one in metrics.items():
            _update(one, outputs[side][0], targets.cpu() if isinstance(targets, Tensor) else targets)
        samples += len(inputs[0])
    return LoaderResult(samples, changed, {side: _value(one) for side, one in metrics.items()})


def changed_predictions(output: Tensor, expected: Tensor) -> int | None:
    """Return in how many rows of (N, classes) the largest entry is another one; None for any other shape."""
    if expected.ndim != 2 or expected.shape[1] < 2:
        return None
    return int((output.argmax(1) != expected.argmax(1)).sum())


def _plus(total: int | None, more: int | None) -> int | None:
    return None if total is None or more is None else total + more


def _fresh(metric: Metric) -> Metric:
    clone = metric.clone().to("cpu")
    clone.distributed_available_fn = lambda: False
    clone.reset()
    return clone


def _update(metric: Metric, output: Tensor, targets: object) -> None:
    try:
        metric.update(output, targets)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"metric: {type(metric).__name__} takes no outputs {describe([output])} with targets"
            f" {describe([targets])} of verify_on: {error}"
        ) from error


def _value(metric: Metric) -> float:
    value = metric.compute()
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ValueError(
            f"metric: {type(metric).__name__} gives {describe([value])}; pass one that computes a single number, such"
            " as torchmetrics.classification.MulticlassAccuracy"
        )
    return float(value)
