"""The commands and their arguments; what they do is in :mod:`lightning_prune.cli._commands`."""

import argparse
import io
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_prune._version import __version__
from lightning_prune.cli import _backends, _commands, _fitting
from lightning_prune.errors import PruningError
from lightning_prune.tables import lines

_DESCRIPTION = """\
Prune trained models, export them to verified ExecuTorch files, and look at such files.

examples:
  lightning-prune fit-to --model net.py:make --data net.py:loader --need macs=0.3 -o app/model
  lightning-prune prune --model net.py:make --data net.py:loader --keep-macs 0.5 -o small.pt
  lightning-prune summarize last.ckpt
  lightning-prune export --checkpoint last.ckpt --model my.module:Digits -o model.pte
  lightning-prune inspect model.pte
  lightning-prune benchmark dense.pte pruned.pte --rounds 20
  lightning-prune verify model.pte --checkpoint last.ckpt --model my.module:Digits

A model, a loader or a metric is named as module:attribute or as file.py:attribute.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: of the command line; None: those of this process.

    Returns:
        0; 2 after an error, which is on stderr in one paragraph (with ``--traceback`` where it came from).
    """
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("lightning-prune", description=_DESCRIPTION, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"lightning-prune {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for add in (_fit_to, _prune, _export, _inspect, _benchmark, _probe, _verify, _summarize):
        add(commands)
    chosen = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console that lacks a sign of a table shows "?" in its place
            stream.reconfigure(errors="replace")
    try:
        chosen.run(chosen)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, as head does, has seen enough; Python would complain at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    except (Exception, SystemExit) as error:  # the user's model, data and metric may raise anything
        if chosen.traceback and isinstance(error, SystemExit):  # it would end Python without a word
            raise RuntimeError("the code that was named ends the process") from error
        if chosen.traceback:
            raise
        text = str(error)
        if not isinstance(error, PruningError | ValueError | TypeError | OSError | ImportError):
            last = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {text} ({last.filename}, line {last.lineno}; --traceback shows more)"
        sys.stderr.write(f"lightning-prune {chosen.command}: error: {lines(text)}\n")
        return 2
    return 0


def _command(found: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, about: str, example: str,
             run: object) -> argparse.ArgumentParser:  # fmt: skip
    raw = argparse.RawDescriptionHelpFormatter
    text = f"{about}\n\nexample:\n  {example}"
    parser = found.add_parser(name, help=about, description=text, formatter_class=raw)
    parser.set_defaults(run=run)
    return parser


def _prune(found: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _command(
        found,
        "prune",
        "prune a trained model without training, repair it on some data, and write the small one as a checkpoint",
        "lightning-prune prune --model net.py:make --data net.py:loader --keep-macs 0.5 -o small.pt",
        _commands.prune_model,
    )
    _add_model(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="path of the checkpoint to write")
    parser.add_argument("--data", required=True, metavar="REF", help="loader, other batches, or a LightningDataModule")
    budgets = parser.add_mutually_exclusive_group(required=True)
    for what, about in _commands.KEPT.items():
        budgets.add_argument(f"--keep-{what}", type=float, metavar="SHARE", help=about)
    _add_pruning(parser)


def _fit_to(found: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _command(
        found,
        "fit-to",
        "from a trained model to the program of an app: prune it to what is needed or as far as a metric lets it go,"
        " repair, export, run the file, and write a checkpoint of the small model beside it",
        "lightning-prune fit-to --model net.py:make --data net.py:loader --metric net.py:accuracy --max-drop 0.01"
        " --int8 -o app/model",
        _fitting.fit_model,
    )
    _add_model(parser)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="folder of the app's module; or a .pte for the program alone"
    )
    parser.add_argument("--data", required=True, metavar="REF", help="loader, other batches, or a LightningDataModule")
    parser.add_argument(
        "--need",
        action="append",
        default=[],
        metavar="WHAT",
        help="macs=0.3, params=100000, size=500000 or memory=2000000; more at once",
    )
    parser.add_argument("--latency-ms", type=float, metavar="MS", help="of a run on this machine; files are timed")
    parser.add_argument("--table", type=Path, metavar="FILE", help="latency table that is used, and grows")
    parser.add_argument("--threads", type=int, help="of the ExecuTorch runtime, for --latency-ms (1)")
    _add_pruning(parser)
    _add_backend(parser, nargs="?", const="")
    parser.add_argument("--app", choices=("android", "ios"), help="for which the module is (coreml: ios, else android)")
    parser.add_argument("--tolerance", type=float, help="largest difference of any output that is accepted")
    parser.add_argument("--report", type=Path, metavar="HTML", help="write a page on what was tried")


def _export(found: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _command(
        found,
        "export",
        "write a .pte and its manifest after the file was run and compared with the model",
        "lightning-prune export --checkpoint last.ckpt --model my.module:Digits --int8 data.py:batches -o model.pte",
        _commands.export_file,
    )
    _add_model(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="path of the .pte, in a folder that exists")
    _add_backend(parser)
    parser.add_argument(
        "--keep-masks", action="store_true", help="export a checkpoint of a fit under way in its dense shapes"
    )
    _add_comparison(parser)


def _inspect(found: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _command(
        found,
        "inspect",
        "show what a .pte holds, without running it, and whether it is the file that its manifest describes",
        "lightning-prune inspect model.pte",
        _commands.inspect_files,
    )
    parser.add_argument("programs", nargs="+", type=Path, metavar="model.pte")


def _benchmark(found: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _command(
        found,
        "benchmark",
        "time .pte files in turns on this machine; the first is 1.00×",
        "lightning-prune benchmark dense.pte pruned.pte --rounds 20",
        _commands.benchmark_files,
    )
    parser.add_argument("programs", nargs="+", type=Path, metavar="model.pte")
    parser.add_argument("--rounds", type=int, default=30, help="of all programs (30)")
    parser.add_argument("--threads", type=int, default=1, help="of the ExecuTorch runtime (1)")
    parser.add_argument("--profile", action="store_true", help="time each operator too")
    parser.add_argument("--method", default="forward", help="which method is called (forward)")
    parser.add_argument(
        "--example", metavar="SHAPE", help="such as 1,3,96,96, or file.py:attribute; else random inputs"
    )
    _add_memory(parser)


def _probe(found: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _command(
        found,
        "probe",
        "run the programs that export_probe wrote on this machine, and write what each took, for a latency table",
        "lightning-prune probe probe -o here.json",
        _commands.probe_here,
    )
    parser.add_argument("folder", type=Path, help="that export_probe wrote")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="JSON", help="path of the results to write")
    _add_memory(parser)


def _verify(found: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _command(
        found,
        "verify",
        "run a .pte beside a model and compare every output",
        "lightning-prune verify model.pte --checkpoint last.ckpt --model my.module:Digits",
        _commands.verify_file,
    )
    parser.add_argument("program", type=Path, metavar="model.pte")
    _add_model(parser)
    _add_comparison(parser)
    _add_memory(parser)


def _summarize(found: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _command(
        found,
        "summarize",
        "show sparsity and sizes of a checkpoint, and what pruning wrote into it; the model's code is not needed",
        "lightning-prune summarize last.ckpt",
        _commands.summarize_file,
    )
    parser.add_argument("checkpoint", type=Path)
    _add_trust(parser)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="REF", help="class or function, as in my.module:Digits")
    parser.add_argument("--checkpoint", type=Path, help="whose weights, masks and shape the model gets")
    parser.add_argument(
        "--example", metavar="SHAPE", help="such as 1,3,96,96, or file.py:attribute; else the model's own"
    )
    _add_trust(parser)


def _add_pruning(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--criterion", choices=_commands.CRITERIA, help="which units matter; else the recipe's default")
    parser.add_argument("--allocation", choices=_commands.ALLOCATIONS, help="how the cut is spread over the layers")
    parser.add_argument("--loss", metavar="REF", help="function loss(model, batch), for taylor and fisher")
    parser.add_argument("--metric", metavar="REF", help="torchmetrics metric or metric(model, batch), before and after")
    parser.add_argument(
        "--measure-on", metavar="REF", help="data for the metric, which repair has not seen; else --data"
    )
    parser.add_argument(
        "--max-drop",
        type=float,
        metavar="DROP",
        help="how much worse the metric may become; the cut goes as far as that",
    )
    parser.add_argument("--lower-is-better", action="store_true", help="of a metric that is a function")
    parser.add_argument("--samples", type=int, default=512, help="looked at for scores and repair, at most (512)")
    parser.add_argument("--no-repair", action="store_true", help="leave the kept weights as they are")


def _add_backend(parser: argparse.ArgumentParser, **int8: Any) -> None:
    """Add what a program is made of; ``int8`` says how --int8 is read where it may stand alone."""
    parser.add_argument("--backend", default="xnnpack", metavar="NAME", help=_backends.HELP)
    kinds = parser.add_mutually_exclusive_group()
    about = "8-bit weights and activations; reference of calibration data" + (", else that of --data" if int8 else "")
    kinds.add_argument("--int8", metavar="LOADER", help=about, **int8)
    kinds.add_argument("--int8-dynamic", action="store_true", help="8-bit weights, activations scaled at run time")
    kinds.add_argument("--int4-groupwise", action="store_true", help="4-bit weights of Linear layers, in groups of 32")
    parser.add_argument("--half", action="store_true", help="16-bit floats (vulkan)")
    parser.add_argument("--deployment-target", metavar="IOS", help="such as iOS18 (coreml)")
    parser.add_argument("--sparse-weights", action="store_true", help="store zeros as sparse weights (coreml)")
    parser.add_argument("--labels", metavar="A,B,…", help="names of the classes, or a file with one a line")


def _add_comparison(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--verify-on", metavar="REF", help="loader whose batches file and model run")
    parser.add_argument("--metric", metavar="REF", help="torchmetrics metric, or a function that gives one")
    parser.add_argument("--tolerance", type=float, help="largest difference of any output that is accepted")


def _add_memory(parser: argparse.ArgumentParser) -> None:
    about = "that a program may take beyond the runtime (256 MiB, or eight times the file)"
    parser.add_argument("--memory", type=int, metavar="BYTES", help=about)


def _add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trust", action="store_true", help="read pickled objects in the checkpoint: runs their code")
