"""The metric of a model over a loader."""

import copy
import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_prune.data.passes import Passes
from lightning_prune.errors import NonFiniteError
from lightning_prune.model.example import sample_count

MetricLike = Metric | Callable[[nn.Module, Any], Any]
"""A torchmetrics metric of (model(inputs), targets), or ``metric(model, batch) -> scalar``."""


def check_metric(metric: MetricLike) -> None:
    """Raise TypeError for what is neither a torchmetrics metric nor a function."""
    if isinstance(metric, type) or not callable(metric):
        raise TypeError(
            "metric must be a torchmetrics metric such as MulticlassAccuracy(10), or a function metric(model, batch) ->"
            f" scalar, got {metric!r:.80}"
        )


def is_higher_better(metric: MetricLike, given: bool | None) -> bool:
    """Return whether more is better: as given, else as a torchmetrics metric says, else True."""
    if given is None and isinstance(metric, Metric):
        return metric.higher_is_better is not False
    return given is not False


def named(metric: MetricLike) -> str:
    """Return the metric in words that are the same in every process."""
    if isinstance(metric, Metric):
        return type(metric).__name__
    name = getattr(metric, "__name__", type(metric).__name__)
    return "metric" if name == "<lambda>" else name


def spoken(name: str) -> str:
    """Return the name of a metric as it stands in a message."""
    return name if name == "metric" else f"metric {name}"


def check_droppable(metric: MetricLike, measured: float) -> None:
    """Raise NonFiniteError where the dense model's metric is nothing that a drop can be measured from."""
    if not math.isfinite(measured):
        raise NonFiniteError(
            f"{spoken(named(metric))} of the dense model is {measured}, and no drop can be measured from that: look at"
            " the metric, the weights and the data; nothing was pruned"
        )


@torch.no_grad()
def evaluate(model: nn.Module, passes: Passes, metric: MetricLike) -> float:
    """Return the metric of a model in eval mode over one pass: of a function the mean over all samples.

    Raises:
        ValueError: the metric gave no scalar, or a batch is no pair of inputs and targets where it takes them.
    """
    if isinstance(metric, Metric):
        own = copy.deepcopy(metric).to(passes.device)
        own.reset()
        for batch in passes:
            if not isinstance(batch, tuple | list) or len(batch) < 2:
                raise ValueError(
                    f"{named(metric)} needs batches (inputs, targets), the loader gave {type(batch).__name__}; pass"
                    " metric=lambda model, batch: … instead"
                )
            own.update(model(batch[0]), batch[1])
        return _scalar(own.compute(), metric)
    values, sizes = [], []
    for batch in passes:
        values.append(_scalar(metric(model, batch), metric))
        # the samples of a batch, so that a smaller last one does not weigh as a full one
        sizes.append(sample_count(batch))
    return math.fsum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)


def _scalar(value: object, metric: MetricLike) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value.detach())
    if isinstance(value, Real) and not isinstance(value, Tensor):
        return float(value)
    got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r:.60}"
    raise ValueError(f"{spoken(named(metric))} returned {got}; it must return a scalar")
