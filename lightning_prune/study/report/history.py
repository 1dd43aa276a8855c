"""What a fit was like, as values: metrics, sparsity, events, verdicts, scores and layers."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from lightning_prune.documents import Form, typed
from lightning_prune.guard import Trial
from lightning_prune.model.summary import Summary
from lightning_prune.run.event import Event

_FORM = Form("lightning_prune.history", 1, "history of a fit")
_SHARES = ("before", "after")
"""Fields of a trial that map a recipe's index to its sparsity; JSON writes the index as text."""
_BINS = ("edges", "kept", "lost")


@dataclass(frozen=True)
class Scores:
    """The scores by which an event ranked the units of one target or channel group, as a histogram.

    Args:
        name: of the target or channel group.
        step: completed optimizer steps.
        edges: borders of the bins, rising; below the cut and above it their ratios are equal where ``is_log``,
            otherwise their distances.
        kept: how many scores lie in each bin, of the units that stay.
        lost: the same of those that the event removed; units gone before have no score.
        is_log: whether all scores are above 0, or at 0 and then in the first bin.
        cut: the lowest score that stays; None where all or none stay.
        removed: units that the event removed.
        gone: units that had been removed before.
    """

    name: str
    step: int
    edges: tuple[float, ...]
    kept: tuple[int, ...]
    lost: tuple[int, ...]
    is_log: bool
    cut: float | None
    removed: int
    gone: int


@dataclass(frozen=True)
class History:
    """What a fit was like.

    Args:
        metrics: name -> (completed optimizer steps, value) after each validation.
        sparsity: (completed optimizer steps, sparsity) at each change, and at the end.
        events: the events that stand.
        trials: what a guard has judged.
        scores: of the last two events that took something of a target or channel group, in order.
        before: the model when the fit began.
        after: the model when the fit was over.
        model: name of its class.
        origin: how the fit was made: recipe, data, date, versions and command, as text; not compared.
    """

    metrics: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    sparsity: tuple[tuple[int, float], ...] = ()
    events: tuple[Event, ...] = ()
    trials: tuple[Trial, ...] = ()
    scores: tuple[Scores, ...] = ()
    before: Summary | None = None
    after: Summary | None = None
    model: str = ""
    origin: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def last_step(self) -> int:
        """The last step that is known of; 0 of an empty history."""
        points = [point for found in (*self.metrics.values(), self.sparsity) for point in found]
        return max([0, *(step for step, _ in points), *(event.step for event in self.events)])

    def at_first(self, metric: str) -> float | None:
        """Return a metric of the model before pruning; None where nothing was validated then.

        Ahead of the fit, if ``trainer.validate`` ran there; otherwise at the last validation before the first event.
        """
        points = self.metrics.get(metric, ())
        begin = min((one.step for one in (*self.events, *self.trials)), default=math.inf)
        before = [value for step, value in points if step < begin]
        return None if not before else before[0] if points[0][0] == 0 else before[-1]

    def with_metrics(self, step: int, values: Mapping[str, float]) -> "History":
        """Return this history with one more validation; one at the same step is replaced."""
        found = dict(self.metrics)
        for name, value in values.items():
            found[name] = (*(point for point in found.get(name, ()) if point[0] < step), (step, value))
        return replace(self, metrics=found)

    def with_sparsity(self, step: int, value: float) -> "History":
        """Return this history with the sparsity from this step on; the same as before adds nothing."""
        earlier = tuple(point for point in self.sparsity if point[0] < step)
        if earlier and earlier[-1][1] == value:
            return self if earlier == self.sparsity else replace(self, sparsity=earlier)
        return replace(self, sparsity=(*earlier, (step, value)))

    def to_json(self) -> str:
        """Return it as JSON text, for :meth:`from_json`."""
        return _FORM.write(self.document())

    @classmethod
    def from_json(cls, text: str) -> "History":
        """Return what :meth:`to_json` wrote.

        Raises:
            ValueError: the text is no history, or of a newer version.
        """
        return cls.from_document(_FORM.read(text))

    def document(self) -> dict[str, Any]:
        """Return everything as plain values, which JSON and ``torch.load(weights_only=True)`` take."""
        return {
            "metrics": {name: [list(point) for point in points] for name, points in self.metrics.items()},
            "sparsity": [list(point) for point in self.sparsity],
            "events": [asdict(event) for event in self.events],
            "trials": [
                asdict(trial)
                | {key: {str(index): share for index, share in getattr(trial, key).items()} for key in _SHARES}
                | {"outcome": trial.outcome.value}
                for trial in self.trials
            ],
            "scores": [asdict(one) | {key: list(getattr(one, key)) for key in _BINS} for one in self.scores],
            "before": _plain_summary(self.before),
            "after": _plain_summary(self.after),
            "model": self.model,
            "origin": dict(self.origin),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "History":
        """Return what :meth:`document` described.

        Raises:
            ValueError: it describes something else.
        """
        # those of 0.1 have no origin
        names = [one.name for one in fields(cls) if one.name != "origin" or "origin" in document]
        with _FORM.parsing():
            history = typed(cls, {name: document[name] for name in names})
        for one in history.scores:
            if not one.edges or not len(one.edges) - 1 == len(one.kept) == len(one.lost):
                raise ValueError(f"the {_FORM.kind} is malformed: scores of {one.name} have bins without borders")
        return history


def _plain_summary(summary: Summary | None) -> dict[str, Any] | None:
    if summary is None:
        return None
    layers = [asdict(layer) | {"shape": [*layer.shape]} for layer in summary.layers]
    return {"layers": layers, "macs": summary.macs}
