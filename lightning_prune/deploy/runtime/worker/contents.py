"""What a .pte holds, as plain values; nothing of it is run."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lightning_prune.deploy.executorch.pte_file import SCALAR_TYPES, PteFile, RefusedError, read
from lightning_prune.deploy.runtime.worker import xnnpack_graph

_XNNPACK = "XnnpackBackend"
_INLINE, _STATIC, _EXTERNAL = 0, 0, 1
_INT4_ZERO = 8


def contents(path: str, constants: bool = True) -> dict[str, object]:
    """Return methods, delegates, operators, planned memory, constants, and whether weights stand outside of a .pte.

    Args:
        path: of the file.
        constants: whether to look into the weights too.

    Raises:
        RefusedError: it is no .pte; anything at all for a damaged one.
    """
    file = read(path)
    segments = file.segments
    methods = [_method(plan, file, segments) for plan in file.program.execution_plan]
    found: dict[str, object] = {"methods": methods, "is_external": _is_external(file, segments)}
    if constants:
        each = list(_constants(file, segments))
        readable = {one.identity: one for one in each if _is_readable(one)}
        packed = {one.identity: one for one in each if not _is_readable(one)}
        delegates = [delegate for plan in file.program.execution_plan for delegate in plan.delegates]
        payloads = [(delegate.id, _payload(delegate, file, segments)) for delegate in delegates]
        size = sum(len(one.data) for one in (readable | packed).values())
        if size > len(file.data):
            raise RefusedError(f"its weights are {size:,} bytes and it has {len(file.data):,}: it is damaged")
        opaque = [data for backend, data in payloads if backend != _XNNPACK or xnnpack_graph.operators(data) is None]
        found["constants"] = {
            "bytes": size,
            "elements": sum(one.elements for one in readable.values()),
            "zeros": sum(_zeros(one) for one in readable.values()),
            "unread_bytes": sum(len(one.data) for one in packed.values()) + sum(map(len, opaque)),
        }
    return found


def _method(plan: Any, file: PteFile, segments: Sequence[memoryview]) -> dict[str, object]:  # noqa: ANN401
    calls = [instruction.instr_args for chain in plan.chains for instruction in chain.instructions]
    kinds: dict[str, list[Any]] = {}
    for call in calls:
        kinds.setdefault(type(call).__name__, []).append(call)
    names = [f"{operator.name}.{operator.overload}".rstrip(".") for operator in plan.operators]
    outside = Counter(names[call.op_index] for call in kinds.get("KernelCall", ()))
    named = {entry.key: segments[entry.segment_index] for entry in file.program.named_data or ()}
    delegated = Counter(call.delegate_index for call in kinds.get("DelegateCall", ()))
    delegates, planned = [], sum(plan.non_const_buffer_sizes[1:])
    memory: int | None = planned
    largest = 0  # block of tensors inside of XNNPACK; its parts run one after the other in the same one
    for index, delegate in enumerate(plan.delegates):
        payload = _payload(delegate, file, segments)
        inside = xnnpack_graph.operators(payload) if delegate.id == _XNNPACK else None
        calls = delegated[index]
        within = xnnpack_graph.held_bytes(payload) if delegate.id == _XNNPACK else None
        packed = {one.identity: len(one.data) for one in xnnpack_graph.constants(payload, named)}
        block, addresses = within or (0, 0)
        memory = None if memory is None or within is None else memory + addresses + sum(packed.values())
        largest = max(largest, block)
        delegates.append({"backend": delegate.id, "calls": calls, "bytes": len(payload), "operators": inside})
    return {
        "name": plan.name,
        "inputs": [_value(plan.values[index].val) for index in plan.inputs],
        "outputs": [_value(plan.values[index].val) for index in plan.outputs],
        "delegates": delegates,
        "outside": dict(outside.most_common()),
        "planned_bytes": planned,
        "memory_bytes": None if memory is None else memory + largest,
    }


def _value(value: Any) -> dict[str, object]:  # noqa: ANN401
    kind = type(value).__name__
    if kind == "Tensor":
        dtype = SCALAR_TYPES.get(int(value.scalar_type), f"scalar type {int(value.scalar_type)}")
        is_dynamic = int(value.shape_dynamism) != _STATIC
        return {"shape": list(value.sizes), "dtype": dtype, "is_dynamic": is_dynamic}
    fields = list(vars(value).values()) if value is not None else []
    return {"kind": kind, "value": fields[0] if fields and isinstance(fields[0], str | int | float | bool) else None}


def _payload(delegate: Any, file: PteFile, segments: Sequence[memoryview]) -> memoryview:  # noqa: ANN401
    index = delegate.processed.index
    if int(delegate.processed.location) == _INLINE:
        return memoryview(file.program.backend_delegate_data[index].data or b"")
    return segments[index]


def _is_external(file: PteFile, segments: Sequence[memoryview]) -> bool:
    """Return whether a tensor or a constant of XNNPACK is named that the file does not hold."""
    named = {entry.key: segments[entry.segment_index] for entry in file.program.named_data or ()}
    for plan in file.program.execution_plan:
        infos = (getattr(value.val, "extra_tensor_info", None) for value in plan.values)
        if any(info is not None and int(info.location) == _EXTERNAL for info in infos):
            return True
        payloads = (_payload(one, file, segments) for one in plan.delegates if one.id == _XNNPACK)
        keys = (one.identity for payload in payloads for one in xnnpack_graph.constants(payload, named))
        if any(isinstance(key, str) and key not in named for key in keys):
            return True
    return False


def _constants(file: PteFile, segments: Sequence[memoryview]) -> Iterator[xnnpack_graph.StoredConstant]:
    named = {entry.key: segments[entry.segment_index] for entry in file.program.named_data or ()}
    place = file.program.constant_segment
    if place is None or not place.offsets:
        buffers = [memoryview(buffer.storage or b"") for buffer in file.program.constant_buffer or ()]
    else:
        segment = segments[place.segment_index]
        ends = [*place.offsets[1:], len(segment)]
        buffers = [segment[start:end] for start, end in zip(place.offsets, ends, strict=True)]
    for plan in file.program.execution_plan:
        for value in plan.values:
            tensor = value.val
            if type(tensor).__name__ != "Tensor" or not tensor.data_buffer_idx or tensor.allocation_info is not None:
                continue
            index, elements = tensor.data_buffer_idx, math.prod(tensor.sizes)
            dtype = SCALAR_TYPES.get(int(tensor.scalar_type))
            data = buffers[index] if index < len(buffers) else memoryview(b"")
            data = data if dtype is None else data[: elements * _width(dtype)]  # what follows is padding
            yield xnnpack_graph.StoredConstant(("buffer", index), dtype, elements, data)
        for delegate in plan.delegates:
            if delegate.id == _XNNPACK:
                yield from xnnpack_graph.constants(_payload(delegate, file, segments), named)


def _width(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def _is_readable(constant: xnnpack_graph.StoredConstant) -> bool:
    if constant.dtype == "int4":
        return 2 * len(constant.data) == constant.elements
    return constant.dtype is not None and len(constant.data) == constant.elements * _width(constant.dtype)


def _zeros(constant: xnnpack_graph.StoredConstant) -> int:
    if constant.dtype == "bfloat16":
        return int(np.count_nonzero(np.frombuffer(constant.data, np.uint16) & 0x7FFF == 0))
    if constant.dtype == "int4":
        pairs = np.frombuffer(constant.data, np.uint8)
        return int(np.count_nonzero(pairs & 15 == _INT4_ZERO) + np.count_nonzero(pairs >> 4 == _INT4_ZERO))
    return constant.elements - int(np.count_nonzero(np.frombuffer(constant.data, constant.dtype)))
