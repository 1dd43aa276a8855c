"""The loop of the worker: a request in, a reply out, until the caller closes its end."""

import os
import sys
from collections.abc import Callable, Mapping
from typing import IO, Any

import torch

from lightning_prune.deploy.runtime.wire import receive, send
from lightning_prune.deploy.runtime.worker.contents import contents
from lightning_prune.deploy.runtime.worker.doubling import write_doubled
from lightning_prune.deploy.runtime.worker.programs import Programs
from lightning_prune.deploy.runtime.worker.pte_file import RefusedError

Task = Callable[..., object]


def serve() -> None:
    """Answer requests ``{"task", "arguments"}`` with ``{"value"}`` or ``{"error"}`` from standard input to output."""
    requests, replies = _own_streams()
    _limit_resources()
    torch.set_num_threads(1)
    programs = Programs()
    tasks: dict[str, Task] = {
        "contents": contents,
        "write_doubled": write_doubled,
        "run": programs.run,
        "turn": programs.turn,
        "forget": programs.forget,
    }
    while (request := receive(requests)) is not None:
        send(replies, _answer(tasks, request))
    os._exit(0)  # nothing is left to be put in order, and ending torch takes long


def _own_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Take standard input and output for messages; what C++ prints to them goes to stderr."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, replies


def _limit_resources() -> None:
    """Let a damaged size fail as an allocation instead of taking the machine's memory, and leave no core files."""
    if sys.platform == "win32":
        return
    import resource

    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit, wanted in ((resource.RLIMIT_DATA, physical), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(limit)[1]
        resource.setrlimit(limit, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _answer(tasks: Mapping[str, Task], request: Mapping[str, Any]) -> dict[str, object]:
    try:
        return {"value": tasks[request["task"]](**request["arguments"])}
    except RefusedError as error:
        return {"error": str(error)}
    except FileNotFoundError as error:
        return {"error": f"{error.filename} is not there any more: put it back, or name the place where it is now"}
    except PermissionError as error:
        return {"error": f"{error.filename} cannot be read ({error.strerror}): allow reading it"}
    except Exception as error:  # a damaged file may raise anything
        return {"error": f"it is damaged ({type(error).__name__}: {error}): copy it again, or export the model again"}
