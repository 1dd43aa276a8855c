"""``fit-to``: from a trained model to the program of an app, as small as it has to be or as its metric lets it be."""

import argparse
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from lightning_prune.cli._commands import recipe_parts
from lightning_prune.cli.references import load, made
from lightning_prune.documents import check_file, scratch
from lightning_prune.errors import PruningError
from lightning_prune.tables import lines
from lightning_prune.values import check_number

if TYPE_CHECKING:
    from torch import nn

    from lightning_prune.cli._judging import Judge
    from lightning_prune.deploy import Backend
    from lightning_prune.selection.needs import Need
    from lightning_prune.trained import Pruned

_SEARCHES = 5
"""At most, where files are judged too: each goes by what the file of the one before cost and took."""


def fit_model(arguments: argparse.Namespace) -> None:
    """Prune a trained model to what is needed, export it for an app, and print what was tried and written."""
    from torchmetrics import Metric

    from lightning_prune.cli._backends import chosen_backend
    from lightning_prune.cli._judging import Judge, Stopwatch, exported, judged_by
    from lightning_prune.cli._models import example
    from lightning_prune.cli._options import check_together, labels, save
    from lightning_prune.data.batches import DataModule, loader_of
    from lightning_prune.deploy import export, export_android, export_ios
    from lightning_prune.deploy.executorch.quiet import require_executorch
    from lightning_prune.study.report import Report
    from lightning_prune.trained.prune import prune

    if arguments.int8 == "":  # without a loader of its own
        arguments.int8 = arguments.data
    backend, output = chosen_backend(arguments), arguments.output
    needs, app = _needs(arguments, backend), _app(arguments, backend)
    check_together(arguments)
    require_executorch()
    data = made(arguments.data, (Iterable, DataModule))
    judging = None if arguments.measure_on is None else made(arguments.measure_on, (Iterable, DataModule))
    metric = judged_by(arguments, data if judging is None else judging, _tell)
    options = {
        "backend": backend,
        "example_inputs": example(arguments.example),
        "labels": labels(arguments.labels),
        "tolerance": arguments.tolerance,
    }
    if isinstance(metric, Metric):
        options |= {"metric": metric, "verify_on": loader_of(data if judging is None else judging)}
    elif arguments.max_drop is not None and backend.quantization is not None:
        by = f"{arguments.metric} takes a model and a batch; a torchmetrics metric is measured on the file too"
        _tell(f"the file itself is not measured: {by}")
    pruning = partial(
        prune,
        data=data,
        loss=None if arguments.loss is None else load(arguments.loss),
        metric=metric,
        measure_on=judging,
        higher_is_better=False if arguments.lower_is_better else None,
        example_inputs=options["example_inputs"],
        samples=arguments.samples,
        progress=sys.stderr.isatty(),
    )
    with scratch() as folder:
        watch = None if arguments.latency_ms is None else Stopwatch(arguments, options, folder, _tell)
        judge = Judge(arguments, options, folder, watch)
        model, pruned = _pruned(arguments, needs, pruning, judge)
    save(model, output.with_suffix(".pt"))
    _tell(f"exporting to {backend.name} and running the file{f', for {app}' if app else ''}")
    write = {"": export, "android": export_android, "ios": export_ios}[app]
    written = exported(write, model, output, options)
    if arguments.report is not None:
        artifact = written if app == "" else written.artifact
        models = {"before": pruned.before, "after": pruned.after}
        tried, watch = pruned.tried, judge.watch
        tried = tried if tried is None or watch is None else watch.tried(tried)
        Report(tried=tried, models=models, artifacts={"after": artifact}, metric=pruned.metric).save(arguments.report)
    tables = [pruned.tried, None if judge.watch is None else judge.watch.table(pruned)]
    parts = [f"{table}\n" for table in tables if table is not None]
    sys.stdout.write("\n".join(map(str, [*parts, pruned, f"checkpoint  {output.with_suffix('.pt')}", written])) + "\n")


def _needs(arguments: argparse.Namespace, backend: "Backend") -> "list[Need]":
    """Return what each ``--need`` says: ``macs=0.3``, ``params=100000``, ``size=500000``, ``memory=2000000``.

    Raises:
        ValueError: it says nothing of the kind; or there is none, and no drop either.
    """
    from lightning_prune.selection.needs import MACs, Memory, Params, Size

    def memory(size: int) -> Memory:
        if backend.name != "xnnpack" or backend.quantization is not None:
            raise ValueError("it is known for --backend xnnpack in float32 alone; size=500000 is known for all")
        return Memory(size)

    makes = {"macs": MACs, "params": Params, "size": lambda size: Size(size, backend.quantization), "memory": memory}
    if not arguments.need and arguments.max_drop is None and arguments.latency_ms is None:
        raise ValueError(
            "say what it has to come down to, as in --need macs=0.3 or --latency-ms 8, or what it may cost, as in"
            " --max-drop 0.01 --metric net.py:accuracy"
        )
    needs = []
    for text in arguments.need:
        name, _, amount = text.partition("=")
        try:
            number = float(amount) if "." in amount else int(amount)
            make = makes[name]
        except (KeyError, ValueError):
            raise ValueError(
                f"--need: got {text!r:.80}, must be macs=0.3, params=100000, size=500000 or memory=2000000: a share or"
                " a number"
            ) from None
        try:
            needs.append(make(number))
        except (TypeError, ValueError) as error:
            raise ValueError(f"--need {text:.80}: {error}") from error
    return needs


def _app(arguments: argparse.Namespace, backend: "Backend") -> str:
    """Return what the program is written for: "android", "ios", or "" for the file alone.

    What cannot be written is refused here, before minutes go into it.

    Raises:
        ValueError: it cannot be written there, the system has no such backend, or an option lacks its other.
        OSError: a file cannot be written there.
        ExportError: what stands there is no export's.
    """
    from lightning_prune.cli._options import check_output
    from lightning_prune.deploy.artifact.files import replaced, staged

    output, name = arguments.output, backend.name
    check_output(output)
    if output.suffix == ".pt":
        raise ValueError(f"--output: got {output}, the name of a checkpoint: write a folder, or {output}e")
    with staged(output) if output.suffix == ".pte" else replaced(output):
        for path in filter(None, (output.with_suffix(".pt"), arguments.report, arguments.table)):
            check_file(path)
    if arguments.table is not None and arguments.latency_ms is None:
        raise ValueError(f"--table {arguments.table} says what takes how long: add --latency-ms, or leave it out")
    if arguments.threads is not None and arguments.latency_ms is None:
        raise ValueError(f"--threads {arguments.threads} is how files are timed: add --latency-ms, or leave it out")
    if arguments.max_drop is not None:
        check_number("--max-drop", arguments.max_drop, 0, why=": it is a drop of the metric, in its own unit")
    if output.suffix == ".pte":
        if arguments.app is not None:
            raise ValueError(
                f"--output: got {output}, but --app {arguments.app} is written as a folder: leave .pte out"
            )
        return ""
    app = arguments.app or ("ios" if name == "coreml" else "android")
    if (app, name) in (("android", "coreml"), ("ios", "vulkan")):
        raise ValueError(f"--app {app}: a program of {name} does not run there")
    return app


def _pruned(
    arguments: argparse.Namespace, needs: "list[Need]", pruning: "Callable[..., Pruned]", judge: "Judge"
) -> "tuple[nn.Module, Pruned]":
    """Return the pruned model and what was done.

    Where integers cost some of the drop, pruning gets what is left; where a file takes too long, or has time left, the
    next network is smaller or larger by as much.

    Raises:
        PruningError: what is needed cannot be had together.
    """
    from lightning_prune.cli._models import loaded_model
    from lightning_prune.recipe import Recipe
    from lightning_prune.schedules import OneShot
    from lightning_prune.selection.granularity import Channel
    from lightning_prune.selection.needs import MACs

    watch = judge.watch
    made: list[tuple[nn.Module, Pruned, str]] = []
    towards = ", ".join([*arguments.need, *([] if watch is None else [f"{watch.limit:g} ms"])])
    for _ in range(_SEARCHES):
        model = loaded_model(arguments.model, arguments.checkpoint, is_trusted=arguments.trust)
        bound = "" if judge.drop is None else f", {arguments.metric or 'accuracy'} at most {judge.drop:.4g} worse"
        _tell(f"pruning {type(model).__name__} towards {towards or 'fewest MACs'}{bound}")
        need = (*needs, *([] if watch is None else [watch.need])) or MACs(1)
        recipe = Recipe(granularity=Channel(), schedule=OneShot(), need=need, **recipe_parts(arguments))
        pruned = pruning(model, recipe, max_drop=judge.drop)
        tried = pruned.tried
        unmet = ""
        if towards and tried is not None and tried.best is not None and tried.best.share < 1:
            unmet = (
                f"{towards} is not met within {judge.drop:.4g} of {pruned.metric}: ask for less, or allow more."
                f" Tried:\n{tried}"
            )
        if unmet and (needs or watch is None):
            raise PruningError(unmet)
        if not judge.is_needed:
            return model, pruned
        _tell("exporting, to see what the file costs")
        problem = judge.problem(model, pruned)
        made.append((model, pruned, problem))
        if watch is not None:
            if unmet and not watch.attempts[-1].is_kept:  # the table may have asked for too much
                raise PruningError(f"{unmet}\n{watch.table(pruned)}")
            _tell(f"{watch.attempts[-1].milliseconds:.3g} ms, {watch.attempts[-1].reason}")
        if judge.drop is not None and judge.drop < 0:
            break
        if not problem and (watch is None or watch.is_over):
            break
        if needs and watch is not None and len({(one.parameters, one.macs) for one in watch.attempts}) < len(made):
            break  # another need holds it, whatever milliseconds are asked for
    fast = range(len(made)) if watch is None else [n for n, each in enumerate(watch.attempts) if each.is_kept]
    fits = [number for number in fast if not made[number][2]]
    if not fits:
        slow = "" if watch is None else f"{watch.limit:g} ms are not reached. Tried:\n{watch.table(made[-1][1])}"
        raise PruningError(made[-1][2] or slow)
    model, pruned, _ = made[max(fits, key=lambda number: 0.0 if watch is None else watch.attempts[number].cost)]
    return model, pruned


def _tell(text: str) -> None:
    sys.stderr.write(f"fit-to: {lines(text)}\n")
