"""What every project goes through: fits with Element and with Channel, and what they are judged by.

A project is a package of this folder with a ``fit.py``, which lists its models as `Case`: how its own documentation
writes a fit, and its own calls to save and load. `run` writes one JSON row per model to ``projects/.rows``; a failure
is a row too, with its message.
"""

import argparse
import contextlib
import copy
import json
import os
import random
import sys
import tempfile
import time
import traceback
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import lightning_prune
from lightning_prune import Channel, Element, Polynomial, PruningCallback, Recipe, channel_groups
from lightning_prune.deploy import export
from lightning_prune.model.plain_copy import plain_copy
from projects.networks import (
    Arguments,
    apart,
    copied,
    difference,
    evaluated,
    few,
    finalized,
    macs,
    parameters,
    staying,
    tensors,
    zeros,
)

ROWS = Path(__file__).parent / ".rows"
GRANULARITIES = {"Element": Element(), "Channel": Channel()}
SPARSITY = 0.5


class Case(ABC):
    """A model of a project, as a user of that project writes it.

    Attributes:
        name: of the model.
        added: what a user had to add to what the project's documentation writes, besides the callback; "" for nothing.
        remark: what the reader of the table should know, such as a precision that the project forces.
        reasons: stage that cannot be -> why, in a sentence; the table says it in front of the message.
        begin, end, every: of the schedule: steps, or shares of the run.
    """

    name: str
    added = ""
    remark = ""
    reasons: Mapping[str, str] = MappingProxyType({})
    begin: float = 0.2
    end: float = 0.7
    every = 3

    def told(self) -> dict[str, Any]:
        """Return what the row says of it besides what is measured."""
        return {"added": self.added, "remark": self.remark, "reasons": dict(self.reasons)}

    @abstractmethod
    def fit(self, callbacks: list[Any], folder: Path) -> Any:
        """Train with these callbacks as the project does, and return what its user then holds."""

    def network(self, fitted: Any) -> nn.Module:
        """Return the network inside."""
        return fitted

    @abstractmethod
    def reload(self, fitted: Any, folder: Path) -> Any:
        """Save and load by the project's own calls."""

    @abstractmethod
    def predict(self, fitted: Any) -> Any:
        """Predict by the project's own call."""

    def example(self, fitted: Any, seen: Arguments | None) -> Arguments:
        """Return the arguments of ``network(fitted)``; by default those of the first forward call of the fit."""
        if seen is None:
            raise LookupError("the fit never called forward of its LightningModule")
        return seen


class Seen:
    """What the fit showed: the model before and after it was finalized, and the arguments of its first forward call."""

    def __init__(self) -> None:
        self.masked: nn.Module | None = None
        self.plain: nn.Module | None = None
        self.arguments: Arguments | None = None
        self.sparsity = 0.0
        self.events = 0
        self.dense = 0


SEEN = Seen()  # here, not in the callback: projects copy their callbacks


class Callback(PruningCallback):
    """`PruningCallback` that lets `Seen` copy the model just before and just after it is finalized; nothing else."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Count what is there at the start."""
        if stage == "fit":
            SEEN.dense = parameters(pl_module)
            expect_forward(pl_module)
        super().setup(trainer, pl_module, stage)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Copy before it is finalized."""
        SEEN.masked = without_trainer(pl_module)
        super().on_train_end(trainer, pl_module)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Copy after it was finalized."""
        super().on_fit_end(trainer, pl_module)
        SEEN.plain = without_trainer(pl_module)
        SEEN.sparsity, SEEN.events = self.sparsity, len(self.events)


def without_trainer(module: Any) -> nn.Module:
    """Return a deep copy of a LightningModule that has no Trainer."""
    trainer = getattr(module, "_trainer", None)
    return copy.deepcopy(module, {} if trainer is None else {id(trainer): None})


def expect_forward(module: nn.Module) -> None:
    """Keep the arguments of the next call of this module that computes something."""
    call = nn.Module.__call__

    def watching(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self is module and SEEN.arguments is None and all(type(x) is Tensor for x in tensors((args, kwargs))):
            SEEN.arguments = few(copied((args, kwargs)))
            nn.Module.__call__ = call
        return call(self, *args, **kwargs)

    nn.Module.__call__ = watching  # type: ignore[method-assign]


class Row(dict[str, Any]):
    """One line of the table; `step` keeps what a stage gives, or the message with which it fails."""

    def step(self, key: str, work: Callable[[], Any]) -> Any:
        """Return what ``work`` returns; None where it fails, with the message and the place kept."""
        try:
            value = work()
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            ours = [f for f in frames if "/lightning_prune/" in f.filename]
            last = (ours or frames)[-1]
            self["failures"][key] = {
                "message": f"{type(error).__name__}: {error}".strip()[:600],
                "place": f"{Path(last.filename).name}:{last.lineno}",
            }
            if os.environ.get("PROJECTS_TRACEBACKS"):
                traceback.print_exc()
            return None
        return value

    def told(self) -> str:
        """Return what happened, in a line and one for each failure."""
        sizes = f", {self['parameters']:,} parameters, {self['parameters_left']:,} left" if "parameters" in self else ""
        failures = (
            f"{stage}: {failure['message']} ({failure['place']})" for stage, failure in self["failures"].items()
        )
        return "\n  ".join([f"{self['seconds']} s{sizes}", *(" ".join(text.split()) for text in failures)])


def one_fit(case: Case, granularity: str) -> Row:
    """Fit once, and judge what comes out."""
    row = Row(failures={}, granularity=granularity, told=[])
    SEEN.__init__()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    started = time.perf_counter()
    schedule = Polynomial(SPARSITY, begin_step=case.begin, end_step=case.end, frequency=case.every)  # type: ignore[arg-type]
    callback = Callback(Recipe(granularity=GRANULARITIES[granularity], schedule=schedule))
    call = nn.Module.__call__
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        folder = Path(name)
        fitted = row.step("fit", lambda: case.fit([callback], folder))
        nn.Module.__call__ = call  # type: ignore[method-assign]
        row["told"] = sorted({str(w.message)[:400] for w in told if "lightning_prune" in w.filename})
        row["seconds"] = round(time.perf_counter() - started, 1)
        if fitted is not None:
            judge(row, case, fitted, folder)
    return row


def judge(row: Row, case: Case, fitted: Any, folder: Path) -> None:
    """Compare, count, save, load, export."""
    network = case.network(fitted)
    row |= {"parameters": SEEN.dense, "parameters_left": parameters(network), "zeros": zeros(network)}
    row |= {"sparsity": SEEN.sparsity, "events": SEEN.events}
    row.step("kept", lambda: kept(network))
    arguments = row.step("example", lambda: case.example(fitted, SEEN.arguments))
    if arguments is not None and SEEN.masked is not None and SEEN.plain is not None:
        masked, plain = SEEN.masked, SEEN.plain
        row["macs"] = row.step("macs", lambda: macs(masked, arguments))
        row["macs_left"] = row.step("macs", lambda: macs(network, arguments))
        row["error"] = row.step("compact", lambda: difference(masked, plain, arguments))
        if row["granularity"] == "Channel":
            row["stays"] = row.step("groups", lambda: staying(channel_groups(finalized(masked), *arguments)))
    reload(row, case, fitted, folder)
    if arguments is not None:
        row["pte"] = row.step("pte", lambda: exported(network, arguments, folder))


def kept(network: nn.Module) -> None:
    """Refuse a model that is not what the fit ended with: projects restore weights of their own choice afterwards."""
    if SEEN.plain is None:
        raise LookupError("the fit never came to its end")
    end, now = parameters(SEEN.plain), parameters(network)
    if now != end:
        raise ValueError(f"the fit ended with {end:,} parameters, the project hands out {now:,}")
    end, now = zeros(SEEN.plain), zeros(network)
    if now < 0.99 * end:  # a bias or two may have left zero
        raise ValueError(f"the fit ended with {end:,} zeros, the project hands out {now:,}")


def reload(row: Row, case: Case, fitted: Any, folder: Path) -> None:
    """Save and load by the project's own calls: as they are, or else inside of ``lightning_prune.adopting()``."""
    row["reloaded"], row["adopting"] = row.step("reload", lambda: reloaded(case, fitted, subfolder(folder))), False
    if row["reloaded"] is None and hasattr(lightning_prune, "adopting"):
        with lightning_prune.adopting():
            row["reloaded"] = row.step("adopting", lambda: reloaded(case, fitted, subfolder(folder)))
        row["adopting"] = row["reloaded"] is not None
        if row["adopting"]:
            row["failures"].pop("reload")


def subfolder(folder: Path) -> Path:
    """Return a new folder inside of this one."""
    return Path(tempfile.mkdtemp(dir=folder))


def plain_fit(case: Case) -> float:
    """Return what saving and loading changes where nothing is pruned."""
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        return reloaded(case, case.fit([], Path(name)), Path(name))


def reloaded(case: Case, fitted: Any, folder: Path) -> float:
    """Return the difference of the predictions after saving and loading; the same number of parameters is a must."""
    again = case.reload(fitted, folder)
    before, after = parameters(case.network(fitted)), parameters(case.network(again))
    if before != after:
        raise ValueError(f"{before:,} parameters became {after:,}")
    outputs = []
    for model in (fitted, again):
        torch.manual_seed(0)
        np.random.seed(0)
        outputs.append([x.double() for x in tensors(case.predict(model)) if x.numel()])
    return apart(*outputs)


def exported(network: nn.Module, arguments: Arguments, folder: Path) -> float:
    """Return the largest absolute difference of the verified .pte."""
    args, kwargs = copied(arguments)
    with evaluated(plain_copy(network)) as model:
        largest = max(float(x.abs().max()) for x in tensors(model(*args, **kwargs)) if x.numel())
    tolerance = max(1e-4, 2e-6 * largest)  # some sixteen roundings of float32
    return export(network, folder / "model.pte", example_inputs=kwargs or args, tolerance=tolerance).max_abs_error


def run(project: str, version: str, cases: Sequence[Case]) -> None:
    """Try all models of a project, or those named on the command line, and write their rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help="of models; all without")
    parser.add_argument("--only", choices=GRANULARITIES, help="one granularity")
    parser.add_argument("--plain", action="store_true", help="without pruning: is the script right?")
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - {case.name for case in cases}:
        sys.exit(f"{project} has no {', '.join(unknown)}; it has {', '.join(case.name for case in cases)}")
    torch.set_num_threads(1)
    if chosen.plain:
        for case in cases:
            if not chosen.names or case.name in chosen.names:
                print(project, case.name, "reloaded:", plain_fit(case), flush=True)
        return
    ROWS.mkdir(exist_ok=True)
    path = ROWS / f"{project}.json"
    rows: dict[str, Any] = {row["model"]: row for row in json.loads(path.read_text())} if path.exists() else {}
    rows = {case.name: rows.get(case.name) for case in cases}
    for case in cases:
        if not chosen.names or case.name in chosen.names:
            about = {"project": project, "version": version, "model": case.name}
            runs = (rows[case.name] or {}).get("runs", {})
            for granularity in [chosen.only] if chosen.only else GRANULARITIES:
                runs[granularity] = one_fit(case, granularity)
                print(f"{project}, {case.name}, {granularity}: {runs[granularity].told()}", flush=True)
            rows[case.name] = about | case.told() | {"runs": runs}
            path.write_text(json.dumps([row for row in rows.values() if row], indent=1) + "\n")
