"""Keeps score of the events of a run: what may be tried, what a validation decides, how it ended."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any

from lightning_prune.documents import typed
from lightning_prune.errors import CheckpointError, PruningError
from lightning_prune.guard.guard import ROUNDING, Guard


class Verdict(Enum):
    """What a validation means for the event on trial."""

    WAIT = "wait"
    """Nothing to do: no event is on trial, or it may fail once more."""
    COMMIT = "commit"
    """Quality held: drop the snapshot."""
    ROLL_BACK = "roll back"
    """Quality fell: restore the snapshot."""


@dataclass(frozen=True)
class Trial:
    """One event and its outcome.

    Args:
        step: completed optimizer steps at the event.
        before: index of the recipe -> sparsity asked for before the event, of each recipe that pruned.
        after: index of the recipe -> sparsity that the event asked for.
        failures: validations in a row that have failed.
        outcome: how it ended; WAIT while it is on trial.
        value: the metric that decided; None when none did.
        reason: why it ended so, in words.
    """

    step: int
    before: Mapping[int, float]
    after: Mapping[int, float]
    failures: int = 0
    outcome: Verdict = Verdict.WAIT
    value: float | None = None
    reason: str = ""

    @property
    def steps(self) -> dict[int, float]:
        """Index of the recipe -> sparsity that the event adds."""
        return {index: after - self.before[index] for index, after in self.after.items()}


class Watch:
    """Keeps score of the events of one run: what may be tried next, what a validation decides, how it ended.

    Ask :meth:`permit` before an event, tell :meth:`begin` after it, hand every validation's metric to :meth:`judge`
    and carry its verdict out, and call :meth:`end` when the fit ends. Sparsities go by the index of their recipe.

    A failed event lowers the limit on what later events may add, for the rest of the run: what was too much once is
    approached in smaller steps, and because the limit never rises, the rollbacks of a recipe are bounded by the number
    of halvings between its largest step and ``min_step``.

    Args:
        guard: what is allowed.
        recipes: how many recipes the run has.

    Example:
        >>> watch = Watch(Guard("val_acc", "max", max_drop=0.01, patience=1))
        >>> watch.judge(0.9)  # the dense model
        <Verdict.WAIT: 'wait'>
        >>> watch.begin(100, before={0: 0.0}, after=watch.permit({0: 0.5}, now={0: 0.0}))
        >>> watch.judge(0.8)
        <Verdict.ROLL_BACK: 'roll back'>
        >>> watch.permit({0: 0.6}, now={0: 0.0})
        {0: 0.25}
    """

    def __init__(self, guard: Guard, recipes: int = 1) -> None:
        self.guard = guard
        self.baseline = guard.baseline
        self.trial: Trial | None = None
        self.history: list[Trial] = []
        self.limits: dict[int, float] = {}
        self.stopped: set[int] = set()
        self._recipes = recipes
        self._failed: dict[int, int] = {}

    @property
    def needs_baseline(self) -> bool:
        """Whether the dense model has to be validated before the first event."""
        return self.baseline is None

    @property
    def is_stopped(self) -> bool:
        """Whether no recipe may prune any more."""
        return len(self.stopped) == self._recipes

    def check_baseline(self) -> None:
        """Raise PruningError when there is no baseline."""
        if self.baseline is None:
            raise PruningError(
                f"{self._no_baseline()}: look whether the validation loader is empty, mend the metric, or give the"
                " value as Guard(baseline=…)"
            )

    def _no_baseline(self) -> str:
        return f"no validation of the dense model gave a finite {self.guard.monitor} to measure a drop from"

    def permit(self, asked: Mapping[int, float], now: Mapping[int, float]) -> dict[int, float]:
        """Return what the next event may prune to: {} for no event now.

        Args:
            asked: index of the recipe -> sparsity that its schedule asks for at this moment.
            now: index of the recipe -> sparsity of its last event that stands, of the same recipes.
        """
        if self.trial is not None or self.baseline is None:
            return {}
        steps = {i: share - now[i] for i, share in asked.items() if i not in self.stopped}
        limits = {i: self.limits.get(i, 1.0) for i in steps}
        return {
            i: asked[i] if step <= limits[i] + ROUNDING else now[i] + limits[i]
            for i, step in steps.items()
            if step > ROUNDING
        }

    def begin(self, step: int, before: Mapping[int, float], after: Mapping[int, float]) -> None:
        """Put the event that has just taken place on trial.

        Args:
            step: completed optimizer steps.
            before: index of the recipe -> sparsity before it.
            after: index of the recipe -> sparsity that it asked for.

        Raises:
            PruningError: another event is on trial, or there is no baseline.
        """
        self.check_baseline()
        if self.trial is not None:
            raise PruningError(f"the event of step {self.trial.step} is still on trial; judge it before the next")
        self.trial = Trial(step, {index: before[index] for index in after}, dict(after))

    def judge(self, value: float) -> Verdict:
        """Return what a validation's metric means.

        Before the first event it becomes the baseline, unless that was given or the value is not finite.
        """
        trial = self.trial
        if trial is None or self.baseline is None:
            if self.guard.baseline is None and not self.history and math.isfinite(value):
                self.baseline = value
            return Verdict.WAIT
        reason = self.guard.explain(value, self.baseline)
        if self.guard.allows(value, self.baseline):
            self._close(replace(trial, outcome=Verdict.COMMIT, value=value, reason=reason))
            for index in trial.after:
                self._failed.pop(index, None)
            return Verdict.COMMIT
        self.trial = replace(trial, failures=trial.failures + 1, value=value, reason=reason)
        if self.trial.failures < self.guard.patience:
            return Verdict.WAIT
        for index, step in trial.steps.items():
            self.limits[index] = step / 2
            self._failed[index] = self._failed.get(index, 0) + 1
            is_spent = self._failed[index] > self.guard.retries or step / 2 < self.guard.min_step * (1 - ROUNDING)
            if self.guard.on_fail == "stop" or is_spent:
                self.stopped.add(index)
        return self._close(replace(self.trial, outcome=Verdict.ROLL_BACK))

    def end(self) -> Verdict:
        """Return what the end of the fit means: ROLL_BACK for an event that is still on trial, otherwise WAIT."""
        if self.trial is None:
            return Verdict.WAIT
        found = self.trial.reason or "no validation came after it"
        return self._close(replace(self.trial, outcome=Verdict.ROLL_BACK, reason=f"the fit ended on trial: {found}"))

    def _close(self, trial: Trial) -> Verdict:
        self.history.append(trial)
        self.trial = None
        return trial.outcome

    def summary(self, asked: Sequence[float], kept: Sequence[float], reached: Sequence[float] | None = None) -> str:
        """Return the end of the run in words, a sentence per recipe.

        Args:
            asked: final sparsity of each recipe's schedule.
            kept: sparsity that each recipe's last event that stands asked for.
            reached: what that came to in whole units; None: the same.

        Example:
            >>> watch = Watch(Guard("val_acc", "max", max_drop=0.01, patience=1, baseline=0.892))
            >>> watch.begin(9, {0: 0.84}, {0: 0.87})
            >>> _ = watch.judge(0.871)
            >>> watch.summary([0.9], [0.84])
            'asked 0.90, kept 0.84: val_acc fell to 0.871, 0.021 below the baseline 0.892, allowed 0.01'
        """
        sentences = [
            f"asked {_share(a)}, kept {_share(r)}: {self._because(index, a, k)}"
            for index, (a, k, r) in enumerate(zip(asked, kept, kept if reached is None else reached, strict=True))
        ]
        if len(sentences) == 1:
            return sentences[0]
        return "; ".join(f"recipe {index} {sentence}" for index, sentence in enumerate(sentences))

    def _because(self, index: int, asked: float, kept: float) -> str:
        own = [trial for trial in self.history if index in trial.after]
        if not own:
            return self._no_baseline() if self.baseline is None else "there was no event"
        failed = [trial.reason for trial in own if trial.outcome is Verdict.ROLL_BACK]
        if kept >= asked or not failed:
            return own[-1].reason if kept >= asked else f"the fit ended before more than {_share(kept)} was asked for"
        return failed[-1] + (", and the fit ended" if own[-1].outcome is Verdict.COMMIT else "")

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "recipes": self._recipes,
            "metric": [self.guard.monitor, self.guard.mode],
            "baseline": self.baseline,
            "trial": None if self.trial is None else _plain(self.trial),
            "history": [_plain(trial) for trial in self.history],
            "limits": dict(self.limits),
            "failed": dict(self._failed),
            "stopped": sorted(self.stopped),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` returned; a baseline that the guard gives comes first.

        Raises:
            CheckpointError: the state is of another number of recipes.
            TypeError: it holds values of other types.
        """
        if state["recipes"] != self._recipes:
            raise CheckpointError(
                f"the checkpoint was written with {state['recipes']} recipes, this run has {self._recipes}; resume with"
                " the same recipes"
            )
        if list(state["metric"]) != [self.guard.monitor, self.guard.mode]:
            monitor, mode = state["metric"]
            raise CheckpointError(
                f"the checkpoint's guard judges by {monitor!r} ({mode}), this one by {self.guard.monitor!r}"
                f" ({self.guard.mode}), and a baseline of one says nothing of the other; resume with"
                f" Guard(monitor={monitor!r}, mode={mode!r}, …)"
            )
        baseline = typed(float | None, state["baseline"])
        self.baseline = baseline if self.guard.baseline is None else self.guard.baseline
        self.trial = typed(Trial | None, state["trial"])
        self.history = list(typed(tuple[Trial, ...], state["history"]))
        self.limits = typed(Mapping[int, float], state["limits"])
        self._failed = typed(Mapping[int, int], state["failed"])
        self.stopped = set(typed(tuple[int, ...], state["stopped"]))


def _plain(trial: Trial) -> dict[str, Any]:
    return asdict(trial) | {"outcome": trial.outcome.value}


def _share(sparsity: float) -> str:
    """Return a sparsity with two to four decimals."""
    text = f"{sparsity:.4f}"
    return text[:-2] + text[-2:].rstrip("0")
