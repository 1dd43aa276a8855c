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
_DEFAULT_BACKEND = XNNPACK()


class Aim:
    """What to ask of a prediction next, by what came of what was asked.

    Between a network that was fast enough and one that was too slow the milliseconds are interpolated, or halved where
    what came of it lay on the same side as the one before: kernels step, and so does what networks take. Before there
    are both, they are rescaled.

    Args:
        limit: milliseconds that may be taken.
        dense: predicted milliseconds of the dense network, which a need has to stay below.
        scale: predicted milliseconds for one of those that are taken, as far as is known.
    """

    def __init__(self, limit: float, dense: float, scale: float = 1.0) -> None:
        self.limit, self.asked, self._most = limit, _AIM * limit * scale, 0.99 * dense
        self._told: list[tuple[float, float]] = []

    def tell(self, taken: float) -> None:
        """Take up what the network takes that was asked for, in milliseconds, and aim anew."""
        self._told.append((taken, self.asked))
        short = max((each for each in self._told if each[0] <= self.limit), default=None)
        long = min((each for each in self._told if each[0] > self.limit), default=None)
        target = _AIM * self.limit
        if short is None or long is None or short[1] >= long[1]:
            asked = self.asked * target / taken
        else:
            is_stuck = len({each > self.limit for each, _ in self._told[-2:]}) == 1
            part = 0.5 if is_stuck else max((target - short[0]) / (long[0] - short[0]), 0.0)
            asked = short[1] + part * (long[1] - short[1])
        self.asked = min(asked, self._most)

    def is_close(self, taken: float) -> bool:
        """Say whether a network takes hardly less than it may."""
        return _CLOSE <= taken / self.limit <= 1


@dataclass(frozen=True)
class Round:
    """A network that was measured.

    Args:
        asked: milliseconds that the prediction was to come down to.
        milliseconds: that it takes, in those of the table: its share of the dense network's time beside it, times what
            the dense one took when the table was measured.
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
        return Table(head, rows, note=f"round {self.chosen + 1} is kept")


def accepted(
    make: Callable[[Latency], nn.Module],
    need: Latency,
    dense: nn.Module,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
    *,
    backend: Backend = _DEFAULT_BACKEND,
    tries: int = 3,
    rounds: int = 60,
    measure: Callable[[Path], float] | None = None,
) -> Accepted:
    """Prune to a latency that is measured, not only predicted.

    The need is asked for as the table predicts it. What comes of it is lowered whole and timed in turns with the dense
    network; the need is rescaled by what was measured, interpolated once there are
    networks on both sides, and asked for again, until the network takes between 0.97 and
    1.00 of it. Kept is the one closest below.

    Args:
        make: need -> a network pruned to it, a new one at each call.
        need: what is wished.
        dense: the network before, of which the table has the cells.
        example_inputs: a tensor or a tuple of tensors; None: the model's ``example_input_array``.
        backend: that of the table.
        tries: how many networks are made at most.
        rounds: of turns, in which both are timed.
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
    told, best, aim = list[Round](), list[tuple[int, nn.Module]](), Aim(need.ms, anchor)
    with scratch() as folder, CHILD.releasing():
        bench = Bench(backend, table.threads, rounds, folder)
        beside, took, here = list[dict[str, Any]](), anchor, bench.table(None)
        if measure is None:
            table.merged(here)  # refused where it was measured otherwise
            if anchor <= need.ms:
                raise ValueError(f"the dense network takes {anchor:.4g} ms, which meets {need.ms:g} ms as it is")
            with isolated():
                beside = bench.lowered([Program(whole, shapes, False)])
        elif table.backend != here.backend:
            raise ValueError(f"the table was measured for {table.backend!r}, and the programs are for {here.backend!r}")
        else:
            took = _told(measure, export(dense, folder / "dense.pte", backend=backend, example_inputs=inputs))
            if took <= need.ms:
                raise ValueError(f"{took:.4g} ms are told of the dense network, which meets {need.ms:g} ms as it is")
            aim = Aim(need.ms, anchor, anchor / took)
        for number in range(tries):
            model = make(replace(need, ms=aim.asked))
            if not isinstance(model, nn.Module):
                raise TypeError(f"make must return the pruned model, and returned {model!r:.60}: prune changes its own")
            if measure is None:
                with isolated():
                    own = bench.lowered([Program(folded_copy(model), shapes, False)])
                    (before,), (after,) = bench.timed([beside, own], rounds)
                taken = took * least_of(after) / least_of(before)
            else:
                artifact = export(model, folder / f"{number + 1}.pte", backend=backend, example_inputs=inputs)
                taken = _told(measure, artifact)
            told.append(Round(aim.asked, taken, taken / took))
            if told[-1].milliseconds <= need.ms and (not best or told[-1].milliseconds > told[best[0][0]].milliseconds):
                best = [(number, model)]
            if aim.is_close(told[-1].milliseconds):
                break
            aim.tell(told[-1].milliseconds)
    if not best:
        least = min(each.milliseconds for each in told)
        raise PruningError(
            f"Latency(ms={need.ms:g}) is not met in {len(told)} rounds: {least:.4g} ms is the least that was measured;"
            " allow more milliseconds or more tries"
        )
    number, model = best[0]
    return Accepted(model, need, tuple(told), number)


def _told(measure: Callable[[Path], float], artifact: Artifact) -> float:
    milliseconds = measure(artifact.path)
    check_number(f"what measure tells of {artifact.path.name}, in milliseconds,", milliseconds, above=0)
    return float(milliseconds)
