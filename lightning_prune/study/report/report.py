"""Report: what is known of a pruned model, as one page."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from lightning_prune.errors import PruningError
from lightning_prune.model.summary import Summary, summarize
from lightning_prune.study.advise import Advice
from lightning_prune.study.comparison import Comparison
from lightning_prune.study.curve import Sensitivity
from lightning_prune.study.report._figures import Section
from lightning_prune.study.report._loggers import to_loggers
from lightning_prune.study.report._origin import origin
from lightning_prune.study.report._page import facts, page
from lightning_prune.study.report._sections import (
    layers,
    made,
    of_advice,
    of_comparison,
    of_sensitivity,
    of_significance,
    over_steps,
    scores,
)
from lightning_prune.study.report._variants import Variant, of_history, of_tried, pareto, table, variants
from lightning_prune.study.report.chart import Chart, charts, written
from lightning_prune.study.report.history import History
from lightning_prune.study.report.recorder import Recorder
from lightning_prune.study.significance import Significance
from lightning_prune.study.tried import Tried
from lightning_prune.trainer.callback import pruning_callback_of
from lightning_prune.trainer.packages import Logger, Trainer

if TYPE_CHECKING:
    from lightning_prune.deploy import Artifact, Timing


@dataclass(frozen=True, kw_only=True, repr=False)
class Report:
    """What is known of a pruned model; :meth:`save` writes it as one page, with a section for each thing that is known.

    Args:
        history: of the fit, from a :class:`Recorder`; :meth:`of` takes it from a Trainer.
        models: name -> model or its summary, such as "dense", "masked", "compact"; the order is that of the table. A
            model is summarised here and not kept. Without any variants the table has those of the history.
        artifacts: name -> what :func:`lightning_prune.deploy.export` returned; the same names mean the same rows.
        latencies: what :func:`lightning_prune.deploy.benchmark` returned, or name -> Timing.
        quality: name -> the metric of that model; without one the metric that an artifact was verified with.
        quality_spread: name -> how far its quality may lie off, such as the standard error; drawn up and down from it.
        advice: what :func:`lightning_prune.study.advise` said.
        comparison: what :func:`lightning_prune.study.compare` came to.
        tried: the networks that :func:`~lightning_prune.prune` tried for ``max_drop``, ``pruned.tried``.
        sensitivity: what :func:`lightning_prune.study.sensitivity` measured.
        significance: what :func:`lightning_prune.study.significance` measured; its proof by deletion is drawn.
        metric: what the quality is called.
        mode: "max" when a higher metric is better, "min" when a lower one is.
        title: heading of the page; "" for the name of the model.

    Example:
        >>> report = Report(models={"dense": nn.Linear(4, 4)}, quality={"dense": 0.9})
        >>> report.to_html().count("<section")
        1
    """

    history: History = field(default_factory=History)
    models: Mapping[str, "nn.Module | Summary"] = field(default_factory=dict)
    artifacts: Mapping[str, "Artifact"] = field(default_factory=dict)
    latencies: Mapping[str, "Timing"] = field(default_factory=dict)
    quality: Mapping[str, float] = field(default_factory=dict)
    quality_spread: Mapping[str, float] = field(default_factory=dict)
    advice: Advice | None = None
    comparison: Comparison | None = None
    tried: Tried | None = None
    sensitivity: Sensitivity | None = None
    significance: Significance | None = None
    metric: str = "quality"
    mode: Literal["min", "max"] = "max"
    title: str = ""

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise ValueError(f'Report.mode must be "max" or "min", got {self.mode!r}')
        if not isinstance(self.history, History):
            raise TypeError(
                f"Report.history takes the history of a Recorder, as in Report(history=recorder.history), got"
                f" {type(self.history).__name__}"
            )
        for key in ("models", "artifacts", "latencies", "quality", "quality_spread"):
            if not isinstance(getattr(self, key), Mapping):
                got = f"{getattr(self, key)!r:.80}"
                raise TypeError(f"Report.{key} takes a mapping of names, as in {{'dense': …}}, got {got}")
        if not isinstance(self.tried, Tried | None):
            got = type(self.tried).__name__
            raise TypeError(f"Report.tried takes what prune(…, max_drop=0.01) tried, pruned.tried, got {got}")
        if self.artifacts or self.latencies:
            from lightning_prune.deploy import Artifact, Timing

            for key, kind in (("artifacts", Artifact), ("latencies", Timing)):
                for name, value in getattr(self, key).items():
                    if not isinstance(value, kind):
                        got = type(value).__name__
                        raise TypeError(f"Report.{key}[{name!r}] takes an {kind.__name__}, got {got}")
        models = {n: summarize(model) if isinstance(model, nn.Module) else model for n, model in self.models.items()}
        for name, model in models.items():
            if not isinstance(model, Summary):
                got = type(model).__name__
                raise TypeError(f"Report.models[{name!r}] takes a model or summarize(model), got {got}")
        object.__setattr__(self, "models", models)

    @classmethod
    def of(cls, trainer: Trainer, **more: Any) -> "Report":
        """Return the report on the fit of a Trainer.

        With a :class:`Recorder` among its callbacks it has everything; with a PruningCallback alone the events and
        what a guard judged.

        Args:
            trainer: after its fit.
            **more: of the arguments of Report.

        Raises:
            PruningError: the Trainer has neither.
        """
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        recorder = next((one for one in callbacks if isinstance(one, Recorder)), None)
        callback = pruning_callback_of(trainer)
        if recorder is None and callback is None:
            raise PruningError(
                "this Trainer has neither a Recorder nor a PruningCallback to report on: pass"
                " callbacks=[PruningCallback(recipe), Recorder()] to it, or make the report of values, Report(models=…)"
            )
        known: dict[str, Any] = {"history": History() if recorder is None else recorder.history}
        if recorder is None and callback is not None:
            known["history"] = History(
                events=tuple(callback.events), trials=tuple(callback.trials), origin=origin(trainer)
            )
        if callback is not None and callback.guard is not None:
            known |= {"metric": callback.guard.monitor, "mode": callback.guard.mode}
        elif len(known["history"].metrics) == 1:
            known["metric"] = next(iter(known["history"].metrics))
        return cls(**(known | more))

    def sections(self) -> list[Section]:
        """Return what the page shows, in order."""
        known = self._variants()
        return [
            *(of_advice(self.advice) if self.advice is not None else ()),
            *over_steps(self.history),
            *layers(self.history),
            *table(known, self.metric),
            *pareto(known, self.metric, self.mode == "max"),
            *(of_comparison(self.comparison) if self.comparison is not None else ()),
            *(of_tried(self.tried) if self.tried is not None else ()),
            *(of_sensitivity(self.sensitivity) if self.sensitivity is not None else ()),
            *scores(self.history),
            *(of_significance(self.significance) if self.significance is not None else ()),
            *made(self.history),
        ]

    def _variants(self) -> tuple[Variant, ...]:
        models = {name: one for name, one in self.models.items() if isinstance(one, Summary)}
        if models or self.artifacts or self.latencies or self.quality:
            return variants(models, self.artifacts, self.latencies, self.quality, self.quality_spread)
        return of_history(self.history, self.metric)

    def __repr__(self) -> str:
        return f"<Report: {', '.join(section.title for section in self.sections()) or 'nothing to report on'}>"

    def _repr_html_(self) -> str:
        # a frame keeps the page's style apart from the notebook's
        frame = 'style="width:100%;height:44em;border:0" title="report"'
        return f'<iframe {frame} srcdoc="{html.escape(self.to_html())}"></iframe>'

    def charts(self) -> dict[str, Chart]:
        """Return the figures of the page by title, to be shown alone; of two with one title the later."""
        return charts(self.sections())

    def to_html(self) -> str:
        """Return the page."""
        title = self.title or (f"Pruning of {self.history.model}" if self.history.model else "Pruning report")
        return page(title, [*facts(self.history, self._variants(), self.metric)], self.sections())

    def save(self, path: str | Path) -> Path:
        """Write the page: one file that loads nothing from anywhere. It appears whole or not at all.

        Args:
            path: of the file, ending in .html; one that is there is replaced.

        Returns:
            the path.

        Raises:
            ValueError: another ending.
            PruningError: nothing was given to report on.
            OSError: the folder does not exist or cannot be written to; nothing is changed then.
        """
        if not self.sections():
            raise PruningError(
                "there is nothing to report on: give the history of a fit (Report.of(trainer) after it), models,"
                " artifacts or latencies"
            )
        return written(path, (".html", ".htm"), self.to_html)

    def to_loggers(self, loggers: Sequence[Logger], step: int | None = None) -> int:
        """Write the figures to the loggers that take figures, as matplotlib figures.

        Args:
            loggers: such as ``trainer.loggers``.
            step: completed optimizer steps; None: the last that the history knows of.

        Returns:
            how many of the loggers took them.
        """
        figures = [figure for section in self.sections() for figure in section.figures]
        return to_loggers(figures, loggers, self.history.last_step if step is None else step)
