"""What the next network of ``fit-to`` has to be, by what the file of the last one cost and took on this machine."""

import argparse
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from lightning_prune.cli._models import loaded_model
from lightning_prune.cli.references import made
from lightning_prune.data.batches import DataModule, arguments_of, loader_of
from lightning_prune.deploy import Artifact, export, latency_table
from lightning_prune.deploy.acceptance import Aim
from lightning_prune.deploy.clock import milliseconds
from lightning_prune.guard import Guard
from lightning_prune.model.example import example_of, learnt, remember
from lightning_prune.selection.needs import Latency
from lightning_prune.study.tried import Attempt, Tried
from lightning_prune.tables import Table
from lightning_prune.trained import Pruned
from lightning_prune.values import check_number, check_whole


class Stopwatch:
    """Times files in turns with that of the dense network, and says which predicted milliseconds to aim at.

    A table predicts from widths what float programs take. What integers save, and what the prediction is off by, is a
    factor that every measurement corrects.

    Args:
        arguments: of the command: ``latency_ms``, ``table`` and ``threads``, and what names the model.
        options: of the export.
        folder: for files that are only timed.

    Raises:
        ValueError: the dense network is as fast as that.
        ExportError: nothing can be measured.
    """

    def __init__(self, arguments: argparse.Namespace, options: Mapping[str, Any], folder: Path) -> None:
        self.limit, self._threads = arguments.latency_ms, arguments.threads
        check_number("--latency-ms", self.limit, above=0)
        check_whole("--threads", self._threads, 1)
        backend, example = options["backend"], options["example_inputs"]
        model = loaded_model(arguments.model, arguments.checkpoint, is_trusted=arguments.trust)
        if example is None and example_of(model) is None:
            batch = next(iter(loader_of(made(arguments.data, (Iterable, DataModule)))))
            remember(model, learnt(arguments_of(model, batch)))
        in_float = backend if backend.quantization is None else replace(backend, quantization=None)
        self._table = latency_table(model, example, backend=in_float, path=arguments.table, threads=self._threads)
        self._dense = export(model, folder / "dense.pte", backend=backend, example_inputs=example)
        self.dense_ms = milliseconds({"dense": self._dense}, threads=self._threads)["dense"]
        if self.dense_ms <= self.limit:
            raise ValueError(
                f"--latency-ms {self.limit:g}: the network takes {self.dense_ms:.3g} ms as it is, and nothing has to be"
                " pruned"
            )
        self._predicted = self._table.networks[-1].anchors[0].milliseconds
        self._aim = Aim(self.limit, self._predicted, self._predicted / self.dense_ms)
        self._attempts: list[Attempt] = []

    @property
    def need(self) -> Latency:
        """What pruning aims at, in milliseconds of the table."""
        return Latency(self._aim.asked, self._table)

    @property
    def last(self) -> Attempt:
        """The file that was timed last."""
        return self._attempts[-1]

    @property
    def is_close(self) -> bool:
        """Whether the last file takes hardly less than it may."""
        return self._aim.is_close(self.last.milliseconds or 0.0)

    @property
    def is_best(self) -> bool:
        """Whether no other file that is fast enough takes longer than the last, so that it is the largest of them."""
        return self.last is max((one for one in self._attempts if one.is_kept), key=lambda one: one.cost, default=None)

    def time(self, artifact: Artifact, pruned: Pruned) -> None:
        """Time a file, and aim anew."""
        both = milliseconds({"dense": self._dense, "pruned": artifact}, threads=self._threads)
        taken = both["pruned"]
        share, asked = 1 - taken / both["dense"], 1 - self._aim.asked / self._predicted
        value = math.nan if pruned.metric_after is None else pruned.metric_after
        told = "within" if taken <= self.limit else f"{taken / self.limit - 1:.1%} too long"
        found = Attempt(share, asked, pruned.left, pruned.after.effective_macs, value, told == "within", told, taken)
        self._attempts.append(found)
        self._aim.tell(taken)

    def table(self, pruned: Pruned) -> Table:
        """Return a row for the dense network and for each that was timed."""
        dense = ("dense", f"{self.dense_ms:.3g}", f"{pruned.before.parameters:,}", f"{pruned.before.macs or 0:,}")
        rows: list[tuple[str, ...]] = [
            (*dense, "" if pruned.metric_before is None else f"{pruned.metric_before:.4f}", "")
        ]
        for number, one in enumerate(self._attempts, 1):
            value = "" if math.isnan(one.metric) else f"{one.metric:.4f}"
            cells = f"{one.milliseconds:.3g}", f"{one.parameters:,}", f"{one.macs or 0:,}", value
            rows.append((str(number), *cells, one.reason))
        note = f"{self.limit:g} ms are needed; measured on this machine, {self._table.device}"
        return Table(("round", "ms", "parameters", "MACs", pruned.metric, ""), rows, remarks=1, note=note)

    def tried(self, measured: Tried) -> Tried:
        """Return the networks that were timed, in place of those that were not."""
        return replace(measured, counted="time", milliseconds=self.dense_ms, attempts=tuple(self._attempts))


class Judge:
    """Judges files where a model alone does not tell: by the metric where there are integers, and by the clock.

    Args:
        arguments: of the command.
        options: of the export.
        folder: for files that are only judged.
    """

    def __init__(self, arguments: argparse.Namespace, options: Mapping[str, Any], folder: Path) -> None:
        self._options, self._folder, self._asked = options, folder, arguments.max_drop
        self.drop: float | None = arguments.max_drop
        self._has_integers = options["backend"].quantization is not None and "metric" in options
        self.watch = None if arguments.latency_ms is None else Stopwatch(arguments, options, folder)

    @property
    def is_needed(self) -> bool:
        """Whether a file has to be judged."""
        return self.watch is not None or (self._has_integers and self.drop is not None)

    def problem(self, model: nn.Module, pruned: Pruned) -> str:
        """Export a model and say what is wrong with the file; "" where nothing is.

        Changes:
            the drop that is left to pruning, and the milliseconds that it aims at.
        """
        tried, problem = pruned.tried, ""
        artifact = export(model, self._folder / "model.pte", **self._options)
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
            if not self.watch.last.is_kept:
                problem = problem or f"{self.watch.limit:g} ms are not reached. Tried:\n{self.watch.table(pruned)}"
        return problem
