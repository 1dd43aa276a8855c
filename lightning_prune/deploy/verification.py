"""The file against the eager model: outputs compared, a loader run through both."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_prune.deploy.signature import TensorSpec, describe, describe_shape, dtype_name
from lightning_prune.errors import VerificationError

Function = Callable[..., Sequence[Tensor]]
"""Tensors in, a flat sequence of tensors out: the eager model or the program."""


class Comparison:
    """The largest absolute difference of each output so far; refuses one above the tolerance.

    Args:
        names: of the outputs, in order.
        tolerance: largest absolute difference that is accepted.
    """

    def __init__(self, names: Sequence[str], tolerance: float) -> None:
        self.errors = dict.fromkeys(names, 0.0)
        self.tolerance = tolerance

    def add(self, outputs: Sequence[Tensor], expected: Sequence[Tensor], where: str) -> None:
        """Compare the program's outputs with the eager model's.

        Args:
            outputs: of the program.
            expected: of the eager model on the same inputs.
            where: on which inputs, in words.

        Raises:
            VerificationError: their number, a shape or a dtype differs, or a difference is above the tolerance or NaN.
        """
        if len(outputs) != len(expected):
            raise VerificationError(
                f"the program gives {len(outputs)} outputs on {where}, the eager model {len(expected)}: {_OTHER_GRAPH}"
            )
        for name, output, wanted in zip(self.errors, outputs, expected, strict=True):
            if output.shape != wanted.shape or output.dtype != wanted.dtype:
                raise VerificationError(
                    f"output {name!r} on {where}: the program gives {describe([output])}, the eager model"
                    f" {describe([wanted])}: {_OTHER_GRAPH}"
                )
            error = max_abs_difference(output, wanted)
            if not error <= self.tolerance:
                raise VerificationError(_disagreement(name, where, error, self.tolerance))
            self.errors[name] = max(self.errors[name], error)


_OTHER_GRAPH = "the exported graph is not the model's; no file was written"


def _disagreement(name: str, where: str, error: float, tolerance: float) -> str:
    if math.isnan(error):
        return (
            f"output {name!r} on {where} holds NaN or infinities that program and eager model do not share: check the"
            " weights and the example input; no file was written"
        )
    return (
        f"output {name!r} on {where}: largest absolute difference from the eager model is {error:.3g}, the tolerance is"
        f" {tolerance:g}; no file was written. Compare with another backend, or accept it with tolerance={error:.1g}"
    )


def max_abs_difference(output: Tensor, expected: Tensor) -> float:
    """Return max|output − expected| in float64; equal infinities count as 0, any NaN makes the result NaN."""
    if output.numel() == 0:
        return 0.0
    left, right = output.double(), expected.double()
    return float((left - right).abs().masked_fill(left == right, 0.0).max())


@dataclass(frozen=True)
class Verification:
    """What was found when the file ran beside the eager model.

    Args:
        tolerance: largest absolute difference that was accepted.
        errors: name of the output -> largest absolute difference over all that was run.
        samples: number of samples of the loader that were run.
        changed_predictions: on how many of them the top-1 class differs; None without a loader, or where the first
            output is not of shape (N, classes).
        metrics: ``{"eager": …, "executorch": …}``; empty without a metric.
    """

    tolerance: float
    errors: Mapping[str, float]
    samples: int = 0
    changed_predictions: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def max_abs_error(self) -> float:
        """The largest absolute difference over all outputs."""
        return max(self.errors.values(), default=0.0)


def verify(
    program: Function,
    eager: Function,
    trials: Mapping[str, Sequence[Tensor]],
    takes: Sequence[TensorSpec],
    gives: Sequence[TensorSpec],
    tolerance: float,
    batches: Iterable[Any] | None = None,
    metric: Metric | None = None,
) -> Verification:
    """Run the file and the eager model on the same inputs and compare every output.

    Args:
        program: the file in its runtime.
        eager: the eager model.
        trials: inputs by what they are, in words.
        takes: inputs of the program.
        gives: outputs of the program.
        tolerance: largest absolute difference that is accepted.
        batches: of a loader; cut to the program's batch size.
        metric: for the loader; a copy of it is used for each side.

    Raises:
        VerificationError: a difference is above the tolerance or NaN, or a shape differs.
        ValueError: a batch does not fit, or the metric gives no single number.
    """
    comparison = Comparison([spec.name for spec in gives], tolerance)
    for where, inputs in trials.items():
        comparison.add(program(*inputs), eager(*inputs), where)
    if batches is None:
        return Verification(tolerance, comparison.errors)
    return _verify_on(batches, program, eager, takes, metric, comparison)


def first_of(loader: Iterable[Any]) -> tuple[Any, Iterator[Any]]:
    """Return a loader's first batch, and all of its batches.

    Raises:
        ValueError: there is none.
    """
    batches = iter(loader)
    try:
        first = next(batches)
    except StopIteration:
        raise ValueError("verify_on: the loader gives no batch; pass one with at least one sample") from None
    return first, itertools.chain([first], batches)


def split_batch(batch: object, inputs: Sequence[TensorSpec], needs_targets: bool) -> tuple[tuple[Tensor, ...], object]:
    """Return the model's inputs and the targets of one batch of a loader.

    Args:
        batch: a tensor; ``(inputs, targets)`` where inputs is a tensor or a tuple of them; or for a model of several
            inputs also ``(input_0, …, targets)``.
        inputs: what the program takes; the first dimension is the batch and may be another one.
        needs_targets: whether there is a metric.

    Raises:
        ValueError: the batch is of another form, or an input has another shape or dtype than the example.
    """
    parts = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
    nested = tuple(parts[0]) if parts and isinstance(parts[0], tuple | list) else None
    count = len(inputs) if nested is None else 1
    given = parts[:count] if nested is None else nested
    wanted = ", ".join(f"{describe_shape(('N', *s.shape[1:]))} {dtype_name(s.dtype)}" for s in inputs)
    tensors = tuple(x.detach().cpu() for x in given if isinstance(x, Tensor))
    fits = len(tensors) == len(given) == len(inputs) and all(
        x.shape[1:] == s.shape[1:] and x.ndim == len(s.shape) and x.dtype == s.dtype
        for x, s in zip(tensors, inputs, strict=True)
    )
    sizes = {len(x) for x in tensors} if fits else set()
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"verify_on: a batch holds the inputs {describe(given)}, the example inputs are {wanted}")
    if needs_targets and len(parts) <= count:
        raise ValueError("verify_on: with a metric each batch must be (inputs, targets); got the inputs alone")
    return tensors, parts[count] if needs_targets else None


def check_batched(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Check that the first dimension of every input and output is one and the same batch.

    Raises:
        ValueError: it is not, so that a loader's batches cannot be cut to fit.
    """
    sizes = {spec.shape[0] if spec.shape else 0 for spec in (*inputs, *outputs)}
    if len(sizes) != 1 or 0 in sizes:
        shapes = ", ".join(map(str, (*inputs, *outputs)))
        raise ValueError(
            f"verify_on cuts batches to the exported size, so the first dimension of every input and output must be the"
            f" batch; got {shapes}. Leave verify_on out, or wrap the model in a module that keeps the batch"
        )


def _verify_on(
    batches: Iterable[Any],
    program: Function,
    eager: Function,
    takes: Sequence[TensorSpec],
    metric: Metric | None,
    comparison: Comparison,
) -> Verification:
    sides = {"eager": eager, "executorch": program}
    metrics = {} if metric is None else {side: _fresh(metric) for side in sides}
    samples, changed = 0, 0
    for index, batch in enumerate(batches):
        inputs, targets = split_batch(batch, takes, metric is not None)
        outputs = {side: run_in_chunks(run, inputs, takes[0].shape[0]) for side, run in sides.items()}
        comparison.add(outputs["executorch"], outputs["eager"], f"batch {index} of verify_on")
        changed = _plus(changed, changed_predictions(outputs["executorch"][0], outputs["eager"][0]))
        for side, one in metrics.items():
            one.update(outputs[side][0], targets.cpu() if isinstance(targets, Tensor) else targets)
        samples += len(inputs[0])
    values = {side: _value(one) for side, one in metrics.items()}
    return Verification(comparison.tolerance, comparison.errors, samples, changed, values)


def changed_predictions(output: Tensor, expected: Tensor) -> int | None:
    """Return in how many rows of (N, classes) the largest entry is another one; None for any other shape."""
    if expected.ndim != 2 or expected.shape[1] < 2:
        return None
    return int((output.argmax(1) != expected.argmax(1)).sum())


def _plus(total: int | None, more: int | None) -> int | None:
    return None if total is None or more is None else total + more


def run_in_chunks(run: Function, inputs: Sequence[Tensor], size: int) -> tuple[Tensor, ...]:
    """Run a function of fixed batch size on any number of samples; the last chunk is padded and its rest dropped."""
    results: list[Sequence[Tensor]] = []
    total = len(inputs[0])
    for start in range(0, total, size):
        chunk = [x[start : start + size] for x in inputs]
        kept = len(chunk[0])
        padded = [torch.cat([x, x[-1:].expand(size - kept, *x.shape[1:])]) if kept < size else x for x in chunk]
        results.append([y[:kept] for y in run(*(x.contiguous() for x in padded))])
    return tuple(torch.cat(parts) for parts in zip(*results, strict=True))


def _fresh(metric: Metric) -> Metric:
    clone = metric.clone().to("cpu")
    clone.distributed_available_fn = lambda: False
    clone.reset()
    return clone


def _value(metric: Metric) -> float:
    value = metric.compute()
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ValueError(
            f"metric: {type(metric).__name__} gives {describe([value])}; pass one that computes a single number, such"
            " as torchmetrics.classification.MulticlassAccuracy"
        )
    return float(value)
