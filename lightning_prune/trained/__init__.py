"""A trained model, without a Trainer: pruned in one call, and rotated before."""

from lightning_prune.trained.each import Nested, prune_each
from lightning_prune.trained.heads import HeadRotation, RotatedHeads, rotate_heads
from lightning_prune.trained.prune import prune
from lightning_prune.trained.pruned import Pruned
from lightning_prune.trained.rotate import RotatedStream, Rotation, rotate

__all__ = [
    "HeadRotation",
    "Nested",
    "Pruned",
    "RotatedHeads",
    "RotatedStream",
    "Rotation",
    "prune",
    "prune_each",
    "rotate",
    "rotate_heads",
]
