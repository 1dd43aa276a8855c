"""What each command does with its arguments; it imports what it needs when it runs, so that help is there at once."""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_prune.cli.references import first_on_path, load, made
from lightning_prune.tables import escaped, lines

KEPT = {
    "macs": "share of the multiply-accumulates that stays; channels go",
    "params": "share of the parameters that stays; channels go",
    "channels": "share of the channels that stays",
    "weights": "share of the single weights that stays; the others become zeros",
}
"""Option of ``prune`` -> what it means."""

CRITERIA = {name.lower(): name for name in ("Magnitude", "Taylor", "Fisher", "Wanda", "Reconstruction")}
ALLOCATIONS = {name.lower(): name for name in ("Global", "Uniform", "ERK")}
"""What ``prune`` takes -> name at the top of the package."""


def prune_model(arguments: argparse.Namespace) -> None:
    """Prune a trained model, write it as a checkpoint and print what was done."""
    from lightning_prune.cli._models import example, loaded_model
    from lightning_prune.cli._options import check_output, check_together, measured_by, save
    from lightning_prune.data.batches import DataModule
    from lightning_prune.recipe import Recipe
    from lightning_prune.schedules import OneShot
    from lightning_prune.selection.granularity import Channel, Element
    from lightning_prune.trained.prune import prune

    what, kept = next((name, share) for name in KEPT if (share := getattr(arguments, f"keep_{name}")) is not None)
    output: Path = arguments.output
    if not 0 < kept < 1:
        raise ValueError(f"--keep-{what}: got {kept:g}, must be a share between 0 and 1")
    check_output(output)
    check_together(arguments)
    parts: dict[str, Any] = recipe_parts(arguments) | {"granularity": Element() if what == "weights" else Channel()}
    if what in ("macs", "params"):
        parts["count"] = what
    model = loaded_model(arguments.model, arguments.checkpoint, is_trusted=arguments.trust)
    pruned = prune(
        model,
        Recipe(schedule=OneShot(1 - kept), **parts),
        made(arguments.data, (Iterable, DataModule)),
        loss=None if arguments.loss is None else load(arguments.loss),
        metric=measured_by(arguments.metric),
        measure_on=None if arguments.measure_on is None else made(arguments.measure_on, (Iterable, DataModule)),
        max_drop=arguments.max_drop,
        higher_is_better=False if arguments.lower_is_better else None,
        example_inputs=example(arguments.example),
        samples=arguments.samples,
        progress=sys.stderr.isatty(),
    )
    save(model, output)
    more = "" if arguments.example is None else f" --example {arguments.example}"
    if pruned.tried is not None:
        _say(f"{pruned.tried}\n")
    _say(
        f"{pruned}\nwritten     {output}\nfor a phone lightning-prune export --model {arguments.model} --checkpoint"
        f" {output}{more} -o {output.with_suffix('.pte')}"
    )


def recipe_parts(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the parts of a recipe that were chosen: repair, criterion and allocation."""
    import lightning_prune
    from lightning_prune.compensation import NoRepair
    from lightning_prune.trained.prune import REPAIR

    repair = NoRepair() if arguments.no_repair else replace(REPAIR, samples=arguments.samples)
    named = {"criterion": CRITERIA.get(arguments.criterion), "allocation": ALLOCATIONS.get(arguments.allocation)}
    return {"repair": repair} | {part: getattr(lightning_prune, name)() for part, name in named.items() if name}


def inspect_files(arguments: argparse.Namespace) -> None:
    """Print what .pte files hold."""
    from lightning_prune.deploy import inspect as inspected

    for path in arguments.programs:
        _say(inspected(path))


def benchmark_files(arguments: argparse.Namespace) -> None:
    """Print the latency of .pte files."""
    from lightning_prune.cli._models import example
    from lightning_prune.deploy import benchmark

    _say(
        benchmark(
            arguments.programs,
            example(arguments.example),
            rounds=arguments.rounds,
            threads=arguments.threads,
            profile=arguments.profile,
            method=arguments.method,
            memory=arguments.memory,
        )
    )


def probe_here(arguments: argparse.Namespace) -> None:
    """Run a probe on this machine and write what it found."""
    from lightning_prune.cli._options import check_output
    from lightning_prune.deploy import Probe, run_probe
    from lightning_prune.documents import check_file

    output: Path = arguments.output
    check_output(output)
    check_file(output)
    results = run_probe(arguments.folder, memory=arguments.memory, progress=sys.stderr.isatty())
    results.save(output)
    failed = f"; {len(results.failed)} failed" if results.failed else ""
    _say(f"{Probe.load(arguments.folder)}\nrun on {results.device}, {results.clock} clock{failed}: {output}")


def summarize_file(arguments: argparse.Namespace) -> None:
    """Print what a checkpoint holds; pickled objects of a trusted one may be of modules in the working folder."""
    import lightning_prune.distillation  # noqa: F401  # a checkpoint may hold one among its hyperparameters
    from lightning_prune.checkpoints.summary import summarize_checkpoint

    if arguments.trust:
        first_on_path(Path())
    _say(summarize_checkpoint(arguments.checkpoint, is_trusted=arguments.trust))


def verify_file(arguments: argparse.Namespace) -> None:
    """Compare a .pte with a model and print the differences."""
    from lightning_prune.cli._models import example, loaded_model
    from lightning_prune.cli._options import comparison
    from lightning_prune.deploy import verify
    from lightning_prune.deploy.runtime.model import checked_manifest

    checked_manifest(arguments.program)
    model = loaded_model(arguments.model, arguments.checkpoint, is_trusted=arguments.trust)
    inputs = example(arguments.example)
    found = verify(arguments.program, model, inputs, memory=arguments.memory, **comparison(arguments))
    limits = {"tolerance {:g}": found.bounds.tolerance, "at least {:g} dB": found.bounds.min_sqnr}
    accepted = ", ".join(text.format(limit) for text, limit in limits.items() if limit is not None)
    _say(f"{arguments.program} computes what {type(model).__name__} computes ({accepted})")
    rows = {
        escaped(f"output {name}" + ("" if method == "forward" else f" of {method}")): (
            f"largest difference {error.max_abs_error:.2g}, {error.sqnr_db:.1f} dB"
        )
        for method, outputs in found.methods.items()
        for name, error in outputs.items()
    }
    if found.samples:
        changed = "" if found.changed_predictions is None else f", {found.changed_predictions:,} changed predictions"
        rows["verified on"] = f"{found.samples:,} samples{changed}"
    if found.metrics:
        rows["metric"] = ", ".join(f"{side} {value:.4f}" for side, value in found.metrics.items())
    width = max(14, *(len(name) + 2 for name in rows))
    _say("\n".join(f"  {name:<{width}}{text}" for name, text in rows.items()))


def export_file(arguments: argparse.Namespace) -> None:
    """Export a model and print the artifact."""
    from lightning_prune.cli._backends import chosen_backend
    from lightning_prune.cli._models import example, loaded_model
    from lightning_prune.cli._options import comparison, labels
    from lightning_prune.compaction.finalization import finalize
    from lightning_prune.deploy import export
    from lightning_prune.model import masks

    backend = chosen_backend(arguments)
    model = loaded_model(arguments.model, arguments.checkpoint, is_trusted=arguments.trust)
    if masks.is_masked(model) and not arguments.keep_masks:
        before = sum(parameter.numel() for parameter in model.parameters())
        finalize(model, example(arguments.example))
        after = sum(parameter.numel() for parameter in model.parameters())
        _say(f"masks folded and channels removed: {before:,} -> {after:,} parameters (--keep-masks leaves the shapes)")
    artifact = export(
        model,
        arguments.output,
        example_inputs=example(arguments.example),
        backend=backend,
        labels=labels(arguments.labels),
        **comparison(arguments),
    )
    _say(artifact)


def _say(value: object) -> None:
    sys.stdout.write(f"{lines(value)}\n")
