"""Distillation: the dense model teaches the pruned one while it trains.

Tensors, names and hooks only: who adds the term to a loss, and when, stands elsewhere.
"""

from lightning_prune.distillation.distillation import Distillation
from lightning_prune.distillation.lessons import Lessons
from lightning_prune.distillation.losses import feature_loss, soft_target_loss
from lightning_prune.distillation.pairs import Pair, find_pairs
from lightning_prune.distillation.teacher import Teacher

__all__ = ["Distillation", "Lessons", "Pair", "Teacher", "feature_loss", "find_pairs", "soft_target_loss"]
