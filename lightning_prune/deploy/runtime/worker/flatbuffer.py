"""Tables of a FlatBuffer of any schema, read field by field; whatever lies outside the bytes raises."""

import struct


class Table:
    """One table.

    Args:
        data: bytes of the FlatBuffer.
        position: of the table in it.
    """

    def __init__(self, data: bytes, position: int) -> None:
        self._data, self._position = data, position
        self._vtable = position - self._number("<i", position)
        self._size = self._number("<H", self._vtable)

    @classmethod
    def root(cls, data: bytes) -> "Table":
        """Return the table that the FlatBuffer begins with."""
        return cls(data, struct.unpack_from("<I", data, 0)[0])

    def number(self, field: int, form: str, default: int = 0) -> int:
        """Return a number; ``field`` counts from 0 in the schema's order, a union takes two."""
        at = self._at(field)
        return default if at is None else self._number(form, at)

    def table(self, field: int) -> "Table | None":
        """Return a table that a field refers to."""
        at = self._at(field)
        return None if at is None else Table(self._data, at + self._number("<I", at))

    def text(self, field: int) -> str:
        """Return a string, empty where there is none."""
        return bytes(self._vector(field, 1)).decode("utf-8", errors="replace")

    def numbers(self, field: int, form: str) -> list[int]:
        """Return a vector of numbers."""
        width = struct.calcsize(form)
        return [number for (number,) in struct.iter_unpack(form, self._vector(field, width))]

    def tables(self, field: int) -> "list[Table]":
        """Return a vector of tables."""
        at = self._at(field)
        if at is None:
            return []
        vector = at + self._number("<I", at)
        starts = (vector + 4 + 4 * i for i in range(len(self._vector(field, 4)) // 4))
        return [Table(self._data, start + self._number("<I", start)) for start in starts]

    def _vector(self, field: int, width: int) -> bytes:
        at = self._at(field)
        if at is None:
            return b""
        vector = at + self._number("<I", at)
        end = vector + 4 + width * self._number("<I", vector)
        if end > len(self._data):
            raise ValueError(f"a vector ends at {end}, beyond the {len(self._data)} bytes that there are")
        return self._data[vector + 4 : end]

    def _at(self, field: int) -> int | None:
        slot = 4 + 2 * field
        offset = self._number("<H", self._vtable + slot) if slot < self._size else 0
        return self._position + offset if offset else None

    def _number(self, form: str, position: int) -> int:
        if position < 0:
            raise ValueError(f"an offset points before the beginning, to {position}")
        return struct.unpack_from(form, self._data, position)[0]
