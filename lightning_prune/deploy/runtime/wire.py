"""Messages between this process and the one that runs .pte files: plain values and tensors, length first."""

import io
import struct
from collections.abc import Mapping
from typing import IO, Any

import torch

_HEADER = struct.Struct("!4sQ")
_MARK = b"lpm1"
_CHUNK = 1 << 24


class BrokenMessageError(Exception):
    """What came is no message."""


def send(stream: IO[bytes], message: Mapping[str, Any]) -> None:
    """Write a mapping of tensors, numbers, strings, and lists and dicts of them."""
    buffer = io.BytesIO()
    torch.save(dict(message), buffer)
    stream.write(_HEADER.pack(_MARK, buffer.tell()))
    stream.write(buffer.getbuffer())
    stream.flush()


def receive(stream: IO[bytes]) -> dict[str, Any] | None:
    """Read what :func:`send` wrote; None at the end of the stream.

    Raises:
        BrokenMessageError: it is cut off, or something else.
    """
    head = _read(stream, _HEADER.size)
    if not head:
        return None
    if len(head) < _HEADER.size or not head.startswith(_MARK):
        raise BrokenMessageError(f"{len(head)} bytes that begin no message")
    length = _HEADER.unpack(head)[1]
    body = _read(stream, length)
    if len(body) < length:
        raise BrokenMessageError(f"{len(body)} of {length} bytes")
    try:
        message = torch.load(io.BytesIO(body), weights_only=True)
    except Exception as error:
        raise BrokenMessageError(f"{length} bytes that cannot be read: {error}") from error
    if not isinstance(message, dict):
        raise BrokenMessageError(f"a {type(message).__name__}")
    return message


def _read(stream: IO[bytes], length: int) -> bytes:
    parts: list[bytes] = []
    while length > 0 and (part := stream.read(min(length, _CHUNK))):
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
