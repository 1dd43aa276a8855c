"""What the next network of ``fit-to`` has to be, by what the file of the last one cost and took on this machine."""

import argparse
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_prune.cli._models import loaded_model
from lightning_prune.cli._options import measured_by
from lightning_prune.cli.references import made
from lightning_prune.data.batches import DataModule, arguments_of, first_batches, loader_of
from lightning_prune.data.losses import trainless_copy
from lightning_prune.data.metrics import MetricLike, check_droppable, evaluate
from lightning_prune.data.passes import Passes, own_random_state, seed_all
from lightning_prune.deploy import Artifact, export, latency_table
from lightning_prune.deploy.acceptance import Aim
from lightning_prune.deploy.clock import milliseconds
from lightning_prune.errors import ExportError
from lightning_prune.guard import Guard
from lightning_prune.model.example import example_of, learnt, remember
from lightning_prune.selection.needs import Latency
from lightning_prune.study.tried import Attempt, Tried
from lightning_prune.tables import Table
from lightning_prune.trained import Pruned
from lightning_prune.values import check_number, check_whole

Written = TypeVar("Written")


def judged_by(
    arguments: argparse.Namespace, data: Iterable[Any] | DataModule, tell: Callable[[str], object]
) -> MetricLike | None:
    """Return the metric that is named; where there is a drop alone, the accuracy of a model that tells classes.

    Args:
        arguments: of the command.
        data: for the metric.
        tell: is called with what was taken.

    Raises:
        ValueError: a drop of nothing.
        NonFiniteError: what the dense model comes to, where layers would have been measured before anyone looks.
    """
    metric = measured_by(arguments.metric)
    if arguments.max_drop is None:
        return metric
    model = loaded_model(arguments.model, arguments.checkpoint, is_trusted=arguments.trust)
    passes = Passes(loader_of(data), model)
    if metric is None:
        with torch.no_grad(), own_random_state():
            batch = first_batches(passes, 1)[0]
            made_of = model(batch[0]) if isinstance(batch, tuple | list) and len(batch) == 2 else None
        labels, outputs = (None, None) if made_of is None else (batch[1], made_of)
        if not (
            isinstance(labels, Tensor)
            and isinstance(outputs, Tensor)
            and (outputs.dim(), labels.dim()) == (2, 1)
            and not (labels.is_floating_point() or labels.dtype == torch.bool)
            and 0 <= int(labels.min()) <= int(labels.max()) < outputs.shape[1]
        ):
            raise ValueError(
                f"--max-drop {arguments.max_drop:g} is a drop of a metric, and none is named: --metric net.py:accuracy."
                " Only where a model gives scores (N, classes), and data pairs of inputs and labels that are whole"
                " numbers, it is their accuracy"
            )
        tell(f"no --metric is named: it is the accuracy over {outputs.shape[1]} classes")
        metric = MulticlassAccuracy(outputs.shape[1], average="micro")
    if arguments.latency_ms is not None:
        with own_random_state():
            check_droppable(metric, evaluate(trainless_copy(model), passes, metric))
    return metric


def exported(write: Callable[..., Written], model: nn.Module, path: Path, options: Mapping[str, Any]) -> Written:
    """Return what an export writes, calibrated on the same samples each time, also those of a loader that shuffles."""
    with own_random_state():
        seed_all(0)
        return write(model, path, **options)


class Stopwatch:
    """Times files in turns with that of the dense network, and says which predicted milliseconds to aim at.

    The table is of programs as they will be shipped, with their integers. What a prediction is off by is a factor that
    every measurement corrects.

    Args:
        arguments: of the command: ``latency_ms``, ``table`` and ``threads``, and what names model and data.
        options: of the export.
        folder: for files that are only timed.
        tell: is called with what is being done.

    Raises:
        ValueError: the dense network is as fast as that, or the table was measured otherwise.
        ExportError: nothing can be measured.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        options: Mapping[str, Any],
        folder: Path,
        tell: Callable[[str], object],
    ) -> None:
        self.limit, self._threads = arguments.latency_ms, 1 if arguments.threads is None else arguments.threads
        check_number("--latency-ms", self.limit, above=0)
        check_whole("--threads", self._threads, 1)
        backend, example = options["backend"], options["example_inputs"]
        if not backend.runs_here:
            raise ExportError(
                f"--latency-ms {self.limit:g} is measured on this machine, and {backend.name} does not run here: ask"
                " for --need macs=…, or for --backend xnnpack"
            )
        model = loaded_model(arguments.model, arguments.checkpoint, is_trusted=arguments.trust)
        if example is None and example_of(model) is None:
            batch = next(iter(loader_of(made(arguments.data, (Iterable, DataModule)))))
            remember(model, learnt(arguments_of(model, batch)))
        tell("exporting the dense network and timing it")
        self._dense = exported(export, model, folder / "dense.pte", options)
        self._files = {"dense": self._dense}
        self.dense_ms = milliseconds(self._files, threads=self._threads)["dense"]
        if self.dense_ms <= self.limit:
            raise ValueError(
                f"--latency-ms {self.limit:g}: the network takes {self.dense_ms:.3g} ms as it is, and nothing has to be"
                " pruned"
            )
        kept = "--table FILE would keep them" if arguments.table is None else f"kept in {arguments.table}"
        tell(f"{self.dense_ms:.3g} ms; measuring its layers at several widths, {kept}")
        self._table = latency_table(model, example, backend=backend, path=arguments.table, threads=self._threads)
        self._predicted = self._table.networks[-1].anchors[0].milliseconds
        self._aim = Aim(self.limit, self._predicted, self._predicted / self.dense_ms)
        self.attempts: list[Attempt] = []
        """The files, in their order; each is timed again beside those after it."""

    @property
    def need(self) -> Latency:
        """What pruning aims at, in milliseconds of the table."""
        return Latency(self._aim.asked, self._table)

    @property
    def is_over(self) -> bool:
        """Whether a file takes hardly less than it may, or none is chosen between it and the next."""
        return self._aim.is_over

    def time(self, artifact: Artifact, pruned: Pruned) -> None:
        """Time a file in turns with the dense one and those before it, and aim anew."""
        asked = 1 - self._aim.asked / self._predicted
        value = artifact.metrics.get("executorch", pruned.metric_after)
        value = math.nan if value is None else value
        self.attempts.append(Attempt(0.0, asked, pruned.left, pruned.after.effective_macs, value, False, ""))
        self._files[str(len(self.attempts))] = artifact
        dense, *taken = milliseconds(self._files, threads=self._threads).values()
        for number, (attempt, each) in enumerate(zip(self.attempts, taken, strict=True)):
            is_kept = each <= self.limit
            told = "within" if is_kept else f"{each / self.limit - 1:.1%} too long"
            timed = replace(attempt, share=1 - each / dense, is_kept=is_kept, reason=told, milliseconds=each)
            self.attempts[number] = timed
        self._aim.tell(taken)

    def table(self, pruned: Pruned) -> Table:
        """Return a row for the dense network and for each that was timed."""
        measured = self._dense.metrics.get("executorch", pruned.metric_before)
        sizes = f"{pruned.before.parameters:,}", f"{pruned.before.macs or 0:,}"
        value = "" if measured is None else f"{measured:.4f}"
        rows: list[tuple[str, ...]] = [("dense", f"{self.dense_ms:.3g}", "100%", *sizes, value, "")]
        for number, one in enumerate(self.attempts, 1):
            value = "" if math.isnan(one.metric) else f"{one.metric:.4f}"
            sizes = f"{one.parameters:,}", f"{one.macs or 0:,}"
            rows.append((str(number), f"{one.milliseconds:.3g}", f"{1 - one.share:.1%}", *sizes, value, one.reason))
        note = f"{self.limit:g} ms are needed; files measured on this machine, {self._table.device}"
        return Table(("round", "ms", "of dense", "parameters", "MACs", pruned.metric, ""), rows, remarks=1, note=note)

    def tried(self, measured: Tried) -> Tried:
        """Return the networks that were timed, in place of those that were not."""
        return replace(measured, counted="time", milliseconds=self.dense_ms, attempts=tuple(self.attempts))


class Judge:
    """Judges files where a model alone does not tell: by the metric where there are integers, and by the clock.

    Args:
        arguments: of the command.
        options: of the export.
        folder: for files that are only judged.
        watch: where milliseconds are asked for.
    """

    def __init__(
        self, arguments: argparse.Namespace, options: Mapping[str, Any], folder: Path, watch: Stopwatch | None
    ) -> None:
        self._options, self._folder, self.watch = options, folder, watch
        self._asked = self.drop = arguments.max_drop
        self._has_integers = options["backend"].quantization is not None and "metric" in options

    @property
    def is_needed(self) -> bool:
        """Whether a file has to be judged."""
        return self.watch is not None or (self._has_integers and self.drop is not None)

    def problem(self, model: nn.Module, pruned: Pruned) -> str:
        """Export a model, time the file, and say what its integers cost too much; "" where they do not.

        Changes:
            the drop that is left to pruning, and the milliseconds that it aims at.
        """
        tried, problem = pruned.tried, ""
        number = 0 if self.watch is None else len(self.watch.attempts)  # those before are timed again
        artifact = exported(export, model, self._folder / f"{number}.pte", self._options)
        if tried is not None and tried.best is not None and self._has_integers:
            guard = Guard(tried.metric, "max" if tried.higher_is_better else "min", self._asked)
            cost = artifact.metrics["eager"] - artifact.metrics["executorch"]
            if not guard.allows(tried.best.metric - cost, tried.base):
                lost = cost if tried.higher_is_better else -cost
                self.drop = self._asked - lost
                problem = (
                    f"integers cost {lost:.4g} of {tried.metric} beside what pruning costs, and {self._asked:.4g} may"
                    f" be lost in all: export in float, or allow more. Tried:\n{tried}"
                )
        if self.watch is not None:
            self.watch.time(artifact, pruned)
        return problem
