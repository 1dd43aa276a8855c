"""Plans of what a device is to measure, what it found, and the latency table that comes of both."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from lightning_prune.deploy.clock import COARSEST, FEWEST, least_of
from lightning_prune.deploy.designs import BORDER, Measured, border_of, with_points
from lightning_prune.deploy.program.arguments import given_path
from lightning_prune.deploy.program.signature import DTYPES
from lightning_prune.deploy.runtime.turns import interquartile_range
from lightning_prune.documents import Form, loaded, typed, whole
from lightning_prune.selection.cell_cost import Anchor, Network, Place
from lightning_prune.selection.cells import Kernel
from lightning_prune.selection.latency import LatencyTable
from lightning_prune.tables import escaped
from lightning_prune.values import check_whole

PLAN = "plan.json"
"""Name of the plan in the folder of a probe."""
WHOLE = "whole"
"""What whole programs are called where others have the key of a cell."""

_PLAN = Form("lightning_prune.probe_plan", 1, "plan of a probe")
_RESULTS = Form("lightning_prune.probe_results", 1, "results of a probe")
_MOST = 1_000_000
"""Rounds of all passes, and the number of a turn; the readers of the phones have the same."""


@dataclass(frozen=True)
class ProbeInput:
    """What a program takes: numbers drawn at random if it takes floats, else zeros.

    Args:
        shape: of the tensor.
        dtype: of its elements, as in ``float32``.
        channels_last: whether they lie so in memory.
    """

    shape: tuple[int, ...]
    dtype: str
    channels_last: bool


@dataclass(frozen=True)
class ProbeProgram:
    """A method that the device times.

    Args:
        name: in the results.
        turn: number of the turn in which it is run, with others of the same number in their order.
        file: beside the plan.
        method: in the file.
        inputs: that it takes.
        cell: key of the kind of cell that it is at some widths; "border" or "whole" for what is no cell.
        widths: of each kernel, output and input channels.
    """

    name: str
    turn: int
    file: str
    method: str
    inputs: tuple[ProbeInput, ...]
    cell: str
    widths: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        for each in self.inputs:
            if each.dtype not in DTYPES:
                raise ValueError(f"{self.name} takes {each.dtype!r:.60}, and a program takes {', '.join(DTYPES)}")
        sizes = [size for each in self.inputs for size in each.shape]
        check_whole(f"the turn of {self.name}", self.turn, 0)
        if self.turn > _MOST:
            raise ValueError(f"the turn of {self.name} must be at most {_MOST:,}, got {self.turn:,}")
        for number in (*sizes, self.taken, *(width for pair in self.widths for width in pair)):
            check_whole(f"a size of {self.name}", number, 0)

    @property
    def taken(self) -> int:
        """Elements that it takes."""
        return sum(math.prod(each.shape) for each in self.inputs)


@dataclass(frozen=True)
class Probe:
    """What a device is to measure so that a latency table comes of it; see :func:`export_probe`.

    Args:
        runtime: for which the programs were written.
        backend: of the programs, with its quantization.
        threads: of the runtime.
        passes: over all turns; in each the files of a turn are loaded, its programs are run, and they are let go.
        rounds: of a turn in each pass.
        files: name -> sha256.
        programs: of all turns, in the order in which they are run.
        kernels: key of a kind of cell -> what computes in it.
        name: class of the network.
        shapes: dense name of its weights that compute -> shape.
        cells: the key of each of its cells, and where the weights of its kernels are.
        anchors: of each whole program, in their order, the widths of each kernel of each cell.
        digest: sha256 of the plan's file, by which results name it.
    """

    runtime: str
    backend: str
    threads: int
    passes: int
    rounds: int
    files: Mapping[str, str]
    programs: tuple[ProbeProgram, ...]
    kernels: Mapping[str, tuple[Kernel, ...]]
    name: str
    shapes: Mapping[str, tuple[int, ...]]
    cells: tuple[tuple[str, tuple[Place, ...]], ...]
    anchors: tuple[tuple[tuple[tuple[int, int], ...], ...], ...]
    digest: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for name in ("threads", "passes", "rounds"):
            check_whole(name, getattr(self, name), 0 if name == "threads" else 1)
        measured = {program.cell for program in self.programs}
        wanted = {BORDER, WHOLE, *self.kernels, *(key for key, _ in self.cells)}
        if missing := sorted(wanted - measured) + sorted({key for key, _ in self.cells} - set(self.kernels)):
            raise ValueError(f"it measures nothing for {missing[0]}")
        if strange := [program.name for program in self.programs if program.file not in self.files]:
            raise ValueError(f"{strange[0]} is in a file that it does not name")
        if above := [name for name in self.files if "/" in name or "\\" in name]:
            raise ValueError(f"{above[0]} is no name of a file beside it")
        if self.passes * self.rounds > _MOST:
            raise ValueError(f"{self.passes:,} passes of {self.rounds:,} rounds are more than {_MOST:,} rounds")
        if len({program.name for program in self.programs}) < len(self.programs):
            raise ValueError("two of its programs have one name")
        for key, count in [(each.cell, len(each.widths)) for each in self.programs] + [
            (key, len(places)) for key, places in self.cells
        ]:
            if key in self.kernels and count != len(self.kernels[key]):
                raise ValueError(f"{key} has {len(self.kernels[key])} kernels, and {count} are told of")
        # refused now and not when a device has measured for an hour; the milliseconds are none yet
        Network(self.name, self.shapes, self.cells, tuple(Anchor(widths, 1.0, 0.0) for widths in self.anchors))
        if (count := sum(each.cell == WHOLE for each in self.programs)) != len(self.anchors):
            raise ValueError(f"it has {count} whole programs, and the widths of {len(self.anchors)}")

    def __str__(self) -> str:
        return escaped(
            f"{len(self.programs)} programs in {len(self.files)} files for {self.name} on {self.backend},"
            f" {self.runtime}: {self.passes} passes of {self.rounds} rounds"
        )

    def to_json(self) -> str:
        """Return the plan as JSON text."""
        return _PLAN.write({name: value for name, value in asdict(self).items() if name != "digest"}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Probe":
        """Return the plan of a JSON text.

        Raises:
            ValueError: it is none, of another version, or holes are in it.
        """
        document = _PLAN.read(text)
        with _PLAN.parsing():
            known = {one.name: document[one.name] for one in fields(cls) if one.name != "digest"}
            return replace(typed(cls, known), digest=hashlib.sha256(text.encode()).hexdigest())

    @classmethod
    def load(cls, folder: str | Path) -> "Probe":
        """Return the plan in a folder that :func:`export_probe` wrote, or of its file.

        Raises:
            TypeError: the folder is no path.
            FileNotFoundError: no plan is there.
            ValueError: it is none, or of another version.
        """
        path = given_path(folder, "folder", "probe")
        return loaded(path / PLAN if path.is_dir() else path, cls.from_json)

    def table(self, results: "ProbeResults | str | Path") -> LatencyTable:
        """Return the latency table of the device that found these results.

        Args:
            results: of this plan, or the path of their file.

        Raises:
            TypeError: they are neither.
            FileNotFoundError: no such file.
            ValueError: they are of another plan or runtime, holes are in them, or the clock of the device is too
                coarse.
        """
        if not isinstance(results, ProbeResults | str | Path):
            raise TypeError(f"results: got {results!r:.60}, must be what run_probe returns, or the path of its file")
        found = results if isinstance(results, ProbeResults) else ProbeResults.load(results)
        if found.plan != self.digest:
            raise ValueError(
                f"the results of {found.device} are of another plan than this one of {self.name}: pull both folders"
                " again, or run this plan on the device"
            )
        if found.runtime and found.runtime != self.runtime:
            raise ValueError(
                f"the plan was written for {self.runtime}, and {found.device} ran it in {found.runtime}: export it"
                " with the version of the device"
            )
        if found.failed:
            name, why = next(iter(found.failed.items()))
            raise ValueError(
                f"{len(found.failed)} of {len(self.programs)} programs failed on {found.device}: {name} ({why})"
            )
        if found.tick > COARSEST:
            raise ValueError(
                f"the clock of {found.device} ticks every {found.tick / 1e6:.1f} ms, too coarse for layers: run the"
                " plan with the clock of the wall"
            )
        holes = [each.name for each in self.programs if len(found.nanoseconds.get(each.name, ())) < FEWEST]
        if holes:
            told = f"{len(holes)} of {len(self.programs)} programs have fewer than {FEWEST} rounds"
            raise ValueError(
                f"the results of {found.device} have holes: {told}, {holes[0]} for one; run the plan again"
            )
        times = {each.name: [ns / 1e6 for ns in found.nanoseconds[each.name]] for each in self.programs}
        border = [program for program in self.programs if program.cell == BORDER]
        cells = {BORDER: border_of([each.taken for each in border], [times[each.name] for each in border])}
        measured = [
            Measured(each.cell, self.kernels[each.cell], each.widths, each.taken, times[each.name])
            for each in self.programs
            if each.cell in self.kernels
        ]
        wholes = [each for each in self.programs if each.cell == WHOLE]
        anchors = tuple(
            Anchor(widths, least_of(times[each.name]), interquartile_range(times[each.name]))
            for each, widths in zip(wholes, self.anchors, strict=True)
        )
        return LatencyTable(
            device=found.device,
            runtime=self.runtime,
            backend=self.backend,
            threads=found.threads,
            clock=found.clock,
            rounds=min(map(len, times.values())),
            cells=with_points(cells, measured),
            networks=(
                Network(self.name, self.shapes, self.cells, anchors, tuple(each.shape for each in wholes[0].inputs)),
            ),
        )


@dataclass(frozen=True)
class ProbeResults:
    """What a device found.

    Args:
        plan: sha256 of the plan's file.
        device: what it calls itself.
        runtime: its version; "" where a device cannot tell.
        threads: of the runtime; 0 for as many as it takes by itself.
        clock: "thread" for the processor time of the one thread, "wall" otherwise.
        tick: nanoseconds between two ticks of that clock.
        nanoseconds: name of a program -> those of one run, a few in each round.
        failed: name of a program that cannot be run -> why.
    """

    plan: str
    device: str
    runtime: str
    threads: int
    clock: str
    tick: int
    nanoseconds: Mapping[str, tuple[int, ...]]
    failed: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_whole("tick", self.tick, 1, "nanoseconds")
        check_whole("threads", self.threads, 0)
        if self.clock not in ("thread", "wall"):
            raise ValueError(f'clock must be "thread" or "wall", got {self.clock!r:.60}')
        for name, own in self.nanoseconds.items():
            for each in own:
                check_whole(f"nanoseconds of {name}", each, 1)

    def to_json(self) -> str:
        """Return them as JSON text."""
        return _RESULTS.write(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ProbeResults":
        """Return those of a JSON text.

        Raises:
            ValueError: it holds none, or those of another version.
        """
        document = _RESULTS.read(text)
        with _RESULTS.parsing():
            return typed(cls, {one.name: document[one.name] for one in fields(cls)})

    def save(self, path: str | Path) -> None:
        """Write them to a file, whole or not at all.

        Raises:
            TypeError: it is no path.
        """
        with whole(given_path(path, example="results.json")) as written:
            written.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "ProbeResults":
        """Return what a device wrote.

        Raises:
            TypeError: it is no path.
            FileNotFoundError: no such file.
            ValueError: it holds no results.
        """
        return loaded(given_path(path, example="results.json"), cls.from_json)
