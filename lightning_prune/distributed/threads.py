"""How many threads work on many small pieces: one."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Let torch compute on so many threads."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let what goes through weights piece by piece run on the calling thread alone; also a decorator.

    A piece fits into a processor's cache, and each operation on it takes microseconds. With all cores, every one of
    thousands of them ends by waiting for the slowest thread, and beside workers that load data that one is not even
    running: an event on 20 million weights took 0.12 s on two quiet cores, 0.8 to 3 s on busy ones, and 0.17 and 0.3 s
    on one thread (torch 2.13).

    Example:
        >>> with one_thread():
        ...     torch.get_num_threads()
        1
    """
    with on_threads(1):
        yield
