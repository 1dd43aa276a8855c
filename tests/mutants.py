"""Damaged files: cut off, bits turned over, parts exchanged, emptied, grown, of another format."""

import io
import json
import pickle
import random
import zipfile
from collections.abc import Callable, Iterator

Mutate = Callable[[random.Random, bytes], bytes]


def cut_off(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def one_bit(rng: random.Random, data: bytes) -> bytes:
    return _flipped(rng, data, 1)


def many_bits(rng: random.Random, data: bytes) -> bytes:
    return _flipped(rng, data, rng.randint(2, 64))


def head_bits(rng: random.Random, data: bytes) -> bytes:
    """Turn bits over where sizes and offsets stand."""
    return _flipped(rng, data[:256], rng.randint(1, 8)) + data[256:]


def exchanged(rng: random.Random, data: bytes) -> bytes:
    size = rng.randint(1, len(data) // 4)
    first, second = sorted(rng.sample(range(len(data) - size), 2))
    second = max(second, first + size)
    parts = data[:first], data[first : first + size], data[first + size : second], data[second : second + size]
    return parts[0] + parts[3] + parts[2] + parts[1] + data[second + size :]


def blanked(rng: random.Random, data: bytes) -> bytes:
    start, fill = rng.randrange(len(data)), rng.choice((0, 255))
    size = min(rng.choice((1, 4, 8, 64, 512)), len(data) - start)
    return data[:start] + bytes([fill]) * size + data[start + size :]


def grown(rng: random.Random, data: bytes) -> bytes:
    return data + rng.choice((b"\0", b"\n", b" ", rng.randbytes(rng.randint(1, 4096))))


def inserted(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(rng.randint(1, 16)) + data[at:]


def emptied(rng: random.Random, data: bytes) -> bytes:
    return b""


def noise(rng: random.Random, data: bytes) -> bytes:
    head = data[:8] if rng.random() < 0.5 else b""
    return head + rng.randbytes(rng.randint(1, 4096))


def another_format(rng: random.Random, data: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("model.pte", data)
    known = (b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"\x80\x02}q\0.", b"GGUF", b"\x08\x07\x12\x07pytorch", b"TFL3", b"[]")
    choices = (packed.getvalue(), pickle.dumps({"a": [1, 2]}), json.dumps({"format": 1}).encode(), *known)
    return rng.choice(choices)


MUTATIONS: tuple[Mutate, ...] = (
    *(cut_off, one_bit, many_bits, head_bits, exchanged, blanked),
    *(grown, inserted, emptied, noise, another_format),
)


def mutants(data: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield what was done and the damaged bytes, which are always others than the given."""
    rng, found = random.Random(seed), 0
    while found < count:
        mutate = MUTATIONS[found % len(MUTATIONS)]
        changed = mutate(rng, data)
        if changed != data:
            found += 1
            yield f"{mutate.__name__} {found}", changed


def _flipped(rng: random.Random, data: bytes, count: int) -> bytes:
    changed = bytearray(data)
    for _ in range(count):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)
