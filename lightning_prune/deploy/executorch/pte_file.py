"""A .pte as ExecuTorch's own schema reads it: the program's tables, and the segments that follow them.

As ExecuTorch 1.4.1 has it, which reads and writes a whole program at once and in no public place:
https://github.com/pytorch/executorch/blob/v1.4.1/exir/_serialize/_program.py#L741
"""

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

SCALAR_TYPES: Mapping[int, str] = {
    **{0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64"},
    **{11: "bool", 15: "bfloat16", 27: "uint16", 28: "uint32", 29: "uint64"},
}
"""Element types by their number in a program (exir/scalar_type.py)."""
_IDENTIFIER = b"ET12"
_ALIGNMENT = 4096  # of segments, as ExecutorchBackendConfig has it, so that they can be mapped page by page
_PAYLOAD_ALIGNMENT = 16  # of delegates inside the tables, as ExecutorchBackendConfig has it


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
    def segments(self) -> list[memoryview]:
        """The segments in order: views, of which many take no more than the file.

        Raises:
            RefusedError: one lies outside of the file, or two overlap.
        """
        cut, places = [], []
        for number, segment in enumerate(self.program.segments or ()):
            start = self.base + segment.offset
            end = start + segment.size
            if end > len(self.data):
                short = end - len(self.data)
                raise RefusedError(f"it is cut off (segment {number} ends {short:,} bytes after it): copy it again")
            cut.append(memoryview(self.data)[start:end])
            places += [(start, end, number)] if segment.size else []
        places.sort()
        for (_, end, number), (start, _, other) in pairwise(places):
            if start < end:
                raise RefusedError(f"its segments {number} and {other} overlap: it is damaged; export the model again")
        return cut

    def with_program(self, program: Any) -> bytes:  # noqa: ANN401
        """Return the bytes of a .pte with another program, which refers to the same segments, before them."""
        serialize = _module("_program")
        tables = _module("_flatbuffer_program")._program_to_flatbuffer(program, delegate_alignment=_PAYLOAD_ALIGNMENT)
        if not self.base:
            return tables.data
        room = serialize.aligned_size(serialize._ExtendedHeader.EXPECTED_LENGTH, tables.max_alignment)
        size = room + len(tables.data)
        base = serialize.aligned_size(size, _ALIGNMENT)
        segments = self.data[self.base :]
        header = serialize._ExtendedHeader(size, base, len(segments)).to_bytes()
        head = serialize._insert_flatbuffer_header(tables.data, r"ET[0-9a-zA-Z][0-9a-zA-Z]", header.ljust(room, b"\0"))
        return head.ljust(base, b"\0") + segments


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
    header = _module("_program")._get_extended_header(data)
    size, base = len(data), 0
    if header is not None and header.is_valid():
        size, base = header.program_size, header.segment_base_offset
    if size > len(data) or base > len(data):
        raise RefusedError(
            f"it is cut off ({len(data):,} bytes, its header says {max(size, base):,} and more): copy it again"
        )
    return PteFile(data, _module("_flatbuffer_program")._flatbuffer_to_program(data[:size]), base)


def _module(name: str) -> ModuleType:
    without_export_side()
    return importlib.import_module(f"executorch.exir._serialize.{name}")


def without_export_side() -> None:
    """Keep ``executorch.exir``, which loads for seconds, from being imported by those who want one module in it.

    Only for a process that exports nothing: the package stays hollow.
    """
    import executorch

    if "executorch.exir" not in sys.modules:
        hollow = ModuleType("executorch.exir")
        hollow.__path__ = [str(Path(folder, "exir")) for folder in executorch.__path__]
        sys.modules["executorch.exir"] = hollow
