"""What one channel group loses, as a plain value."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_prune.compaction._entries import Entries, ints, whole_number
from lightning_prune.graph import Scale
from lightning_prune.values import check_number


@dataclass(frozen=True)
class Removal:
    """What one channel group loses.

    Args:
        size: number of its channels before.
        removed: number of channels that go.
        entries: the removed entries of every parameter and buffer: dense name -> axis -> sorted indices.
        is_inexact: whether a normalisation runs over the channels, so that their removal changes what is computed.
        unmasked: dense name -> axes of entries that go without having been zero before.
        scales: dense name of a parameter that is multiplied, so that a mean over fewer channels changes nothing -> how.
    """

    size: int
    removed: int
    entries: Entries
    is_inexact: bool = False
    unmasked: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    scales: Mapping[str, Scale] = field(default_factory=dict)

    @property
    def masked(self) -> Entries:
        """The entries that are zero before they go."""
        left = {
            name: {axis: gone for axis, gone in axes.items() if axis not in self.unmasked.get(name, ())}
            for name, axes in self.entries.items()
        }
        return {name: axes for name, axes in left.items() if axes}

    def under(self, path: str) -> "Removal":
        """Return the same removal for a model that holds this one as its submodule ``path``."""
        entries = {f"{path}.{name}": axes for name, axes in self.entries.items()}
        unmasked = {f"{path}.{name}": axes for name, axes in self.unmasked.items()}
        scales = {f"{path}.{name}": scale for name, scale in self.scales.items()}
        return replace(self, entries=entries, unmasked=unmasked, scales=scales)

    def as_document(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        document = {"size": self.size, "removed": self.removed, "entries": self.entries, "inexact": self.is_inexact}
        if self.unmasked:
            document["unmasked"] = self.unmasked
        if self.scales:
            document["scales"] = {name: [scale.power, scale.offset] for name, scale in self.scales.items()}
        return document

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Removal":
        """Read what :meth:`as_document` returned, by way of JSON or not.

        Without "inexact" it is exact, without "unmasked" all of it is masked, without "scales" nothing is multiplied.

        Raises:
            KeyError, TypeError, AttributeError, ValueError: it is something else.
        """
        size, removed = whole_number(document["size"]), whole_number(document["removed"])
        if removed >= size:
            raise ValueError(f"{removed} of {size} channels are removed")
        entries = {
            name: {int(axis): tuple(map(whole_number, indices)) for axis, indices in axes.items()}
            for name, axes in document["entries"].items()
        }
        unmasked = {str(name): ints(axes) for name, axes in document.get("unmasked", {}).items()}
        scales = {}
        for name, (power, offset) in document.get("scales", {}).items():
            check_number("power", power)
            check_number("offset", offset)
            scales[str(name)] = Scale(float(power), float(offset))
        return cls(size, removed, entries, bool(document.get("inexact", False)), unmasked, scales)
