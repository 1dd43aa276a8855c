"""Variants of a model as programs of a backend: what they weigh and, where it runs here, how long they take."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_prune.compaction.finalization import finalize
from lightning_prune.documents import scratch
from lightning_prune.model.masks import fold
from lightning_prune.model.plain_copy import plain_copy
from lightning_prune.recipe import Recipe
from lightning_prune.run.binding import bind
from lightning_prune.run.pruner import prune_step
from lightning_prune.schedules import OneShot
from lightning_prune.selection.allocation import Uniform
from lightning_prune.selection.granularity import Channel, Element

if TYPE_CHECKING:
    from lightning_prune.deploy import Backend

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class ProgramCost:
    """What one variant costs as a program.

    Args:
        bytes: of the file.
        zipped: bytes of the file in a zip archive.
        ms: median milliseconds of a run in the ExecuTorch runtime on one thread; None where the backend runs elsewhere.
        ratio: median over the rounds of this program's time by the first one's in the same round; None likewise.
    """

    bytes: int
    zipped: int
    ms: float | None
    ratio: float | None


class Empty(nn.Module):
    """Takes what a model takes and computes next to nothing: what is left is the cost of a call."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return a number of the first input."""
        return torch.relu(inputs[0].flatten()[:1].float())


def programs(
    models: Mapping[str, nn.Module], inputs: Tensors, backend: "Backend", rounds: int
) -> dict[str, ProgramCost]:
    """Export models, each verified, and measure them in turns.

    Args:
        models: name -> model; ratios refer to the first.
        inputs: that all take.
        backend: where they will run.
        rounds: of the measurement.

    Raises:
        ImportError: ExecuTorch is not installed.
        ExportError: a model cannot be exported.
    """
    from lightning_prune.deploy import benchmark, export

    with scratch() as folder:
        paths = {name: folder / f"{index}.pte" for index, name in enumerate(models)}
        files = {n: export(m, paths[n], example_inputs=inputs, backend=backend) for n, m in models.items()}
        if not backend.runs_here:
            return {name: ProgramCost(file.size_bytes, file.zipped_bytes, None, None) for name, file in files.items()}
        times = benchmark(paths, inputs, rounds=rounds)
        return {
            name: ProgramCost(file.size_bytes, file.zipped_bytes, times[name].median_ms, times[name].ratio)
            for name, file in files.items()
        }


def narrower(model: nn.Module, share: float | None, inputs: Tensors) -> nn.Module:
    """Return a copy that has lost this share of its channels, the same of each channel group, the weakest first.

    Args:
        model: dense or masked.
        share: in (0, 1); None: all but the last channel of each group.
        inputs: positional arguments of its forward.

    Raises:
        ValueError: no channel can go, or not so many.
    """
    copied = fold(plain_copy(model))
    pruner = bind(_uniform(0.01 if share is None else share, Channel(min_share=0)), copied, inputs)
    most = sum(pruner.units.most_removable().values()) / sum(pruner.units.sizes.values())
    pruner.attach(copied)
    prune_step(pruner, copied, most if share is None else min(share, most))
    return finalize(copied, inputs)


def sparser(model: nn.Module, share: float) -> nn.Module:
    """Return a copy with this share of its weights at zero."""
    copied = fold(plain_copy(model))
    pruner = bind(_uniform(share, Element()), copied, None)
    pruner.attach(copied)
    prune_step(pruner, copied, share)
    return fold(copied)


def _uniform(share: float, granularity: Element | Channel) -> Recipe:
    return Recipe(granularity=granularity, allocation=Uniform(), schedule=OneShot(share))
