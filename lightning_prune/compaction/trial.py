"""Which channel groups really shrink: trial removals on copies, halved until the groups at fault are found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from lightning_prune.compaction._equivalence import ANY_FINITE, Inputs, largest_errors
from lightning_prune.compaction.plan import Compaction
from lightning_prune.errors import CompactionError
from lightning_prune.graph import ChannelGroups

Trial = Callable[[Sequence[str]], str]
"""Removes these channel groups from a copy and says what went wrong; "" when nothing did."""


def inexact(
    model: nn.Module, groups: ChannelGroups, names: Sequence[str], inputs: Inputs, tolerance: float = 1e-9
) -> dict[str, str]:
    """Remove half of each named group from a copy and return the groups that cannot go, each with the reason.

    The graph does not show a constant that the code of ``forward`` holds, as in ``x.view(-1, 512)``; a trial does.
    Groups that are inexact by nature only have to run; the others go along with them.

    Args:
        model: dense or masked; copied, not touched.
        groups: its channel groups.
        names: the groups to try, prunable ones.
        inputs: positional and keyword arguments of ``forward``.
        tolerance: see :func:`lightning_prune.compact`.

    Returns:
        group -> what happened when it was removed; empty when all can go.
    """
    keep = {name: range((groups[name].size + 1) // 2) for name in names}
    loose = [name for name in names if groups[name].inexact]

    def trial(some: Sequence[str], others: Sequence[str] = (), allowed: float = tolerance) -> str:
        plan = Compaction.from_keep(groups, {name: keep[name] for name in (*others, *some)})
        return _Trials(model, plan, inputs).failure(list(plan.removals), allowed)

    exact, stay = _largest_part([name for name in names if name not in loose], trial)
    return stay | _largest_part(loose, lambda some: trial(some, exact, ANY_FINITE))[1]


@dataclass(frozen=True)
class Proof:
    """What a plan may do to a model, seen on copies.

    Args:
        cut: the part of the plan that can be cut while all of it is masked.
        stay: the channel groups that are not in it -> why.
        errors: precision -> largest relative error of cutting its exact groups.
        changes: precision -> largest relative change by cutting the inexact ones as well; empty when there are none.
    """

    cut: Compaction
    stay: Mapping[str, str]
    errors: Mapping[str, float]
    changes: Mapping[str, float]


def prove(model: nn.Module, plan: Compaction, inputs: Inputs, tolerance: float) -> Proof:
    """Find the part of a plan that can be cut: its exact groups within the tolerance, then the inexact ones that run.

    Raises:
        CompactionError: no channel group of the plan can be cut, or the masked model itself does not run.
    """
    trials = _Trials(model, plan, inputs)
    loose = [name for name, removal in plan.removals.items() if removal.is_inexact]
    tight = [name for name in plan.removals if name not in loose]
    exact, stay = _largest_part(tight, lambda some: trials.failure(some, tolerance))
    more, refused = _largest_part(loose, lambda some: trials.failure([*exact, *some], ANY_FINITE))
    if not exact and not more and trials.first is not None:
        raise trials.first
    errors = trials.errors(exact, tolerance)
    changes = trials.errors([*exact, *more], ANY_FINITE) if more else {}
    return Proof(plan.only({*exact, *more}), stay | refused, errors, changes)


def refused(
    model: nn.Module, plan: Compaction, inputs: Inputs, tolerance: float = 1e-9
) -> tuple[dict[str, str], dict[str, float]]:
    """Return the channel groups of a plan that cannot be cut, each with the reason, and what inexact ones change.

    The model stays as it is; for the changes see :attr:`CompactionReport.changes`.

    Args:
        model: the model that the plan was made for.
        plan: what is to go.
        inputs: positional and keyword arguments of ``forward``.
        tolerance: see :func:`lightning_prune.compact`.
    """
    try:
        proof = prove(model, plan, inputs, tolerance)
    except CompactionError as error:
        return dict.fromkeys(plan.removals, str(error)), {}
    return dict(proof.stay), dict(proof.changes)


class _Trials:
    """Removals of parts of a plan from copies of a model, all of it masked; what is measured once is known."""

    def __init__(self, model: nn.Module, plan: Compaction, inputs: Inputs) -> None:
        self._model = model
        self._plan = plan
        self._inputs = inputs
        self._known: dict[frozenset[str], dict[str, float]] = {}
        self.first: CompactionError | None = None

    def errors(self, names: Sequence[str], allowed: float) -> dict[str, float]:
        """Cut these groups and return the largest relative error in each precision; raises CompactionError."""
        key = frozenset(names)
        if key not in self._known:
            self._known[key] = largest_errors(self._model, self._plan, self._inputs, allowed, self._plan.only(key))
        return self._known[key]

    def failure(self, names: Sequence[str], allowed: float) -> str:
        """Cut these groups and say what went wrong; "" when nothing did."""
        try:
            self.errors(names, allowed)
        except CompactionError as error:
            self.first = self.first or error
            return str(error)
        return ""


def _largest_part(names: Sequence[str], trial: Trial) -> tuple[list[str], dict[str, str]]:
    """Return the names that pass together, and the others with the reason."""
    left, stay = list(names), dict[str, str]()
    while left and (faulty := at_fault(left, trial)):
        stay |= faulty
        left = [name for name in left if name not in stay]
    return left, stay


def at_fault(names: Sequence[str], trial: Trial) -> dict[str, str]:
    """Return the names that fail, each with the reason; k of n cost about k log n trials.

    Halves that are exact alone and not together fail with each other: then all of them are returned.

    Example:
        >>> at_fault("abcdefgh", lambda some: "has c" if "c" in some else "")
        {'c': 'has c'}
    """
    reason = trial(names)
    if not reason:
        return {}
    if len(names) == 1:
        return {names[0]: reason}
    half = len(names) // 2
    found = at_fault(names[:half], trial) | at_fault(names[half:], trial)
    return found or dict.fromkeys(names, f"only together with others: {reason}")
