"""Where XNNPACK puts what a program computes: one block of memory for all tensors that no caller holds.

A tensor's place is sought in the order of the sizes, largest first, beside those that live at the same time; beside a
single one it always lies above it, though there may be room below. So the block is larger than the largest sum of
tensors that live at one time, 3.2 times as large for a ResNet-18 of 224×224 images. As in XNNPACK 1adaa7c, which
ExecuTorch 1.4.1 builds: https://github.com/google/XNNPACK/blob/1adaa7c/src/memory-planner.c
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_ALIGNED = 64
"""Bytes to which sizes are rounded up on x86-64; 16 on Arm."""
_POINTER = 8
"""Bytes of an address."""
RESIZED = 4 * _POINTER + 2 * 4
"""Bytes for each place of a resized image: four addresses, and two weights."""


@dataclass(frozen=True)
class Step:
    """One call of a kernel.

    Args:
        reads: numbers of the tensors that it takes, constants left out.
        makes: number of the tensor that it gives.
        in_place: whether it may write where it reads, as element-wise ones do.
    """

    reads: tuple[int, ...]
    makes: int
    in_place: bool = False


def workspace(steps: Sequence[Step], sizes: Mapping[int, float]) -> tuple[int, tuple[int, ...]]:
    """Return the bytes of the block, and the tensors that lie one above the other up to its end.

    Args:
        steps: in the order in which they run.
        sizes: tensor -> its bytes; those that the caller holds, inputs and outputs of the program, left out.

    Example:
        >>> chain = [Step((0,), 1), Step((1,), 2), Step((2,), 3), Step((3,), 4)]
        >>> workspace(chain, {1: 64, 2: 64, 3: 64})
        (192, (3, 2, 1))
    """
    rounded = {tensor: -(-int(size) // _ALIGNED) * _ALIGNED for tensor, size in sizes.items()}
    uses = Counter(tensor for step in steps for tensor in step.reads)
    first, last, reader = dict[int, int](), dict[int, int](), dict[int, int]()
    for number, step in enumerate(steps):
        for tensor in step.reads:
            reader.setdefault(tensor, number)
        for tensor in (*step.reads, step.makes):
            first.setdefault(tensor, number)
            last[tensor] = number
    within = dict[int, int]()  # a tensor that is written over another -> that one
    for step in steps:
        fitting = (x for x in step.reads if x in rounded and uses[x] == 1 and sizes[x] == sizes.get(step.makes))
        over = next(fitting, None) if step.in_place and uses[step.makes] == 1 else None
        if over is not None:
            within[step.makes] = over = within.get(over, over)
            last[over] = reader[step.makes]
    ends, below = dict[int, int](), dict[int, int | None]()
    for tensor in sorted((x for x in rounded if x not in within and x in first), key=lambda x: (-rounded[x], x)):
        beside = [other for other in ends if first[other] <= last[tensor] and first[tensor] <= last[other]]
        blocks = list[tuple[int, int]]()  # an end of what lies there, and the tensor that ends there
        gaps = list[tuple[int, int]]()
        for other in sorted(beside, key=lambda x: ends[x] - rounded[x]):
            room = ends[other] - rounded[other] - blocks[-1][0] if blocks else 0
            if room >= rounded[tensor] > 0:
                gaps.append((room, blocks[-1][1]))
            if not blocks or ends[other] > blocks[-1][0]:
                blocks.append((ends[other], other))
        under = min(gaps, key=lambda gap: gap[0])[1] if gaps else blocks[-1][1] if blocks else None
        below[tensor] = under
        ends[tensor] = rounded[tensor] + (0 if under is None else ends[under])
    stack, top = list[int](), max(ends, key=lambda x: ends[x], default=None)
    while top is not None:
        stack.append(top)
        top = below[top]
    return max(ends.values(), default=0), tuple(stack)


def addresses(
    made: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], in_rows: bool
) -> int:
    """Return the bytes of addresses by which a convolution or pooling reaches what it reads, whatever the widths.

    Args:
        made: height and width of what it makes.
        kernel: height and width of a window.
        stride: of the windows.
        dilation: of the windows.
        in_rows: whether the windows of a row share the addresses of the places that they share, as in depthwise
            convolutions and poolings.

    Source:
        https://github.com/google/XNNPACK/blob/1adaa7c/src/operators/convolution-nhwc.c#L2624
    """
    if not in_rows:
        return _POINTER * math.prod(kernel) * math.prod(made)
    step = kernel[1] if max(dilation) > 1 else min(stride[1], kernel[1])
    return _POINTER * made[0] * (math.prod(kernel) + (made[1] - 1) * step * kernel[0])
