"""What a program takes of the memory while XNNPACK runs it in float32, as a function of the widths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lightning_prune.graph.activations import Activations
from lightning_prune.model.workspace import workspace
from lightning_prune.selection.budget import NetworkCost, Terms, smallest_share
from lightning_prune.selection.channels import ChannelUnits

_BYTES = 4
"""Of a float32."""
_RESOLUTION = 1 / 64
"""Of the share of all channels that may go, where the order of the tensors is looked up."""


@dataclass(frozen=True)
class MemoryCost:
    """The largest number of bytes that a program holds at one time.

    While it runs these are weights as the kernels want them, inputs and outputs, the workspace of all that lies
    between, and addresses. While it loads they are the weights twice, as they are stored and as the kernels want them;
    those of a file that is mapped, not read, do not count: the system takes them back where it needs the memory.

    Args:
        activations: what the network holds while it runs.
        weights: bytes of its parameters.
        units: the channels that may go.
        is_mapped: whether the file is mapped.
    """

    activations: Activations
    weights: NetworkCost
    units: ChannelUnits
    is_mapped: bool = True

    @property
    def total(self) -> float:
        """Of the dense network."""
        return self.left(dict.fromkeys(self.units.sizes, 0))

    def left(self, removed: Mapping[str, float]) -> float:
        """Return the bytes when so many channels of each group are gone."""
        held, _ = self._held(self._sizes(removed))
        weights = self.weights.left(removed)
        return weights + (held if self.is_mapped else max(held, weights))

    def terms(self, widths: Mapping[str, Sequence[int]], limit: float) -> tuple[float, Terms]:
        """Return the bytes as a constant and a sum of terms of one or two channel groups.

        XNNPACK lays tensors one above the other in the order of their sizes. The sum holds for the order that there is
        where the same share of all channels goes, as much as comes down to the limit; elsewhere :meth:`left` tells.
        """
        most = {name: self.units.sizes[name] - min(own) for name, own in widths.items()}

        def gone(share: float) -> dict[str, float]:
            return {name: share * count for name, count in most.items()}

        try:
            near = gone(smallest_share(lambda share: self.left(gone(share)), limit, _RESOLUTION))
        except ValueError:  # it cannot be met, as the caller will see
            near = gone(1.0)
        constant, terms = self.weights.terms(widths, limit)
        held, tensors = self._held(self._sizes(near))
        if not self.is_mapped and self.weights.left(near) > held:
            return 2 * constant, [(names, 2 * table) for names, table in terms]
        per_channel = dict.fromkeys(widths, 0.0)
        for maker, count in (item for tensor in tensors for item in self.activations.elements[tensor].items()):
            constant += _BYTES * count
            for group, share in self._shares.get(maker, ()):
                per_channel[group] += _BYTES * count * share
        removed = {name: self.units.sizes[name] - np.array(own, float) for name, own in widths.items()}
        terms += [((name,), -each * removed[name]) for name, each in per_channel.items()]
        return constant + self.activations.pointers, terms

    def holders(self, removed: Mapping[str, float]) -> dict[str, float]:
        """Return what takes most when so many channels are gone -> its bytes, largest first."""
        sizes, each = self._sizes(removed), self.weights.holders(removed)
        for tensor in self._held(sizes)[1]:
            name = self.activations.names[tensor]
            each[name] = each.get(name, 0.0) + sizes[tensor]
        each["addresses of what convolutions and poolings read"] = float(self.activations.pointers)
        return dict(sorted(each.items(), key=lambda item: -item[1]))

    @cached_property
    def _shares(self) -> dict[str, list[tuple[str, float]]]:
        """Weight -> channel groups among its outputs, and the share of them that one channel has."""
        return {
            name: [(group, share) for group, axis, share in parts if axis == 0]
            for name, parts in self.units.shares.items()
        }

    def _sizes(self, removed: Mapping[str, float]) -> dict[int, float]:
        """Return tensor -> its bytes."""
        left = {name: 1 - sum(share * removed[group] for group, share in parts) for name, parts in self._shares.items()}
        return {
            tensor: sum(_BYTES * count * left.get(maker, 1.0) for maker, count in own.items())
            for tensor, own in self.activations.elements.items()
        }

    def _held(self, sizes: Mapping[int, float]) -> tuple[float, tuple[int, ...]]:
        """Return the bytes besides weights while it runs, and the tensors among them."""
        borders = self.activations.borders
        within = {tensor: size for tensor, size in sizes.items() if tensor not in borders}
        between, stack = workspace(self.activations.steps, within)
        return between + self.activations.pointers + sum(sizes[x] for x in borders), (*stack, *borders)
