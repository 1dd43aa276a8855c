"""Ctrl-C that ends what it was meant to end."""

import _thread
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_AFTER = 0.05
"""Seconds until a lost interrupt is sent again: where it was lost must have been left, or it is lost once more."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Send an interrupt again that Python dropped inside of the block.

    A ``KeyboardInterrupt`` that comes while a callback of a weak reference or a ``__del__`` runs, as they do
    throughout a trace, is reported as an exception that is ignored, and everything goes on.
    """
    before, lost = sys.unraisablehook, list[threading.Timer]()

    def hook(unraisable: Any) -> None:  # noqa: ANN401
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            before(unraisable)
            return
        # not at once: what this raises would be lost as well
        lost.append(threading.Timer(_AFTER, send))
        lost[-1].start()

    def send() -> None:
        if sys.platform == "win32":
            _thread.interrupt_main()
        else:  # a signal wakes the main thread, too, where that waits
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    sys.unraisablehook = hook
    try:
        yield
        if any(timer.is_alive() for timer in lost):
            for timer in lost:
                timer.cancel()
            raise KeyboardInterrupt
    finally:
        sys.unraisablehook = before
