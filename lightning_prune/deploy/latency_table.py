"""Milliseconds per channel group and width in the ExecuTorch runtime: a cost to rank channels by."""

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from torch import Tensor, nn
from tqdm.auto import tqdm

from lightning_prune.compaction import Compaction, compact, inexact
from lightning_prune.deploy.backends import XNNPACK, Backend
from lightning_prune.deploy.backends.base import check_backend
from lightning_prune.deploy.executorch.lowering import graph_of, lower, save
from lightning_prune.deploy.executorch.quiet import require_executorch
from lightning_prune.deploy.program.arguments import check_model
from lightning_prune.deploy.program.eager import EagerModel, eager_outputs, example_tensors, folded_copy, isolated
from lightning_prune.deploy.program.network_part import part_reading
from lightning_prune.deploy.runtime.child import CHILD
from lightning_prune.deploy.runtime.model import AS_MUCH_AS_THERE_IS, RuntimeModel
from lightning_prune.deploy.runtime.turns import Turn, in_turns, standard_error
from lightning_prune.documents import Form, typed
from lightning_prune.graph import ChannelGroups, channel_groups
from lightning_prune.model.masks import dense_names
from lightning_prune.model.plain_copy import plain_copy
from lightning_prune.tables import aligned
from lightning_prune.values import check_bool, check_whole

FORM = Form("lightning_prune.latency_table", 1, "table")

Widths = Callable[[int], Iterable[int]]
"""Number of channels of a group -> widths to measure it at, such as ``Channel(round_to=16).widths``."""

_DEFAULT_BACKEND = XNNPACK()
_SMALLEST_SHARE = 1e-3


@dataclass(frozen=True)
class WidthCurve:
    """What one channel group costs at several widths.

    Args:
        widths: numbers of channels, widest first; the first is the whole group.
        milliseconds: of the part of the network that has the group, at each width: the median at the whole width,
            less the median over the rounds of what the narrower one saves.
        resolution_ms: the smallest saving that counts as measured: the standard error of the savings, at least a
            thousandth of the part's time.
    """

    widths: tuple[int, ...]
    milliseconds: tuple[float, ...]
    resolution_ms: float

    def __post_init__(self) -> None:
        if len(self.widths) < 2 or list(self.widths) != sorted(set(self.widths), reverse=True) or self.widths[-1] < 1:
            raise ValueError(f"WidthCurve.widths must be two or more falling numbers of channels, got {self.widths}")
        if len(self.milliseconds) != len(self.widths) or not all(map(math.isfinite, self.milliseconds)):
            raise ValueError(
                f"WidthCurve.milliseconds must be one finite number for each of {self.widths}, got {self.milliseconds}"
            )
        if not 0 < self.resolution_ms < math.inf:
            raise ValueError(f"WidthCurve.resolution_ms must be a positive number, got {self.resolution_ms}")

    @property
    def cost(self) -> float:
        """Milliseconds that one channel saves, as the mean over those between the whole and the smallest width.

        A saving below the resolution, or none at all, counts as the resolution.
        """
        saved = max(self.milliseconds[0] - self.milliseconds[-1], self.resolution_ms)
        return saved / (self.widths[0] - self.widths[-1])

    @property
    def best_widths(self) -> tuple[int, ...]:
        """The widths that are faster than every wider one, by more than the resolution; the whole one is the first.

        Example:
            >>> WidthCurve((32, 24, 16, 8), (2.0, 2.1, 1.2, 1.1), resolution_ms=0.02).best_widths
            (32, 16, 8)
        """
        fastest, best = math.inf, []
        for width, taken in zip(self.widths, self.milliseconds, strict=True):
            if taken < fastest - self.resolution_ms:
                best.append(width)
            fastest = min(fastest, taken)
        return tuple(best)


@dataclass(frozen=True)
class LatencyTable(Mapping[str, float]):
    """Channel group -> milliseconds that one of its channels saves: a cost for ``Global(cost=table)``.

    ``str()`` of it shows what was measured.

    Args:
        curves: channel group -> its curve.
        threads: of the ExecuTorch runtime.
        backend: name of the backend.
    """

    curves: Mapping[str, WidthCurve]
    threads: int
    backend: str

    def __getitem__(self, name: str) -> float:
        return self.curves[name].cost

    def __iter__(self) -> Iterator[str]:
        return iter(self.curves)

    def __len__(self) -> int:
        return len(self.curves)

    def __str__(self) -> str:
        threads = f"{self.threads} thread" + ("s" if self.threads > 1 else "")
        rows = [("channel group", "µs per channel", f"width: ms   ({self.backend}, {threads})")]
        for name, curve in self.curves.items():
            points = (f"{w}: {ms:.4f}" for w, ms in zip(curve.widths, curve.milliseconds, strict=True))
            rows.append((name, f"{1000 * curve.cost:.3f}", "  ".join(points)))
        return aligned(rows, remarks=1)

    def to_json(self) -> str:
        """Return the table as JSON text."""
        return FORM.write(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "LatencyTable":
        """Read what :meth:`to_json` wrote.

        Raises:
            TypeError: it is no text.
            ValueError: the text is no such JSON, or of a version that is not read here.
        """
        document = FORM.read(text)
        with FORM.parsing():
            return typed(cls, {one.name: document[one.name] for one in fields(cls)})


def half(size: int) -> tuple[int, ...]:
    """Return half the channels of a group, as the only width to measure."""
    return (size // 2,)


def latency_table(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
    *,
    groups: Collection[str] | None = None,
    widths: Widths = half,
    threads: int = 1,
    rounds: int = 30,
    backend: Backend = _DEFAULT_BACKEND,
    allow_inexact: bool = False,
    attention: Literal["heads", "width"] = "heads",
) -> LatencyTable:
    """Measure what each channel group of a model costs in the ExecuTorch runtime on this machine.

    For each width a copy of the model is compacted to it in that one group. The part of the network from the first to
    the last operator that reads a parameter of the group is lowered by itself, and timed in turns with the same part
    of the whole network, and with the parts of all other groups; what else stands in the part is the same in both and
    cancels out. The cost of a channel is that of the network as it is given, with every other group whole. Lowering
    takes most of the time; a progress bar shows on a terminal.

    Args:
        model: what will be pruned; left as it is. Weights do not matter, widths do.
        example_inputs: a tensor or a tuple of tensors; None: the model's ``example_input_array``.
        groups: names of the channel groups to measure; None: all that can be pruned exactly.
        widths: which widths to measure a group at; those outside [1, its size) are left out, and where none is left
            half is measured.
        threads: of the ExecuTorch runtime.
        rounds: rounds of turns of all programs, at least 3; see :func:`~lightning_prune.deploy.benchmark`.
        backend: where the program will run; it has to run on this machine too.
        allow_inexact: as in the recipe's ``Channel``: measure the channel groups over which a normalisation runs too.
        attention: as in the recipe's ``Channel``: measure whole heads, or the width of query, key and value.

    Returns:
        the table, in the order of the channel groups.

    Raises:
        TypeError: an argument is of another type.
        ValueError: fewer than 3 rounds, no or unknown channel groups, or one that cannot be pruned.
        ExportError: the model or a part of it cannot be run, traced or lowered, or the backend does not run here.
        ImportError: ExecuTorch is not installed.

    Example:
        >>> table = latency_table(model, torch.zeros(1, 3, 96, 96))  # doctest: +SKIP
        >>> units, allocation = Channel(round_to=16), Global(cost=table)  # doctest: +SKIP
        >>> Recipe(..., granularity=units, allocation=allocation)  # doctest: +SKIP
    """
    require_executorch()
    check_model(model)
    check_whole("threads", threads, 1)
    check_backend(backend)
    check_bool("allow_inexact", allow_inexact)
    if groups is not None and (isinstance(groups, str) or not isinstance(groups, Collection)):
        raise TypeError(f"groups: got {groups!r:.60}, must be a list of names of channel groups, as in groups=['conv']")
    if not callable(widths):
        raise TypeError(f"widths: got {widths!r:.60}, must be a function such as Channel(round_to=16).widths")
    check_whole("rounds", rounds, 3, why=": fewer have no spread to tell noise by")
    with isolated(), TemporaryDirectory() as folder, CHILD.releasing():
        inputs = example_tensors(model, example_inputs)
        whole = folded_copy(model)
        eager_outputs(EagerModel(whole), inputs)
        found = channel_groups(whole, inputs, allow_inexact=allow_inexact, attention=attention)
        measured = {}
        for name in _chosen(whole, found, groups, inputs):
            size, wanted = found[name].size, list(widths(found[name].size))
            for width in wanted:
                if isinstance(width, bool) or not isinstance(width, int):
                    raise ValueError(f"widths: gives {width!r} for {name} of {size} channels; return whole numbers")
            narrower = sorted({width for width in wanted if 0 < width < size}, reverse=True)
            measured[name] = (size, *(narrower or half(size)))
        bench = _Bench(whole, found, inputs, backend, threads)
        parts = [(name, width) for name, all_of_it in measured.items() for width in all_of_it]
        numbered = enumerate(tqdm(parts, desc="lowering", disable=None))
        programs = {part: bench.program(*part, Path(folder, f"{number}.pte")) for number, part in numbered}
        times = in_turns(programs, rounds)[0]
    curves = {}
    for name, all_of_it in measured.items():
        first, *narrower = ([1000 * second for second in times[name, width]] for width in all_of_it)
        # What is saved is paired by the round, in which the machine's mood is the same for both.
        saved = [[a - b for a, b in zip(first, taken, strict=True)] for taken in narrower]
        median = statistics.median(first)
        milliseconds = (median, *(median - statistics.median(one) for one in saved))
        resolution = max(*map(standard_error, saved), _SMALLEST_SHARE * median)
        curves[name] = WidthCurve(all_of_it, milliseconds, resolution)
    return LatencyTable(curves, threads, backend.name)


@dataclass(frozen=True)
class _Bench:
    """A folded model and how parts of it become programs."""

    model: nn.Module
    groups: ChannelGroups
    inputs: tuple[Tensor, ...]
    backend: Backend
    threads: int

    def program(self, name: str, width: int, path: Path) -> Turn:
        """Return the part that has a channel group, with the group at this width, loaded and ready to be timed."""
        model = plain_copy(self.model)
        if width < self.groups[name].size:
            compact(model, Compaction.from_keep(self.groups, {name: range(width)}))
        tensors = dense_names(model)
        members = [tensors[member.parameter] for member in self.groups[name].members]
        part, inputs = part_reading(model, members, self.inputs)
        graph = graph_of(EagerModel(part), inputs, self.backend)
        save(lower({"forward": graph.program}, self.backend), path)
        loaded = RuntimeModel(path, threads=self.threads, memory=AS_MUCH_AS_THERE_IS)
        return loaded.timed(loaded.prepared(*inputs), statistics.fmean)


def _chosen(
    model: nn.Module, found: ChannelGroups, names: Collection[str] | None, inputs: tuple[Tensor, ...]
) -> list[str]:
    prunable = [group.name for group in found if group.prunable and group.size > 1]
    wanted = prunable if names is None else list(dict.fromkeys(names))
    for name in wanted:
        if name not in prunable:
            raise ValueError(
                f"groups: {name!r} is none that can be pruned; those of {type(model).__name__}: {prunable}"
            )
    stay = inexact(model, found, wanted, (inputs, {}))
    left = [name for name in wanted if name not in stay]
    if not left or (stay and names is not None):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in stay.items()) or "it has no prunable channel group"
        raise ValueError(f"nothing to measure, or not all of it, on {type(model).__name__}: {reasons}")
    return left
