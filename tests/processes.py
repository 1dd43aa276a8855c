"""Processes of the tests: ranks that train together, runs to be killed, and what a full disk does to one."""

import multiprocessing
import os
import resource
import socket
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "lightning", "support", "lightning_prune"])


def on_ranks(function: Callable[..., Any], ranks: int, *args: Any, timeout: float = 120) -> list[Any]:
    """Call the function once on each of several ranks, and return what they return, in order.

    Raises:
        AssertionError: a rank raised, died or took too long; the others are killed then.
    """
    port = _free_port()
    pipes, processes = [], []
    for rank in range(ranks):
        receiver, sender = CONTEXT.Pipe(duplex=False)
        processes.append(CONTEXT.Process(target=_rank, args=(sender, function, args, rank, ranks, port), daemon=True))
        processes[-1].start()
        sender.close()
        pipes.append(receiver)
    try:
        results = [_receive(pipe, rank, timeout) for rank, pipe in enumerate(pipes)]
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    failed = [f"rank {rank}: {error}" for rank, (error, _) in enumerate(results) if error]
    assert not failed, "\n".join(failed)
    return [value for _, value in results]


def alone(function: Callable[..., Any], *args: Any, timeout: float = 120) -> int | None:
    """Call the function in a process of its own and return its exit code: 0, or minus the signal that killed it."""
    process = CONTEXT.Process(target=_alone, args=(function, args), daemon=True)
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"{function.__name__} took more than {timeout} s")
    return process.exitcode


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """Let no file grow beyond a size, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _receive(pipe: Any, rank: int, timeout: float) -> tuple[str, Any]:
    if not wait([pipe], timeout):
        return f"no answer within {timeout} s", None
    try:
        return pipe.recv()
    except EOFError:
        return "died", None


def _rank(sender: Any, function: Callable[..., Any], args: tuple[Any, ...], rank: int, ranks: int, port: int) -> None:
    _settle_in()
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(ranks),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
    }
    try:
        sender.send(("", function(*args)))
    except BaseException:
        sender.send((traceback.format_exc(), None))


def _alone(function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    _settle_in()
    function(*args)


def _settle_in() -> None:
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
