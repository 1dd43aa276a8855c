"""Which channel groups really shrink: trial removals on copies, each of which names the groups at fault."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from lightning_prune.compaction._equivalence import ANY_FINITE, Arguments, Comparison, Mismatch
from lightning_prune.compaction._suspects import Suspects, suspects
from lightning_prune.compaction.plan import Compaction
from lightning_prune.errors import CompactionError
from lightning_prune.graph import ChannelGroups

Trial = Callable[[Sequence[str]], str]
"""Removes these channel groups from a copy and says what went wrong; "" when nothing did."""


def inexact(
    model: nn.Module, groups: ChannelGroups, names: Sequence[str], inputs: Arguments, tolerance: float = 1e-9
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
    plan = Compaction.from_keep(groups, {name: range((groups[name].size + 1) // 2) for name in names})
    try:
        return _Trials(model, plan, inputs).parts(tolerance)[2]
    except CompactionError as error:
        return dict.fromkeys(plan.removals, str(error))


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


def prove(model: nn.Module, plan: Compaction, inputs: Arguments, tolerance: float) -> Proof:
    """Find the part of a plan that can be cut: its exact groups within the tolerance, then the inexact ones that run.

    Raises:
        CompactionError: no channel group of the plan can be cut, or the masked model itself does not run.
    """
    trials = _Trials(model, plan, inputs)
    exact, more, stay = trials.parts(tolerance)
    if not exact and not more and trials.first is not None:
        raise trials.first
    errors = trials.errors(exact, tolerance)
    changes = trials.errors([*exact, *more], ANY_FINITE) if more else {}
    return Proof(plan.only({*exact, *more}), stay, errors, changes)


def refused(
    model: nn.Module, plan: Compaction, inputs: Arguments, tolerance: float = 1e-9
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

    def __init__(self, model: nn.Module, plan: Compaction, inputs: Arguments) -> None:
        self._model = model
        self._plan = plan
        self._comparison = Comparison(model, plan, inputs)
        self._known: dict[frozenset[str], dict[str, float] | CompactionError] = {}
        self.first: CompactionError | None = None

    def parts(self, tolerance: float) -> tuple[list[str], list[str], dict[str, str]]:
        """Return the groups that are cut exactly, the inexact ones that run beside them, and why others stay."""
        loose = [name for name, removal in self._plan.removals.items() if removal.is_inexact]
        exact, stay = self._largest_part([name for name in self._plan.removals if name not in loose], (), tolerance)
        more, refused = self._largest_part(loose, exact, ANY_FINITE)
        return exact, more, stay | refused

    def errors(self, names: Sequence[str], allowed: float) -> dict[str, float]:
        """Cut these groups and return the largest relative error in each precision; raises CompactionError."""
        key = frozenset(names)
        if key not in self._known:
            try:
                self._known[key] = self._comparison.errors(self._plan.only(key), allowed)
            except CompactionError as error:
                if self.first is None:
                    self.first = error
                elif error.__cause__ is not None:
                    error.__cause__.__traceback__ = None  # whose frames would keep every trial's copy
                self._known[key] = error.with_traceback(None)
        known = self._known[key]
        if isinstance(known, CompactionError):
            raise known
        return known

    def _failure(self, names: Sequence[str], allowed: float) -> CompactionError | None:
        try:
            self.errors(names, allowed)
        except CompactionError as error:
            return error
        return None

    def _largest_part(
        self, names: Sequence[str], beside: Sequence[str], allowed: float
    ) -> tuple[list[str], dict[str, str]]:
        """Return the names that pass together, and the others with the reason.

        A failed trial names the groups at fault, and with them those of all modules of the same kind: one trial for
        each kind. What was only expected to fail, or named without need, gets another one at the end.
        """
        left, stay = list(names), dict[str, str]()
        blamed, needless, expected = dict[tuple[str, ...], list[str]](), list[str](), list[str]()

        def trial(some: Sequence[str]) -> str:
            return str(self._failure([*beside, *some], allowed) or "")

        while left and (error := self._failure([*beside, *left], allowed)) is not None:
            place, guess = _place(error), Suspects([], [])
            if place in blamed:  # it fails there without them as well
                needless += blamed[place]
            elif isinstance(error, Mismatch):
                guess = suspects(self._model, error, {name: self._plan.removals[name].entries for name in left})
            others = [name for name in left if name not in guess.named]

            def fails_there(some: Sequence[str], others: list[str] = others, place: object = place) -> str:
                failure = self._failure([*beside, *others, *some], allowed)
                return str(failure) if failure is not None and _place(failure) == place else ""

            found = at_fault(guess.named, fails_there) if guess.named else at_fault(left, trial)
            blamed[place] = list(found)
            expected += guess.alike
            stay |= found | {name: f"as {', '.join(found)}: {error}" for name in guess.alike}
            left = [name for name in left if name not in stay]
        for some in (needless, expected):
            if some and not trial([*left, *some]):
                left += some
        return left, {name: reason for name, reason in stay.items() if name not in left}


def _place(error: CompactionError) -> tuple[str, ...]:
    return (error.path, *error.finished) if isinstance(error, Mismatch) else ()


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
