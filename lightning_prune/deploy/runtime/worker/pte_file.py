"""A .pte as ExecuTorch's own schema reads it: the program's tables, and the segments that follow them."""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

_IDENTIFIER = b"ET12"


class RefusedError(Exception):
    """What is wrong with a file, in words for the user."""


@dataclass(frozen=True)
class PteFile:
    """The parts of a .pte.

    Args:
        data: all of its bytes.
        program: ``executorch.exir.schema.Program``.
        base: where the first segment begins; 0: there is none.
    """

    data: bytes
    program: Any
    base: int

    @property
    def segments(self) -> list[bytes]:
        """The segments in order.

        Raises:
            RefusedError: one lies outside of the file.
        """
        found = []
        for number, segment in enumerate(self.program.segments or ()):
            start = self.base + segment.offset
            if start + segment.size > len(self.data):
                short = start + segment.size - len(self.data)
                raise RefusedError(f"it is cut off (segment {number} ends {short:,} bytes after it): copy it again")
            found.append(self.data[start : start + segment.size])
        return found


def read(path: str) -> PteFile:
    """Read a .pte; nothing of it is run.

    Raises:
        RefusedError: it is none, or cut off; anything at all for a damaged one.
    """
    data = Path(path).read_bytes()
    if data[4:8] != _IDENTIFIER:
        raise RefusedError(
            f"it does not begin like a .pte ({data[:8]!r}, without {_IDENTIFIER!r}): name a file that export wrote"
        )
    header = module("_program")._get_extended_header(data)
    size, base = len(data), 0
    if header is not None and header.is_valid():
        size, base = header.program_size, header.segment_base_offset
    if size > len(data) or base > len(data):
        raise RefusedError(
            f"it is cut off ({len(data):,} bytes, its header says {max(size, base):,} and more): copy it again"
        )
    return PteFile(data, module("_flatbuffer_program")._flatbuffer_to_program(data[:size]), base)


def module(name: str) -> ModuleType:
    """Import a module of ExecuTorch's serialisation without the rest of its export side."""
    import importlib

    without_export_side()
    return importlib.import_module(f"executorch.exir._serialize.{name}")


def without_export_side() -> None:
    """Keep ``executorch.exir``, which loads for seconds, from being imported by those who want one module in it."""
    import executorch

    if "executorch.exir" not in sys.modules:
        hollow = ModuleType("executorch.exir")
        hollow.__path__ = [str(Path(folder, "exir")) for folder in executorch.__path__]
        sys.modules["executorch.exir"] = hollow
