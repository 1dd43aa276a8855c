"""All that training changes, copied left of an event and put back bit for bit when the event is rolled back."""

from lightning_prune.guard.snapshots.parts import Stateful
from lightning_prune.guard.snapshots.snapshot import Snapshot
from lightning_prune.guard.snapshots.storage import available_memory

__all__ = ["Snapshot", "Stateful", "available_memory"]
