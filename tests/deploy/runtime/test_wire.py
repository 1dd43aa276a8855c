"""What is sent comes as it was, and what is none of ours is refused, whatever it is."""

import json
import os
import pickle
from multiprocessing.connection import Pipe

import pytest
import torch
from torch import Tensor

from lightning_prune.deploy.program.signature import DTYPES
from lightning_prune.deploy.runtime.wire import BrokenMessageError, receive, send

MESSAGE = {"task": "run", "arguments": {"x": ["é", None, {"a": 1.5}, float("inf")], "\ud800": []}}


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_there_and_back(dtype: torch.dtype):
    one, other = Pipe()
    tensors = [torch.arange(6).to(dtype).reshape(2, 3).t(), torch.tensor(1).to(dtype), torch.zeros(0, 3, dtype=dtype)]
    send(one, MESSAGE, tensors)
    send(one, {})
    message, back = receive(other)
    assert message == MESSAGE
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(back, tensors, strict=True))
    assert receive(other) == ({}, [])
    one.close()
    with pytest.raises(EOFError):
        receive(other)


def test_cut_off():
    one, other = Pipe()
    one.send_bytes(json.dumps({"message": {}, "tensors": [["float32", [3]]]}).encode())
    one.close()
    with pytest.raises(EOFError):
        receive(other)


class Hostile:
    """Unpickled, it would leave the folder."""

    def __reduce__(self) -> tuple:
        return os.chdir, ("/",)


@pytest.mark.parametrize(
    "parts",
    [
        [pickle.dumps(Hostile())],
        [b"\xff" * 40],
        [b"[" * 100_000],
        [b"[]"],
        [b'{"message": 3, "tensors": []}'],
        [b'{"message": {}, "tensors": [["object", [3]]]}', b"123"],
        [b'{"message": {}, "tensors": [["uint8", [3]]]}', b"12"],
        [b'{"message": {}, "tensors": [["uint8", [3]]]}', b"1234"],
        [b'{"message": {}, "tensors": [["uint8", [4611686018427387904]]]}'],
        [b'{"message": {}, "tensors": [["uint8", [-1]]]}'],
    ],
)
def test_something_else(parts: list[bytes]):
    one, other = Pipe()
    here = os.getcwd()
    for part in parts:
        one.send_bytes(part)
    with pytest.raises(BrokenMessageError):
        receive(other)
    assert os.getcwd() == here


def test_a_length_that_nothing_has():
    one, other = Pipe()
    os.write(one.fileno(), b"\xff" * 4 + b"\x7f" + b"\xff" * 7)
    one.close()
    with pytest.raises((BrokenMessageError, EOFError, OSError)):
        receive(other)


def test_views_send_their_own_numbers_alone():
    one, other = Pipe()
    large: Tensor = torch.arange(1_000_000)
    send(one, {}, [large[5:7]])  # in a buffer that nobody reads, the whole would not go out
    assert receive(other)[1][0].tolist() == [5, 6]
