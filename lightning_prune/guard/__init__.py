"""A quality guard: an event is on trial until the metric has judged it, and goes back when quality fell too far.

Numbers and words only: who measures, takes snapshots and rolls back stands elsewhere.
"""

from lightning_prune.guard.guard import Guard
from lightning_prune.guard.watch import Trial, Verdict, Watch

__all__ = ["Guard", "Trial", "Verdict", "Watch"]
