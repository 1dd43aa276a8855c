"""A trained model, without a Trainer: pruned in one call, and rotated before."""

from lightning_prune.trained.heads import HeadRotation, RotatedHeads, rotate_heads
from lightning_prune.trained.prune import prune
from lightning_prune.trained.pruned import Pruned
from lightning_prune.trained.rotate import RotatedStream, Rotation, rotate

__all__ = ["HeadRotation", "Pruned", "RotatedHeads", "RotatedStream", "Rotation", "prune", "rotate", "rotate_heads"]
