"""The loop of the worker: a request in, a reply out, until the caller closes its end."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from lightning_prune.deploy.executorch.pte_file import RefusedError
from lightning_prune.deploy.runtime.wire import receive, send
from lightning_prune.deploy.runtime.worker.contents import contents
from lightning_prune.deploy.runtime.worker.doubling import write_doubled
from lightning_prune.deploy.runtime.worker.programs import Programs
from lightning_prune.distributed.memory import limited

Task = Callable[..., object]
_MOST_TOLD = 2**22
"""Bytes of a reply; the caller makes Python objects of it, which take many times as much."""


def serve(connection: Connection) -> None:
    """Answer requests ``{"task", "arguments", "released"}`` with ``{"value"}`` or ``{"error"}``.

    Tensors that come with a request are the task's ``inputs``; where it returns tensors, they go with the reply.
    """
    _limit_resources()
    torch.set_num_threads(1)
    programs = Programs()
    tasks: dict[str, Task] = {
        "contents": contents,
        "write_doubled": write_doubled,
        "load": programs.load,
        "run": programs.run,
        "turn": programs.turn,
        "rounds": programs.rounds,
        "release": programs.release,
    }
    while True:
        try:
            request, inputs = receive(connection)
        except (EOFError, OSError):
            os._exit(0)  # nothing is left to be put in order, and ending torch takes long
        programs.release(request["released"])
        send(connection, *_answer(tasks, request, inputs))


def _limit_resources() -> None:
    """Let a damaged size fail as an allocation instead of taking the machine's memory, and leave no core files."""
    if sys.platform == "win32":
        return
    import resource

    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit, wanted in ((resource.RLIMIT_DATA, physical), (resource.RLIMIT_CORE, 0)):
        soft, hard = resource.getrlimit(limit)
        # one that the user has set lower stays
        resource.setrlimit(limit, (wanted if soft == resource.RLIM_INFINITY else min(wanted, soft), hard))


def _answer(
    tasks: Mapping[str, Task], request: Mapping[str, Any], inputs: Sequence[Tensor]
) -> tuple[dict[str, object], list[Tensor]]:
    given = {"inputs": inputs} if inputs else {}
    arguments, room = dict(request["arguments"]), request["arguments"].get("room")
    arguments.pop("room", None)
    try:
        with limited(room):
            value = tasks[request["task"]](**arguments, **given)
            told = 0 if isinstance(value, list) else len(json.dumps(value))
        if told > _MOST_TOLD:
            raise RefusedError(f"what it holds takes {told:,} bytes to tell: it is damaged; export the model again")
        tensors = [x for x in value if isinstance(x, Tensor)] if isinstance(value, list) else []
        if tensors and len(tensors) < len(value):  # type: ignore[arg-type]
            raise RefusedError("it gives tensors and other values at once: call it through executorch.runtime")
        return {"value": None if tensors else value}, tensors
    except RefusedError as error:
        return {"error": str(error)}, []
    except MemoryError:
        return {"error": f"it takes more than {room or 0:,} bytes to read: it is damaged; export the model again"}, []
    except FileNotFoundError as error:
        return {"error": f"{error.filename} is not there any more: put it back, or name the place where it is now"}, []
    except PermissionError as error:
        return {"error": f"{error.filename} cannot be read ({error.strerror}): allow reading it"}, []
    except Exception as error:  # a damaged file may raise anything
        if room is not None and "allocate memory" in str(error):  # torch's own words, in a RuntimeError
            return {"error": f"it may take {room:,} bytes beyond the runtime: pass memory= with more"}, []
        told = f"it is damaged ({type(error).__name__}: {error}): copy it again, or export the model again"
        return {"error": told}, []
