"""What no ExecuTorch kernel computes, refused by name before anything is lowered."""

import torch
from torch.export import ExportedProgram

from lightning_prune.deploy.rewriting.editing import calls, shape_of
from lightning_prune.errors import ExportError

_CONVOLUTIONS = ("conv3d", "conv_transpose3d", "convolution")


def refuse_volumes(program: ExportedProgram) -> int:
    """Change nothing.

    Raises:
        ExportError: a convolution has three spatial dimensions; ExecuTorch's portable kernels, on which whatever a
            backend leaves is run and verified, have at most two.
    """
    for node in calls(program):
        is_convolution = isinstance(node.target, torch._ops.OpOverload) and node.target._opname in _CONVOLUTIONS
        if is_convolution and len(shape_of(node)) == 5:
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            path = (stack[-1][0] if stack else "").removeprefix("model").removeprefix(".") or node.name
            raise ExportError(
                f"{path}: ExecuTorch has no kernel for convolutions of three dimensions: write it as 2D convolutions"
                " over slices, or leave this part outside of the program"
            )
    return 0
