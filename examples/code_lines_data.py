"""Lines of the interpreter's own standard library, split by file: no line of a file is on both sides."""

import re
import sysconfig
import zlib
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

PACKAGES = ("asyncio", "email", "encodings", "importlib", "multiprocessing", "unittest", "xml")
LENGTH, VOCABULARY = 24, 4096
TOKEN = re.compile(r"\w+|[^\w\s]")


def tokens(line: str) -> list[int]:
    """Return the words and signs of a line as numbers from 1 to 4095, at most 24; 0 is for what comes after the end.

    Example:
        >>> len(tokens("loop = asyncio.get_running_loop()"))
        7
    """
    return [1 + zlib.crc32(token.encode()) % (VOCABULARY - 1) for token in TOKEN.findall(line)[:LENGTH]]


def files(package: str) -> list[Path]:
    """Return the source files of a package of the standard library, tests left out, in a fixed order."""
    folder = Path(sysconfig.get_path("stdlib")) / package
    found = [path for path in folder.rglob("*.py") if not {"test", "tests", "__pycache__"} & set(path.parts)]
    if len(found) < 4:
        raise FileNotFoundError(f"{folder} has {len(found)} source files, at least 4 are needed; name another package")
    return sorted(found, key=lambda path: zlib.crc32(path.relative_to(folder).as_posix().encode()))


def lines(file: Path) -> list[str]:
    """Return the lines of a file that hold at least four words or signs."""
    return [line for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if len(tokens(line)) > 3]


def split(most: int = 2000) -> tuple[TensorDataset, TensorDataset]:
    """Return training and test lines as numbers (lines, 24) with the index of their package.

    Every fourth file of a package is for testing.

    Args:
        most: lines that a package gives to either side at most, evenly taken, so that none outweighs the others.
    """
    sides: tuple[list[tuple[list[int], int]], ...] = ([], [])
    for label, package in enumerate(PACKAGES):
        found: tuple[list[str], ...] = ([], [])
        for index, file in enumerate(files(package)):
            found[index % 4 == 3].extend(lines(file))
        for side, several in zip(sides, found, strict=True):
            side.extend((tokens(line), label) for line in several[:: -(-len(several) // most)])
    return _set(sides[0]), _set(sides[1])


def _set(rows: list[tuple[list[int], int]]) -> TensorDataset:
    padded = [numbers + [0] * (LENGTH - len(numbers)) for numbers, _ in rows]
    labels: Tensor = torch.tensor([label for _, label in rows])
    return TensorDataset(torch.tensor(padded), labels)
