"""Messages between this process and the one that runs .pte files: plain values as JSON, then the bytes of each tensor.

``multiprocessing.connection`` frames them. Its own ``send`` and ``recv`` pickle, and are not used: what a hostile .pte
makes of the other process may answer anything, and unpickling would run it here. JSON and numbers run nothing.
"""

import json
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from lightning_prune.deploy.program.signature import DTYPES, dtype_name


class BrokenMessageError(Exception):
    """What came is no message."""


def send(connection: Connection, message: Mapping[str, Any], tensors: Sequence[Tensor] = ()) -> None:
    """Send a mapping of plain values, and tensors on the CPU."""
    heads = [[dtype_name(x.dtype), list(x.shape)] for x in tensors]
    connection.send_bytes(json.dumps({"message": message, "tensors": heads}).encode())
    for x in tensors:
        connection.send_bytes(_bytes(x.contiguous()))


def receive(connection: Connection) -> tuple[dict[str, Any], list[Tensor]]:
    """Return what :func:`send` was given.

    Raises:
        EOFError: the other end is closed.
        OSError: as the connection raises it.
        BrokenMessageError: something else came.
    """
    try:
        parsed = json.loads(connection.recv_bytes())
        tensors = [torch.empty(shape, dtype=DTYPES[name]) for name, shape in parsed["tensors"]]
        for x in tensors:
            if connection.recv_bytes_into(_bytes(x)) != x.nbytes:
                raise BrokenMessageError(f"fewer bytes than {x.nbytes} for {tuple(x.shape)} {x.dtype}")
        return dict(parsed["message"]), tensors
    except (EOFError, OSError):
        raise
    except Exception as error:  # whatever JSON, torch and the connection say of what they cannot take
        raise BrokenMessageError(f"{type(error).__name__}: {error}") from error


def _bytes(tensor: Tensor) -> Any:  # noqa: ANN401
    """Return the memory of a contiguous tensor; as bytes already in torch, since NumPy has no bfloat16."""
    return tensor.reshape(-1).view(torch.uint8).numpy()
