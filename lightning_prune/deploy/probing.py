"""What writes a probe, the programs that a latency table is measured of, and what runs it on this machine."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn
from tqdm.auto import tqdm

from lightning_prune.deploy.artifact.files import replaced
from lightning_prune.deploy.artifact.manifest import sha256_of
from lightning_prune.deploy.backends import XNNPACK, Backend
from lightning_prune.deploy.clock import FEWEST
from lightning_prune.deploy.designs import (
    BORDER,
    border_program,
    border_sizes,
    cell_program,
    check_design,
    designed,
)
from lightning_prune.deploy.executorch.quiet import require_executorch
from lightning_prune.deploy.latency_table import Bench, device, runtime
from lightning_prune.deploy.probe import PLAN, WHOLE, Probe, ProbeInput, ProbeProgram, ProbeResults
from lightning_prune.deploy.program.arguments import given_path
from lightning_prune.deploy.program.eager import isolated
from lightning_prune.deploy.runtime.child import CHILD
from lightning_prune.deploy.runtime.model import room_of
from lightning_prune.errors import ExportError
from lightning_prune.selection.granularity import Channel
from lightning_prune.selection.latency import LatencyTable
from lightning_prune.values import check_bool, check_whole

_DEFAULT_BACKEND = XNNPACK()
_SECONDS = 60.0
"""For the rounds of a turn in a pass; there are five at least."""


def export_probe(
    model: nn.Module,
    folder: str | Path,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
    *,
    backend: Backend = _DEFAULT_BACKEND,
    threads: int = 1,
    passes: int = 4,
    rounds: int = 25,
    points: int = 7,
    granularity: Channel = Channel(),  # noqa: B008 - frozen
    progress: bool = True,
) -> Probe:
    """Write the programs that a device has to time for a latency table of it, and the plan by which it does.

    They are those that :func:`latency_table` measures here: cells of the model at several widths, a program that does
    nothing, and the whole network at some widths. The device writes raw nanoseconds; what follows from them,
    ``Probe.load(folder).table(results)`` works out.

    Args:
        model: what will be pruned; left as it is. Weights do not matter, widths do.
        folder: is made, or replaced where it is one of ours; its parent exists.
        example_inputs: a tensor or a tuple of tensors; None: the model's ``example_input_array``.
        backend: where the programs will run. What runs on this machine too is run here once.
        threads: of the device's runtime. On one the clock is the processor time of the thread, otherwise the wall's.
        passes: over all turns, so that what a device is busy with, or its heat, meets all of them.
        rounds: of a turn in each pass; with the passes at least 10.
        points: copies, and so widths at which a cell is measured; the first four are measured as a whole, too.
        granularity: the recipe's: which channel groups go.
        progress: whether a bar shows on a terminal.

    Returns:
        the plan.

    Raises:
        TypeError: an argument is of another type.
        ValueError: too few rounds or points, or nothing to prune.
        ExportError: the model or a cell cannot be traced, lowered or run, or the folder holds what is not ours.
        ImportError: ExecuTorch is not installed.

    Example:
        >>> export_probe(model, "probe", torch.zeros(1, 3, 96, 96))  # doctest: +SKIP
        >>> table = Probe.load("probe").table("pixel.json")  # doctest: +SKIP
    """
    require_executorch()
    check_design(model, backend, points, granularity)
    check_whole("threads", threads, 1)
    check_bool("progress", progress)
    check_whole("passes", passes, 1)
    why = f": of fewer than {FEWEST} in all passes there is no lower tenth"
    check_whole("rounds", rounds, -(-FEWEST // passes), why=why)
    with isolated(), replaced(folder) as place, CHILD.releasing():
        # on one thread: what runs here tells only that it runs
        bench = Bench(backend, 1, passes * rounds, place.building.resolve())
        design = designed(model, example_inputs, backend, points, granularity)
        turns = design.turns(LatencyTable())
        border = border_sizes([piece for own in turns for _, piece in own])
        parts = [
            *([(BORDER, ((0, size),), border_program(size))] for size in border),
            *([(key, piece.widths, cell_program(piece, backend)) for key, piece in own] for own in turns),
            *([(WHOLE, (), whole)] for whole in design.wholes),
        ]
        programs = list[ProbeProgram]()
        for number, own in enumerate(tqdm(parts, desc="turns", disable=None if progress else True)):
            alike = {(key, widths): program for key, widths, program in own}
            lowered = dict(zip(alike, bench.lowered(list(alike.values())), strict=True))
            for at, (key, widths, _) in enumerate(own):
                told = lowered[key, widths]
                inputs = tuple(ProbeInput(tuple(shape), dtype, is_last) for shape, dtype, is_last in told["inputs"])
                file = Path(told["path"]).name
                programs.append(ProbeProgram(f"{number}.{at}", number, file, told["method"], inputs, key, widths))
        empty = bench.table(None)
        plan = Probe(
            runtime=empty.runtime,
            backend=empty.backend,
            threads=threads,
            passes=passes,
            rounds=rounds,
            files={name: sha256_of(place.building / name) for name in dict.fromkeys(each.file for each in programs)},
            programs=tuple(programs),
            kernels={key: pieces[0].kernels for key, pieces in design.kinds},
            name=design.name,
            shapes=design.shapes,
            cells=design.cells,
            anchors=design.anchors,
        )
        (place.building / PLAN).write_text(plan.to_json(), encoding="utf-8", newline="\n")
        place.publish()
    return Probe.load(Path(folder))


def run_probe(folder: str | Path, *, memory: int | None = None, progress: bool = True) -> ProbeResults:
    """Run a probe in the ExecuTorch runtime of this machine, as an app does on a phone.

    Args:
        folder: that :func:`export_probe` wrote.
        memory: bytes that the programs of a turn may take together beyond what the runtime takes (on Linux); None: 256
            MiB for each, or eight times the file where that is more.
        progress: whether a bar shows on a terminal.

    Returns:
        raw nanoseconds; ``results.save(path)`` writes them.

    Raises:
        TypeError: the folder is no path, or another argument is of another type.
        FileNotFoundError: there is no plan.
        ValueError: it is none or of another version, or there is no memory.
        ExportError: a file is missing or damaged, or ExecuTorch is of another version than the plan.
        ImportError: ExecuTorch is not installed.

    Example:
        >>> run_probe("probe").save("here.json")  # doctest: +SKIP
    """
    require_executorch()
    check_bool("progress", progress)
    if memory is not None:
        check_whole("memory", memory, 1)
    folder = given_path(folder, "folder", "probe").resolve()
    probe = Probe.load(folder)
    if (here := runtime()) != probe.runtime:
        raise ExportError(f"{folder} was written for {probe.runtime}, and here is {here}: export it again")
    for name, digest in probe.files.items():
        if not (folder / name).is_file() or sha256_of(folder / name) != digest:
            raise ExportError(f"{folder / name} is not the file that the plan names: copy the whole folder again")
    nanoseconds: dict[str, list[int]] = {program.name: [] for program in probe.programs}
    failed, ticks = dict[str, str](), list[int]()
    turns: dict[int, list[ProbeProgram]] = {}
    for program in probe.programs:
        turns.setdefault(program.turn, []).append(program)
    with (
        CHILD.releasing(),
        tqdm(total=probe.passes * len(turns), desc="turns", disable=None if progress else True) as bar,
    ):
        for turn in probe.passes * list(turns.values()):
            own = [each for each in turn if each.name not in failed]
            bar.update(1)
            if not own:
                continue
            told = CHILD.ask(
                "rounds",
                folder / own[0].file,
                programs=[
                    {
                        "path": str(folder / each.file),
                        "method": each.method,
                        "inputs": [[list(x.shape), x.dtype, x.channels_last] for x in each.inputs],
                        "turn": each.turn,
                    }
                    for each in own
                ],
                threads=probe.threads,
                rounds=probe.rounds,
                seconds=_SECONDS,
                room=sum(room_of(folder / each.file) for each in own) if memory is None else memory,
            )
            ticks.append(told["tick"])
            failed |= {own[int(number)].name: why for number, why in told["failed"].items()}
            for each, times in zip(own, told["nanoseconds"], strict=True):
                nanoseconds[each.name] += [max(1, round(time)) for time in times]
    return ProbeResults(
        plan=probe.digest,
        device=device(),
        runtime=here,
        threads=probe.threads,
        clock="thread" if probe.threads == 1 else "wall",
        tick=min(ticks, default=1),
        nanoseconds={name: tuple(own) for name, own in nanoseconds.items() if name not in failed},
        failed=failed,
    )
