"""A latency need met by measurement: choose, lower, time beside the dense network, and choose again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_prune.deploy.artifact.artifact import Artifact
from lightning_prune.deploy.backends import XNNPACK, Backend
from lightning_prune.deploy.backends.base import check_backend
from lightning_prune.deploy.clock import least_of
from lightning_prune.deploy.designs import Program
from lightning_prune.deploy.export import export
from lightning_prune.deploy.latency_table import Bench
from lightning_prune.deploy.program.arguments import check_model
from lightning_prune.deploy.program.eager import example_tensors, folded_copy, isolated
from lightning_prune.deploy.runtime.child import CHILD
from lightning_prune.documents import scratch
from lightning_prune.errors import PruningError
from lightning_prune.selection.latency import LatencyTable
from lightning_prune.selection.needs import Latency
from lightning_prune.tables import Table, Tabular
from lightning_prune.values import check_number, check_whole

_CLOSE = 0.97
"""Of the need: a network that takes no less than this leaves nothing to be chosen again."""
_AIM = 0.985
"""Of the need: in the middle of what is close."""
_SAME = 1.005
"""Milliseconds that are asked for are as good as the same below this ratio."""
_DEFAULT_BACKEND = XNNPACK()


class Aim:
    """What to ask of a prediction next, by what came of what was asked.

    Between the largest request whose network was fast enough and the next one whose was too slow the milliseconds are
    interpolated, or halved where what came of it lay on the same side as the one before: kernels step, and so does what
    networks take. Before there are both, they are rescaled; from the second on by the line through the last two, since
    what a call takes by itself does not shrink with what is asked.

    Args:
        limit: milliseconds that may be taken.
        dense: predicted milliseconds of the dense network, which a need has to stay below.
        scale: predicted milliseconds for one of those that are taken, as far as is known.
    """

    def __init__(self, limit: float, dense: float, scale: float = 1.0) -> None:
        self.limit, self.asked, self._most = limit, _AIM * limit * scale, 0.99 * dense
        self.told: list[tuple[float, float]] = []
        """What was asked for, and what came of it, in order; in milliseconds."""

    def tell(self, taken: Sequence[float]) -> None:
        """Take up what all networks take that were asked for, in their order, in milliseconds, and aim anew."""
        asked = [*(before for before, _ in self.told), self.asked]
        self.told = list(zip(asked, taken, strict=True))
        short, long = self._around
        target = _AIM * self.limit
        if short is None or long is None:
            near, took = max(filter(None, (short, long)))
            (before, then), (last, now) = ((0.0, 0.0), *self.told)[-2:]
            rise = (now - then) / (last - before) if last != before else 0.0
            wished = min(max(near + (target - took) / rise, near / 2), 2 * near) if rise > 0 else near * target / took
        else:
            is_stuck = len({each > self.limit for each in taken[-2:]}) == 1
            part = 0.5 if is_stuck else min(max((target - short[1]) / (long[1] - short[1]), 0.1), 0.9)
            wished = short[0] + part * (long[0] - short[0])
        self.asked = min(wished, self._most)

    @property
    def chosen(self) -> int | None:
        """Number of the network that takes longest of those that are fast enough; None where none is."""
        fits = [number for number, (_, taken) in enumerate(self.told) if taken <= self.limit]
        return max(fits, key=lambda number: self.told[number][1], default=None)

    @property
    def is_over(self) -> bool:
        """Whether there is a network that takes hardly less than it may, or none is chosen between it and the next."""
        short, long = self._around
        if self.chosen is not None and self.told[self.chosen][1] >= _CLOSE * self.limit:
            return True
        return short is not None and long is not None and long[0] < _SAME * short[0]

    @property
    def _around(self) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
        """What was asked and taken: the most that was fast enough, and the least above it that was too slow."""
        short = max((each for each in self.told if each[1] <= self.limit), default=None)
        slow = [each for each in self.told if each[1] > self.limit and (short is None or each[0] > short[0])]
        return short, min(slow, default=None)


@dataclass(frozen=True)
class Round:
    """A network that was measured.

    Args:
        asked: milliseconds that the prediction was to come down to.
        milliseconds: that it takes, in those of the table: its share of the dense network's time beside it, in the last
            session, times what the dense one took when the table was measured.
        share: of the dense network's time beside it.
    """

    asked: float
    milliseconds: float
    share: float


@dataclass(frozen=True)
class Accepted(Tabular):
    """The network that meets a need, and what was tried.

    Args:
        model: pruned.
        need: that it meets.
        rounds: in the order in which they were tried.
        chosen: number of the one that the model is of.
    """

    model: nn.Module
    need: Latency
    rounds: tuple[Round, ...]
    chosen: int

    def table(self) -> Table:
        """Return a row for each round."""
        rows = []
        for number, each in enumerate(self.rounds, 1):
            of_need = f"{each.milliseconds / self.need.ms:.3f}"
            rows.append((str(number), f"{each.asked:.4g}", f"{each.milliseconds:.4g}", of_need, f"{each.share:.3f}"))
        head = ("round", "asked ms", "measured ms", "of the need", "of dense")
        kept, note = self.rounds[self.chosen], f"round {self.chosen + 1} is kept"
        larger = [each for each in self.rounds if each.milliseconds > self.need.ms and each.asked > kept.asked]
        if kept.milliseconds < _CLOSE * self.need.ms and larger:
            least = min(larger, key=lambda each: each.asked)
            note += f"; the next larger one that was tried takes {least.milliseconds / self.need.ms:.3f} of the need"
        return Table(head, rows, note=note)


def accepted(
    make: Callable[[Latency], nn.Module],
    need: Latency,
    dense: nn.Module,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
    *,
    backend: Backend = _DEFAULT_BACKEND,
    tries: int = 6,
    rounds: int = 60,
    measure: Callable[[Path], float] | None = None,
) -> Accepted:
    """Prune to a latency that is measured, not only predicted.

    The need is asked for as the table predicts it. What comes of it is lowered whole and timed in turns with the dense
    network and those that were tried before; the need is rescaled by what was measured, interpolated once there are
    networks on both sides, and asked for again, until one takes between 0.97 and 1.00 of it. Kept is the one closest
    below.

    Args:
        make: need -> a network pruned to it, a new one at each call.
        need: what is wished.
        dense: the network before, of which the table has the cells.
        example_inputs: a tensor or a tuple of tensors; None: the model's ``example_input_array``.
        backend: that of the table.
        tries: how many networks are made at most.
        rounds: of turns, in which all are timed; more where they take less than a second and a half.
        measure: path of an exported .pte -> the milliseconds that a run of it takes on the table's device, a phone: by
            its benchmark screen, by ``adb``, or typed in by whoever holds it. It is asked for the dense network once,
            then for each that is made. None: they are timed here, and the table has to be of this machine.

    Returns:
        the network, and all rounds.

    Raises:
        TypeError: an argument is of another type, or ``make`` returns no module.
        ValueError: the table does not know the dense network, was measured for another backend, or the dense network
            meets the need as it is measured.
        PruningError: none of the networks takes as little.
        ExportError: one cannot be lowered or run.

    Example:
        >>> def make(need):  # doctest: +SKIP
        ...     model = copy.deepcopy(dense)
        ...     prune(model, replace(recipe, need=need), data)
        ...     return model
        >>> print(accepted(make, Latency(8.0, table), dense, image))  # doctest: +SKIP
    """
    check_whole("tries", tries, 1)
    check_whole("rounds", rounds, 10)
    check_model(dense)
    check_backend(backend)
    if not isinstance(need, Latency):
        raise TypeError(
            f"need must be one such as Latency(8.0, table), got {need!r:.60}: prune meets the others exactly"
        )
    for name, call in {"make": make, "measure": measure}.items():
        if not callable(call) and (name, call) != ("measure", None):
            raise TypeError(f"{name} must be a function, got {call!r:.60}")
    table = need.table if isinstance(need.table, LatencyTable) else LatencyTable.load(need.table)
    inputs = example_tensors(dense, example_inputs)
    shapes = [(tuple(x.shape), x.dtype) for x in inputs]
    whole = folded_copy(dense)
    sizes = {name: x.numel() for name, x in whole.state_dict().items()}
    anchor = table.network_of(sizes, [shape for shape, _ in shapes]).anchors[0].milliseconds
    models, taken, aim = list[nn.Module](), list[float](), Aim(need.ms, anchor)
    with scratch() as folder, CHILD.releasing():
        bench = Bench(backend, table.threads, rounds, folder)
        turns, took, here = list[list[dict[str, Any]]](), anchor, bench.table(None)
        if measure is None:
            table.merged(here)  # refused where it was measured otherwise
            if anchor <= need.ms:
                raise ValueError(f"the dense network takes {anchor:.4g} ms, which meets {need.ms:g} ms as it is")
            with isolated():
                turns.append(bench.lowered([Program(whole, shapes, False)]))
        elif table.backend != here.backend:
            raise ValueError(f"the table was measured for {table.backend!r}, and the programs are for {here.backend!r}")
        else:
            took = _told(measure, export(dense, folder / "dense.pte", backend=backend, example_inputs=inputs))
            if took <= need.ms:
                raise ValueError(f"{took:.4g} ms are told of the dense network, which meets {need.ms:g} ms as it is")
            aim = Aim(need.ms, anchor, anchor / took)
        while len(models) < tries:
            model = make(replace(need, ms=aim.asked))
            if not isinstance(model, nn.Module):
                raise TypeError(f"make must return the pruned model, and returned {model!r:.60}: prune changes its own")
            models.append(model)
            if measure is None:
                with isolated():
                    turns.append(bench.lowered([Program(folded_copy(model), shapes, False)]))
                    beside, *own = (least_of(each) for (each,) in bench.timed(turns, rounds))
                taken = [took * each / beside for each in own]
            else:
                artifact = export(model, folder / f"{len(models)}.pte", backend=backend, example_inputs=inputs)
                taken.append(_told(measure, artifact))
            aim.tell(taken)
            if aim.is_over:
                break
    if (number := aim.chosen) is None:
        raise PruningError(
            f"Latency(ms={need.ms:g}) is not met in {len(taken)} rounds: {min(taken):.4g} ms is the least that was"
            " measured; allow more milliseconds or more tries"
        )
    told = tuple(Round(asked, each, each / took) for asked, each in aim.told)
    return Accepted(models[number], need, told, number)


def _told(measure: Callable[[Path], float], artifact: Artifact) -> float:
    milliseconds = measure(artifact.path)
    check_number(f"what measure tells of {artifact.path.name}, in milliseconds,", milliseconds, above=0)
    return float(milliseconds)
