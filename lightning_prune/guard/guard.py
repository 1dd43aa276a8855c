"""How much quality a pruning event may cost, as a value."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_prune.errors import PruningError
from lightning_prune.values import Choice, check_number, check_whole

ROUNDING = 1e-6
"""Relative; what float32, in which metrics are computed, cannot tell apart: there 0.892 - 0.882 is more than 0.01."""


@dataclass(frozen=True)
class Guard(Choice):
    """How much quality an event may cost, and what happens when it costs more.

    Args:
        monitor: key under which the metric is logged at validation, such as "val_acc".
        mode: "max" when higher is better, "min" when lower is.
        max_drop: how far the metric may fall below the dense baseline (rise above it with "min"): absolute, in the
            metric's own unit, so 0.01 of an accuracy in [0, 1] is one percentage point.
        patience: validations in a row that may fail before the event counts as failed, at least 1.
        on_fail: after a rollback, "halve" lets the next event add half as much sparsity, "stop" ends pruning.
        retries: how many such smaller events are tried in a row, 0 or more.
        min_step: smallest step of sparsity worth trying, in (0, 1).
        baseline: what the dense model reaches; None: the last validation before the first event.
        snapshot: where the state before an event is kept; "auto" goes by its size.

    Example:
        >>> Guard(monitor="val_acc", mode="max", max_drop=0.01).patience
        2
    """

    monitor: str
    mode: Literal["min", "max"]
    max_drop: float
    patience: int = 2
    on_fail: Literal["halve", "stop"] = "halve"
    retries: int = 3
    min_step: float = 0.01
    baseline: float | None = None
    snapshot: Literal["auto", "memory", "disk"] = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.monitor, str):
            raise TypeError(f'Guard.monitor must be the key of a metric, such as "val_acc", got {self.monitor!r}')
        if not self.monitor:
            raise ValueError('Guard.monitor is empty; name the key of a metric, such as "val_acc"')
        choices = {"mode": ("min", "max"), "on_fail": ("halve", "stop"), "snapshot": ("auto", "memory", "disk")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"Guard.{name} must be one of {', '.join(map(repr, allowed))}, got {getattr(self, name)!r}"
                )
        check_number("Guard.max_drop", self.max_drop, 0, why=": it is a drop in the metric's own unit")
        check_whole("Guard.patience", self.patience, 1, "validations")
        check_whole("Guard.retries", self.retries, 0, "smaller events")
        check_number("Guard.min_step", self.min_step, above=0, below=1, why=": it is a step of sparsity")
        if self.baseline is not None:
            check_number("Guard.baseline", self.baseline, why=": it is the metric of the dense model")

    def allows(self, value: float, baseline: float) -> bool:
        """Say whether a value is good enough: finite, and at most ``max_drop`` worse than the baseline."""
        slack = ROUNDING * max(abs(value), abs(baseline))
        return math.isfinite(value) and self._drop(value, baseline) <= self.max_drop + slack

    def explain(self, value: float, baseline: float) -> str:
        """Say in words why a value is allowed or not."""
        if not math.isfinite(value):
            return f"{self.monitor} was {value}, which counts as failed"
        drop, against = self._drop(value, baseline), f"the baseline {baseline:.4g}"
        if drop <= 0:
            return f"{self.monitor} {value:.4g} is no worse than {against}"
        moved, side = ("fell", "below") if self.mode == "max" else ("rose", "above")
        return f"{self.monitor} {moved} to {value:.4g}, {drop:.4g} {side} {against}, allowed {self.max_drop:.4g}"

    def doubts(self, baseline: float, seen: Sequence[float] = (), samples: int | None = None) -> tuple[str, ...]:
        """Return in words what makes a drop from a baseline a poor measure.

        Args:
            baseline: value of the dense model, finite.
            seen: its values at the validations before, the oldest first.
            samples: that a validation sees, None where that is not known.
        """
        found = []
        words = set(re.split(r"[^a-z0-9]+", self.monitor.lower()))
        if words & (
            {"loss", "error", "err"} if self.mode == "max" else {"acc", "accuracy", "f1", "auroc", "map", "iou"}
        ):
            found.append(
                f'mode="{self.mode}" takes a {"lower" if self.mode == "min" else "higher"} {self.monitor} for better'
            )
        # a share that counts samples moves by whole ones
        if samples and self.mode == "max" and 0 <= baseline <= 1 and 0 < self.max_drop < 1 / samples:
            found.append(
                f"max_drop={self.max_drop:g} is less than one of the {samples} validation samples is worth,"
                f" {1 / samples:.2g} of {self.monitor}: validate on more, or allow more"
            )
        if self.mode == "max" and 0 < baseline <= self.max_drop:
            found.append(
                f"max_drop={self.max_drop:g} lets all of {self.monitor} go, which is {baseline:.4g}: a drop is in the"
                " metric's own unit, 0.01 of an accuracy in [0, 1] is one point"
            )
        best = max(seen, key=lambda value: -self._drop(value, baseline), default=baseline)
        if -self._drop(best, baseline) > self.max_drop:
            found.append(
                f"{self.monitor} was {best:.4g} before it came to {baseline:.4g}, which is the baseline: begin with the"
                " learning rate at which training ended, or give Guard(baseline=…)"
            )
        return tuple(found)

    def _drop(self, value: float, baseline: float) -> float:
        return baseline - value if self.mode == "max" else value - baseline


def monitored(who: str, key: str, metrics: Mapping[str, Any]) -> float:
    """Return a metric that was logged.

    Args:
        who: asks for it, by class name.
        key: of it.
        metrics: key -> what was logged, a number or a tensor of one element.

    Raises:
        PruningError: nothing is logged under this key; names the keys that are.
    """
    if key not in metrics:
        raise PruningError(
            f"{who}(monitor={key!r}) finds no such metric after validation; logged:"
            f" {', '.join(sorted(metrics)) or 'nothing'}. Name one of these, or call self.log({key!r}, …) in"
            " validation_step"
        )
    return float(metrics[key])
