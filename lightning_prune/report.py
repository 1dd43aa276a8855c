"""Sparsity, parameters, multiply-accumulates and bytes as values; printing is the caller's."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode

from lightning_prune.masks import dense_names, dense_parameters, masked_places

Inputs = Tensor | Sequence[Any]


@dataclass(frozen=True)
class LayerSummary:
    """One layer that holds parameters of its own.

    Args:
        name: module path.
        kind: class of the module.
        shape: shape of its weight (out, in, *kernel), or of its first parameter.
        parameters: elements of its own parameters.
        zeros: how many of them are zero.
        macs: dense multiply-accumulates of one forward pass of the example input; None when not measured.
        effective_macs: of those, the ones with a weight that is not zero.
        bytes: of its parameters and buffers, mask buffers left out.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    zeros: int
    macs: int | None
    effective_macs: int | None
    bytes: int

    @property
    def sparsity(self) -> float:
        """Share of zeros among the parameters."""
        return self.zeros / self.parameters if self.parameters else 0.0


@dataclass(frozen=True)
class Summary:
    """A model by layers and in all; ``str()`` of it is a table.

    Args:
        layers: one entry per module with parameters of its own, in module order.
        macs: multiply-accumulates of the whole network for one example input; None when there was none.
    """

    layers: tuple[LayerSummary, ...]
    macs: int | None

    @property
    def parameters(self) -> int:
        """Elements of all parameters."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def zeros(self) -> int:
        """Zeros among them."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Share of zeros among all parameters."""
        return self.zeros / self.parameters if self.parameters else 0.0

    @property
    def effective_macs(self) -> int | None:
        """Multiply-accumulates with a weight that is not zero."""
        if self.macs is None:
            return None
        return self.macs - sum((layer.macs or 0) - (layer.effective_macs or 0) for layer in self.layers)

    @property
    def bytes(self) -> int:
        """Size of parameters and buffers in memory."""
        return sum(layer.bytes for layer in self.layers)

    def __str__(self) -> str:
        rows = [("layer", "type", "shape", "parameters", "sparsity", "MACs", "bytes")]
        for layer in self.layers:
            rows.append((layer.name or "(root)", layer.kind, "x".join(map(str, layer.shape)), *_figures(layer)))
        rows.append(("in all", "", "", *_figures(self)))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True)))
            for r in rows
        ]
        rule = "-" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _figures(row: LayerSummary | Summary) -> tuple[str, str, str, str]:
    macs = "-" if row.macs is None else f"{row.macs:,}"
    return f"{row.parameters:,}", f"{row.sparsity:.1%}", macs, f"{row.bytes:,}"


def summarize(model: nn.Module, example_inputs: Inputs | None = None) -> Summary:
    """Return sparsity, parameters, MACs and bytes of a model, per layer and in all.

    Args:
        model: dense, masked or compact; its mode, weights and random state stay as they are.
        example_inputs: input of the forward pass, a tensor or a tuple of positional arguments; None: the model's own
            ``example_input_array``, and without that no MACs.

    Returns:
        a value; ``print`` it for a table.
    """
    inputs = example_of(model) if example_inputs is None else as_tuple(example_inputs)
    macs = None if inputs is None else measure_macs(model, inputs)
    hidden = {id(getattr(m, f"{name}_mask")) for _, m, name, _ in masked_places(model)}
    seen: set[int] = set()
    layers = []
    for path, module in model.named_modules():
        own = [p for p in module._parameters.values() if p is not None and id(p) not in seen]
        buffers = [b for b in module._buffers.values() if b is not None and id(b) not in hidden]
        if own:
            seen.update(map(id, own))
            layers.append(_layer(path, module, own, buffers, macs))
    return Summary(tuple(layers), None if macs is None else macs.total)


def _layer(
    path: str, module: nn.Module, own: list[nn.Parameter], buffers: list[Tensor], macs: "Macs | None"
) -> LayerSummary:
    weight_name = f"{path}.weight" if path else "weight"
    measured = None if macs is None else macs.per_weight.get(weight_name, 0)
    main = max(own, key=lambda p: p.dim())
    zeros = [p.numel() - int(torch.count_nonzero(p.detach())) for p in own]
    density = float(torch.count_nonzero(main.detach())) / max(main.numel(), 1)
    return LayerSummary(
        name=path,
        kind=type(module).__name__,
        shape=tuple(main.shape),
        parameters=sum(p.numel() for p in own),
        zeros=sum(zeros),
        macs=measured,
        effective_macs=None if measured is None else round(measured * density),
        bytes=sum(t.numel() * t.element_size() for t in (*own, *buffers)),
    )


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one forward pass.

    Args:
        total: of the whole network.
        per_weight: dense name of a convolution's or Linear's weight -> those of its layer.
    """

    total: int
    per_weight: Mapping[str, int]


def measure_macs(model: nn.Module, example_inputs: Inputs) -> Macs:
    """Run one forward pass and count multiply-accumulates (half of torch.utils.flop_counter's operations).

    Args:
        model: any module; run in eval mode without gradients, and put back as it was.
        example_inputs: a tensor or a tuple of positional arguments.

    Raises:
        ValueError: the model rejects the example input.
    """
    inputs = on_device_of(model, as_tuple(example_inputs))
    counter = FlopCounterMode(display=False)
    with as_evaluated(model), torch.no_grad(), counter:
        try:
            model(*inputs)
        except Exception as error:
            shapes = ", ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else repr(x) for x in inputs)
            raise ValueError(f"{type(model).__name__} rejects the example input {shapes}: {error}") from error
    counted = {name: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    root = type(model).__name__
    per_weight = {
        (f"{path}.weight" if path else "weight"): counted.get(f"{root}.{path}" if path else root, 0)
        for path, module in model.named_modules()
        if isinstance(module, _ConvNd | nn.Linear)
    }
    return Macs(counted.get("Global", 0), per_weight)


def as_tuple(example_inputs: Inputs) -> tuple[Any, ...]:
    """Return positional arguments as a tuple: a lone tensor becomes one of length 1.

    Raises:
        TypeError: neither a tensor nor a tuple or list of positional arguments.
    """
    if not isinstance(example_inputs, Tensor | tuple | list):
        raise TypeError(f"example inputs are a tensor or a tuple of positional arguments, got {type(example_inputs)}")
    return (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)


def example_of(model: nn.Module) -> tuple[Any, ...] | None:
    """Return the model's ``example_input_array`` (Lightning's convention) as positional arguments, or None."""
    example = getattr(model, "example_input_array", None)
    return None if example is None else as_tuple(example)


def on_device_of(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the inputs on the device of the model's first parameter, floating ones in its dtype."""
    first = next((t for t in dense_names(model).values() if t.is_floating_point()), None)
    if first is None:
        return inputs

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(first.device, first.dtype if value.is_floating_point() else value.dtype)

    return tuple(moved(value) for value in inputs)


@contextmanager
def as_evaluated(model: nn.Module) -> Iterator[nn.Module]:
    """Put a model into eval mode for a while; every module gets its own mode back, and the random state."""
    modes = {module: module.training for module in model.modules()}
    devices = {t.device.index or 0 for t in dense_parameters(model).values() if t.is_cuda}
    with torch.random.fork_rng(devices=sorted(devices)):
        model.eval()
        try:
            yield model
        finally:
            for module, mode in modes.items():
                module.training = mode
