"""What stands in a delegate's payload for XNNPACK: its operators and its constants."""

import math
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flatbuffers import number_types
from flatbuffers.table import Table

# Fields are counted as in the schema of ExecuTorch 1.4.1, nodes in the order of its XNodeUnion; both are only appended
# to: https://github.com/pytorch/executorch/blob/v1.4.1/backends/xnnpack/serialization/runtime_schema.fbs#L114
_NODES = (
    *("none", "add", "linear", "softmax", "sigmoid", "transpose", "clamp", "conv2d", "div", "resize_bilinear2d"),
    *("pad", "avg_pool2d", "minimum", "depthwise_conv2d", "max_pool2d", "mul", "sub", "floor", "convert"),
    *("global_avg_pool2d", "reshape", "argmax_pool2d", "sqrt", "ceil", "hardswish", "leaky_relu", "maximum", "neg"),
    *("square", "elu", "abs", "prelu", "cat", "cat", "cat", "slice", "attention", "batch_matmul", "cat"),
    *("conv_transpose2d", "rsqrt", "log", "gelu", "tanh", "exp", "sin", "copy", "cos"),
)
_DTYPES = {
    1: "float32",
    2: "float16",
    3: "int8",
    4: "uint8",
    5: "int32",
    6: "int8",
    7: "int32",
    8: "int4",
    10: "int4",
    12: "int32",
}
_QUANTIZED_TENSOR = 2
_MAGIC = slice(4, 8)
# XNNHeader: https://github.com/pytorch/executorch/blob/v1.4.1/backends/xnnpack/serialization/xnnpack_graph_serialize.py#L86
_HEADER = struct.Struct("<IIIQ")
_HEADER_AT = 10
_NO_OFFSET = (1 << 64) - 1


@dataclass(frozen=True)
class StoredConstant:
    """A tensor that a payload stores.

    Args:
        identity: equal for two that are one and the same.
        dtype: of its elements; None where it is packed in another way.
        elements: their number.
        data: its bytes.
    """

    identity: object
    dtype: str | None
    elements: int
    data: memoryview


def operators(payload: memoryview) -> dict[str, int] | None:
    """Return operators by name and count; None for a payload of another layout."""
    graph = _graph(payload)
    if graph is None:
        return None
    kinds = [_number(node, 0, number_types.Uint8Flags) for node in _tables(graph, 1)]
    return dict(Counter(_NODES[kind] if kind < len(_NODES) else f"operator {kind}" for kind in kinds).most_common())


def constants(payload: memoryview, named: Mapping[str, memoryview]) -> list[StoredConstant]:
    """Return the constants of a payload, those included that stand outside of it by name; empty for another layout."""
    graph = _graph(payload)
    if graph is None:
        return []
    _, _, base, _ = _HEADER.unpack_from(payload, _HEADER_AT)
    stored = _tables(graph, 8)
    read = []
    for value in _tables(graph, 2):
        tensor = _table(value, 1)
        if tensor is not None and _number(value, 0, number_types.Uint8Flags) == _QUANTIZED_TENSOR:
            tensor = _table(tensor, 0)
        index = 0 if tensor is None else _number(tensor, 3, number_types.Uint32Flags)
        if tensor is None or not 0 < index < len(stored):
            continue
        place = stored[index]
        offset, size = (_number(place, field, number_types.Uint64Flags) for field in (0, 1))
        dtype = _DTYPES.get(_number(tensor, 0, number_types.Int16Flags))
        elements = math.prod(tensor.Get(number_types.Uint32Flags, length) for length in _places(tensor, 2))
        if at := place.Offset(_slot(2)):
            key = place.String(place.Pos + at).decode("utf-8", errors="replace")
            read.append(StoredConstant(key, dtype, elements, named.get(key, memoryview(b""))[:size]))
        else:
            start = base + (0 if offset == _NO_OFFSET else offset)
            read.append(StoredConstant((hash(payload), start), dtype, elements, payload[start : start + size]))
    return read


def _graph(payload: memoryview) -> Table | None:
    if payload[_MAGIC] != b"XH00":
        return None
    start, size, _, _ = _HEADER.unpack_from(payload, _HEADER_AT)
    data = payload[start : start + size]
    return Table(data, struct.unpack_from("<I", data)[0])


def _slot(field: int) -> int:
    """Return where a table's own table of offsets has a field; fields count from 0, a union takes two."""
    return 4 + 2 * field


def _number(table: Table, field: int, kind: Any) -> int:  # noqa: ANN401
    return table.GetSlot(_slot(field), 0, kind)


def _table(table: Table, field: int) -> Table | None:
    at = table.Offset(_slot(field))
    return Table(table.Bytes, table.Indirect(table.Pos + at)) if at else None


def _tables(table: Table, field: int) -> list[Table]:
    return [Table(table.Bytes, table.Indirect(place)) for place in _places(table, field)]


def _places(table: Table, field: int) -> list[int]:
    """Return where the entries of a vector lie, of four bytes each."""
    if not (at := table.Offset(_slot(field))):
        return []
    first, end = table.Vector(at), table.Vector(at) + 4 * table.VectorLen(at)
    if end > len(table.Bytes):  # a damaged length would fill the memory with places
        raise ValueError(f"a vector ends at {end}, beyond the {len(table.Bytes)} bytes that there are")
    return list(range(first, end, 4))
