"""What stands in a delegate's payload for XNNPACK: its operators and its constants."""

import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from lightning_prune.deploy.runtime.worker.flatbuffer import Table

# in the order of XNodeUnion in ExecuTorch's backends/xnnpack/serialization/schema.fbs, which is only appended to
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
_HEADER = struct.Struct("<IIIQ")
_HEADER_AT = 10
_NO_OFFSET = (1 << 64) - 1


@dataclass(frozen=True)
class Constant:
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
    data: bytes


def operators(payload: bytes) -> dict[str, int] | None:
    """Return operators by name and count; None for a payload of another layout."""
    graph = _graph(payload)
    if graph is None:
        return None
    kinds = [node.number(0, "<B") for node in graph.tables(1)]
    return dict(Counter(_NODES[kind] if kind < len(_NODES) else f"operator {kind}" for kind in kinds).most_common())


def constants(payload: bytes, named: Mapping[str, bytes]) -> list[Constant]:
    """Return the constants of a payload, those included that stand outside of it by name; empty for another layout."""
    graph = _graph(payload)
    if graph is None:
        return []
    _, _, base, _ = _HEADER.unpack_from(payload, _HEADER_AT)
    stored = graph.tables(8)
    found = []
    for value in graph.tables(2):
        tensor = _tensor(value)
        index = 0 if tensor is None else tensor.number(3, "<I")
        if tensor is not None and 0 < index < len(stored):
            found.append(_constant(tensor, stored[index], payload, base, named))
    return found


def _constant(tensor: Table, place: Table, payload: bytes, base: int, named: Mapping[str, bytes]) -> Constant:
    offset, size, key = place.number(0, "<Q"), place.number(1, "<Q"), place.text(2)
    elements = 1
    for length in tensor.numbers(2, "<I"):
        elements *= length
    if key:
        return Constant(key, _DTYPES.get(tensor.number(0, "<h")), elements, named.get(key, b"")[:size])
    start = base + (0 if offset == _NO_OFFSET else offset)
    identity = (hash(payload), start)
    return Constant(identity, _DTYPES.get(tensor.number(0, "<h")), elements, payload[start : start + size])


def _tensor(value: Table) -> Table | None:
    tensor = value.table(1)
    if tensor is not None and value.number(0, "<B") == _QUANTIZED_TENSOR:
        return tensor.table(0)
    return tensor


def _graph(payload: bytes) -> Table | None:
    if payload[_MAGIC] != b"XH00":
        return None
    start, size, _, _ = _HEADER.unpack_from(payload, _HEADER_AT)
    return Table.root(payload[start : start + size])
