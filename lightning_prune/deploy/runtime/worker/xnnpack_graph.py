"""What stands in a delegate's payload for XNNPACK: its operators, its constants, and what they take of the memory."""

import math
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flatbuffers import number_types
from flatbuffers.table import Table

from lightning_prune.model.workspace import RESIZED, Step, addresses, workspace

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


_UNARY = (
    *("softmax", "sigmoid", "clamp", "floor", "convert", "sqrt", "ceil", "hardswish", "neg", "square", "abs", "rsqrt"),
    *("log", "gelu", "tanh", "exp", "sin", "copy", "cos"),
)
_BINARY = ("add", "div", "minimum", "mul", "sub", "maximum", "prelu")
_IN_PLACE = frozenset({*_UNARY, *_BINARY, "elu", "leaky_relu", "reshape"})
"""Those that may write where they read."""
_CLAMPED_APART = frozenset({"add", "div", "mul", "sub"})
"""Those whose bounds XNNPACK makes an operator of its own of."""
_READS: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("linear", "global_avg_pool2d", *_UNARY), (0,)),
    **dict.fromkeys(("batch_matmul", *_BINARY), (0, 1)),
    **dict.fromkeys(("elu", "leaky_relu"), (1,)),
    **dict.fromkeys(("transpose", "resize_bilinear2d", "reshape"), (2,)),
    **dict.fromkeys(("pad", "slice"), (3,)),
    **dict.fromkeys(("avg_pool2d", "max_pool2d"), (10,)),
    **dict.fromkeys(("conv2d", "depthwise_conv2d"), (15,)),
    "cat": (1, 2, 3, 4, 7),
}
"""Operator -> its fields that name what it reads, constants left out."""
_MAKES = {"linear": 3, "conv2d": 18, "depthwise_conv2d": 18, "cat": 5}
"""Operator -> its field that names what it makes, where that is not the one after the last that it reads."""
_WINDOWS = frozenset({"conv2d", "depthwise_conv2d", "max_pool2d", "avg_pool2d"})
"""Operators with padding, window, stride and dilation as their first ten fields."""


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


def held_bytes(payload: memoryview) -> tuple[int, int] | None:
    """Return the bytes that XNNPACK sets aside for a run, weights left out; None where that is not known.

    These are the block of all tensors inside, which the parts of all programs share, and the addresses by which
    convolutions, poolings and resizings reach what they read, of each part its own.

    Source:
        https://github.com/pytorch/executorch/blob/v1.4.1/backends/xnnpack/runtime/XNNWorkspaceManager.cpp
    """
    graph = _graph(payload)
    if graph is None:
        return None
    shapes, sizes = dict[int, tuple[int, ...]](), dict[int, float]()
    for value in _tables(graph, 2):
        tensor = _table(value, 1)
        if tensor is not None and _number(value, 0, number_types.Uint8Flags) == _QUANTIZED_TENSOR:
            tensor = _table(tensor, 0)
        dtype = None if tensor is None else _DTYPES.get(_number(tensor, 0, number_types.Int16Flags))
        if tensor is None or _field(tensor, 3):  # a constant
            continue
        if dtype is None or dtype == "int4":
            return None
        shape = tuple(tensor.Get(number_types.Uint32Flags, length) for length in _places(tensor, 2))
        shapes[_field(tensor, 6)] = shape
        if not _field(tensor, 5):  # neither an input nor an output
            sizes[_field(tensor, 6)] = np.dtype(dtype).itemsize * math.prod(shape)
    steps, pointers, late = list[Step](), 0, max(shapes, default=0)
    for node in _tables(graph, 1):
        number, operator = _number(node, 0, number_types.Uint8Flags), _table(node, 1)
        kind = _NODES[number] if number < len(_NODES) else ""
        if operator is None or kind not in _READS:
            return None
        fields = _READS[kind]
        reads = tuple(x for x in (_field(operator, field) for field in fields) if x in shapes)
        makes = _field(operator, _MAKES.get(kind, fields[-1] + 1))
        if kind in _WINDOWS:
            height, width, down, across, *dilation = (_field(operator, 4 + place) for place in range(6))
            is_plain = kind == "conv2d" and (height, width, down, across) == (1, 1, 1, 1)
            if not is_plain or any(_field(operator, side) for side in range(4)):  # padding
                window = (height, width), (down, across), dilation
                pointers += addresses(shapes[makes][1:3], *window, in_rows=kind != "conv2d")
        elif kind == "resize_bilinear2d":
            pointers += RESIZED * math.prod(shapes[makes][1:3])
        late += 1
        if kind == "batch_matmul":  # its second factor is packed at each run
            sizes[late] = sizes.get(reads[-1], 0.0)
            reads = (*reads, late)
        is_apart = kind in _CLAMPED_APART and _table(node, 3) is not None
        if is_apart:
            sizes[late] = 4.0 * math.prod(shapes[makes])
            steps.append(Step(reads, late, True))
        steps.append(Step((late,) if is_apart else reads, makes, is_apart or kind in _IN_PLACE))
    return workspace(steps, sizes)[0], pointers


def _graph(payload: memoryview) -> Table | None:
    if payload[_MAGIC] != b"XH00":
        return None
    start, size, _, _ = _HEADER.unpack_from(payload, _HEADER_AT)
    data = payload[start : start + size]
    return Table(data, struct.unpack_from("<I", data)[0])


def _slot(field: int) -> int:
    """Return where a table's own table of offsets has a field; fields count from 0, a union takes two."""
    return 4 + 2 * field


def _field(table: Table, field: int) -> int:
    return _number(table, field, number_types.Uint32Flags)


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
