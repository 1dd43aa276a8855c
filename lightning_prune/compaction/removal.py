"""What one channel group loses."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lightning_prune.compaction.entries import Entries, ints


@dataclass(frozen=True)
class Removal:
    """What one channel group loses.

    Args:
        size: number of its channels before.
        removed: number of channels that go.
        entries: the removed entries of every parameter and buffer: dense name -> axis -> sorted indices.
        is_inexact: whether a normalisation runs over the channels, so that their removal changes what is computed.
    """

    size: int
    removed: int
    entries: Entries
    is_inexact: bool = False

    def under(self, path: str) -> "Removal":
        """Return the same removal for a model that holds this one as its submodule ``path``."""
        return replace(self, entries={f"{path}.{name}": axes for name, axes in self.entries.items()})

    def as_document(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        return {"size": self.size, "removed": self.removed, "entries": self.entries, "inexact": self.is_inexact}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Removal":
        """Read what :meth:`as_document` returned, by way of JSON or not; without "inexact" it is exact.

        Raises:
            KeyError, TypeError, AttributeError, ValueError: it is something else.
        """
        size, removed = int(document["size"]), int(document["removed"])
        entries = {
            name: {int(axis): ints(indices) for axis, indices in axes.items()}
            for name, axes in document["entries"].items()
        }
        return cls(size, removed, entries, bool(document.get("inexact", False)))
