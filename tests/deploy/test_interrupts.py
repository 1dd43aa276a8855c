import importlib.util
import signal
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_prune.deploy import export
from lightning_prune.deploy.interrupts import interruptible


@pytest.fixture(autouse=True)
def python_handles_interrupts() -> Iterator[None]:
    """A shell starts what runs in its background with interrupts ignored, and the tests with it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Thing:
    """Has weak references."""


def interrupt_in_a_callback() -> None:
    """Be interrupted where Python drops it."""

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    thing = Thing()
    reference = weakref.ref(thing, interrupted)
    del thing
    assert reference() is None


def test_an_interrupt_that_python_drops_comes_again():
    def work() -> None:
        with interruptible():
            interrupt_in_a_callback()
            time.sleep(20)

    started = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        work()
    assert time.perf_counter() - started < 15


def test_also_where_the_block_ends_at_once():
    with pytest.raises(KeyboardInterrupt), interruptible():
        interrupt_in_a_callback()
    time.sleep(0.2)  # and not a second time


def test_other_exceptions_that_are_ignored_go_where_they_went(monkeypatch: pytest.MonkeyPatch):
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: seen.append(unraisable.exc_type))

    def fails(_: object) -> None:
        raise ValueError

    with interruptible():
        thing = Thing()
        reference = weakref.ref(thing, fails)
        del thing
    assert (reference(), seen) == (None, [ValueError])


@pytest.mark.skipif(importlib.util.find_spec("executorch") is None, reason="needs the extra 'mobile' (executorch)")
def test_it_ends_an_export_and_leaves_no_file(tmp_path: Path):
    class Interrupted(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            interrupt_in_a_callback()
            time.sleep(20)
            return super().forward(input)

    started = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        export(Interrupted(3, 2), tmp_path / "m.pte", example_inputs=torch.zeros(1, 3))
    assert time.perf_counter() - started < 15
    assert list(tmp_path.iterdir()) == []
