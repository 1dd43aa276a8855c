"""Rewritten graphs: what is traced, how both are compared, and what operators are left."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.deploy.backends import XNNPACK, Vulkan
from lightning_prune.deploy.rewriting import Rewrite, rewritten

FOR_XNNPACK = (*XNNPACK().rewrites(), *XNNPACK().late_rewrites())
FOR_VULKAN = (*Vulkan().rewrites(), *Vulkan().late_rewrites())
IMAGE, TOKENS = (2, 6, 4, 4), (2, 5, 8)


class Call(nn.Module):
    def __init__(self, function: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*self.parts, *inputs)


def traced(model: nn.Module, inputs: tuple[Tensor, ...], shapes: Any = None) -> torch.export.ExportedProgram:
    return torch.export.export(model.eval(), inputs, dynamic_shapes=shapes)


def operators(program: torch.export.ExportedProgram) -> set[str]:
    return {str(n.target).removeprefix("aten.") for n in program.graph.nodes if n.op == "call_function"}


def changed(
    model: nn.Module, inputs: tuple[Tensor, ...], rewrites: tuple[Rewrite, ...] = FOR_XNNPACK, shapes: Any = None
) -> set[str]:
    """Rewrite a model, check that it computes the same before and after torch's own decompositions, and return what
    operators are left."""
    expected = model.eval()(*inputs)
    program = rewritten(traced(model, inputs, None if shapes is None else (shapes,)), rewrites)
    names = [n.name for n in next(n for n in program.graph.nodes if n.op == "output").args[0]]
    assert [spec.arg.name for spec in program.graph_signature.output_specs] == names
    for graph in (program, program.run_decompositions()):
        torch.testing.assert_close(graph.module(check_guards=False)(*inputs), expected, rtol=1e-5, atol=2e-6)
    return operators(program)
