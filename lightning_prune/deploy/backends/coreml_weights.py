"""The weights of a Core ML file as Core ML will read them, and a model that computes with them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_prune.deploy.executorch.coreml import models_in
from lightning_prune.deploy.executorch.quiet import quiet_import, quiet_lowering
from lightning_prune.deploy.executorch.torchao import fold_batch_norms
from lightning_prune.deploy.program.eager import EagerModel, example_tensors, folded_copy, isolated
from lightning_prune.errors import ExportError

_NEAREST = 0.6
"""The largest distance, relative to its norm, between a weight and what compression made of it."""


def stored_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Return the weights in a .pte for Core ML, decompressed, by Core ML's names for them.

    Args:
        path: of a .pte that :func:`~lightning_prune.deploy.export` wrote for ``CoreML``.

    Returns:
        name -> values, in float16 or float32 as the file's precision has it; those of 100 elements or more.

    Raises:
        ExportError: the file holds no Core ML model.
        ImportError: coremltools is not installed.
    """
    with quiet_import():
        import coremltools.optimize.coreml as cto
    found: dict[str, np.ndarray] = {}
    with quiet_lowering():
        for index, model in enumerate(models_in(Path(path))):
            plain: Any = cto.decompress_weights(model)
            metadata = cto.get_weights_metadata(plain, weight_threshold=100)
            found |= {f"{index}.{name}" if index else name: weight.val for name, weight in metadata.items()}
    return found


def decompressed(
    model: nn.Module, path: str | Path, example_inputs: Tensor | Sequence[Tensor] | None = None
) -> nn.Module:
    """Return the model with the weights that its Core ML file holds, to measure what their rounding costs.

    Batch norms are folded into convolutions, as Core ML does. Activations are computed in float32.

    Args:
        model: that was exported; it is not changed.
        path: of its .pte.
        example_inputs: a tensor or a tuple of them; the batch size of what is returned is theirs. None: the model's
            ``example_input_array``.

    Returns:
        a module on the CPU that takes the model's inputs and returns the tuple of its outputs.

    Raises:
        ExportError: the file holds no Core ML model, or the weights are not this model's.
        ImportError: coremltools is not installed.
    """
    stored = stored_weights(path)
    with isolated(), quiet_lowering():
        inputs = example_tensors(model, example_inputs)
        graph = (
            torch.export.export(EagerModel(folded_copy(model)), inputs).module(check_guards=False).requires_grad_(False)
        )
        fold_batch_norms(graph)
    own = [value for value in (*graph.parameters(), *graph.buffers()) if value.numel() >= 100]
    for name, values in stored.items():
        value = torch.from_numpy(values).float()
        fitting = [one for one in own if one.numel() == value.numel() and one.squeeze().shape == value.squeeze().shape]
        distances = [float((value.reshape(one.shape) - one).norm() / (one.norm() + 1e-30)) for one in fitting]
        if not distances or min(distances) > _NEAREST:
            raise ExportError(
                f"{path}: the weight {name} of shape {tuple(value.shape)} is none of this model's; pass the model that"
                " was exported, with the weights that it had"
            )
        target = fitting[distances.index(min(distances))]
        target.copy_(value.reshape(target.shape))
    return graph
