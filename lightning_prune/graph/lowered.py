"""What each operator becomes when ExecuTorch lowers a network of convolutions and Linear layers to XNNPACK in float32.

As in ExecuTorch 1.4.1, whose files ``benchmarks/memory.py`` compares with what is computed here: batch norms are
folded, activations go into the kernel before them, images are turned so that their channels come last, and turned
back. To add an operator, write ``def my_kernel(call, run) -> None`` and enter it in ``KERNELS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import fx, nn

from lightning_prune.graph.activations import Activations, Running
from lightning_prune.graph.rules.families import COPIES, FILLS, RESHAPES, base_name
from lightning_prune.graph.trace import Call, trace
from lightning_prune.model.example import Inputs
from lightning_prune.model.workspace import RESIZED, addresses

_FUSED = frozenset({"conv2d", "linear", "add", "sub", "mul"})
"""What ExecuTorch drops a clamp after; after a sum or product XNNPACK puts it back, as a kernel of its own."""
_CLAMPS = ("relu", "relu6", "hardtanh")
_UNARY = (
    *("sigmoid", "tanh", "gelu", "hardswish", "elu", "leaky_relu", "abs", "neg", "exp", "log", "sqrt", "rsqrt"),
    *("square", "ceil", "floor", "clamp", "softmax"),
)
_BINARY = ("add", "sub", "mul", "div")
_MOST_JOINED = 5
"""Tensors that XNNPACK joins in one call."""


def activations(model: nn.Module, example_inputs: Inputs) -> Activations:
    """Return the tensors that a network holds while XNNPACK runs it.

    Args:
        model: dense or masked; left as it is.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments of its forward.

    Raises:
        ValueError: it has an operator of which this is not known, or other tensors than float32.
        GraphError: torch.export refuses the model or these inputs.
    """
    traced = trace(model, example_inputs)
    run, borders = Running(type(model).__name__, traced.names), set[int]()
    for node in traced.nodes:
        call = traced.calls.get(node)
        # of the placeholders those of trace()'s own arguments; others are weights and constants
        if node.op == "placeholder" and node not in traced.names and node.name.startswith("tensors"):
            borders.add(run.take(node))
        elif call is not None and run.reads(call) and not call.operator.startswith(("_assert", "sym_", "_guard")):
            run.check(call.output, call.place)
            kernel = KERNELS.get(base_name(call.operator))
            if kernel is None or kernel(call, run) is False:
                raise ValueError(
                    f"what {run.model} takes of the memory is not known: {call.place} is none of the operators of"
                    " convolutional and Linear networks that are; use Size() and MACs(), and look at the exported file"
                    " with inspect()"
                )
        elif node.op == "output":
            borders |= {run.turned(run.of[made], False) for made in node.all_input_nodes if made in run.of}
    return run.ended(borders)


def copy(call: Call, run: Running) -> None:
    """Nothing, in eval mode."""
    run.of[call.node] = run.reads(call)[0]


def batch_norm(call: Call, run: Running) -> bool:
    """Nothing after a convolution that has no other reader: it is folded. Of other images a depthwise convolution."""
    (read,) = run.reads(call)
    if run.is_alone(call["input"], ("conv2d",)):
        copy(call, run)
        return True
    if call.output.dim() != 4:
        return False
    run.pointers += addresses(call.output.shape[2:], (1, 1), (1, 1), (1, 1), in_rows=True)
    run.of[call.node] = run.step(call, "conv2d", [run.turned(read, True)], run.elements[read], True, False)
    return True


def convolution(call: Call, run: Running) -> None:
    """One kernel; all but those of single places reach what they read by an address for each place of a window."""
    _, taken, *kernel = _shape(call["weight"])
    stride, is_depthwise = _pair(call["stride"]), taken == 1 and call["groups"] > 1
    if is_depthwise or math.prod((*kernel, *stride)) > 1 or any(call["padding"]):
        run.pointers += addresses(call.output.shape[2:], kernel, stride, _pair(call["dilation"]), is_depthwise)
    elements = run.made_by(call["weight"], call.output.numel())
    run.put(call, [run.turned(run.reads(call)[0], True)], elements, is_last=True)


def linear(call: Call, run: Running) -> None:
    """One kernel."""
    elements = run.made_by(call["weight"], call.output.numel())
    run.put(call, [run.turned(run.reads(call)[0], False)], elements, is_last=False)


def clamp(call: Call, run: Running) -> None:
    """A part of the kernel before it, where nothing else reads that."""
    if run.is_alone(call["self"], _FUSED):
        copy(call, run)
        run.clamp(run.of[call.node], apart=_BINARY)
    else:
        unary(call, run)


def unary(call: Call, run: Running) -> None:
    """One kernel, in place where it can."""
    (read,) = run.reads(call)
    run.put(call, [read], run.elements[read], run.is_last[read], in_place=True)


def prelu(call: Call, run: Running) -> bool:
    """One kernel, in place where it can; of images alone, whose channels come last."""
    read = run.turned(run.reads(call)[0], True)
    run.put(call, [read], run.elements[read], is_last=True, in_place=True)
    return call.output.dim() == 4


def pad(call: Call, run: Running) -> bool:
    """One kernel; of constants, and where nothing is cut off."""
    (read,) = run.reads(call)
    run.put(call, [read], run.scaled(read, call.output.numel()), run.is_last[read])
    return call.get("mode", "constant") == "constant" and min(call["pad"]) >= 0


def silu(call: Call, run: Running) -> None:
    """A sigmoid and a product."""
    (read,) = run.reads(call)
    gate = run.step(call, "sigmoid", [read], run.elements[read], run.is_last[read], True)
    run.put(call, [read, gate], run.elements[read], run.is_last[read], in_place=True)


def hardsigmoid(call: Call, run: Running) -> None:
    """A sum, two clamps and a quotient; a constant is no image, so channels come first."""
    made = run.turned(run.reads(call)[0], False)
    for kind in ("add", "clamp", "clamp", "div"):
        made = run.step(call, kind, [made], run.elements[made], False, True)
    run.of[call.node] = made


def binary(call: Call, run: Running) -> None:
    """One kernel, in place where it can; channels come last where both are images, and one has them there."""
    reads, both = run.reads(call), (call["self"], call["other"])
    are_images = all(isinstance(x, fx.Node) and len(_shape(x)) == 4 for x in both)
    is_last = are_images and any(run.is_last[x] for x in reads)
    largest = max(reads, key=lambda x: sum(run.elements[x].values()))
    elements = run.scaled(largest, call.output.numel())
    run.put(call, [run.turned(x, is_last) for x in reads], elements, is_last, in_place=True)


def pool(call: Call, run: Running) -> None:
    """One kernel, with an address for each place of a window."""
    (read,) = run.reads(call)
    kernel = _pair(call["kernel_size"])
    stride = _pair(call["stride"] or kernel)
    dilation = _pair(call.get("dilation", (1, 1)))
    run.pointers += addresses(call.output.shape[2:], kernel, stride, dilation, in_rows=True)
    run.put(call, [run.turned(read, True)], run.scaled(read, call.output.numel()), is_last=True)


def average(call: Call, run: Running) -> bool:
    """Of whole images one kernel, and a reshape where the axes go."""
    (read,) = run.reads(call)
    dims = [-1, -2] if "dim" not in call.arguments else call["dim"] or ()
    is_flat = "dim" in call.arguments and not call["keepdim"]
    is_known = len(_shape(call["self"])) == 4 and sorted(dim % 4 for dim in dims) == [2, 3]
    elements = run.scaled(read, call.output.numel())
    run.put(call, [run.turned(read, True)], elements, is_last=True)
    if is_flat:
        run.put(call, [run.turned(run.of[call.node], False)], elements, is_last=False, in_place=True)
    return is_known and (is_flat or tuple(call.output.shape[2:]) == (1, 1))


def reshape(call: Call, run: Running) -> None:
    """One kernel, in place where it can; none where the shape stays."""
    (read,) = run.reads(call)
    if tuple(call.output.shape) == _shape(call["self"]):
        copy(call, run)
    else:
        run.put(call, [run.turned(read, False)], run.elements[read], is_last=False, in_place=True)


def transpose(call: Call, run: Running) -> None:
    """One kernel."""
    (read,) = run.reads(call)
    run.put(call, [run.turned(read, False)], run.elements[read], is_last=False)


def join(call: Call, run: Running) -> bool:
    """One kernel, of tensors that are computed."""
    reads, joined = run.reads(call), dict[str, float]()
    for maker, count in (item for read in reads for item in run.elements[read].items()):
        joined[maker] = joined.get(maker, 0.0) + count
    is_last = call.output.dim() == 4 and any(run.is_last[x] for x in reads)
    run.put(call, [run.turned(x, is_last) for x in reads], joined, is_last)
    return len(reads) == len(call["tensors"]) <= _MOST_JOINED


def resize(call: Call, run: Running) -> None:
    """One kernel."""
    (read,) = run.reads(call)
    run.pointers += RESIZED * math.prod(call.output.shape[2:])
    run.put(call, [run.turned(read, True)], run.scaled(read, call.output.numel()), is_last=True)


KERNELS: dict[str, Callable[[Call, Running], bool | None]] = {
    **dict.fromkeys(COPIES - FILLS, copy),
    **dict.fromkeys(_CLAMPS, clamp),
    **dict.fromkeys(_UNARY, unary),
    **dict.fromkeys(_BINARY, binary),
    **dict.fromkeys(RESHAPES, reshape),
    "conv2d": convolution,
    "linear": linear,
    "batch_norm": batch_norm,
    "prelu": prelu,
    "pad": pad,
    "constant_pad_nd": pad,
    "silu": silu,
    "hardsigmoid": hardsigmoid,
    "max_pool2d": pool,
    "avg_pool2d": pool,
    "adaptive_avg_pool2d": average,
    "mean": average,
    "permute": transpose,
    "transpose": transpose,
    "cat": join,
    "concat": join,
    "upsample_bilinear2d": resize,
}
"""ATen name of an operator, without the underscore of in-place forms -> what it becomes; False: that is not known."""


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _pair(sizes: Sequence[int]) -> list[int]:
    return [*sizes, *sizes][:2]
