"""4-bit weights of Linear layers, a scale for each group of inputs, through torchao."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from lightning_prune.deploy.executorch.torchao import in_4_bits
from lightning_prune.deploy.quantization.annotation import attribute
from lightning_prune.deploy.quantization.base import NothingToQuantizeError
from lightning_prune.deploy.quantization.calibrated import Calibrated
from lightning_prune.deploy.quantization.calibration import Samples
from lightning_prune.deploy.quantization.graphs import fused


@dataclass(frozen=True, eq=False, repr=False)
class Int4Groupwise(Calibrated):
    """Weights of Linear layers in 4 bits, with a scale for each row and each ``group_size`` inputs.

    The activations of these layers have 8 bits, with a range found anew for each row at each run. Weights are
    symmetric: zeros stay zeros. Everything else stays in float; so do layers whose input features ``group_size`` does
    not divide.

    Args:
        calibration: samples on which the noise is measured, as in :class:`Int8`; None: the example inputs, and random
            ones of the same shapes.
        skip: as in :class:`Int8`.
        min_sqnr: as in :class:`Int8`.
        min_output_sqnr: as in :class:`Int8`.
        samples: as in :class:`Int8`.
        group_size: inputs that share a scale; a multiple of 32, which is what XNNPACK runs.
    """

    calibration: Iterable[Any] | None = None
    group_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.group_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 32 or size % 32:
            raise ValueError(f"Int4Groupwise.group_size: got {size!r}, must be a multiple of 32, as in group_size=32")

    @property
    def weight_bits(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Four, and the share that each weight has of its group's scale of 16 bits."""
        return 4 + 16 / self.group_size

    def convert(
        self, program: torch.export.ExportedProgram, nodes: frozenset[str], samples: Samples
    ) -> tuple[GraphModule, frozenset[str]]:
        """Return the graph with 4-bit weights at the given nodes that fit, and which these are."""
        graph = fused(program)
        linear = [n for n in graph.graph.nodes if n.target is torch.ops.aten.linear.default]
        weights = {n: weight for n in linear if (weight := _value(graph, n.args[1])) is not None}
        fitting = {n: weight for n, weight in weights.items() if weight.shape[1] % self.group_size == 0}
        if not fitting:
            widths = ", ".join(map(str, sorted({weight.shape[1] for weight in weights.values()})))
            raise NothingToQuantizeError(
                f"Int4Groupwise: no Linear layer has input features that are a multiple of group_size={self.group_size}"
                f" (there are {widths}); use Int8 or Int8Dynamic"
                if widths
                else "Int4Groupwise: the model has no Linear layer; use Int8(calibration=…), which takes convolutions"
            )
        taken = {node: weight for node, weight in fitting.items() if node.name in nodes}
        for node, weight in taken.items():
            bias = _value(graph, (*node.args, None)[2])
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
            in_integers = in_4_bits(weight, best_scales(weight, self.group_size), self.group_size)
            layer.weight = nn.Parameter(in_integers, requires_grad=False)
            if bias is not None:
                layer.bias = nn.Parameter(bias, requires_grad=False)
            name = f"{node.name}_in_4_bits"
            graph.add_submodule(name, layer)
            node.op, node.target, node.args = "call_module", name, node.args[:1]
        graph.graph.eliminate_dead_code()
        graph.recompile()
        return graph, frozenset(node.name for node in taken)


def best_scales(weight: Tensor, group_size: int) -> Tensor:
    """Return the scale of each group that leaves the least squared error among 26, tried from 0.6 to 1.1 of the range.

    The range of a group is its largest absolute value on 7.5 steps. Against the range itself this brings 0.8 dB on
    normal weights and 2 dB where three quarters are zero.

    Args:
        weight: shape (out, in).
        group_size: divides in.

    Returns:
        shape (out, in / group_size), above 0.
    """
    groups = weight.unflatten(1, (-1, group_size))
    full = (groups.abs().amax(2) / 7.5).clamp(min=torch.finfo(weight.dtype).tiny * 2**24)
    best, least = full, torch.full_like(full, torch.inf)
    for share in torch.linspace(0.6, 1.1, 26).tolist():
        scale = full * share
        rounded = (groups / scale[..., None]).round().clamp(-8, 7) * scale[..., None]
        error = (groups - rounded).square().sum(2)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


def _value(graph: GraphModule, node: object) -> Tensor | None:
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    return attribute(graph, str(node.target)).detach()
