"""Remove channels: a plan that is a plain value, its application to a model, and the proof that nothing changed."""

from lightning_prune.compaction._removal import Removal
from lightning_prune.compaction.apply import CompactionReport, compact
from lightning_prune.compaction.plan import Compaction, applied_plan, plan_told_by, set_plan
from lightning_prune.compaction.resize import reshape_like
from lightning_prune.compaction.trial import inexact, refused

__all__ = [
    "Compaction",
    "CompactionReport",
    "Removal",
    "applied_plan",
    "compact",
    "inexact",
    "plan_told_by",
    "refused",
    "reshape_like",
    "set_plan",
]
