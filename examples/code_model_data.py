"""The interpreter's own sources as bytes, split by file, and the tokenizer of bytes that runners of text read.

Four spaces are one tab, or most of what a model foretells is indentation.
"""

import json
import sysconfig
import zlib
from pathlib import Path

import torch
from torch import Tensor

from lightning_prune.deploy import RuntimeModel

LENGTH = 128
"""Bytes of a training text, and places of the cache."""
VOCABULARY = 256
PROMPTS = ("\tdef __init__(self, ", "\t\traise ValueError(", "\tfor line in ", "\t\treturn self.", "import ")
"""Beginnings of lines."""


def sources() -> list[Path]:
    """Return the source files of the standard library, tests and installed packages left out, in a fixed order."""
    folder = Path(sysconfig.get_path("stdlib"))
    left_out = {"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__"}
    found = [path for path in folder.rglob("*.py") if not left_out & set(path.relative_to(folder).parts)]
    if len(found) < 16:
        raise FileNotFoundError(f"{folder} has {len(found)} source files, at least 16 are needed")
    return sorted(found, key=lambda path: zlib.crc32(path.relative_to(folder).as_posix().encode()))


def split(most: int, length: int = LENGTH) -> tuple[Tensor, Tensor]:
    """Return texts to train on and to test on (texts, length + 1), of every eighth file.

    Args:
        most: texts to train on; an eighth of that is to test on. They are evenly taken.
        length: bytes that are read; the one after them is only foretold.
    """
    sides = []
    for is_test in (False, True):
        files = [path for index, path in enumerate(sources()) if (index % 8 == 7) == is_test]
        text = b"".join(path.read_bytes().replace(b"    ", b"\t") for path in files)
        data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        count = min(most // 8 if is_test else most, len(data) // (length + 1))
        starts = torch.linspace(0, len(data) - length - 1, count).long()
        sides.append(data[starts.unsqueeze(1) + torch.arange(length + 1)].long())
    return sides[0], sides[1]


def tokens(text: str) -> list[int]:
    """Return the bytes of a text.

    Example:
        >>> tokens("if é")
        [105, 102, 32, 195, 169]
    """
    return list(text.encode())


def write_tokenizer(path: Path) -> Path:
    """Write the tokenizer.json of bytes: each is a token, its own number; no two are ever joined."""
    shown = {byte: chr(byte) for byte in (*range(33, 127), *range(161, 173), *range(174, 256))}
    hidden = (byte for byte in range(256) if byte not in shown)
    shown |= {byte: chr(256 + index) for index, byte in enumerate(hidden)}  # as GPT-2 writes bytes that print nothing
    by_byte = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    end = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    text = {
        "version": "1.0",
        "added_tokens": [{"id": 0, "content": shown[0], **end}],
        "pre_tokenizer": by_byte,
        "decoder": by_byte,
        "model": {"type": "BPE", "vocab": {shown[byte]: byte for byte in range(256)}, "merges": []},
    }
    path.write_text(json.dumps(text), encoding="utf-8")
    return path


def completed(program: RuntimeModel, prompt: str) -> str:
    """Return the likeliest rest of a line, as an app does: the prompt in one call, then byte by byte."""
    program.reset()
    text, here = torch.tensor([tokens(prompt)]), torch.arange(len(tokens(prompt)))
    written = b""
    while not written.endswith(b"\n") and int(here[-1]) < LENGTH - 1:
        text, here = program(text, here)[0].argmax(-1), here[-1:] + 1
        written += bytes(text[0].tolist())
    return written.decode(errors="replace").rstrip("\n")
