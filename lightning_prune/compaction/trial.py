"""Which channel groups really shrink: trial removals on copies, halved until the groups at fault are found."""

from collections.abc import Callable, Sequence

from torch import nn

from lightning_prune.compaction.equivalence import Inputs, largest_errors
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

    Args:
        model: dense or masked; copied, not touched.
        groups: its channel groups.
        names: the groups to try, prunable ones.
        inputs: positional and keyword arguments of ``forward``.
        tolerance: see :func:`lightning_prune.compact`.

    Returns:
        group -> what happened when it was removed; empty when all can go.
    """
    if not names:
        return {}
    keep = {name: range((groups[name].size + 1) // 2) for name in names}

    def trial(some: Sequence[str]) -> str:
        plan = Compaction.from_keep(groups, {name: keep[name] for name in some})
        return _failure(model, plan, plan, inputs, tolerance)

    return at_fault(names, trial)


def exact_part(
    model: nn.Module, plan: Compaction, inputs: Inputs, tolerance: float
) -> tuple[Compaction, dict[str, str], dict[str, float]]:
    """Return the part of a plan that can be cut while all of it is masked, what stays and why, and the errors.

    Raises:
        CompactionError: no channel group of the plan can be cut exactly, or the masked model itself does not run.
    """
    try:
        return plan, {}, largest_errors(model, plan, inputs, tolerance)
    except CompactionError as error:
        first = error
    stay: dict[str, str] = {}
    left = list(plan.removals)

    def trial(some: Sequence[str]) -> str:
        return _failure(model, plan, plan.only(some), inputs, tolerance)

    while len(left) > 1 and (faulty := at_fault(left, trial)):
        stay |= faulty
        left = [name for name in left if name not in stay]
    if not left or not stay:
        raise first
    cut = plan.only(left)
    return cut, stay, largest_errors(model, plan, inputs, tolerance, cut)


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


def _failure(model: nn.Module, plan: Compaction, cut: Compaction, inputs: Inputs, tolerance: float) -> str:
    try:
        largest_errors(model, plan, inputs, tolerance, cut)
    except CompactionError as error:
        return str(error)
    return ""
