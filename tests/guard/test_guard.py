"""The guard's score-keeping: every sequence of validations, against an oracle that thinks in another way."""

import io
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_prune.errors import CheckpointError, PruningError
from lightning_prune.guard import Guard, Verdict, Watch
from lightning_prune.guard.guard import monitored

GOOD, BAD, NAN = 0.9, 0.5, math.nan


def guard(**options: Any) -> Guard:
    return Guard(**({"monitor": "val_acc", "mode": "max", "max_drop": 0.01, "baseline": 0.9} | options))


def run(watch: Watch, verdicts: str, asked: float = 0.8) -> list[float]:
    """Play events and their validations: "g" good, "b" bad, "n" NaN; the sparsity that stands after each event."""
    kept, stood = 0.0, []
    for number, sign in enumerate(verdicts):
        if watch.trial is None:
            after = watch.permit({0: asked}, {0: kept})
            if not after:
                stood.append(kept)
                continue
            watch.begin(number, {0: kept}, after)
        assert watch.permit({0: asked}, {0: kept}) == {}
        trial = watch.trial
        verdict = watch.judge({"g": GOOD, "b": BAD, "n": NAN}[sign])
        if verdict is Verdict.COMMIT:
            kept = trial.after[0]  # type: ignore[union-attr]
        stood.append(kept)
    return stood


@pytest.mark.parametrize("patience", [1, 2, 3])
@pytest.mark.parametrize("retries", [0, 1, 3])
@pytest.mark.parametrize("on_fail", ["halve", "stop"])
def test_every_sequence_of_validations(patience: int, retries: int, on_fail: Any) -> None:
    for verdicts in itertools.product("gb", repeat=9):
        watch = Watch(guard(patience=patience, retries=retries, on_fail=on_fail, min_step=0.06))
        stood = run(watch, "".join(verdicts))
        # the oracle: cut the sequence into trials by hand
        kept, limit, in_a_row, bad, stopped = 0.0, 1.0, 0, 0, False
        for sign, found in zip(verdicts, stood, strict=True):
            if stopped or kept >= 0.8 - 1e-6:
                assert found == pytest.approx(kept, abs=1e-6)
                continue
            step = min(0.8 - kept, limit)
            bad = bad + 1 if sign == "b" else 0
            if sign == "g":
                kept, in_a_row = kept + step, 0
            elif bad == patience:
                bad, in_a_row, limit = 0, in_a_row + 1, step / 2
                stopped = on_fail == "stop" or in_a_row > retries or limit < 0.06 - 1e-9
            assert found == pytest.approx(kept, abs=1e-9)
        assert watch.is_stopped == stopped
        left_open = watch.trial is not None
        assert watch.end() is (Verdict.ROLL_BACK if left_open else Verdict.WAIT)
        assert watch.trial is None


@given(st.lists(st.sampled_from("gbn"), max_size=60), st.floats(0.02, 0.99), st.integers(1, 3), st.integers(0, 5))
def test_rollbacks_are_bounded_and_what_was_kept_never_falls(
    verdicts: list[str], asked: float, patience: int, retries: int
) -> None:
    watch = Watch(guard(patience=patience, retries=retries, min_step=0.02))
    stood = run(watch, "".join(verdicts), asked)
    assert stood == sorted(stood)
    assert all(kept <= asked for kept in stood)
    rollbacks = [trial for trial in watch.history if trial.outcome is Verdict.ROLL_BACK]
    steps = [trial.steps[0] for trial in rollbacks]
    assert all(b <= a / 2 + 1e-9 for a, b in itertools.pairwise(steps))
    assert len(rollbacks) <= math.log2(asked / 0.02) + 2
    assert watch.limits == ({0: pytest.approx(steps[-1] / 2)} if steps else {})


@given(st.lists(st.sampled_from("gbn"), max_size=20), st.integers(0, 20))
def test_resume_anywhere_goes_on_alike(verdicts: list[str], cut: int) -> None:
    whole, first = Watch(guard(retries=2)), Watch(guard(retries=2))
    expected = run(whole, "".join(verdicts))
    kept = [0.0, *run(first, "".join(verdicts[:cut]))][-1]
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second = Watch(guard(retries=2))
    second.load_state_dict(torch.load(buffer, weights_only=True))
    assert repr(second.state_dict()) == repr(first.state_dict())  # NaN is not equal to itself
    for sign in verdicts[cut:]:
        if second.trial is None:
            after = second.permit({0: 0.8}, {0: kept})
            if not after:
                continue
            second.begin(0, {0: kept}, after)
        trial = second.trial
        if second.judge({"g": GOOD, "b": BAD, "n": NAN}[sign]) is Verdict.COMMIT:
            kept = trial.after[0]  # type: ignore[union-attr]
    assert kept == [0.0, *expected][-1]
    assert (second.limits, second.stopped) == (whole.limits, whole.stopped)


def test_several_recipes_have_limits_of_their_own() -> None:
    watch = Watch(guard(patience=1, retries=0), recipes=2)
    watch.begin(1, {0: 0.0, 1: 0.1}, watch.permit({0: 0.4}, {0: 0.0}))
    assert watch.judge(GOOD) is Verdict.COMMIT
    assert watch.permit({0: 0.4, 1: 0.5}, {0: 0.4, 1: 0.1}) == {1: 0.5}
    watch.begin(2, {0: 0.4, 1: 0.1}, {1: 0.5})
    assert watch.judge(BAD) is Verdict.ROLL_BACK
    assert watch.permit({0: 0.9, 1: 0.5}, {0: 0.4, 1: 0.1}) == {0: 0.9}
    assert not watch.is_stopped
    watch.begin(3, {0: 0.4}, {0: 0.9})
    assert watch.judge(BAD) is Verdict.ROLL_BACK
    assert watch.is_stopped
    assert "asked 0.90, kept 0.4125" in watch.summary([0.9, 0.5], [0.4, 0.1], reached=[0.4125, 0.1])
    assert watch.summary([0.9, 0.5], [0.4, 0.1]) == (
        "recipe 0 asked 0.90, kept 0.40: val_acc fell to 0.5, 0.4 below the baseline 0.9, allowed 0.01;"
        " recipe 1 asked 0.50, kept 0.10: val_acc fell to 0.5, 0.4 below the baseline 0.9, allowed 0.01"
    )


class TestBaseline:
    def test_is_the_last_finite_value_before_the_first_event(self) -> None:
        watch = Watch(guard(baseline=None, patience=1))
        assert watch.needs_baseline
        assert watch.permit({0: 0.5}, {0: 0.0}) == {}
        for value in (0.7, 0.8, math.nan, math.inf):
            assert watch.judge(value) is Verdict.WAIT
        assert watch.baseline == 0.8
        watch.begin(1, {0: 0.0}, {0: 0.5})
        assert watch.judge(0.5) is Verdict.ROLL_BACK
        watch.judge(0.95)
        assert watch.baseline == 0.8

    def test_given_stays(self) -> None:
        watch = Watch(guard(baseline=0.5))
        watch.judge(0.9)
        assert (watch.baseline, watch.needs_baseline) == (0.5, False)
        saved = Watch(guard(baseline=None))
        saved.judge(0.7)
        watch.load_state_dict(saved.state_dict())
        assert watch.baseline == 0.5

    def test_missing_is_an_error(self) -> None:
        watch = Watch(guard(baseline=None))
        watch.judge(math.nan)
        with pytest.raises(PruningError, match=r"no validation of the dense model gave a finite val_acc .+baseline=…"):
            watch.check_baseline()
        with pytest.raises(PruningError, match="gave a finite val_acc"):
            watch.begin(1, {0: 0.0}, {0: 0.5})


def test_two_events_at_once_are_refused() -> None:
    watch = Watch(guard())
    watch.begin(7, {0: 0.0}, {0: 0.5})
    with pytest.raises(PruningError, match="the event of step 7 is still on trial"):
        watch.begin(8, {0: 0.5}, {0: 0.6})


@pytest.mark.parametrize(
    ("options", "value", "allowed"),
    [
        ({}, 0.89, True),
        ({}, torch.tensor(0.9).sub(0.01).item(), True),
        ({"baseline": 0.892}, 0.882, True),
        ({}, 0.8899, False),
        ({}, 2.0, True),
        ({"max_drop": 0.0}, 0.9, True),
        ({"max_drop": 0.0}, 0.8999, False),
        ({"mode": "min"}, 0.91, True),
        ({"mode": "min"}, 0.92, False),
        ({"mode": "min", "baseline": 0.0, "max_drop": 0.1}, 0.1, True),
        ({}, math.nan, False),
        ({}, math.inf, False),
        ({"mode": "min"}, -math.inf, False),
    ],
)
def test_what_is_allowed(options: dict[str, Any], value: float, allowed: bool) -> None:
    watch = Watch(guard(patience=1, **options))
    watch.begin(1, {0: 0.0}, {0: 0.5})
    assert watch.judge(value) is (Verdict.COMMIT if allowed else Verdict.ROLL_BACK)


class TestWords:
    def test_summaries(self) -> None:
        watch = Watch(guard(patience=1, baseline=0.892))
        assert watch.summary([0.9], [0.0]) == "asked 0.90, kept 0.00: there was no event"
        watch.begin(1, {0: 0.0}, {0: 0.84375})
        watch.judge(0.89)
        assert (
            watch.summary([0.9], [0.84375])
            == "asked 0.90, kept 0.8438: the fit ended before more than 0.8438 was asked for"
        )
        within = "val_acc fell to 0.89, 0.002 below the baseline 0.892, allowed 0.01"
        assert watch.summary([0.84375], [0.84375]) == f"asked 0.8438, kept 0.8438: {within}"
        watch.begin(2, {0: 0.84}, {0: 0.9})
        watch.judge(0.871)
        fell = "val_acc fell to 0.871, 0.021 below the baseline 0.892, allowed 0.01"
        assert watch.summary([0.9], [0.84]) == f"asked 0.90, kept 0.84: {fell}"
        watch.begin(3, {0: 0.84}, {0: 0.87})
        watch.judge(0.9)
        assert watch.history[-1].reason == "val_acc 0.9 is no worse than the baseline 0.892"
        assert watch.summary([0.9], [0.87]) == f"asked 0.90, kept 0.87: {fell}, and the fit ended"

    def test_loss_and_nan(self) -> None:
        watch = Watch(guard(mode="min", patience=1, monitor="val_loss", baseline=0.4, max_drop=0.1))
        watch.begin(1, {0: 0.0}, {0: 0.5})
        watch.judge(0.52)
        assert watch.history[-1].reason == "val_loss rose to 0.52, 0.12 above the baseline 0.4, allowed 0.1"
        watch.begin(2, {0: 0.0}, {0: 0.25})
        watch.judge(math.nan)
        assert watch.summary([0.5], [0.0]) == "asked 0.50, kept 0.00: val_loss was nan, which counts as failed"

    def test_end_on_trial(self) -> None:
        for failures, reason in (
            (0, "the fit ended on trial: no validation came after it"),
            (1, "the fit ended on trial: val_acc fell to 0.5, 0.4 below the baseline 0.9, allowed 0.01"),
        ):
            watch = Watch(guard())
            watch.begin(1, {0: 0.0}, {0: 0.5})
            for _ in range(failures):
                watch.judge(BAD)
            assert watch.end() is Verdict.ROLL_BACK
            assert (watch.history[-1].reason, watch.history[-1].failures) == (reason, failures)
            assert watch.permit({0: 0.5}, {0: 0.0}) == {0: 0.5}


class TestMetric:
    def test_reads_numbers_and_tensors(self) -> None:
        assert monitored("Guard", "val_acc", {"val_acc": torch.tensor(0.5)}) == 0.5
        assert monitored("Guard", "val_acc", {"val_acc": 1}) == 1.0
        assert math.isnan(monitored("Guard", "val_acc", {"val_acc": torch.tensor(math.nan)}))

    def test_unknown_names_the_logged_keys(self) -> None:
        with pytest.raises(PruningError, match=r"no such metric after validation; logged: loss, val_los\. Name one of"):
            monitored("Guard", "val_acc", {"val_los": 1.0, "loss": 2.0})
        with pytest.raises(PruningError, match=r"logged: nothing\..+self\.log\('val_acc', …\)"):
            monitored("Guard", "val_acc", {})


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"monitor": ""}, ValueError, "Guard.monitor is empty"),
        ({"monitor": 3}, TypeError, "Guard.monitor must be the key of a metric"),
        ({"mode": "higher"}, ValueError, "Guard.mode must be one of 'min', 'max', got 'higher'"),
        ({"on_fail": "retry"}, ValueError, "Guard.on_fail must be one of 'halve', 'stop'"),
        ({"snapshot": "gpu"}, ValueError, "Guard.snapshot must be one of 'auto', 'memory', 'disk', got 'gpu'"),
        ({"max_drop": -0.1}, ValueError, "Guard.max_drop must be a number at least 0, got -0.1: it is a drop"),
        ({"max_drop": math.nan}, ValueError, "Guard.max_drop"),
        ({"max_drop": "1%"}, TypeError, "Guard.max_drop must be .+ got '1%'"),
        ({"max_drop": True}, TypeError, "Guard.max_drop"),
        ({"patience": 0}, ValueError, "Guard.patience must be at least 1, got 0"),
        ({"patience": 1.5}, TypeError, "Guard.patience must be an int, a number of validations, got 1.5"),
        ({"retries": -1}, ValueError, "Guard.retries must be at least 0, got -1"),
        ({"retries": False}, TypeError, "Guard.retries"),
        ({"min_step": 0.0}, ValueError, "Guard.min_step must be a number above 0 and below 1, got 0"),
        ({"min_step": 1}, ValueError, "Guard.min_step"),
        (
            {"baseline": math.inf},
            ValueError,
            "Guard.baseline must be a finite number, got inf: it is the metric",
        ),
        ({"baseline": "0.9"}, TypeError, "Guard.baseline"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        guard(**options)


def test_state_of_another_run_is_refused() -> None:
    with pytest.raises(CheckpointError, match="written with 2 recipes, this run has 1; resume with the same recipes"):
        Watch(guard()).load_state_dict(Watch(guard(), 2).state_dict())
