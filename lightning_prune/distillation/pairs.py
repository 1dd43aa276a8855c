"""Which feature maps of student and teacher are compared: the channels that are left of each pruned layer."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from lightning_prune.compaction import Compaction, applied_plan
from lightning_prune.model import masks
from lightning_prune.model.frame import Frame
from lightning_prune.run.removal import removed_since
from lightning_prune.selection import ChannelUnits, Units


@dataclass(frozen=True)
class Pair:
    """A layer whose output is compared in both models.

    Args:
        path: of the layer.
        tensor: dense name of a parameter of it that has an entry for each channel.
        axis: of these entries.
        channels: axis of the channels in the layer's output.
    """

    path: str
    tensor: str
    axis: int
    channels: int

    def as_state(self) -> list[Any]:
        """Return it as plain values, which ``Pair(*values)`` takes."""
        return [self.path, self.tensor, self.axis, self.channels]


def find_pairs(model: nn.Module, units: Iterable[Units]) -> list[Pair]:
    """Return the layers to compare: the last one that makes the channels of each channel group, and pruned weights'.

    Args:
        model: dense, masked or compact.
        units: what each recipe may remove.

    Returns:
        Each layer once, in the order of the channel groups and targets.
    """
    made: dict[str, Pair] = {}
    for one in units:
        if isinstance(one, ChannelUnits):
            for group in one.groups:
                makers = [m for m in group.members if m.role == "output" and m.parameter in one.shapes]
                pairs = (_pair(model, maker.parameter, maker.axis) for maker in reversed(makers))
                if pair := next((pair for pair in pairs if pair is not None), None):
                    made.setdefault(pair.path, pair)
        else:
            for name in one.weights:
                layer = masks.locate(model, name)[0]
                is_turned = isinstance(layer, nn.Embedding) or (isinstance(layer, _ConvNd) and layer.transposed)
                if pair := _pair(model, name, int(is_turned)):
                    made.setdefault(pair.path, pair)
    return list(made.values())


def _pair(model: nn.Module, name: str, axis: int) -> Pair | None:
    """Return the layer of a parameter as a pair; None where the axis of channels in its output is not known."""
    layer = masks.locate(model, name)[0]
    if isinstance(layer, nn.Linear | nn.LayerNorm | nn.RMSNorm | nn.Embedding):
        channels = -1
    elif isinstance(layer, _ConvNd):
        channels = -len(layer.kernel_size) - 1
    elif isinstance(layer, _NormBase | nn.GroupNorm):
        channels = 1
    else:
        return None
    return Pair(name.rpartition(".")[0], name, axis, channels)


class Kept:
    """Which channels of each pair are left in the student: found anew when its masks or its shape have changed.

    Args:
        student: the model that is pruned.
        base: the plan that had shaped the teacher.
        pairs: layers to compare.
    """

    def __init__(self, student: nn.Module, base: Compaction | None, pairs: Iterable[Pair]) -> None:
        self._student, self._base, self._pairs = student, base, tuple(pairs)
        self._masks: dict[str, Tensor] = {}
        self._state: object = None
        self._kept: dict[str, tuple[Tensor | None, Tensor | None]] = {}

    def refresh(self) -> None:
        """Look at the masks and the shape of the student, once before each comparison."""
        self._masks = masks.read(self._student)
        versions = {pair.tensor: self._version(pair.tensor) for pair in self._pairs}
        plan = applied_plan(self._student)
        if (versions, plan) != self._state:
            self._state = (versions, plan)
            since = removed_since(self._student, self._base)
            frame = Frame() if since is None else Frame({name: since.shapes[name] for name in since.keep}, since.keep)
            self._kept = {pair.path: self._indices(pair, frame) for pair in self._pairs}

    def _version(self, name: str) -> tuple[int, int] | None:
        mask = self._masks.get(name)
        return None if mask is None else (id(mask), mask._version)

    def _indices(self, pair: Pair, frame: Frame) -> tuple[Tensor | None, Tensor | None]:
        """Return which channels to look at in the student and in the teacher; None: all."""
        left = frame.keep.get(pair.tensor, {}).get(pair.axis)
        mask = self._masks.get(pair.tensor)
        others = [axis for axis in range(mask.dim()) if axis != pair.axis] if mask is not None else []
        alive = None if mask is None else (mask.any(dim=others) if others else mask).cpu()
        own = None if alive is None or bool(alive.all()) else alive.nonzero().flatten()
        there = None if left is None else torch.tensor(left)
        return own, own if there is None else there if own is None else there[own]

    def channels(self, pair: Pair, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return both feature maps of a pair with the channels that are left.

        Raises:
            ValueError: they have different shapes.
        """
        ours, theirs = self._kept[pair.path]
        student, teacher = _select(student, pair.channels, ours), _select(teacher, pair.channels, theirs)
        if student.shape != teacher.shape:
            raise ValueError(
                f"the features of {pair.path} have shape {tuple(student.shape)} in the pruned model and"
                f" {tuple(teacher.shape)} in the teacher, kept channels alone; set features=0 for such a teacher"
            )
        return student, teacher


def _select(features: Tensor, axis: int, indices: Tensor | None) -> Tensor:
    return features if indices is None else features.index_select(axis, indices.to(features.device))


class Watched:
    """Remembers what the layers of the pairs return, while it is asked to.

    Args:
        model: one that has them.
        pairs: the layers.
    """

    def __init__(self, model: nn.Module, pairs: Iterable[Pair]) -> None:
        self.outputs: dict[str, list[Tensor]] = {}
        self.is_on = False
        modules: Mapping[str, nn.Module] = dict(model.named_modules())
        self._handles = [modules[pair.path].register_forward_hook(partial(self._take, pair.path)) for pair in pairs]

    def begin(self) -> None:
        """Forget what was seen and look from now on."""
        self.outputs, self.is_on = {}, True

    def end(self) -> dict[str, list[Tensor]]:
        """Stop looking; return the outputs of each layer, in the order of its calls."""
        seen, self.outputs, self.is_on = self.outputs, {}, False
        return seen

    def _take(self, path: str, module: nn.Module, inputs: object, output: object) -> None:
        if self.is_on and isinstance(output, Tensor):
            self.outputs.setdefault(path, []).append(output)

    def remove(self) -> None:
        """Take the hooks away again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
